package pulsar_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/pulsar"
)

// issuer gives out tokens of the authority to one client.
type issuer struct {
	*httptest.Server
	authority *authority

	mu     sync.Mutex
	secret string
	life   time.Duration
	lax    bool // gives tokens for any audience
	down   bool
	given  int
	tokens []string
}

// clientID is the client's, and its role in Pulsar.
const clientID = "isobar"

func newIssuer(t *testing.T, a *authority) *issuer {
	i := &issuer{authority: a, secret: "s3cret-of-the-client", life: time.Hour}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"token_endpoint":%q}`, i.URL, i.URL+"/oauth/token") // else the client fails
	})
	mux.HandleFunc("POST /oauth/token", i.give)
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		down := i.down
		i.mu.Unlock()
		if down {
			panic(http.ErrAbortHandler) // the connection is cut
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.given
}

func (i *issuer) give(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	refuse := func(code string) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprintf(w, `{"error":%q,"error_description":"try another one"}`, code) // else the client fails
	}
	to := r.PostFormValue("audience")
	switch {
	case r.PostFormValue("grant_type") != "client_credentials":
		refuse("unsupported_grant_type")
	case r.PostFormValue("client_id") != clientID || r.PostFormValue("client_secret") != i.secret:
		refuse("invalid_client")
	case to != audience && !i.lax:
		refuse("access_denied")
	default:
		token := i.authority.tokenFor(to, clientID, time.Now().Add(i.life))
		i.given++
		i.tokens = append(i.tokens, token)
		// In seconds, as the token's end: neither says more than it holds.
		_, _ = fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":%d}`, token, int(i.life.Seconds())) // else the client fails
	}
}

// keyFile writes the client's credentials.
func (i *issuer) keyFile(t *testing.T, name, secret string) string {
	t.Helper()
	path := filepath.Join(i.authority.dir, name)
	i.authority.write(t, path, fmt.Appendf(nil, `{"type":"client_credentials","client_id":%q,"client_secret":%q,"issuer_url":%q}`, clientID, secret, i.URL))
	return path
}

// The client-credentials flow, at Pulsar's binary protocol and its admin API:
// who is refused is told so, an issuer that is away is waited for, tokens that
// expire are replaced before, and what was accepted is there at the end. No
// secret and no token comes into an error or the log.
func testOAuth2(t *testing.T, a *authority, good pulsar.Options) {
	is := newIssuer(t, a)
	var log safeBuffer
	good.Cell, good.Logger = "eu-2", slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	good.CheckEvery, good.Timeout = 100*time.Millisecond, 10*time.Second
	right := pulsar.OAuth2{Issuer: is.URL, Audience: audience, KeyFile: is.keyFile(t, "right.json", is.secret)}
	with := func(o pulsar.OAuth2) *pulsar.Broker {
		all := good
		all.Auth = pulsar.Auth{OAuth2: o}
		return opened(t, all)
	}
	var said []error
	first := []broker.Message{securedMessage("f", 0)}
	b := with(right)
	ref := untilPrepared(t, b, first)[0].Ref

	t.Run("refused", func(t *testing.T) {
		wrong := right
		wrong.KeyFile = is.keyFile(t, "wrong.json", "n0t-the-secret")
		other := with(wrong)
		wantNoAccess(t, "wrong secret", other, first, ref, "refuses the credentials: try another one (invalid_client)", true)
		_, err := other.Prepare(t.Context(), first)
		said = append(said, err)
		if !other.Stats().Denied {
			t.Error("no alarm")
		}
		is.keyFile(t, "wrong.json", is.secret) // read again
		untilPrepared(t, other, first)
		if other.Stats().Denied {
			t.Error("the alarm stays on")
		}

		elsewhere := right
		elsewhere.Audience = "urn:test:elsewhere"
		wantNoAccess(t, "an audience the issuer refuses", with(elsewhere), first, ref, "access_denied", true)
		is.set(func() { is.lax = true })
		wantNoAccess(t, "an audience Pulsar refuses", with(elsewhere), first, ref, "401", true)
		is.set(func() { is.lax = false })
	})

	t.Run("issuer down at the start", func(t *testing.T) {
		is.set(func() { is.down = true })
		late := with(right)
		_, err := late.Prepare(t.Context(), first)
		said = append(said, err)
		var token *pulsar.TokenError
		if !errors.Is(err, broker.ErrNoToken) || !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrDenied) || !errors.As(err, &token) || token.Issuer != is.URL {
			t.Errorf("Prepare has error %v, want ErrNoToken of the issuer", err)
		}
		if _, err := late.Fetch(t.Context(), first[0].Topic, ref); !errors.Is(err, broker.ErrNoToken) || errors.Is(err, broker.ErrLost) {
			t.Errorf("Fetch has error %v, want ErrNoToken", err)
		}
		is.set(func() { is.down = false })
		untilPrepared(t, late, first)
	})

	t.Run("tokens that expire", func(t *testing.T) { testExpiry(t, is, with(right), &said) })

	text := log.String()
	for _, err := range said {
		text += fmt.Sprintln(err)
	}
	is.mu.Lock()
	defer is.mu.Unlock()
	for _, secret := range append(is.tokens, is.secret, "n0t-the-secret") {
		if strings.Contains(text, secret) {
			t.Errorf("%.20s… is in an error or the log:\n%s", secret, text)
		}
	}
	if !strings.Contains(text, "alarm=true") || !strings.Contains(text, "broker.oauth2") {
		t.Errorf("no alarm in the log:\n%s", text)
	}
}

// testExpiry works on while tokens of three seconds expire, then through an
// outage of the issuer that outlasts one.
func testExpiry(t *testing.T, is *issuer, b *pulsar.Broker, said *[]error) {
	is.set(func() { is.life = 3 * time.Second })
	var all []broker.Message
	var refs []broker.Reference
	work := func(until func() bool) (failed error) {
		for !until() && failed == nil {
			m := securedMessage("g", len(all)+1)
			out, err := b.Prepare(t.Context(), []broker.Message{m})
			if failed = err; err == nil {
				all, refs = append(all, m), append(refs, out[0].Ref)
			}
			time.Sleep(20 * time.Millisecond)
		}
		return failed
	}
	// Three more tokens: the first of them has expired by then, and its connection
	// was asked for another.
	before := is.count()
	if err := work(func() bool { return is.count() >= before+3 }); err != nil {
		t.Fatalf("while tokens expire: %v", err)
	}
	is.set(func() { is.down = true })
	end := time.Now().Add(time.Minute)
	err := work(func() bool { return time.Now().After(end) })
	if *said = append(*said, err); !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrDenied) {
		t.Errorf("without an issuer, and the token expired: %v, want ErrUnavailable", err)
	}
	for ; !b.Stats().Denied && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	if !b.Stats().Denied {
		t.Error("no alarm")
	}
	is.set(func() { is.down, is.life = false, time.Hour })
	m := securedMessage("g", len(all)+1)
	all, refs = append(all, m), append(refs, untilPrepared(t, b, []broker.Message{m})[0].Ref)
	if b.Stats().Denied {
		t.Error("the alarm stays on")
	}
	n := 0
	for got, err := range b.Read(t.Context(), m.Topic, refs[0]) {
		if err != nil {
			t.Fatal(err)
		}
		if n < len(all) && bytes.Equal(got.Ref, refs[n]) {
			if !bytes.Equal(got.Payload, all[n].Payload) {
				t.Errorf("payload %d is %q", n, got.Payload)
			}
			n++
		}
	}
	if n != len(all) {
		t.Errorf("%d of %d payloads are there, in their order", n, len(all))
	}
}

// safeBuffer takes a log from several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
