// Package pool carries digests between the servers of a mesh and knows which
// servers are there: one memberlist over every server of every cell.
//
// It owns the gossip port, the keyring, the membership and the one gossip.View
// of a server. It never decides anything: it does not place work, does not
// judge a digest by its age, and believes no incarnation that its caller did
// not accept. A cell's jurisdiction is never learned here.
//
// # Guarantees
//
//   - Every message is encrypted and authenticated with a key of the ring, and
//     bound to the mesh by its label. What is not is dropped, closed and counted;
//     it never ends the process. Running without a key must be asked for.
//   - Digests reach every member by gossip within a few gossip intervals, and by
//     the periodic exchange of all digests when packets are lost.
//   - A failed member is tried again until it is back or a day has gone, so the
//     halves of a parted mesh find each other however long it lasted.
//   - Members and digests are hints, some seconds old. A member may be reported
//     failed and be well.
//
// A server that holds the key is trusted to speak for any cell; the checks that
// bind (certificate, incarnation, residency) are made over mutual TLS.
package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/internal/delay"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// ErrForeign is returned by Publish for another cell's digest.
var ErrForeign = errors.New("not this server's cell")

// ErrStale is returned by Publish when a newer digest of the cell is known: its
// publisher is deposed, or restarted its sequence within a term.
var ErrStale = errors.New("a newer digest is known")

// ErrClosed is returned after Close.
var ErrClosed = errors.New("pool is closed")

// Pool is one server's place in the mesh. All methods are safe for concurrent
// use, and none but New, Leave and Close waits for the network.
type Pool struct {
	opt       Options
	log       *slog.Logger
	list      *memberlist.Memberlist
	address   string
	transport *transport
	queue     *memberlist.TransmitLimitedQueue
	counts    counters

	stopping chan struct{} // closed by Close
	tried    chan struct{} // closed when every seed has been tried once
	kick     chan struct{} // capacity 1: a member came or went
	done     chan struct{} // closed when the maintenance has ended

	// mu is a leaf: memberlist calls in with its own locks held, so it is never
	// called with mu held.
	mu       sync.Mutex
	view     *gossip.View
	snapshot *gossip.Snapshot  // of view, nil when it changed since
	members  map[string]*peer  // by id
	byAddr   map[string]string // gossip address → member id
	watchers map[chan struct{}]struct{}
	leaving  bool

	closing   sync.Mutex // serializes Leave and Close
	hasClosed bool
}

// New opens the gossip port and joins the mesh through the seeds in the
// background. The error tells what in the options is wrong, or why the port
// could not be opened.
func New(opt Options) (*Pool, error) {
	opt, ring, err := opt.check()
	if err != nil {
		return nil, fmt.Errorf("pool: open: %w", err)
	}
	p := &Pool{
		opt: opt, log: opt.Logger,
		stopping: make(chan struct{}), tried: make(chan struct{}), kick: make(chan struct{}, 1), done: make(chan struct{}),
		view:     gossip.NewView(),
		members:  map[string]*peer{},
		byAddr:   map[string]string{},
		watchers: map[chan struct{}]struct{}{},
	}
	p.queue = &memberlist.TransmitLimitedQueue{NumNodes: p.alive, RetransmitMult: opt.Timing.RetransmitMult}
	conf, err := p.config(ring)
	if err != nil {
		return nil, fmt.Errorf("pool: open: %w", err)
	}
	p.list, err = memberlist.Create(conf)
	if err != nil {
		_ = p.transport.Shutdown()
		return nil, fmt.Errorf("pool: open: %w", err)
	}
	p.address = p.list.LocalNode().Address()
	go p.maintain()
	return p, nil
}

// config is memberlist's configuration; it opens the transport.
func (p *Pool) config(ring *memberlist.Keyring) (*memberlist.Config, error) {
	c := memberlist.DefaultLANConfig()
	c.Name = p.opt.Self.ID
	c.Label = p.opt.Mesh
	c.Keyring = ring
	c.Logger = newLogger(p.log, &p.counts)
	// Digests are numbers and hashes: they do not compress.
	c.EnableCompression = false
	p.opt.Timing.apply(c)
	// A server that was restarted on another port takes its name back.
	c.DeadNodeReclaimTime = time.Second

	hooks := delegate{p}
	c.Delegate, c.Events, c.Ping, c.Alive = hooks, hooks, hooks, hooks

	t, port, err := openTransport(p.opt, c.Logger, p.distance, &p.counts)
	if err != nil {
		return nil, err
	}
	p.transport, c.Transport = t, t
	c.BindPort, c.AdvertisePort = port, port
	if a := p.opt.advertise; a.IsValid() {
		c.AdvertiseAddr = a.Addr().String()
		if a.Port() != 0 {
			c.AdvertisePort = int(a.Port())
		}
	}
	return c, nil
}

// Address is the gossip address that others reach this server by, host:port.
func (p *Pool) Address() string { return p.address }

// Self is this server as the others know it.
func (p *Pool) Self() Member { return p.opt.Self }

// Publish spreads this cell's digest. Only the cell's leader calls it, with a
// sequence that grows within its term. The digest's incarnation is accepted as
// this cell's. d is not kept. Errors wrap ErrForeign, ErrStale, ErrClosed or
// gossip.ErrInvalid; what was cut to make it fit is no error.
func (p *Pool) Publish(d *meshv1.Digest) (gossip.Cut, error) {
	fail := func(err error) (gossip.Cut, error) {
		return gossip.Cut{}, fmt.Errorf("pool: publish digest: %w", err)
	}
	select {
	case <-p.stopping:
		return fail(ErrClosed)
	default:
	}
	if mesh.CellID(d.GetCell()) != p.opt.Self.Cell || d.GetRegion() != p.opt.Self.Region {
		return fail(fmt.Errorf("%w: %q in %q", ErrForeign, d.GetCell(), d.GetRegion()))
	}
	encoded, cut, err := gossip.Encode(d)
	if err != nil {
		return fail(err)
	}
	p.mu.Lock()
	p.view.Accept(p.opt.Self.Cell, d.GetIncarnation())
	out, err := p.view.Merge(d, time.Now())
	p.changed()
	p.mu.Unlock()
	switch {
	case err != nil:
		return fail(err)
	case out != gossip.Fresh:
		return fail(fmt.Errorf("%w: this is term %d, sequence %d", ErrStale, d.GetTerm(), d.GetSequence()))
	}
	p.counts.published.Add(1)
	p.spread(d, encoded)
	return cut, nil
}

// Learn takes in a digest that came by another way, such as the answer to an
// offer, and spreads it when it is news. The error wraps gossip.ErrInvalid.
func (p *Pool) Learn(d *meshv1.Digest) (gossip.Outcome, error) {
	encoded, _, err := gossip.Encode(d)
	if err != nil {
		return 0, fmt.Errorf("pool: learn digest: %w", err)
	}
	return p.merge(d, encoded, time.Now())
}

// merge takes in a digest first heard of at the given time.
func (p *Pool) merge(d *meshv1.Digest, encoded []byte, at time.Time) (gossip.Outcome, error) {
	p.mu.Lock()
	out, err := p.view.Merge(d, at)
	if err == nil && out != gossip.Stale {
		p.changed()
	} else {
		p.snapshot = nil // the time of receipt may have moved
	}
	p.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("pool: merge digest: %w", err)
	}
	if out == gossip.Stale {
		p.counts.stale.Add(1)
		return out, nil
	}
	p.counts.received.Add(1)
	p.spread(d, encoded)
	return out, nil
}

// Accept says which incarnation a cell has, read from the cell itself over
// mutual TLS. Digests of any other are kept aside, in Snapshot.Held.
func (p *Pool) Accept(cell mesh.CellID, incarnation string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.view.Accept(cell, incarnation) {
		p.changed()
	}
}

// View is what this server believes of every cell, now.
func (p *Pool) View() gossip.Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.snapshot == nil {
		s := p.view.Snapshot()
		p.snapshot = &s
	}
	return *p.snapshot
}

// Tried is closed once every seed has been asked for what it knows, or could not
// be reached, and when the pool is closed.
func (p *Pool) Tried() <-chan struct{} { return p.tried }

// Members lists every server that is or was there, this one included, sorted by
// cell, then name, then id. Those that left or failed stay for a day.
func (p *Pool) Members() []Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Status, 0, len(p.members))
	for _, m := range p.members {
		out = append(out, m.Status)
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(strings.Compare(string(a.Cell), string(b.Cell)),
			strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	return out
}

// RTT is the round-trip time to a cell: that of its nearest living server,
// smoothed over the last few probes. ok is false while none was measured.
// Emulated delays are part of it. This server's own cell is at zero until
// another of its servers was measured.
func (p *Pool) RTT(cell mesh.CellID) (rtt time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		if m.Cell == cell && m.State == Alive && m.RTT > 0 && (!ok || m.RTT < rtt) {
			rtt, ok = m.RTT, true
		}
	}
	return rtt, ok || cell == p.opt.Self.Cell
}

// Subscribe returns a channel that has a value after members or digests
// changed; several changes may give one value. Call cancel when done with it.
func (p *Pool) Subscribe() (changes <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watchers[ch] = struct{}{}
	return ch, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.watchers, ch)
	}
}

// changed wakes the subscribers. Called with mu held.
func (p *Pool) changed() {
	p.snapshot = nil
	for ch := range p.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Stats are this server's counts since it started.
func (p *Pool) Stats() Stats { return p.counts.read() }

// Leave tells the others that this server goes, so that they report it as left
// and not as failed, and returns when they were told or ctx is done. Close must
// follow.
func (p *Pool) Leave(ctx context.Context) error {
	p.closing.Lock()
	defer p.closing.Unlock()
	if p.hasClosed {
		return fmt.Errorf("pool: leave: %w", ErrClosed)
	}
	p.mu.Lock()
	p.leaving = true
	var far time.Duration
	for _, m := range p.members {
		if p.opt.Delay != nil {
			far = max(far, p.opt.Delay(m.Region))
		}
	}
	p.mu.Unlock()
	// First the mark, then the notice: a member that hears only the second
	// reports a failure, which costs nothing but a wrong word.
	_ = p.list.UpdateNode(patience(ctx))
	if err := p.list.Leave(patience(ctx)); err != nil {
		return fmt.Errorf("pool: leave: %w", err)
	}
	// Emulated packets are still under way.
	if err := delay.Wait(ctx, far); err != nil {
		return fmt.Errorf("pool: leave: %w", err)
	}
	return nil
}

// patience is how long one of the two notices of Leave may take.
func patience(ctx context.Context) time.Duration {
	const most = 2 * time.Second
	if by, ok := ctx.Deadline(); ok {
		// memberlist takes zero for no limit.
		return max(min(most, time.Until(by)/2), time.Millisecond)
	}
	return most
}

// Close stops gossip, frees the port and returns when the pool's own goroutines
// have ended. Closing again does nothing.
func (p *Pool) Close() error {
	p.closing.Lock()
	defer p.closing.Unlock()
	if p.hasClosed {
		return nil
	}
	p.hasClosed = true
	close(p.stopping)
	err := p.list.Shutdown()
	<-p.done
	if err != nil {
		return fmt.Errorf("pool: close: %w", err)
	}
	return nil
}
