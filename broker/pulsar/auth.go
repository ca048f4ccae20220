package pulsar

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/auth"

	"github.com/isobar-mesh/isobar/broker"
)

// Auth is how a client proves who it is; at most one of its kinds. The zero
// value proves nothing.
type Auth struct {
	// Token, or the file it is read from each time it is needed.
	Token, TokenFile string
	// OAuth2 gets tokens from an issuer.
	OAuth2 OAuth2
}

// OAuth2 are client credentials (RFC 6749, section 4.4). Issuer and KeyFile come
// together.
type OAuth2 struct {
	// Issuer is its URL; what it offers is read from
	// /.well-known/openid-configuration below that.
	Issuer string
	// KeyFile is a JSON file with client_id and client_secret, read again for each
	// token.
	KeyFile string
	// Audience and Scope of the token, where the issuer wants them.
	Audience, Scope string
	// CA is a PEM file of the authorities to trust at the issuer. Default: the
	// system's.
	CA string
}

// provider makes what proves who we are; nil for nothing. No issuer is asked
// before the first call.
func (a Auth) provider(timeout time.Duration) (auth.Provider, error) {
	kinds := 0
	for _, is := range []bool{a.Token != "", a.TokenFile != "", a.OAuth2 != OAuth2{}} {
		if is {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return nil, errors.New("a token, a token's file and OAuth2 exclude each other")
	case a.Token != "":
		return auth.NewAuthenticationToken(a.Token), nil
	case a.TokenFile != "":
		// The client would read it at its first call only.
		if _, err := os.Stat(a.TokenFile); err != nil {
			return nil, fmt.Errorf("read credentials: %w", err)
		}
		return auth.NewAuthenticationTokenFromFile(a.TokenFile), nil
	case kinds > 0:
		t, err := newTokens(a.OAuth2, timeout)
		if err != nil {
			return nil, fmt.Errorf("OAuth2: %w", err)
		}
		return t, nil
	default:
		return nil, nil
	}
}

// access says of an error that it is about who we are or what we may, if it is.
func (b *Broker) access(err error) error {
	var status *statusError
	var token *TokenError
	var p *pulsar.Error
	switch {
	case errors.Is(err, broker.ErrDenied), errors.Is(err, broker.ErrNoToken):
		return err
	case errors.As(err, &token) && token.Refused:
		return fmt.Errorf("%w: %w: %w", broker.ErrUnavailable, broker.ErrDenied, err)
	case errors.As(err, &token):
		return fmt.Errorf("%w: %w: %w", broker.ErrUnavailable, broker.ErrNoToken, err)
	case errors.As(err, &status) && (status.status == http.StatusUnauthorized || status.status == http.StatusForbidden),
		errors.As(err, &p) && (p.Result() == pulsar.AuthenticationError || p.Result() == pulsar.AuthorizationError):
		return fmt.Errorf("%w: %w: %w", broker.ErrUnavailable, broker.ErrDenied, err)
	default:
		return err
	}
}

// noteAccess takes in how a request to the admin API ended, and raises an alarm
// when Pulsar does not know us any more. A right that is missing is not that: it
// goes to who needs it.
func (b *Broker) noteAccess(err error) {
	why := ""
	var token *TokenError
	switch {
	case errors.As(err, &token), hasStatus(err, http.StatusUnauthorized):
		why = err.Error()
	case err != nil && !errors.As(err, new(*statusError)):
		return // no answer: nothing is known
	}
	b.mu.Lock()
	before := b.denied
	b.denied = why
	b.mu.Unlock()
	switch {
	case (why == "") == (before == ""):
	case why == "":
		b.options.Logger.Info("Pulsar knows us by our credentials again", "service", b.options.Service)
	default:
		b.options.Logger.Error("no access to Pulsar; nothing is accepted, and what was waits, until there is", "alarm", true,
			"service", b.options.Service, "because", why,
			"hint", "check broker.token_file or broker.oauth2; see \"When something goes wrong\" in docs/pulsar.md")
	}
}
