package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

func eu1() Identity {
	return Identity{
		Mesh: "m", Server: "s1",
		Cell: mesh.Cell{ID: "eu-north-1", Region: "eu-north", Jurisdictions: []string{"eu", "se"}},
	}
}

func us1() Identity {
	return Identity{Mesh: "m", Server: "s1", Cell: mesh.Cell{ID: "us-east-1", Region: "us-east", Jurisdictions: []string{"us"}}}
}

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority("m", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func credentials(t *testing.T, a *Authority, id Identity) *Credentials {
	t.Helper()
	pair, err := a.Issue(id, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(id.Mesh, a.CertPEM(), pair, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestURIRoundTrip(t *testing.T) {
	t.Parallel()
	if got, want := eu1().String(), "isobar://m/region/eu-north/cell/eu-north-1/server/s1?jurisdictions=eu,se"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	name := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?`)
	rapid.Check(t, func(t *rapid.T) {
		want := Identity{
			Mesh: name.Draw(t, "mesh"), Server: name.Draw(t, "server"),
			Cell: mesh.Cell{ID: mesh.CellID(name.Draw(t, "cell")), Region: name.Draw(t, "region")},
		}
		want.Cell.Jurisdictions = rapid.SliceOfNDistinct(name, 0, 4, rapid.ID).Draw(t, "jurisdictions")
		u, err := url.Parse(want.String())
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseURI(u)
		if err != nil {
			t.Fatal(err)
		}
		if got.Cell.ID != want.Cell.ID || got.Cell.Region != want.Cell.Region || got.Mesh != want.Mesh || got.Server != want.Server ||
			len(got.Cell.Jurisdictions) != len(want.Cell.Jurisdictions) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	})
}

func TestParseURIRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"https://m/region/r/cell/c/server/s", "isobar://m/region/r/cell/c", "isobar://m/region/r/cell/c/server/",
		"isobar://m/region/R/cell/c/server/s", "isobar://m/region/r/cell/c/server/s/more", "isobar://m/cell/c/region/r/server/s",
		"isobar:///region/r/cell/c/server/s", "isobar://m/region/r/cell/c/server/s?jurisdictions=",
		"isobar://m/region/r/cell/c/server/s?jurisdictions=eu,eu", "isobar://m/region/r/cell/c/server/s?jurisdiction=eu",
		"isobar://m/region/r/cell/c/server/s?jurisdictions=eu&x=1", "isobar://m/region/r/cell/c/server/s#x",
		"isobar://u@m/region/r/cell/c/server/s", "isobar://m:1/region/r/cell/c/server/s",
		"isobar://m/region/r/cell/c/server/s?jurisdictions=EU", "isobar:m",
	} {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := ParseURI(u); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("%s: got %+v, %v", s, id, err)
		}
	}
}

// handshake connects two configurations over loopback and returns what each
// side ended with.
func handshake(t *testing.T, server, client *tls.Config) (serverState, clientState tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	left, right := net.Pipe()
	t.Cleanup(func() { _ = left.Close(); _ = right.Close() })
	deadline := time.Now().Add(10 * time.Second)
	_ = left.SetDeadline(deadline)
	_ = right.SetDeadline(deadline)
	s, c := tls.Server(left, server), tls.Client(right, client)
	done := make(chan struct{})
	go func() {
		defer close(done)
		serverErr = s.HandshakeContext(t.Context())
		if serverErr != nil {
			_ = left.Close()
			return
		}
		_, serverErr = s.Write([]byte{1}) // TLS 1.3 clients learn of a refusal only when they read
	}()
	clientErr = c.HandshakeContext(t.Context())
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	if clientErr != nil {
		_ = right.Close()
	}
	<-done
	return s.ConnectionState(), c.ConnectionState(), serverErr, clientErr
}

func TestHandshakeTellsEachSideThePeersCell(t *testing.T) {
	t.Parallel()
	a := authority(t)
	eu, us := credentials(t, a, eu1()), credentials(t, a, us1())
	ss, cs, serverErr, clientErr := handshake(t, eu.ServerTLS(nil), us.ClientTLS(nil))
	if serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	if ss.Version != tls.VersionTLS13 {
		t.Errorf("version %x", ss.Version)
	}
	atServer, err := PeerCell(ss)
	if err != nil {
		t.Fatal(err)
	}
	atClient, err := PeerCell(cs)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(us1().Cell, atServer); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(eu1().Cell, atClient); diff != "" {
		t.Error(diff)
	}
}

func TestHandshakeRefuses(t *testing.T) {
	t.Parallel()
	a := authority(t)
	eu := credentials(t, a, eu1())
	raw := func(pair KeyPair, err error) *tls.Config {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(a.CertPEM())
		return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: roots, ServerName: "m.isobar"}
	}
	other := us1()
	other.Mesh = "n"
	now := time.Now()
	two := []*url.URL{us1().URI(), eu1().URI()}
	for _, c := range []struct {
		name   string
		client *tls.Config
		allow  Allow
		want   string
	}{
		{name: "wrong authority", client: raw(authority(t).Issue(us1(), now, time.Hour)), want: "unknown authority"},
		{name: "wrong mesh", client: raw(a.Issue(other, now, time.Hour)), want: ErrOtherMesh.Error()},
		{name: "expired", client: raw(a.Issue(us1(), now.Add(-2*time.Hour), time.Hour)), want: "expired"},
		{name: "not yet valid", client: raw(a.Issue(us1(), now.Add(time.Hour), time.Hour)), want: "not yet valid"},
		{name: "no URI", client: raw(a.issue(now, time.Hour, "x", []string{"m.isobar"}, nil)), want: ErrNoIdentity.Error()},
		{name: "two URIs", client: raw(a.issue(now, time.Hour, "x", []string{"m.isobar"}, two)), want: ErrNoIdentity.Error()},
		{name: "no certificate", client: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}, want: "didn't provide a certificate"},
		{name: "other cell", client: credentials(t, a, us1()).ClientTLS(nil), allow: InCell("eu-north-1"), want: ErrNotAllowed.Error()},
		{name: "old TLS", client: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, want: "version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, _, serverErr, clientErr := handshake(t, eu.ServerTLS(c.allow), c.client)
			if serverErr == nil || !strings.Contains(serverErr.Error(), c.want) {
				t.Errorf("server's error %v, want it to hold %q", serverErr, c.want)
			}
			if clientErr == nil {
				t.Error("the client was let in")
			}
		})
	}
}

func TestDiallerRefuses(t *testing.T) {
	t.Parallel()
	a := authority(t)
	us := credentials(t, a, us1())
	stranger := credentials(t, authority(t), eu1())
	other := eu1()
	other.Mesh = "n"
	listener := func(c *Credentials) *tls.Config {
		cfg := c.ServerTLS(nil)
		cfg.ClientAuth, cfg.VerifyConnection = tls.RequestClientCert, nil
		return cfg
	}
	for _, c := range []struct {
		name   string
		server *tls.Config
		allow  Allow
		want   string
	}{
		{"wrong authority", listener(stranger), nil, "unknown authority"},
		{"wrong mesh", listener(credentials(t, a, other)), nil, "m.isobar"},
		{"other cell than the one dialled", credentials(t, a, eu1()).ServerTLS(nil), InCell("us-east-1"), ErrNotAllowed.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, _, _, clientErr := handshake(t, c.server, us.ClientTLS(c.allow))
			if clientErr == nil || !strings.Contains(clientErr.Error(), c.want) {
				t.Errorf("error %v, want it to hold %q", clientErr, c.want)
			}
		})
	}
}

func TestNewChecksOwnCertificate(t *testing.T) {
	t.Parallel()
	a := authority(t)
	now := time.Now()
	good, err := a.Issue(eu1(), now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New("n", a.CertPEM(), good, now); !errors.Is(err, ErrOtherMesh) {
		t.Error(err)
	}
	if _, err := New("m", authority(t).CertPEM(), good, now); err == nil {
		t.Error("another authority was accepted")
	}
	if _, err := New("m", a.CertPEM(), good, now.Add(2*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Error(err)
	}
	if _, err := New("m", []byte("x"), good, now); err == nil {
		t.Error("an empty authority was accepted")
	}
	if _, err := a.Issue(Identity{Mesh: "m", Server: "S"}, now, time.Hour); err == nil {
		t.Error("a bad name was signed")
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	c := credentials(t, authority(t), eu1())
	if err := c.Matches("eu-north", "eu-north-1", "s1", []string{"se", "eu"}); err != nil {
		t.Error(err)
	}
	if err := c.Matches("eu-north", "eu-north-1", "s1", []string{"us"}); !errors.Is(err, ErrNotAllowed) {
		t.Error(err)
	}
}

func TestFilesAndReopenedAuthority(t *testing.T) {
	t.Parallel()
	pair, err := authority(t).KeyPair()
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenAuthority("m", pair)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := again.Issue(eu1(), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c, err := Load("m", file("ca", pair.Cert), file("cert", leaf.Cert), file("key", leaf.Key))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(eu1(), c.Self()); diff != "" {
		t.Error(diff)
	}
	if _, err := OpenAuthority("m", KeyPair{Cert: pair.Cert, Key: leaf.Key}); err == nil {
		t.Error("a foreign key was accepted")
	}
	if _, err := PeerCell(tls.ConnectionState{}); !errors.Is(err, ErrUnverified) {
		t.Error(err)
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add(eu1().String())
	f.Add("isobar://m/region/%2e/cell/c/server/s?jurisdictions=%65u")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		id, err := ParseURI(u)
		if err != nil {
			return
		}
		again, err := ParseURI(id.URI())
		if err != nil || again.String() != id.String() {
			t.Errorf("%q read as %v, then %v, %v", s, id, again, err)
		}
	})
}

// One authority may sign for several meshes (staging and production of one
// company, say) whose cells have the same names.
func TestALeafIsOfTheMeshAndTheCell(t *testing.T) {
	t.Parallel()
	a := authority(t)
	allow := credentials(t, a, eu1()).VerifyLeaf(InCell("eu-north-1"))
	second, staging := eu1(), eu1()
	second.Server, staging.Mesh = "s2", "staging"
	for _, tc := range []struct {
		id   Identity
		want error
	}{{second, nil}, {staging, ErrOtherMesh}, {us1(), ErrNotAllowed}} {
		leaf := credentials(t, a, tc.id).cert.Leaf
		if err := allow(leaf); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.id, err, tc.want)
		}
	}
	if err := allow(a.cert); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("a certificate without an identity: %v", err)
	}
}
