package pool

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/isobar-mesh/isobar/internal/delay"
)

const (
	// maxStreams bounds the incoming streams at one time. memberlist reads a
	// message before it can tell whether its sender has the key; this and
	// maxStreamBytes bound what strangers can make it hold.
	maxStreams     = 64
	maxStreamBytes = 8 << 20
)

var errStreamTooLong = errors.New("stream is too long")

// transport stands between memberlist and the network. It makes regions far
// away, bounds what comes in, and ends every stream when it is shut down.
type transport struct {
	memberlist.NodeAwareTransport // the network; receives packets as it is
	dial                          func(context.Context, memberlist.Address, time.Duration) (net.Conn, error)
	distance                      func(memberlist.Address) time.Duration
	counts                        *counters

	packets *delay.Queue[packet]
	streams chan net.Conn
	ctx     context.Context //nolint:containedctx // of everything that may block; done at shutdown
	cancel  context.CancelFunc
	down    chan struct{} // closed when the network has been shut down
	done    chan struct{} // closed when no stream is taken any more

	mu       sync.Mutex
	open     map[*stream]struct{}
	incoming int
	closed   bool
}

type packet struct {
	b  []byte
	to memberlist.Address
}

// openTransport opens the gossip port, or takes the transport of the options,
// and returns the port as well (0 for a transport of the options).
func openTransport(opt Options, logger *log.Logger, distance func(memberlist.Address) time.Duration, counts *counters,
) (*transport, int, error) {
	t := &transport{
		distance: distance, counts: counts,
		streams: make(chan net.Conn), down: make(chan struct{}), done: make(chan struct{}),
		open: map[*stream]struct{}{},
	}
	port := 0
	if t.NodeAwareTransport = opt.Transport; opt.Transport != nil {
		t.dial = func(_ context.Context, a memberlist.Address, timeout time.Duration) (net.Conn, error) {
			return opt.Transport.DialAddressTimeout(a, timeout)
		}
	} else {
		network, err := listen(opt, logger)
		if err != nil {
			return nil, 0, err
		}
		t.NodeAwareTransport, port = network, network.GetAutoBindPort()
		t.dial = func(ctx context.Context, a memberlist.Address, timeout time.Duration) (net.Conn, error) {
			return (&net.Dialer{Timeout: timeout}).DialContext(ctx, "tcp", a.Addr)
		}
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.packets = delay.NewQueue(func(p packet) {
		// The sender was told long ago that it is on its way: datagrams get lost.
		_, _ = t.NodeAwareTransport.WriteToAddress(p.b, p.to)
	})
	go t.accept()
	return t, port, nil
}

// listen opens TCP and UDP on one port. Any free TCP port may be taken for UDP,
// so that is tried a few times.
func listen(opt Options, logger *log.Logger) (*memberlist.NetTransport, error) {
	tries := 1
	if opt.bind.Port() == 0 {
		tries = 10
	}
	var err error
	for range tries {
		var t *memberlist.NetTransport
		t, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{opt.bind.Addr().String()}, BindPort: int(opt.bind.Port()), Logger: logger,
		})
		if err == nil {
			return t, nil
		}
	}
	return nil, fmt.Errorf("listen on %s: %w", opt.bind, err)
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	d := t.distance(a)
	if d <= 0 {
		return t.NodeAwareTransport.WriteToAddress(b, a)
	}
	t.packets.Push(packet{append([]byte(nil), b...), a}, d)
	return time.Now(), nil
}

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport. Only the dialing
// side delays a stream, in both directions.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	start := time.Now()
	dial := delay.Dialer(
		func(ctx context.Context, _, _ string) (net.Conn, error) {
			return t.dial(ctx, a, timeout-time.Since(start))
		},
		func(string) time.Duration { return t.distance(a) })
	c, err := dial(ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	s := t.track(c, false)
	if s == nil {
		return nil, fmt.Errorf("dial %s: %w", a.Addr, ErrClosed)
	}
	return s, nil
}

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// accept hands incoming streams to memberlist until the network is down.
func (t *transport) accept() {
	defer close(t.done)
	for {
		select {
		case c := <-t.NodeAwareTransport.StreamCh():
			s := t.track(c, true)
			if s == nil {
				continue
			}
			select {
			case t.streams <- s:
			case <-t.down:
				_ = s.Close()
			}
		case <-t.down:
			return
		}
	}
}

// track wraps a stream, or closes it and returns nil when it can't be taken.
func (t *transport) track(c net.Conn, incoming bool) *stream {
	s := &stream{Conn: c, t: t, incoming: incoming, left: maxStreamBytes}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || (incoming && t.incoming >= maxStreams) {
		if !t.closed {
			t.counts.streams.Add(1)
		}
		_ = c.Close()
		return nil
	}
	t.open[s] = struct{}{}
	if incoming {
		t.incoming++
	}
	return s
}

// Shutdown implements memberlist.Transport.
func (t *transport) Shutdown() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	var open []*stream
	for s := range t.open {
		open = append(open, s)
	}
	t.mu.Unlock()
	t.cancel()
	for _, s := range open {
		_ = s.Close()
	}
	t.packets.Close()
	// The network's listener may be about to hand over a stream: accept reads on
	// until it has ended.
	err := t.NodeAwareTransport.Shutdown()
	close(t.down)
	<-t.done
	return err
}

// stream is one TCP stream of gossip.
type stream struct {
	net.Conn
	t        *transport
	incoming bool
	left     int64 // bytes that may still be read; used by the one reader
	closing  sync.Once
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	if s.left <= 0 {
		return 0, errStreamTooLong
	}
	n, err := s.Conn.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	return n, err
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.closing.Do(func() {
		s.t.mu.Lock()
		defer s.t.mu.Unlock()
		delete(s.t.open, s)
		if s.incoming {
			s.t.incoming--
		}
	})
	return s.Conn.Close()
}
