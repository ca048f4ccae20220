package pulsar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isobar-mesh/isobar/broker"
)

// roundTrip is an issuer, or Pulsar's admin API, without a network.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(status int, body string) (*http.Response, error) {
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)),
	}, nil
}

func credentials(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// someTokens asks the function, once it has said where tokens are.
func someTokens(t *testing.T, give roundTrip) *tokens {
	t.Helper()
	k := credentials(t, `{"client_id":"c","client_secret":"s3cret","scope":"b"}`)
	o, err := newTokens(OAuth2{Issuer: "https://issuer.test", KeyFile: k, Audience: "p", Scope: "a"}, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	o.http.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Path == "/.well-known/openid-configuration" {
			return answer(200, `{"token_endpoint":"https://issuer.test/token"}`)
		}
		return give(r)
	})
	return o
}

// A token is asked for once, and again when a third of its life is left, two
// minutes at most; while the issuer is away the present one serves to its end.
func TestTokensAreKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, away := 0, false
		o := someTokens(t, func(r *http.Request) (*http.Response, error) {
			if away {
				return nil, errors.New("connection refused")
			}
			for name, want := range map[string]string{"client_id": "c", "client_secret": "s3cret", "audience": "p", "scope": "a b", "grant_type": "client_credentials"} {
				if got := r.PostFormValue(name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			n++
			return answer(200, fmt.Sprintf(`{"access_token":"t%d","expires_in":600}`, n))
		})
		begun := time.Now()
		at := func(d time.Duration) { time.Sleep(time.Until(begun.Add(d))) }
		want := func(token string) {
			t.Helper()
			if got, err := o.GetData(); err != nil || string(got) != token {
				t.Errorf("after %v: %q, %v; want %s", time.Since(begun), got, err, token)
			}
		}
		want("t1")
		at(479 * time.Second)
		want("t1")
		at(480 * time.Second)
		want("t2")
		away = true
		at(480*time.Second + 599*time.Second)
		want("t2")
		if err := o.lack(); err != nil {
			t.Errorf("a token is there, and lacks for %v", err)
		}
		at(480*time.Second + 602*time.Second)
		var lacks *TokenError
		if got, err := o.GetData(); !errors.As(err, &lacks) || lacks.Refused || o.lack() == nil {
			t.Errorf("%q, %v", got, err)
		}
		away = false
		at(480*time.Second + 603*time.Second)
		want("t3")
	})
}

// An issuer that hangs holds nobody up for longer than the call may take, and is
// asked once for all who wait.
func TestHungIssuer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		o := someTokens(t, func(r *http.Request) (*http.Response, error) {
			asked.Add(1)
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		if err := o.WithTransport(roundTrip(func(*http.Request) (*http.Response, error) { return answer(200, "") })); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		done := make(chan error, 10)
		for range cap(done) {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodPut, "https://pulsar.test", strings.NewReader("x"))
				if err == nil {
					_, err = o.RoundTrip(req)
				}
				done <- err
			}()
		}
		for range cap(done) {
			if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
		}
		if took, n := time.Since(begun), asked.Load(); took != time.Second || n != 1 {
			t.Errorf("%v, and %d questions", took, n)
		}
		time.Sleep(time.Minute) // what was asked ends
	})
}

// What the issuer answers is told apart: refused, or none for now. Nothing holds
// the secret.
func TestWhatAnIssuerAnswers(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		status int
		body   string
		want   error
	}{
		"wrong client":       {401, `{"error":"invalid_client"}`, broker.ErrDenied},
		"no right":           {403, `{"error":"access_denied","error_description":"no"}`, broker.ErrDenied},
		"overloaded":         {503, `{"error":"temporarily_unavailable"}`, broker.ErrNoToken},
		"nothing of ours":    {502, `{}`, broker.ErrNoToken},
		"no JSON":            {200, `<html>`, broker.ErrNoToken},
		"an answer, no more": {200, `{}`, broker.ErrNoToken},
	} {
		o := someTokens(t, func(*http.Request) (*http.Response, error) { return answer(tc.status, tc.body) })
		_, err := o.GetData()
		if err = (&Broker{tokens: o}).access(err); !errors.Is(err, tc.want) || !errors.Is(err, broker.ErrUnavailable) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A token that Pulsar refuses is not shown again.
func TestRefusedToken(t *testing.T) {
	t.Parallel()
	n := 0
	o := someTokens(t, func(*http.Request) (*http.Response, error) {
		n++
		return answer(200, fmt.Sprintf(`{"access_token":"t%d","expires_in":600}`, n))
	})
	var shown []string
	if err := o.WithTransport(roundTrip(func(r *http.Request) (*http.Response, error) {
		shown = append(shown, r.Header.Get("Authorization"))
		return answer(401, "")
	})); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://pulsar.test", nil)
		if err == nil {
			_, err = o.RoundTrip(req)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if strings.Join(shown, ",") != "Bearer t1,Bearer t2" {
		t.Errorf("shown: %v", shown)
	}
}

// Credentials that cannot be read are refused at once, and not quoted.
func TestBadCredentials(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		`s3cret`:                              "is not a JSON object",
		`{"client_id":"c","secret":"s3cret"}`: "has no client_secret",
		`{"client_secret":"s3cret"}`:          "has no client_id",
	} {
		_, err := newTokens(OAuth2{Issuer: "https://issuer.test", KeyFile: credentials(t, text)}, time.Second)
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v, want %q", err, says)
		}
	}
}
