package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"
)

// Authority signs certificates of one mesh, with ECDSA on P-256. It serves
// `isobar dev` and tests; a production mesh brings certificates of the same
// form from its own authority.
type Authority struct {
	mesh string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// KeyPair is a certificate and its private key, PEM encoded.
type KeyPair struct {
	Cert []byte
	Key  []byte
}

// clockSlack is how far back a certificate's life starts, for clocks that are
// a little behind.
const clockSlack = 5 * time.Minute

// NewAuthority makes an authority that is valid for the time from now.
func NewAuthority(meshName string, now time.Time, valid time.Duration) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("identity: make authority key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "Isobar mesh " + meshName},
		NotBefore:    now.Add(-clockSlack), NotAfter: now.Add(valid),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("identity: sign authority of mesh %s: %w", meshName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("identity: parse authority of mesh %s: %w", meshName, err)
	}
	return &Authority{mesh: meshName, cert: cert, key: key}, nil
}

// OpenAuthority reads an authority that KeyPair wrote.
func OpenAuthority(meshName string, pair KeyPair) (*Authority, error) {
	certBlock, _ := pem.Decode(pair.Cert)
	keyBlock, _ := pem.Decode(pair.Key)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("identity: open authority: %w", errors.New("not PEM"))
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("identity: open authority certificate: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("identity: open authority key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("identity: open authority: %w", errors.New("the key is not the certificate's"))
	}
	return &Authority{mesh: meshName, cert: cert, key: key}, nil
}

// KeyPair is the authority itself; its key signs for the whole mesh.
func (a *Authority) KeyPair() (KeyPair, error) { return encode(a.cert.Raw, a.key) }

// CertPEM is the authority's certificate, which every server trusts.
func (a *Authority) CertPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// NotAfter is when the authority ends.
func (a *Authority) NotAfter() time.Time { return a.cert.NotAfter }

// Issue signs a new key for one server, valid for the time from now.
func (a *Authority) Issue(id Identity, now time.Time, valid time.Duration) (KeyPair, error) {
	id.Cell.Jurisdictions = slices.Compact(slices.Sorted(slices.Values(id.Cell.Jurisdictions)))
	if err := id.Check(); err != nil {
		return KeyPair{}, err
	}
	return a.issue(now, valid, id.Server, []string{DNSName(id.Mesh)}, []*url.URL{id.URI()})
}

func (a *Authority) issue(now time.Time, valid time.Duration, name string, dns []string, uris []*url.URL) (KeyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return KeyPair{}, fmt.Errorf("identity: make key of %s: %w", name, err)
	}
	serial, err := newSerial()
	if err != nil {
		return KeyPair{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-clockSlack), NotAfter: now.Add(valid),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:              append(dns, "localhost"),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		URIs:                  uris,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return KeyPair{}, fmt.Errorf("identity: sign certificate of %s: %w", name, err)
	}
	return encode(der, key)
}

func encode(der []byte, key *ecdsa.PrivateKey) (KeyPair, error) {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return KeyPair{}, fmt.Errorf("identity: encode key: %w", err)
	}
	return KeyPair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}),
	}, nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("identity: make serial number: %w", err)
	}
	return serial, nil
}
