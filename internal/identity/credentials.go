package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Credentials are one server's own certificate and the authority it trusts.
// They are read once; a new certificate takes effect at the server's next
// start. Safe for concurrent use.
type Credentials struct {
	self     Identity
	cert     tls.Certificate
	roots    *x509.CertPool
	notAfter time.Time
}

// Allow decides whether a server of the mesh may talk on a connection; nil
// allows each. Its error ends the handshake and is seen on this side only.
type Allow func(Identity) error

// InCell allows the servers of one cell: for its Raft transport.
func InCell(cell mesh.CellID) Allow {
	return func(id Identity) error {
		if id.Cell.ID != cell {
			return fmt.Errorf("identity: allow server %s: of cell %s, not %s: %w", id.Server, id.Cell.ID, cell, ErrNotAllowed)
		}
		return nil
	}
}

// Load reads PEM files. The server's own certificate must be of the mesh,
// signed by the authority, and valid now.
func Load(meshName, caFile, certFile, keyFile string) (*Credentials, error) {
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("identity: read authority: %w", err)
	}
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("identity: read certificate: %w", err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("identity: read key: %w", err)
	}
	return New(meshName, ca, KeyPair{Cert: cert, Key: key}, time.Now())
}

// New is Load on PEM bytes, at the given time.
func New(meshName string, ca []byte, pair KeyPair, now time.Time) (*Credentials, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("identity: read authority: %w", errors.New("no PEM certificate in it"))
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return nil, fmt.Errorf("identity: read certificate and key: %w", err)
	}
	id, err := FromCertificate(cert.Leaf)
	if err != nil {
		return nil, err
	}
	if id.Mesh != meshName {
		return nil, fmt.Errorf("identity: read certificate of mesh %s, configured is %s: %w", id.Mesh, meshName, ErrOtherMesh)
	}
	// Verifying our own certificate at start turns a handshake failure on
	// somebody else's machine into a clear error on this one.
	intermediates := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(c)
		}
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{
			DNSName: DNSName(meshName), Roots: roots, Intermediates: intermediates, CurrentTime: now,
			KeyUsages: []x509.ExtKeyUsage{usage},
		}); err != nil {
			return nil, fmt.Errorf("identity: verify own certificate: %w", err)
		}
	}
	return &Credentials{self: id, cert: cert, roots: roots, notAfter: cert.Leaf.NotAfter}, nil
}

// Self is the server's own identity.
func (c *Credentials) Self() Identity { return c.self }

// NotAfter is when the server's certificate ends.
func (c *Credentials) NotAfter() time.Time { return c.notAfter }

// Matches checks the certificate against what the server was configured to be.
func (c *Credentials) Matches(region string, cell mesh.CellID, server string, jurisdictions []string) error {
	want := Identity{Mesh: c.self.Mesh, Server: server, Cell: mesh.Cell{
		ID: cell, Region: region, Jurisdictions: slices.Compact(slices.Sorted(slices.Values(jurisdictions))),
	}}
	if c.self.String() != want.String() {
		return fmt.Errorf("identity: match certificate %s: configured is %s: %w", c.self, want, ErrNotAllowed)
	}
	return nil
}

// ServerTLS makes the configuration of a listener: the peer must show a
// certificate of the mesh that allow accepts. The caller sets NextProtos.
func (c *Credentials) ServerTLS(allow Allow) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		Certificates:     []tls.Certificate{c.cert},
		ClientAuth:       tls.RequireAndVerifyClientCert,
		ClientCAs:        c.roots,
		VerifyConnection: c.verify(allow),
	}
}

// ClientTLS makes the configuration of a dialler, to whatever address: the
// peer must show a certificate of the mesh that allow accepts.
func (c *Credentials) ClientTLS(allow Allow) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		Certificates:     []tls.Certificate{c.cert},
		RootCAs:          c.roots,
		ServerName:       DNSName(c.self.Mesh),
		VerifyConnection: c.verify(allow),
	}
}

// verify runs after the chain was verified, on resumed connections too.
func (c *Credentials) verify(allow Allow) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		id, err := Peer(cs)
		if err != nil {
			return err
		}
		return c.check(id, allow)
	}
}

func (c *Credentials) check(id Identity, allow Allow) error {
	if id.Mesh != c.self.Mesh {
		return fmt.Errorf("identity: verify peer %s of mesh %s: %w", id.Server, id.Mesh, ErrOtherMesh)
	}
	if allow != nil {
		return allow(id)
	}
	return nil
}

// VerifyLeaf is the same check for a listener or dialler that verifies the chain
// itself, the mesh included: one authority may sign for several meshes, and
// their cells may have the same names.
func (c *Credentials) VerifyLeaf(allow Allow) func(*x509.Certificate) error {
	return func(leaf *x509.Certificate) error {
		id, err := FromCertificate(leaf)
		if err != nil {
			return err
		}
		return c.check(id, allow)
	}
}

// Peer reads who is at the other end of a connection made with ServerTLS or
// ClientTLS.
func Peer(cs tls.ConnectionState) (Identity, error) {
	if len(cs.VerifiedChains) == 0 || len(cs.VerifiedChains[0]) == 0 {
		return Identity{}, fmt.Errorf("identity: read peer: %w", ErrUnverified)
	}
	return FromCertificate(cs.VerifiedChains[0][0])
}

// PeerCell reads the cell of the other end, as Peer does.
func PeerCell(cs tls.ConnectionState) (mesh.Cell, error) {
	id, err := Peer(cs)
	return id.Cell, err
}
