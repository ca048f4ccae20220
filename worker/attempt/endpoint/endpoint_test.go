package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

func newRuntime(t *testing.T) *Runtime {
	t.Helper()
	r := New(Options{})
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

func spec(url string) attempt.Spec {
	return attempt.Spec{Kind: attempt.HTTP, URL: url, Limits: attempt.Limits{Timeout: 10 * time.Second}}
}

func TestRun(t *testing.T) {
	t.Parallel()
	r := newRuntime(t)
	for _, test := range []struct {
		name    string
		handler http.HandlerFunc
		status  attempt.Status
		reason  attempt.Reason
		code    int
		message string
		result  string
		after   time.Duration
		tail    string
	}{
		{name: "done", handler: answer(200, "warm"), status: attempt.Done, code: 200, result: "warm"},
		{name: "no content", handler: answer(204, ""), status: attempt.Done, code: 204},
		{name: "at the cap", handler: answer(200, strings.Repeat("x", mesh.MaxResult)), status: attempt.Done, code: 200, result: strings.Repeat("x", mesh.MaxResult)},
		{name: "too large", handler: answer(200, strings.Repeat("x", mesh.MaxResult+1)), status: attempt.Failed, reason: attempt.TooLarge, code: 200, message: "result too large"},
		{name: "endless", handler: func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}, status: attempt.Failed, reason: attempt.TooLarge, code: 200, message: "result too large"},
		{name: "timeout of theirs", handler: answer(408, ""), status: attempt.Retry, reason: attempt.HTTPStatus, code: 408, message: "answered 408 Request Timeout"},
		{name: "busy", handler: answer(429, "slow down", "Retry-After", "7"), status: attempt.Retry, reason: attempt.HTTPStatus, code: 429, after: 7 * time.Second, tail: "slow down"},
		{name: "down", handler: answer(503, "", "Retry-After", "soon"), status: attempt.Retry, reason: attempt.HTTPStatus, code: 503},
		{name: "refused", handler: answer(400, strings.Repeat("x", mesh.MaxStderrTail)+"bad city"), status: attempt.Failed, reason: attempt.HTTPStatus, code: 400, message: "answered 400 Bad Request", tail: "bad city"},
		{name: "Retry-After without a retry", handler: answer(403, "", "Retry-After", "7"), status: attempt.Failed, reason: attempt.HTTPStatus, code: 403},
		{name: "redirect", handler: answer(307, "", "Location", "/elsewhere"), status: attempt.Failed, reason: attempt.HTTPStatus, code: 307, message: "redirects are not followed"},
		{name: "cut off", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
		}, status: attempt.Retry, reason: attempt.Unreachable, code: -1, message: "unexpected EOF"},
		{name: "hung up", handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, status: attempt.Retry, reason: attempt.Unreachable, code: -1, message: "EOF"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				calls++
				test.handler(w, q)
			}))
			out := r.Run(t.Context(), spec(server.URL+"/?key=secret"), attempt.Input{TaskID: "t", Attempt: 1})
			server.Close()
			if out.Status != test.status || out.Reason != test.reason || out.ExitCode != test.code || out.RetryAfter != test.after {
				t.Fatalf("got %v, %q, %d, retry after %s (%s), want %v, %q, %d, %s",
					out.Status, out.Reason, out.ExitCode, out.RetryAfter, out.Message, test.status, test.reason, test.code, test.after)
			}
			if string(out.Result) != test.result || (out.Result != nil) != (test.status == attempt.Done) {
				t.Errorf("got a result of %d bytes %.40q, want %d bytes %.40q", len(out.Result), out.Result, len(test.result), test.result)
			}
			if !strings.Contains(out.Message, test.message) || strings.Contains(out.Message, "secret") {
				t.Errorf("got message %q, want it to hold %q and no secret", out.Message, test.message)
			}
			if !strings.HasSuffix(string(out.StderrTail), test.tail) || len(out.StderrTail) > mesh.MaxStderrTail {
				t.Errorf("got a tail of %d bytes %.40q, want it to end in %q", len(out.StderrTail), out.StderrTail, test.tail)
			}
			if calls != 1 {
				t.Errorf("the endpoint was called %d times", calls)
			}
		})
	}
}

func answer(code int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	deadline := time.Now().Add(5 * time.Second).Round(0)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		_, _ = fmt.Fprintf(w, "%s %s %s\n", q.Method, q.URL, body)
		for _, h := range []string{"Isobar-Task-Id", "Isobar-Attempt", "Isobar-Deadline", "traceparent", "Content-Type", "Accept-Encoding"} {
			_, _ = fmt.Fprintln(w, h, q.Header.Get(h))
		}
	}))
	defer server.Close()
	out := newRuntime(t).Run(t.Context(), spec(server.URL+"/f?x=1"), attempt.Input{
		TaskID: "task-1", Attempt: 7, Deadline: deadline, Traceparent: "00-a-b-01", ContentType: "text/plain", Payload: []byte("hi"),
	})
	want := "POST /f?x=1 hi\nIsobar-Task-Id task-1\nIsobar-Attempt 7\nIsobar-Deadline " + deadline.UTC().Format(time.RFC3339Nano) +
		"\ntraceparent 00-a-b-01\nContent-Type text/plain\nAccept-Encoding \n"
	if string(out.Result) != want {
		t.Errorf("got\n%s%s\nwant\n%s", out.Result, out.Message, want)
	}
}

// TestKilled: an endpoint that does not answer holds no attempt beyond its time.
func TestKilled(t *testing.T) {
	t.Parallel()
	r := newRuntime(t)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		<-q.Context().Done()
	}))
	defer server.Close()
	s := spec(server.URL)
	s.Limits.Timeout = 50 * time.Millisecond
	if out := r.Run(t.Context(), s, attempt.Input{}); out.Status != attempt.Killed || out.Reason != attempt.Timeout {
		t.Errorf("got %v, %q (%s), want killed by timeout", out.Status, out.Reason, out.Message)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(&attempt.Kill{Reason: attempt.Lost, Message: "lease lost"}) })
	if out := r.Run(ctx, spec(server.URL), attempt.Input{}); out.Status != attempt.Killed || out.Reason != attempt.Lost || out.Message != "lease lost" {
		t.Errorf("got %v, %q (%s), want killed, lost", out.Status, out.Reason, out.Message)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	address := server.URL
	server.Close()
	out := newRuntime(t).Run(t.Context(), spec(address), attempt.Input{})
	if out.Status != attempt.Retry || out.Reason != attempt.Unreachable || !strings.Contains(out.Message, "refused") {
		t.Errorf("got %v, %q (%s), want a retry", out.Status, out.Reason, out.Message)
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	r := newRuntime(t)
	for url, want := range map[string]string{
		"https://api.example/f": "",
		"":                      "needs one",
		"ftp://x/":              "must start with http",
		"http:///f":             "names no host",
		"http://u:p@x/":         "user or password",
		"http://x/#a":           "fragment",
		"http://x\x00/":         "is not an address",
	} {
		err := r.Prepare(t.Context(), spec(url))
		_, typed := errors.AsType[*attempt.SpecError](err)
		if (want == "") != (err == nil) || err != nil && (!typed || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", url, err, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		" 120 ":                         2 * time.Minute,
		"-5":                            0,
		"1.5":                           0,
		"99999999999999999999":          MaxRetryAfter,
		"86401":                         MaxRetryAfter,
		"Sun, 01 Mar 2026 12:01:30 GMT": 90 * time.Second,
		"Sun, 01 Mar 2026 11:00:00 GMT": 0,
		"Tue, 01 Mar 2050 12:00:00 GMT": MaxRetryAfter,
		"tomorrow":                      0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: got %s, want %s", value, got, want)
		}
	}
}
