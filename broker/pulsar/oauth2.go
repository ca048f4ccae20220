package pulsar

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/oauth2"
	"github.com/apache/pulsar-client-go/pulsar/auth"
	"golang.org/x/sync/singleflight"
)

// TokenError says why there is no OAuth2 token. It never holds a secret or a
// token.
type TokenError struct {
	// Issuer is its URL.
	Issuer string
	// Refused: the issuer answered, and gives these credentials none. Otherwise it
	// could not be asked, or its answer is none.
	Refused bool
	Err     error
}

func (e *TokenError) Error() string {
	if e.Refused {
		return fmt.Sprintf("the issuer %s refuses the credentials: %v", e.Issuer, e.Err)
	}
	return fmt.Sprintf("get a token of the issuer %s: %v", e.Issuer, e.Err)
}

func (e *TokenError) Unwrap() error { return e.Err }

// tokens gets tokens by client credentials, with what Pulsar's client has for
// that, and keeps the newest. The client's own cache is not used: it waits for an
// issuer without end, and throws a token away a minute before its time, which may
// be before there is another.
//
// It is safe for concurrent use; those who need a new token wait for the same.
type tokens struct {
	auth.Provider // the name, and what only other kinds have
	options       OAuth2
	http          *http.Client
	base          http.RoundTripper // of the admin API
	now           func() time.Time

	asking singleflight.Group

	mu     sync.Mutex
	token  string
	early  time.Time // from when on a new one is asked for
	late   time.Time // from when on this one is of no use
	failed time.Time // when the issuer last gave none
	err    error     // why
}

// keepFor is how long a token is used whose life the issuer does not say.
const keepFor = time.Minute

// askAgainAfter is the pause after a question that brought no token.
const askAgainAfter = time.Second

func newTokens(o OAuth2, timeout time.Duration) (*tokens, error) {
	switch {
	case o.Issuer == "":
		return nil, errors.New("the issuer's URL is missing")
	case o.KeyFile == "":
		return nil, errors.New("the file of the credentials is missing")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CA != "" {
		var err error
		if config, err = (TLS{CA: o.CA}).config(); err != nil {
			return nil, err
		}
	}
	t := &tokens{options: o, now: time.Now, http: &http.Client{
		Timeout: timeout, Transport: &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute},
	}}
	t.Provider = auth.NewAuthenticationTokenFromSupplier(func() (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		return t.get(ctx)
	})
	if _, err := t.credentials(); err != nil {
		return nil, err
	}
	return t, nil
}

// credentials reads the key file.
func (t *tokens) credentials() (*oauth2.KeyFile, error) {
	text, err := os.ReadFile(t.options.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	var k oauth2.KeyFile
	// What does not parse may be the secret: only the file is named.
	if json.Unmarshal(text, &k) != nil {
		return nil, fmt.Errorf("read credentials: %s is not a JSON object with client_id and client_secret", t.options.KeyFile)
	}
	for name, v := range map[string]string{"client_id": k.ClientID, "client_secret": k.ClientSecret} {
		if v == "" {
			return nil, fmt.Errorf("read credentials: %s has no %s", t.options.KeyFile, name)
		}
	}
	return &k, nil
}

// Init asks for nothing: an issuer that is down must not keep a server from
// starting.
func (t *tokens) Init() error { return nil }

// get returns a token that has not expired. A new one is asked for before that;
// while there is none, the present one serves as long as it holds.
func (t *tokens) get(ctx context.Context) (string, error) {
	if token, ok, err := t.have(); ok {
		return token, err
	}
	asked := t.asking.DoChan("", func() (any, error) {
		if token, ok, err := t.have(); ok {
			return token, err // another has brought it
		}
		begun := t.now()
		res, err := t.ask()
		return t.take(begun, res, err)
	})
	select {
	case res := <-asked:
		return res.Val.(string), res.Err
	case <-ctx.Done():
		return "", &TokenError{Issuer: t.options.Issuer, Err: ctx.Err()}
	}
}

// have is what is known without a question; ok is false when one is due.
func (t *tokens) have() (token string, ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	holds, paused := t.token != "" && now.Before(t.late), now.Before(t.failed.Add(askAgainAfter))
	switch {
	case holds && (paused || now.Before(t.early)):
		return t.token, true, nil
	case paused:
		return "", true, t.err
	default:
		return "", false, nil
	}
}

// take keeps the answer to a question of that time.
func (t *tokens) take(asked time.Time, res *oauth2.TokenResult, err error) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if err != nil {
		t.failed, t.err = now, err
		if t.token != "" && now.Before(t.late) {
			return t.token, nil
		}
		t.token = ""
		return "", err
	}
	t.token, t.err, t.failed = res.AccessToken, nil, time.Time{}
	life := time.Duration(res.ExpiresIn) * time.Second
	if life <= 0 {
		life = keepFor
	}
	// A third of its life early, which leaves time for an issuer that is away, but
	// no earlier than the looks at the cluster need that bring this about.
	t.early, t.late = asked.Add(life-min(life/3, 2*defaultCheck)), asked.Add(life)
	return t.token, nil
}

// ask asks the issuer for a token.
func (t *tokens) ask() (*oauth2.TokenResult, error) {
	fail := func(err error) (*oauth2.TokenResult, error) {
		var answer *oauth2.TokenError
		refused := errors.As(err, &answer) && slices.Contains(refusals(), answer.ErrorCode)
		return nil, &TokenError{Issuer: t.options.Issuer, Refused: refused, Err: err}
	}
	k, err := t.credentials()
	if err != nil {
		return fail(err)
	}
	ends, err := oauth2.GetOIDCWellKnownEndpointsFromIssuerURLWithClient(t.options.Issuer, t.http)
	if err == nil && ends.TokenEndpoint == "" {
		err = errors.New("its openid-configuration names no token_endpoint")
	}
	if err != nil {
		return fail(err)
	}
	res, err := oauth2.NewTokenRetriever(t.http).ExchangeClientCredentials(oauth2.ClientCredentialsExchangeRequest{
		TokenEndpoint: ends.TokenEndpoint, Audience: t.options.Audience, ClientID: k.ClientID, ClientSecret: k.ClientSecret,
		Scopes: append(strings.Fields(t.options.Scope), strings.Fields(k.Scope)...),
	})
	if err == nil && res.AccessToken == "" {
		err = errors.New("its answer holds no access_token")
	}
	if err != nil {
		return fail(err)
	}
	return res, nil
}

// refusals are the errors of an issuer that come again until the credentials, or
// what is asked for with them, change: RFC 6749, section 5.2, RFC 8707, and
// what Auth0 says of an audience that the client has no right to.
func refusals() []string {
	return []string{
		"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
		"invalid_target", "access_denied",
	}
}

// forget drops a token that was refused, unless there is another by now.
func (t *tokens) forget(token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token == token {
		t.token = ""
	}
}

// lack is why there is no token; nil while there is one, or none was needed.
func (t *tokens) lack() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token != "" {
		return nil
	}
	return t.err
}

// RoundTrip sends a request to the admin API.
func (t *tokens) RoundTrip(req *http.Request) (*http.Response, error) {
	token, err := t.get(req.Context())
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close() // it was not sent
		}
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := t.base.RoundTrip(req)
	if err == nil && res.StatusCode == http.StatusUnauthorized {
		t.forget(token)
	}
	return res, err
}

// Transport is that of the admin API.
func (t *tokens) Transport() http.RoundTripper { return t }

// WithTransport says how the admin API is reached.
func (t *tokens) WithTransport(base http.RoundTripper) error {
	t.base = base
	return nil
}
