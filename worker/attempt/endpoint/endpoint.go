// Package endpoint runs functions that are HTTP endpoints of others: one POST
// of the payload an attempt, with the attempt's number, deadline and trace
// context in the headers.
//
// An answer of 2xx is the result. 408, 429, 5xx and a broken connection ask for
// another try, after Retry-After where one is given; any other answer has
// failed. Redirects are not followed: the payload goes to the address of the
// manifest and no other, since its jurisdictions are declared for that one.
// What the endpoint did with a request whose answer was lost, nobody knows;
// Isobar-Task-Id and Isobar-Attempt are there for it to tell.
package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/worker/attempt"
)

// MaxRetryAfter is the longest wait an endpoint can ask for; more counts as
// this much.
const MaxRetryAfter = 24 * time.Hour

// Options configure a Runtime.
type Options struct {
	// Transport sends the requests; nil: connections of its own, without a
	// proxy.
	Transport http.RoundTripper
}

// Runtime implements attempt.Runtime for attempt.HTTP.
type Runtime struct {
	client http.Client

	ended context.Context //nolint:containedctx // ends with Close
	end   context.CancelCauseFunc
	runs  sync.WaitGroup
}

var _ attempt.Runtime = (*Runtime)(nil)

// New returns a Runtime, which must be closed.
func New(o Options) *Runtime {
	if o.Transport == nil {
		o.Transport = &http.Transport{
			// A result is what was sent, and its cap counts what is kept.
			DisableCompression:  true,
			ForceAttemptHTTP2:   true,
			MaxIdleConnsPerHost: 64,
			IdleConnTimeout:     90 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second,
		}
	}
	r := &Runtime{client: http.Client{
		Transport:     o.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	r.ended, r.end = context.WithCancelCause(context.Background())
	return r
}

// Prepare implements attempt.Runtime. It checks the spec and does not call the
// endpoint.
func (r *Runtime) Prepare(_ context.Context, spec attempt.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	if spec.Kind != attempt.HTTP {
		return &attempt.SpecError{Field: "runtime", Problem: fmt.Sprintf("%q is not run by the http runtime", string(spec.Kind))}
	}
	return nil
}

// Run implements attempt.Runtime.
func (r *Runtime) Run(ctx context.Context, spec attempt.Spec, in attempt.Input) attempt.Outcome {
	r.runs.Add(1)
	defer r.runs.Done()
	out := attempt.Outcome{Started: time.Now(), ExitCode: -1}
	if err := r.Prepare(ctx, spec); err != nil {
		return attempt.Unable(attempt.Failed, attempt.BadSpec, err, out.Started)
	}
	ctx, until, cancel := attempt.Window(ctx, spec.Limits, in.Deadline, out.Started)
	defer cancel(nil)
	defer context.AfterFunc(r.ended, func() { cancel(context.Cause(r.ended)) })()

	req, err := request(ctx, spec, in, until)
	if err != nil {
		return attempt.Unable(attempt.Failed, attempt.BadSpec, err, out.Started)
	}
	res, err := r.client.Do(req) //nolint:bodyclose // closed by the one who reads it
	if err == nil {
		err = read(&out, res, spec.Limits.MaxResult(), time.Now())
	}
	if err != nil {
		out.ExitCode = -1
		if ctx.Err() != nil {
			out.Kill(attempt.KillOf(ctx))
		} else {
			out.Status, out.Reason, out.Message = attempt.Retry, attempt.Unreachable, "no whole answer: "+cause(err)
		}
	}
	out.Ended = time.Now()
	return out
}

func request(ctx context.Context, spec attempt.Spec, in attempt.Input, until time.Time) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, spec.URL, bytes.NewReader(in.Payload))
	if err != nil {
		return nil, fmt.Errorf("endpoint: make request: %s", cause(err))
	}
	// A POST is not sent again by the transport itself: it can't know what the
	// first one did.
	req.GetBody = nil
	h := req.Header
	h.Set("Isobar-Task-Id", string(in.TaskID))
	h.Set("Isobar-Attempt", strconv.FormatUint(in.Attempt, 10))
	h.Set("Isobar-Deadline", until.UTC().Format(time.RFC3339Nano))
	if in.Traceparent != "" {
		h.Set("Traceparent", in.Traceparent)
	}
	h.Set("Content-Type", "application/octet-stream")
	if in.ContentType != "" {
		h.Set("Content-Type", in.ContentType)
	}
	h.Set("User-Agent", "isobar")
	return req, nil
}

// cause is an error's text without the address, which may carry a secret in
// its query.
func cause(err error) string {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return err.Error()
}

// read turns an answer into an outcome. The error is of the connection.
func read(out *attempt.Outcome, res *http.Response, limit int, now time.Time) error {
	defer func() { _ = res.Body.Close() }() // Reading told all there is to know.
	out.ExitCode = res.StatusCode
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		// A body whose announced length is above the cap is not read at all.
		if res.ContentLength <= int64(limit) {
			body, err := io.ReadAll(io.LimitReader(res.Body, int64(limit)+1))
			if err != nil {
				return err
			}
			if len(body) <= limit {
				out.Settle(0)
				out.ExitCode, out.Result = res.StatusCode, body
				return nil
			}
		}
		out.Kill(attempt.Excess(limit))
		out.ExitCode = res.StatusCode
		return nil
	}
	// Of an answer that is no result the end is kept, as of stderr; how its
	// connection fares does not matter any more.
	var tail attempt.Tail
	_, _ = io.Copy(&tail, io.LimitReader(res.Body, int64(limit)))
	out.StderrTail = tail.Bytes()
	out.Status, out.Reason = attempt.Failed, attempt.HTTPStatus
	out.Message = "answered " + describe(res)
	switch {
	case res.StatusCode == http.StatusRequestTimeout, res.StatusCode == http.StatusTooManyRequests, res.StatusCode >= 500:
		out.Status = attempt.Retry
		out.RetryAfter = retryAfter(res.Header.Get("Retry-After"), now)
	case res.StatusCode >= 300 && res.StatusCode < 400:
		out.Message += "; redirects are not followed"
	}
	return nil
}

func describe(res *http.Response) string {
	if text := http.StatusText(res.StatusCode); text != "" {
		return fmt.Sprintf("%d %s", res.StatusCode, text)
	}
	return strconv.Itoa(res.StatusCode)
}

// retryAfter reads both forms of the header: seconds and a date. What is
// neither, or in the past, is 0.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.ParseInt(value, 10, 64)
		if err != nil || seconds > int64(MaxRetryAfter/time.Second) {
			return MaxRetryAfter // out of range of the number, too
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), MaxRetryAfter)
}

// Close implements attempt.Runtime: it ends the requests that are under way.
func (r *Runtime) Close(ctx context.Context) error {
	r.end(&attempt.Kill{Reason: attempt.Lost, Message: "the worker shuts down"})
	idle := make(chan struct{})
	go func() {
		r.runs.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		r.client.CloseIdleConnections()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("endpoint: close runtime: attempts still run: %w", context.Cause(ctx))
	}
}
