package raftlog

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/consensus/consensustest"
	"github.com/isobar-mesh/isobar/state"
)

// authority makes certificates of cells, as a mesh's own would.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, cert: cert, key: key}
}

func cellURI(cell string) *url.URL { return &url.URL{Scheme: "isobar", Host: "cell", Path: "/" + cell} }

// tls is the configuration of a server of the cell. Its certificate has no
// host name: only the cell counts.
func (a *authority) tls(cell string) *tls.Config {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cell},
		URIs:      []*url.URL{cellURI(cell)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{
		RootCAs:      pool,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
}

// sameCell is the hook a server of the cell gives.
func sameCell(cell string) func(*x509.Certificate) error {
	return func(c *x509.Certificate) error {
		for _, u := range c.URIs {
			if u.String() == cellURI(cell).String() {
				return nil
			}
		}
		return fmt.Errorf("certificate is of %v, not of cell %s", c.URIs, cell)
	}
}

// network is what the servers of a test dial through; it can cut one off.
type network struct {
	mu    sync.Mutex
	cut   map[string]bool // server ids
	owner map[string]string
	conns map[*link]struct{}
}

// link is one connection between two servers.
type link struct {
	net.Conn
	from, to string
}

func newNetwork() *network {
	return &network{cut: map[string]bool{}, owner: map[string]string{}, conns: map[*link]struct{}{}}
}

var errCut = errors.New("cut off")

func (n *network) dialer(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		n.mu.Lock()
		to := n.owner[addr]
		blocked := n.cut[from] || n.cut[to]
		n.mu.Unlock()
		if blocked {
			return nil, errCut
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		l := &link{Conn: c, from: from, to: to}
		n.mu.Lock()
		n.conns[l] = struct{}{}
		n.mu.Unlock()
		return l, nil
	}
}

func (n *network) isolate(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[id] = true
	for l := range n.conns {
		if l.from == id || l.to == id {
			_ = l.Close()
			delete(n.conns, l)
		}
	}
}

func (n *network) heal(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, id)
}

// node is one server of a cluster and where it lives.
type node struct {
	*Log
	opts    Options
	machDir string
	m       consensustest.Machine
}

// cluster is a cell of a test.
type cluster struct {
	t       testing.TB
	auth    *authority
	net     *network
	machine func(testing.TB, string) consensustest.Machine
	tune    func(*Options)
	nodes   []*node
	dir     string
}

func memoryRecorder(t testing.TB, _ string) consensustest.Machine {
	return newRecorder(t, state.NewMemory())
}

// newCluster starts n servers, the first of which bootstraps and the others
// join, and returns once all vote.
func newCluster(t testing.TB, n int, machine func(testing.TB, string) consensustest.Machine, tune func(*Options)) *cluster {
	t.Helper()
	c := &cluster{t: t, auth: newAuthority(t), net: newNetwork(), machine: machine, tune: tune, dir: t.TempDir()}
	t.Cleanup(func() {
		for _, nd := range c.nodes {
			c.stop(nd)
		}
	})
	for i := range n {
		nd := c.add(i == 0)
		if i == 0 {
			consensustest.AwaitLeader(t, nd)
			continue
		}
		c.join(nd)
	}
	c.awaitVoters(n)
	return c
}

// add makes a server with empty directories.
func (c *cluster) add(bootstrap bool) *node {
	c.t.Helper()
	dir := filepath.Join(c.dir, fmt.Sprint(len(c.nodes)), "log")
	nd := &node{machDir: filepath.Join(c.dir, fmt.Sprint(len(c.nodes)), "data")}
	id, err := LoadServerID(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	nd.opts = Options{
		Dir: dir, ServerID: id, Bind: "127.0.0.1:0", Bootstrap: bootstrap,
		TLS: c.auth.tls("eu-1"), VerifyPeer: sameCell("eu-1"), Dial: c.net.dialer(id),
		HeartbeatTimeout: 500 * time.Millisecond,
		SegmentBytes:     1 << 20,
		Logger:           testLogger(),
	}
	if c.tune != nil {
		c.tune(&nd.opts)
	}
	c.nodes = append(c.nodes, nd)
	c.start(nd)
	return nd
}

// start starts the server on what its directories hold.
func (c *cluster) start(nd *node) {
	c.t.Helper()
	nd.m = c.machine(c.t, nd.machDir)
	nd.Log = mustOpen(c.t, nd.opts, nd.m)
	nd.opts.Bind = nd.Address() // the same one after a restart
	c.net.mu.Lock()
	c.net.owner[nd.Address()] = nd.opts.ServerID
	c.net.mu.Unlock()
}

// stop stops a server, if it runs, with a hand-over of leadership.
func (c *cluster) stop(nd *node) {
	if nd.Log == nil {
		return
	}
	if err := nd.Close(); err != nil {
		c.t.Errorf("close: %v", err)
	}
	nd.closeMachine(c.t)
}

// kill stops a server without one.
func (c *cluster) kill(nd *node) {
	nd.closeOnce.Do(func() { nd.shutdown(false) })
	nd.closeMachine(c.t)
}

func (nd *node) closeMachine(t testing.TB) {
	nd.Log = nil
	if m, ok := nd.m.(interface{ Close() error }); ok {
		if err := m.Close(); err != nil {
			t.Errorf("close machine: %v", err)
		}
	}
}

// leader waits for a server that leads and can commit.
func (c *cluster) leader() *node {
	c.t.Helper()
	var found *node
	eventually(c.t, "a leader", func() bool {
		for _, nd := range c.nodes {
			if nd.Log != nil && nd.Status().Role == consensus.Leader && nd.Barrier(ctxFor(c.t)) == nil {
				found = nd
				return true
			}
		}
		return false
	})
	return found
}

func (c *cluster) join(nd *node) {
	c.t.Helper()
	s := consensus.Server{ID: nd.opts.ServerID, Address: nd.Address()}
	eventually(c.t, "joined", func() bool { return c.leader().Join(ctxFor(c.t), s) == nil })
}

func (c *cluster) awaitVoters(n int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%d voters", n), func() bool {
		servers, err := c.leader().Servers()
		if err != nil {
			return false
		}
		voters := 0
		for _, s := range servers {
			if s.Voter {
				voters++
			}
		}
		return voters == n
	})
}

// propose gets one payload committed by whoever leads.
func (c *cluster) propose(payload string) {
	c.t.Helper()
	l := c.leader()
	if _, err := l.Propose(ctxFor(c.t), l.m.Encode([]byte(payload))); err != nil {
		c.t.Fatalf("propose %.20q: %v", payload, err)
	}
}

// await waits until the server has applied exactly the payloads.
func (c *cluster) await(nd *node, want int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%s has %d payloads", nd.opts.ServerID, want), func() bool {
		return len(nd.m.Payloads()) == want
	})
}

// others lists the running servers but one.
func (c *cluster) others(but *node) []*node {
	var out []*node
	for _, nd := range c.nodes {
		if nd != but && nd.Log != nil {
			out = append(out, nd)
		}
	}
	return out
}
