package pool_test

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/gossip/pool"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// network is a network in memory whose endpoints never block each other: a
// datagram to one that is gone is lost, a dial to it refused.
type network struct {
	latency time.Duration // one way, of datagrams

	mu        sync.Mutex
	endpoints map[string]*endpoint // by address
	parted    bool                 // endpoints of different sides don't reach each other
}

// endpoint implements memberlist.NodeAwareTransport.
type endpoint struct {
	net     *network
	number  int
	side    int
	packets chan *memberlist.Packet
	streams chan net.Conn
	gone    bool // guarded by net.mu
}

var errUnreachable = errors.New("unreachable")

// newNetwork is for a test in a bubble: its time stands still once the test has
// returned, so what memberlist has under way ends in the last cleanup.
func newNetwork(t *testing.T, latency time.Duration) *network {
	t.Cleanup(func() { pass(time.Minute) })
	return &network{latency: latency, endpoints: map[string]*endpoint{}}
}

func (n *network) endpoint(side int) *endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := &endpoint{
		net: n, number: len(n.endpoints) + 1, side: side,
		packets: make(chan *memberlist.Packet, 4096), streams: make(chan net.Conn, 64),
	}
	n.endpoints[e.String()] = e
	return e
}

func (n *network) part(parted bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.parted = parted
}

// to is the endpoint at an address as e reaches it, nil when it does not.
func (e *endpoint) to(addr string) *endpoint {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	o := e.net.endpoints[addr]
	if o == nil || o.gone || e.gone || (e.net.parted && o.side != e.side) {
		return nil
	}
	return o
}

// unplug takes the endpoint off the network, as a crash does.
func (e *endpoint) unplug() {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	e.gone = true
}

func (e *endpoint) ip() net.IP      { return net.IPv4(10, 0, byte(e.number>>8), byte(e.number)).To4() }
func (e *endpoint) String() string  { return e.ip().String() + ":7946" }
func (e *endpoint) Network() string { return "memory" }
func (e *endpoint) Shutdown() error { e.unplug(); return nil }
func (e *endpoint) inject(b []byte) {
	e.packets <- &memberlist.Packet{Buf: b, From: e, Timestamp: time.Now()}
}
func (e *endpoint) connect() net.Conn { a, b := net.Pipe(); e.streams <- a; return b }

func (e *endpoint) FinalAdvertiseAddr(string, int) (net.IP, int, error) { return e.ip(), 7946, nil }
func (e *endpoint) PacketCh() <-chan *memberlist.Packet                 { return e.packets }
func (e *endpoint) StreamCh() <-chan net.Conn                           { return e.streams }

func (e *endpoint) WriteTo(b []byte, addr string) (time.Time, error) {
	return e.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (e *endpoint) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	b = append([]byte(nil), b...)
	time.AfterFunc(e.net.latency, func() {
		if o := e.to(a.Addr); o != nil {
			select {
			case o.packets <- &memberlist.Packet{Buf: b, From: e, Timestamp: time.Now()}:
			default:
			}
		}
	})
	return time.Now(), nil
}

func (e *endpoint) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return e.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (e *endpoint) DialAddressTimeout(a memberlist.Address, _ time.Duration) (net.Conn, error) {
	o := e.to(a.Addr)
	if o == nil {
		return nil, errUnreachable
	}
	near, far := net.Pipe()
	select {
	case o.streams <- far:
		return near, nil
	default:
		return nil, errUnreachable
	}
}

var keys = []string{pool.NewKey()}

// server is one server of a test's mesh.
type server struct {
	*pool.Pool
	*endpoint
	self pool.Member
}

// cellOf and regionOf place servers: three to a cell, cells round robin over
// three regions.
func cellOf(server int) mesh.CellID { return mesh.CellID(fmt.Sprintf("cell-%d", server/3)) }
func regionOf(server int) string    { return fmt.Sprintf("region-%d", server/3%3) }

func selfOf(i int) pool.Member {
	return pool.Member{
		ID: fmt.Sprintf("id-%02d", i), Name: fmt.Sprintf("server-%02d", i), Cell: cellOf(i), Region: regionOf(i),
		PeerAddress: fmt.Sprintf("10.0.0.%d:7100", i+1), APIAddress: fmt.Sprintf("10.0.0.%d:7101", i+1),
		RaftAddress: fmt.Sprintf("10.0.0.%d:7102", i+1), PID: 1000 + i,
	}
}

// start opens one server and joins it to the network's first.
func (n *network) start(t *testing.T, i, side int, change ...func(*pool.Options)) *server {
	t.Helper()
	e := n.endpoint(side)
	opt := pool.Options{
		Mesh: "test", Self: selfOf(i), Keys: keys, Timing: pool.DevTiming(), Transport: e,
		Seeds: []string{"10.0.0.1:7946"},
	}
	for _, c := range change {
		c(&opt)
	}
	p, err := pool.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return &server{p, e, opt.Self}
}

// startAll opens n servers whose view accepts every cell's first incarnation.
func (n *network) startAll(t *testing.T, count int, side func(int) int, change ...func(*pool.Options)) []*server {
	t.Helper()
	var out []*server
	for i := range count {
		s := n.start(t, i, side(i), change...)
		for j := 0; j < count; j += 3 {
			s.Accept(cellOf(j), "inc-1")
		}
		out = append(out, s)
	}
	return out
}

func oneSide(int) int { return 0 }

// pass lets virtual time go by.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// eventually waits in virtual time until ok, and returns how long it took.
func eventually(t *testing.T, what string, within time.Duration, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > within {
			t.Fatalf("not within %v: %s", within, what)
		}
		pass(50 * time.Millisecond)
	}
	return time.Since(start)
}

// all reports whether every server sees n members in a state.
func all(servers []*server, n int, state pool.State) bool {
	for _, s := range servers {
		if count(s, state) != n {
			return false
		}
	}
	return true
}

func count(s *server, state pool.State) (n int) {
	for _, m := range s.Members() {
		if m.State == state {
			n++
		}
	}
	return n
}

// digest is a minimal digest of a server's cell.
func digest(s *server, term, sequence uint64) *meshv1.Digest {
	return &meshv1.Digest{
		Cell: string(s.self.Cell), Region: s.self.Region, Incarnation: "inc-1", Term: term, Sequence: sequence,
	}
}

func publish(t *testing.T, s *server, term, sequence uint64) {
	t.Helper()
	if _, err := s.Publish(digest(s, term, sequence)); err != nil {
		t.Fatal(err)
	}
}

// sees reports whether every server shows the version for a cell.
func sees(servers []*server, cell mesh.CellID, v gossip.Version) bool {
	for _, s := range servers {
		if e, ok := s.View().Cell(cell); !ok || e.Version() != v {
			return false
		}
	}
	return true
}
