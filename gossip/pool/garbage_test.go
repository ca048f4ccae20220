package pool_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/gossip/pool"
)

// TestMain fails when a goroutine stays. memberlist's last probe outlives its
// shutdown by up to two probe intervals, longer than one Find is patient.
func TestMain(m *testing.M) {
	code := m.Run()
	var leak error
	for range 10 {
		if leak = goleak.Find(); leak == nil {
			break
		}
	}
	if code == 0 && leak != nil {
		fmt.Fprintln(os.Stderr, leak)
		code = 1
	}
	os.Exit(code)
}

// garbage is what strangers send: other protocols, noise, and noise dressed up
// as gossip.
func garbage() map[string][]byte {
	noise := func(n int) []byte {
		r := rand.New(rand.NewPCG(1, uint64(n)))
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	label := append([]byte{244, 4}, "test"...) // of the right mesh
	out := map[string][]byte{
		"http":              []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"tls hello":         append([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, noise(500)...),
		"one byte":          {0},
		"zeros":             make([]byte, 1000),
		"noise":             noise(1300),
		"label cut off":     {244, 200, 'a'},
		"label empty":       {244, 0, 1, 2, 3},
		"another label":     append([]byte{244, 5}, "other plus noise"...),
		"label and noise":   append(bytes.Clone(label), noise(300)...),
		"label and version": append(append(bytes.Clone(label), 1), noise(300)...), // encryption version 1
		"encrypted stream":  append(append(append(bytes.Clone(label), 10), binary.BigEndian.AppendUint32(nil, 200)...), noise(200)...),
		"huge stream":       append(append(append(bytes.Clone(label), 10), binary.BigEndian.AppendUint32(nil, 1<<31)...), noise(200)...),
	}
	for kind := range byte(16) { // each of memberlist's message types, in plain
		out["plain type "+string(rune('a'+kind))] = append(append(bytes.Clone(label), kind), noise(100)...)
	}
	return out
}

// Three servers on real sockets: they find each other, exchange digests, and
// neither notice nor let pass what strangers send to their ports.
func TestLoopback(t *testing.T) {
	t.Parallel()
	var servers []*pool.Pool
	for i := range 3 {
		opt := pool.Options{Mesh: "test", Self: selfOf(3 * i), Keys: keys, Timing: pool.DevTiming(), Bind: "127.0.0.1:0"}
		opt.Delay = func(region string) time.Duration {
			if region == opt.Self.Region {
				return 0
			}
			return 30 * time.Millisecond
		}
		for _, s := range servers {
			opt.Seeds = append(opt.Seeds, s.Address())
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
		for j := range 3 {
			p.Accept(cellOf(3*j), "inc-1")
		}
		servers = append(servers, p)
	}
	until(t, servers, "all see all, and measured each other", func() bool {
		for _, s := range servers {
			for _, m := range s.Members() {
				if _, ok := s.RTT(m.Cell); !ok || m.State != pool.Alive {
					return false
				}
			}
			if len(s.Members()) != 3 {
				return false
			}
		}
		return true
	})
	sent := pelt(t, servers[0].Address())
	for i, s := range servers {
		d := digest(&server{self: selfOf(3 * i)}, 1, 1)
		if _, err := s.Publish(d); err != nil {
			t.Fatal(err)
		}
	}
	until(t, servers, "all digests everywhere", func() bool {
		for _, s := range servers {
			for i := range 3 {
				if e, ok := s.View().Cell(cellOf(3 * i)); !ok || e.Version() != (gossip.Version{Term: 1, Sequence: 1}) {
					return false
				}
			}
		}
		return true
	})
	until(t, servers, "what was refused is counted", func() bool {
		s := servers[0].Stats()
		return s.RefusedPackets >= uint64(sent) && s.RefusedStreams >= uint64(sent)
	})
	until(t, servers, "round trips settle", func() bool {
		rtt, _ := servers[0].RTT(cellOf(3))
		return rtt >= 60*time.Millisecond && rtt < 200*time.Millisecond
	})
	s := servers[0].Stats()
	if s.WrongKey == 0 || s.Strangers != 0 || s.Undecodable != 0 {
		t.Errorf("%+v", s)
	}
	t.Logf("%d pieces of garbage to each of UDP and TCP: %+v", sent, s)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := servers[2].Leave(ctx); err != nil {
		t.Error(err)
	}
	if err := servers[2].Close(); err != nil {
		t.Error(err)
	}
	until(t, servers[:2], "the third left", func() bool {
		return servers[0].Members()[2].State == pool.Left && servers[1].Members()[2].State == pool.Left
	})
}

// pelt sends each piece of garbage by UDP and by TCP, and fails unless the
// other side closes each stream.
func pelt(t *testing.T, addr string) (sent int) {
	t.Helper()
	for name, b := range garbage() {
		u, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Write(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_ = u.Close()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: the stream stays open", name)
			}
		}
		_ = c.Close()
		sent++
	}
	return sent
}

// until waits for a condition on real sockets, woken by the pools' changes.
func until(t *testing.T, pools []*pool.Pool, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !ok() {
		poll := time.After(20 * time.Millisecond)
		select {
		case <-deadline:
			for _, p := range pools {
				t.Logf("%s: %+v %+v", p.Address(), p.Members(), p.Stats())
			}
			t.Fatal("not in time: " + what)
		case <-poll:
		}
	}
}

// Without a key garbage reaches memberlist's decoders themselves; it must not
// end the process there either, nor be believed.
func TestGarbageWithoutAKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		open := func(o *pool.Options) { o.Keys, o.InsecureNoKey = nil, true }
		network := newNetwork(t, time.Millisecond)
		servers := []*server{network.start(t, 0, 0, open), network.start(t, 1, 0, open)}
		eventually(t, "both see both", 15*time.Second, func() bool { return all(servers, 2, pool.Alive) })
		for _, b := range garbage() {
			servers[0].inject(bytes.Clone(b))
			c := servers[0].connect()
			go func() {
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				_, _ = c.Write(b)
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}()
		}
		// A well-formed user message that is no digest, and one of another kind.
		label := append([]byte{244, 4}, "test"...)
		servers[0].inject(append(bytes.Clone(label), 8, 1, 0xff, 0xff))
		servers[0].inject(append(bytes.Clone(label), 8, 99, 1))
		pass(time.Minute)
		s := servers[0].Stats()
		if s.RefusedPackets == 0 || s.RefusedStreams == 0 || s.Undecodable == 0 || s.UnknownKind == 0 {
			t.Errorf("not counted: %+v", s)
		}
		if !all(servers, 2, pool.Alive) || len(servers[0].View().Held) != 0 {
			t.Errorf("garbage was believed: %+v", servers[0].Members())
		}
		publish(t, servers[1], 1, 1)
		servers[0].Accept(cellOf(0), "inc-1")
		eventually(t, "gossip goes on", 30*time.Second, func() bool {
			return sees(servers[:1], cellOf(0), gossip.Version{Term: 1, Sequence: 1})
		})
	})
}

// A member of the right mesh and key, but of another program.
func TestStrangersAreKeptOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		open := func(o *pool.Options) { o.Keys, o.InsecureNoKey = nil, true }
		network := newNetwork(t, time.Millisecond)
		s := network.start(t, 0, 0, open)
		conf := memberlist.DefaultLANConfig()
		conf.Name, conf.Label, conf.Transport, conf.LogOutput = "stranger", "test", network.endpoint(0), io.Discard
		other, err := memberlist.Create(conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = other.Shutdown() })
		if _, err := other.Join([]string{s.Address()}); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		if n := len(s.Members()); n != 1 || s.Stats().Strangers == 0 {
			t.Errorf("%d members, %+v", n, s.Stats())
		}
	})
}

// Streams that say nothing can't pile up: there is a bound, and a timeout.
func TestIdleStreamsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newNetwork(t, 0).start(t, 0, 0)
		closed := make(chan struct{}, 100)
		var conns []net.Conn
		for range 80 {
			c := s.connect()
			conns = append(conns, c)
			go func() {
				_, _ = io.Copy(io.Discard, c)
				closed <- struct{}{}
			}()
			synctest.Wait()
		}
		if n := len(closed); n != 80-64 {
			t.Errorf("%d of 80 idle streams were closed at once, want 16", n)
		}
		pass(pool.DevTiming().StreamTimeout + time.Second)
		if n := len(closed); n != 80 {
			t.Errorf("%d of 80 idle streams were closed after the timeout", n)
		}
		if s.Stats().RefusedStreams != 80 {
			t.Errorf("%+v", s.Stats())
		}
		for _, c := range conns {
			_ = c.Close()
		}
	})
}
