package pulsar_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
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
	secret         []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir(), secret: make([]byte, 32)}
	a.cert, a.key = filepath.Join(a.dir, "cert.pem"), filepath.Join(a.dir, "key.pem")
	_, _ = rand.Read(a.secret) // never fails
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

// token is a JWT of the role, signed with HS256 (RFC 7519).
func (a *authority) token(role string, until time.Time) string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	body := part(`{"alg":"HS256"}`) + "." + part(fmt.Sprintf(`{"sub":%q,"exp":%d}`, role, until.Unix()))
	sum := hmac.New(sha256.New, a.secret)
	_, _ = sum.Write([]byte(body)) // never fails
	return body + "." + base64.RawURLEncoding.EncodeToString(sum.Sum(nil))
}

// A cluster with TLS and tokens: a role that owns the tenants, and is no
// superuser, is enough; without trust, a token or a right nothing is stored or
// called lost; a token's file is read again.
func TestSecured(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	later := time.Now().Add(time.Hour)
	i := pulsartest.OwnWith(t, standalone.Options{
		MemoryMiB: 512, Secured: &standalone.Secured{Cert: a.cert, Key: a.key, Secret: a.secret, Role: "admin", Token: a.token("admin", later)},
	})
	prepareTenants(t, i, a.token("admin", later))

	file := filepath.Join(a.dir, "token")
	a.write(t, file, []byte(a.token("isobar", later)))
	good := pulsar.Options{
		Service: i.SecureService, Admin: i.SecureAdmin, Cell: "eu-1", Server: "s1", Timeout: 20 * time.Second,
		Auth: pulsar.Auth{TokenFile: file}, TLS: pulsar.TLS{CA: a.cert}, Log: &needs{}, Logger: slog.New(slog.DiscardHandler),
	}
	b := opened(t, good)
	payload := []byte("a payload")
	topic := broker.Topic{Tenant: "default", Function: "f", Lane: mesh.Standard}
	messages := []broker.Message{{Topic: topic, TaskID: "t1", SHA256: sha256.Sum256(payload), Payload: payload}}
	prepared, err := b.Prepare(t.Context(), messages)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.Fetch(t.Context(), topic, prepared[0].Ref)
	if err != nil || !bytes.Equal(got.Payload, payload) {
		t.Fatalf("Fetch: %q, %v", got.Payload, err)
	}
	if err := b.Trimmed(t.Context(), topic, prepared[0].Ref); err != nil {
		t.Errorf("Trimmed: %v", err)
	}
	if st := b.Stats(); st.Alarms != 0 || st.Strange {
		t.Errorf("alarms: %+v", st)
	}

	for name, tc := range map[string]struct {
		change func(*pulsar.Options)
		says   string
	}{
		"no trust":    {func(o *pulsar.Options) { o.TLS.CA = "" }, "certificate signed by unknown authority"},
		"no token":    {func(o *pulsar.Options) { o.Auth = pulsar.Auth{} }, "401"},
		"wrong token": {func(o *pulsar.Options) { o.Auth = pulsar.Auth{Token: a.token("isobar", later) + "x"} }, "401"},
		"late token":  {func(o *pulsar.Options) { o.Auth = pulsar.Auth{Token: a.token("isobar", time.Now().Add(-time.Minute))} }, "401"},
		"no right":    {func(o *pulsar.Options) { o.Auth = pulsar.Auth{Token: a.token("somebody", later)} }, "403"},
	} {
		o := good
		tc.change(&o)
		other := opened(t, o)
		if _, err := other.Prepare(t.Context(), messages); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: Prepare has error %v, want ErrUnavailable with %q", name, err, tc.says)
		}
		if _, err := other.Fetch(t.Context(), topic, prepared[0].Ref); !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrLost) {
			t.Errorf("%s: Fetch has error %v, want ErrUnavailable", name, err)
		}
	}

	// Another token in the file, another topic: asked for again.
	a.write(t, file, []byte(a.token("somebody", later)))
	elsewhere := messages[0]
	elsewhere.Topic.Function = "g"
	if _, err := b.Prepare(t.Context(), []broker.Message{elsewhere}); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("a token that lost its right: %v", err)
	}
	a.write(t, file, []byte(a.token("isobar", later)))
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err = b.Prepare(t.Context(), []broker.Message{elsewhere}); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("with the right token again: %v", err)
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
