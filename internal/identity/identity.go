// Package identity is who a server is towards other servers: a certificate
// signed by the mesh's authority, with the mesh, region, cell, server name and
// jurisdictions in its one URI:
//
//	isobar://MESH/region/REGION/cell/CELL/server/NAME?jurisdictions=eu,se
//
// and the DNS name MESH.isobar, which is what a dialling server verifies, so
// that certificates need not know addresses.
//
// A cell's jurisdictions are read from verified certificates alone, never from
// gossip or configuration: residency rests on them. The package makes
// certificates for `isobar dev` and tests (Authority), reads a server's own
// (Load), and verifies a peer's during the handshake, in both directions, at
// TLS 1.3: chain to the mesh's authority, validity, mesh name, and what the
// caller allows. It opens no connection and keeps no global.
package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Errors of this package; all are wrapped with what was wrong.
var (
	// ErrNoIdentity: a certificate has no URI of this form.
	ErrNoIdentity = errors.New("certificate names no server of a mesh")
	// ErrOtherMesh: the certificate is of another mesh.
	ErrOtherMesh = errors.New("certificate is of another mesh")
	// ErrUnverified: a connection whose peer showed no verified certificate.
	ErrUnverified = errors.New("peer's certificate is not verified")
	// ErrNotAllowed: a server of the mesh, but not one allowed here.
	ErrNotAllowed = errors.New("server is not allowed here")
)

const scheme = "isobar"

// Identity names one server.
type Identity struct {
	Mesh   string
	Cell   mesh.Cell
	Server string
}

// DNSName is the name every certificate of the mesh carries and every dialling
// server verifies.
func DNSName(meshName string) string { return meshName + ".isobar" }

// URI is the identity in the form that a certificate carries.
func (id Identity) URI() *url.URL {
	u := &url.URL{
		Scheme: scheme, Host: id.Mesh,
		Path: "/region/" + id.Cell.Region + "/cell/" + string(id.Cell.ID) + "/server/" + id.Server,
	}
	if len(id.Cell.Jurisdictions) > 0 {
		u.RawQuery = "jurisdictions=" + strings.Join(id.Cell.Jurisdictions, ",")
	}
	return u
}

// String is the URI's text.
func (id Identity) String() string { return id.URI().String() }

// Check reports whether every part can stand in a certificate.
func (id Identity) Check() error {
	for _, part := range [...]struct{ what, name string }{
		{"mesh", id.Mesh}, {"region", id.Cell.Region}, {"cell", string(id.Cell.ID)}, {"server", id.Server},
	} {
		if !mesh.ValidName(part.name) {
			return fmt.Errorf("identity: check %s name %q: %w", part.what, part.name, ErrNoIdentity)
		}
	}
	for i, j := range id.Cell.Jurisdictions {
		if !mesh.ValidName(j) || (i > 0 && id.Cell.Jurisdictions[i-1] >= j) {
			return fmt.Errorf("identity: check jurisdictions %q: not sorted, distinct names: %w", id.Cell.Jurisdictions, ErrNoIdentity)
		}
	}
	return nil
}

// ParseURI reads an identity. Anything more or less than the documented form
// is an error, so that two readers cannot disagree about one certificate.
func ParseURI(u *url.URL) (Identity, error) {
	fail := func() (Identity, error) {
		return Identity{}, fmt.Errorf("identity: parse URI %q: %w", u.String(), ErrNoIdentity)
	}
	parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	if u.Scheme != scheme || u.User != nil || u.Fragment != "" || u.Opaque != "" || len(parts) != 6 ||
		parts[0] != "region" || parts[2] != "cell" || parts[4] != "server" {
		return fail()
	}
	id := Identity{
		Mesh:   u.Host,
		Cell:   mesh.Cell{ID: mesh.CellID(parts[3]), Region: parts[1]},
		Server: parts[5],
	}
	if u.RawQuery != "" {
		list, ok := strings.CutPrefix(u.RawQuery, "jurisdictions=")
		if !ok {
			return fail()
		}
		id.Cell.Jurisdictions = strings.Split(list, ",")
		slices.Sort(id.Cell.Jurisdictions)
	}
	if id.Check() != nil {
		return fail()
	}
	return id, nil
}

// FromCertificate reads the identity of a certificate, which the caller has
// verified. A certificate with several URIs is refused.
func FromCertificate(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 {
		return Identity{}, fmt.Errorf("identity: read certificate %q: %d URIs: %w", cert.Subject.CommonName, len(cert.URIs), ErrNoIdentity)
	}
	return ParseURI(cert.URIs[0])
}
