package pulsar_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/pulsar"
	"github.com/isobar-mesh/isobar/broker/pulsar/pulsartest"
	"github.com/isobar-mesh/isobar/broker/pulsar/standalone"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// authority signs tokens and has a certificate for loopback.
type authority struct {
	dir, cert, key string
	signs          *rsa.PrivateKey
}

// audience is whom its tokens are for, if nothing else is said.
const audience = "urn:test:pulsar"

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = filepath.Join(a.dir, "cert.pem"), filepath.Join(a.dir, "key.pem")
	var err error
	if a.signs, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pulsar"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, a.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	a.write(t, a.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	return a
}

func (a *authority) write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// token is a JWT of the role, signed with RS256 (RFC 7519).
func (a *authority) token(role string, until time.Time) string {
	return a.tokenFor(audience, role, until)
}

func (a *authority) tokenFor(audience, role string, until time.Time) string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	body := part(`{"alg":"RS256"}`) + "." + part(fmt.Sprintf(`{"sub":%q,"aud":%q,"exp":%d}`, role, audience, until.Unix()))
	sum := sha256.Sum256([]byte(body))
	signature, err := rsa.SignPKCS1v15(nil, a.signs, crypto.SHA256, sum[:])
	if err != nil {
		panic(err) // the key is good
	}
	return body + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// standalone starts a Pulsar that believes the authority, with TLS.
func (a *authority) standalone(t *testing.T) *standalone.Instance {
	t.Helper()
	public, err := x509.MarshalPKIXPublicKey(&a.signs.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return pulsartest.OwnWith(t, standalone.Options{
		MemoryMiB: 512,
		Config: map[string]string{
			"tokenAudienceClaim": "aud", "tokenAudience": audience,
			// A connection whose token has expired is asked for another at once.
			"authenticationRefreshCheckSeconds": "1",
		},
		Secured: &standalone.Secured{Cert: a.cert, Key: a.key, Public: public, Role: "admin", Token: a.token("admin", time.Now().Add(time.Hour))},
	})
}

// TestSecured runs against one cluster with TLS and tokens: it is dear to start.
func TestSecured(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	i := a.standalone(t)
	prepareTenants(t, i, a.token("admin", time.Now().Add(time.Hour)))
	good := pulsar.Options{
		Service: i.SecureService, Admin: i.SecureAdmin, Cell: "eu-1", Server: "s1", Timeout: 20 * time.Second,
		TLS: pulsar.TLS{CA: a.cert}, Log: &needs{}, Logger: slog.New(slog.DiscardHandler),
	}
	t.Run("token", func(t *testing.T) { testToken(t, a, good) })
	t.Run("oauth2", func(t *testing.T) { testOAuth2(t, a, good) })
}

// message of a queue; payloads differ by n.
func securedMessage(function string, n int) broker.Message {
	payload := fmt.Appendf(nil, "payload %d", n)
	topic := broker.Topic{Tenant: "default", Function: function, Lane: mesh.Standard}
	return broker.Message{Topic: topic, TaskID: mesh.TaskID(fmt.Sprint("t", n)), SHA256: sha256.Sum256(payload), Payload: payload}
}

// A role that owns the tenants, and is no superuser, is enough; without trust, a
// token or a right nothing is stored or called lost; a token's file is read again.
func testToken(t *testing.T, a *authority, good pulsar.Options) {
	later := time.Now().Add(time.Hour)
	file := filepath.Join(a.dir, "token")
	a.write(t, file, []byte(a.token("isobar", later)))
	good.Auth = pulsar.Auth{TokenFile: file}
	b := opened(t, good)
	messages := []broker.Message{securedMessage("f", 1)}
	prepared, err := b.Prepare(t.Context(), messages)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.Fetch(t.Context(), messages[0].Topic, prepared[0].Ref)
	if err != nil || !bytes.Equal(got.Payload, messages[0].Payload) {
		t.Fatalf("Fetch: %q, %v", got.Payload, err)
	}
	if err := b.Trimmed(t.Context(), messages[0].Topic, prepared[0].Ref); err != nil {
		t.Errorf("Trimmed: %v", err)
	}
	if st := b.Stats(); st.Alarms != 0 || st.Strange || st.Denied {
		t.Errorf("alarms: %+v", st)
	}

	for name, tc := range map[string]struct {
		change func(*pulsar.Options)
		says   string
		denied bool
	}{
		"no trust":    {func(o *pulsar.Options) { o.TLS.CA = "" }, "certificate signed by unknown authority", false},
		"no token":    {func(o *pulsar.Options) { o.Auth = pulsar.Auth{} }, "401", true},
		"wrong token": {func(o *pulsar.Options) { o.Auth = pulsar.Auth{Token: a.token("isobar", later) + "x"} }, "401", true},
		"late token":  {func(o *pulsar.Options) { o.Auth = pulsar.Auth{Token: a.token("isobar", time.Now().Add(-time.Minute))} }, "401", true},
		"no right":    {func(o *pulsar.Options) { o.Auth = pulsar.Auth{Token: a.token("somebody", later)} }, "403", true},
	} {
		o := good
		tc.change(&o)
		wantNoAccess(t, name, opened(t, o), messages, prepared[0].Ref, tc.says, tc.denied)
	}

	// Another token in the file, another topic: asked for again.
	a.write(t, file, []byte(a.token("somebody", later)))
	elsewhere := []broker.Message{securedMessage("g", 1)}
	if _, err := b.Prepare(t.Context(), elsewhere); !errors.Is(err, broker.ErrDenied) || !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("a token that lost its right: %v", err)
	}
	a.write(t, file, []byte(a.token("isobar", later)))
	untilPrepared(t, b, elsewhere)
}

// wantNoAccess checks that the broker stores nothing, calls nothing lost and says
// why.
func wantNoAccess(t *testing.T, name string, b *pulsar.Broker, messages []broker.Message, ref broker.Reference, says string, denied bool) {
	t.Helper()
	_, err := b.Prepare(t.Context(), messages)
	if !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrDenied) != denied || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: Prepare has error %v, want ErrUnavailable with %q, and ErrDenied: %t", name, err, says, denied)
	}
	_, err = b.Fetch(t.Context(), messages[0].Topic, ref)
	if !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrLost) || errors.Is(err, broker.ErrDenied) != denied {
		t.Errorf("%s: Fetch has error %v, want ErrUnavailable, and ErrDenied: %t", name, err, denied)
	}
}

// untilPrepared stores messages as soon as that works.
func untilPrepared(t *testing.T, b *pulsar.Broker, messages []broker.Message) []broker.Prepared {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		out, err := b.Prepare(t.Context(), messages)
		if err == nil {
			return out
		}
		if time.Now().After(end) {
			t.Fatalf("still: %v", err)
		}
	}
}

// prepareTenants makes the two tenants as docs/pulsar.md says, for a role that
// may not make them.
func prepareTenants(t *testing.T, i *standalone.Instance, token string) {
	t.Helper()
	for _, tenant := range []string{"isobar", "isobar-default"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, i.Admin+"/admin/v2/tenants/"+tenant,
			strings.NewReader(`{"adminRoles":["isobar"],"allowedClusters":["standalone"]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close() // only the status counts
		if res.StatusCode/100 != 2 {
			t.Fatalf("make tenant %s: %s", tenant, res.Status)
		}
	}
}

func opened(t *testing.T, o pulsar.Options) *pulsar.Broker {
	t.Helper()
	b, err := pulsar.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() }) // the cluster goes, too
	if err := b.Lead(1); err != nil {
		t.Fatal(err)
	}
	return b
}
