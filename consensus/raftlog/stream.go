package raftlog

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// alpn keeps TLS clients of other protocols out.
	alpn = "isobar-raft-1"
	// lastRPC is the highest first byte of an exchange of raft's transport.
	lastRPC = 4
	// askProgress is the first byte of the leader's question to a joiner.
	askProgress = 'p'
	// askFor is the first byte of a connection for raft: whom it is meant for
	// follows, as the length of an id and the id, and who is here is answered
	// alike. An address alone does not name a server: one whose directory was
	// emptied comes back there, and must not vote or count as the one before.
	askFor = 'i'
	// handshakeTimeout bounds an incoming connection until its first byte.
	handshakeTimeout = 10 * time.Second
	// maxHandshakes bounds how many there are at once.
	maxHandshakes = 128
)

// address is a host:port as a net.Addr.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// streamLayer is the raft port: it lets in who proves to be of the cell and
// speaks its protocol, answers the question of progress, and hands the rest to
// raft's transport. It implements raft.StreamLayer.
type streamLayer struct {
	ln       net.Listener
	advised  address
	server   *tls.Config // nil: plain
	client   *tls.Config
	dial     func(context.Context, string) (net.Conn, error)
	logger   *slog.Logger
	progress func() (id string, applied uint64)

	ctx      context.Context //nolint:containedctx // ends with shut
	cancel   context.CancelFunc
	ready    chan net.Conn
	slots    chan struct{}
	rejected atomic.Uint64

	mu    sync.Mutex
	ended bool
	conns map[net.Conn]struct{}
	alive sync.WaitGroup // accept loop, handshakes, and incoming connections
}

func newStreamLayer(o Options, logger *slog.Logger, progress func() (string, uint64)) (*streamLayer, error) {
	ln, err := net.Listen("tcp", o.Bind)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s := &streamLayer{
		ln: ln, advised: address(o.Advertise), dial: o.Dial, logger: logger, progress: progress,
		ready: make(chan net.Conn), slots: make(chan struct{}, maxHandshakes), conns: make(map[net.Conn]struct{}),
	}
	if s.advised == "" {
		s.advised = address(ln.Addr().String())
	}
	if tcp, err := net.ResolveTCPAddr("tcp", string(s.advised)); err == nil && (tcp.IP == nil || tcp.IP.IsUnspecified()) {
		return nil, errors.Join(fmt.Errorf("advertise %s: not an address others can dial: %w", s.advised, ErrOptions), ln.Close())
	}
	if o.TLS != nil {
		s.server, s.client = tlsConfigs(o.TLS, o.VerifyPeer)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.alive.Go(s.acceptLoop)
	return s, nil
}

// tlsConfigs derives both sides from the user's configuration.
func tlsConfigs(base *tls.Config, verify func(*x509.Certificate) error) (server, client *tls.Config) {
	server = base.Clone()
	server.MinVersion = tls.VersionTLS13
	server.NextProtos = []string{alpn}
	server.ClientAuth = tls.RequireAndVerifyClientCert
	if server.ClientCAs == nil {
		server.ClientCAs = base.RootCAs
	}
	client = base.Clone()
	client.MinVersion = tls.VersionTLS13
	client.NextProtos = []string{alpn}
	if verify == nil {
		return server, client
	}
	server.VerifyConnection = func(cs tls.ConnectionState) error { return verify(cs.PeerCertificates[0]) }
	// The library's check would also want the host name to match; the chain is
	// verified below all the same.
	client.InsecureSkipVerify = true
	client.VerifyConnection = func(cs tls.ConnectionState) error {
		chain := x509.VerifyOptions{Roots: base.RootCAs, Intermediates: x509.NewCertPool()}
		for _, c := range cs.PeerCertificates[1:] {
			chain.Intermediates.AddCert(c)
		}
		if _, err := cs.PeerCertificates[0].Verify(chain); err != nil {
			return err
		}
		return verify(cs.PeerCertificates[0])
	}
	return server, client
}

func (s *streamLayer) Addr() net.Addr { return s.advised }

// Accept returns the next connection that speaks raft.
func (s *streamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-s.ready:
		return c, nil
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close stops listening; shut also ends the connections.
func (s *streamLayer) Close() error {
	s.cancel()
	return s.ln.Close()
}

// sever closes every connection, so that raft's goroutines do not wait for a
// peer's answer.
func (s *streamLayer) sever() {
	_ = s.Close() // a second close of the listener is the only error
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for c := range s.conns {
		_ = c.Close()
	}
}

// shut severs and waits for the goroutines. Raft's transport must be closed.
func (s *streamLayer) shut() {
	s.sever()
	s.alive.Wait()
}

// track remembers a connection until it is closed; not after sever.
func (s *streamLayer) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		_ = c.Close()
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

// forget ends track, and reports whether the layer was still running.
func (s *streamLayer) forget(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	return !s.ended
}

func (s *streamLayer) acceptLoop() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return
			}
			s.logger.Warn("accept on the raft port", "error", err)
			select { // out of descriptors, most likely
			case <-time.After(50 * time.Millisecond):
				continue
			case <-s.ctx.Done():
				return
			}
		}
		select {
		case s.slots <- struct{}{}:
		default:
			s.reject(c, errors.New("too many handshakes at once"))
			continue
		}
		s.alive.Go(func() {
			defer func() { <-s.slots }()
			s.greet(c)
		})
	}
}

func (s *streamLayer) reject(c net.Conn, err error) {
	_ = c.Close()
	if s.ctx.Err() == nil {
		s.rejected.Add(1)
		s.logger.Debug("connection on the raft port rejected", "remote", c.RemoteAddr().String(), "error", err)
	}
}

// greet takes an incoming connection up to its first byte.
func (s *streamLayer) greet(raw net.Conn) {
	if !s.track(raw) {
		return
	}
	in, err := s.handshake(raw)
	if in != nil {
		s.alive.Add(1)
		select {
		case s.ready <- in:
		case <-s.ctx.Done():
			_ = in.Close()
		}
		return
	}
	s.forget(raw)
	if err != nil {
		s.reject(raw, err)
		return
	}
	_ = raw.Close()
}

// handshake returns a connection for raft's transport, or none when it was
// dealt with or had nothing to say, or the reason to reject it.
func (s *streamLayer) handshake(raw net.Conn) (*incoming, error) {
	ctx, cancel := context.WithTimeout(s.ctx, handshakeTimeout)
	defer cancel()
	if err := raw.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	c := raw
	if s.server != nil {
		t := tls.Server(raw, s.server)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		c = t
	}
	var first [1]byte
	switch _, err := io.ReadFull(c, first[:]); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, err
	case first[0] == askProgress:
		s.answerProgress(c)
		return nil, nil
	case first[0] != askFor:
		return nil, fmt.Errorf("first byte %#x begins nothing that is spoken here", first[0])
	}
	if meant, err := s.answerFor(c); err != nil || !meant {
		return nil, err
	}
	switch _, err := io.ReadFull(c, first[:]); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, err
	case first[0] > lastRPC:
		return nil, fmt.Errorf("first byte %#x is no exchange of raft", first[0])
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return &incoming{Conn: c, raw: raw, layer: s, first: first[:]}, nil
}

// incoming is a connection in the hands of raft's transport. When the
// transport closes it though the peer neither left nor failed, the peer spoke
// nonsense.
type incoming struct {
	net.Conn
	raw    net.Conn // below TLS; what the layer tracks
	layer  *streamLayer
	first  []byte // read already
	failed atomic.Bool
	once   sync.Once
}

func (c *incoming) Read(b []byte) (int, error) {
	if len(c.first) > 0 && len(b) > 0 {
		b[0], c.first = c.first[0], nil
		return 1, nil
	}
	n, err := c.Conn.Read(b)
	if err != nil {
		c.failed.Store(true)
	}
	return n, err
}

func (c *incoming) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		c.failed.Store(true)
	}
	return n, err
}

func (c *incoming) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		if c.layer.forget(c.raw) && !c.failed.Load() && c.layer.ctx.Err() == nil {
			c.layer.rejected.Add(1)
		}
		c.layer.alive.Done()
	})
	return err
}

// outgoing forgets itself when closed.
type outgoing struct {
	net.Conn
	layer *streamLayer
}

func (c *outgoing) Close() error {
	c.layer.forget(c.Conn)
	return c.Conn.Close()
}

// Dial opens a connection to a peer for raft's transport; to is what target
// made.
func (s *streamLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	id, at, ok := strings.Cut(string(to), "@")
	if !ok {
		return nil, fmt.Errorf("dial %s: it does not say which server is meant", to)
	}
	c, err := s.connect(ctx, at)
	if err != nil {
		return nil, err
	}
	if err := askForServer(ctx, c, id); err != nil {
		return nil, errors.Join(fmt.Errorf("dial %s: %w", at, err), c.Close())
	}
	return c, nil
}

// askForServer makes sure that the server that was reached is the one meant.
func askForServer(ctx context.Context, c net.Conn, id string) error {
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.Write(append([]byte{askFor, byte(len(id))}, id...)); err != nil {
		return err
	}
	found, err := readID(c)
	if err != nil {
		return err
	}
	if found != id {
		return fmt.Errorf("%s is there, not %s: that one's data was lost, or its address given away", found, id)
	}
	return c.SetDeadline(time.Time{})
}

// answerFor answers askForServer, and reports whether this server was meant.
func (s *streamLayer) answerFor(c net.Conn) (meant bool, err error) {
	asked, err := readID(c)
	if err != nil {
		return false, err
	}
	id, _ := s.progress()
	if _, err := c.Write(append([]byte{byte(len(id))}, id...)); err != nil {
		return false, err
	}
	if asked != id {
		s.logger.Warn("a connection was meant for another server at this address", "wanted", asked)
	}
	return asked == id, nil
}

// readID reads the length of an id and the id.
func readID(c net.Conn) (string, error) {
	var n [1]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return "", err
	}
	id := make([]byte, n[0])
	_, err := io.ReadFull(c, id)
	return string(id), err
}

func (s *streamLayer) connect(ctx context.Context, to string) (net.Conn, error) {
	c, err := s.dial(ctx, to)
	if err != nil {
		return nil, err
	}
	if s.client != nil {
		conf := s.client
		if host, _, err := net.SplitHostPort(to); err == nil && conf.ServerName == "" {
			conf = conf.Clone()
			conf.ServerName = host
		}
		t := tls.Client(c, conf)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c = t
	}
	if !s.track(c) {
		return nil, net.ErrClosed
	}
	return &outgoing{Conn: c, layer: s}, nil
}

// answerProgress tells how far this server's log is applied: the index, the
// length of the id, the id.
func (s *streamLayer) answerProgress(c net.Conn) {
	id, applied := s.progress()
	b := binary.BigEndian.AppendUint64(nil, applied)
	b = append(b, byte(len(id)))
	_, _ = c.Write(append(b, id...)) // the asker sees what is missing
	_ = c.Close()
}

// askProgress asks the server at the address who it is and how far it is.
func (s *streamLayer) askProgress(ctx context.Context, to string) (id string, applied uint64, err error) {
	c, err := s.connect(ctx, to)
	if err != nil {
		return "", 0, err
	}
	defer c.Close() //nolint:errcheck // nothing is written after the question
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return "", 0, err
		}
	}
	if _, err := c.Write([]byte{askProgress}); err != nil {
		return "", 0, err
	}
	var index [8]byte
	if _, err := io.ReadFull(c, index[:]); err != nil {
		return "", 0, err
	}
	id, err = readID(c)
	return id, binary.BigEndian.Uint64(index[:]), err
}
