package stream

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/consensus"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// Options are what Streams stand on. Every field without a default is required.
type Options struct {
	// Log and State are two sides of one replica; State reads the machine of
	// stream/groups.
	Log   consensus.Log
	State state.Reader
	// Messages keeps the messages.
	Messages broker.Streams
	Logger   *slog.Logger

	// Lease is how long a session is kept in its group without being heard of.
	// Default 10 s: it outlasts an election and three lost renewals.
	Lease time.Duration
	// RetainEvery is how often old messages are looked for. Default 5 s.
	RetainEvery time.Duration
	// Wall is this server's calendar. Default time.Now.
	Wall func() time.Time
}

// Streams are one server's streams. Its methods are safe for concurrent use;
// those that change or deliver something fail with consensus.ErrNotLeader
// outside a term. Errors wrap those of stream/groups, of broker and of
// consensus, or are a *PositionError or a *groups.ExistsError.
type Streams struct {
	Options
	mu     sync.Mutex
	leader *leader // nil while another server leads
}

// New makes the streams; Lead begins a term. Observe must be wired to the
// replica before the log starts.
func New(o Options) *Streams {
	if o.Lease == 0 {
		o.Lease = 10 * time.Second
	}
	if o.RetainEvery == 0 {
		o.RetainEvery = 5 * time.Second
	}
	if o.Wall == nil {
		o.Wall = time.Now
	}
	return &Streams{Options: o}
}

// Lead begins a term of leadership, whose barrier has passed. Resign ends it.
func (s *Streams) Lead() {
	l := newLeader(s)
	s.mu.Lock()
	s.leader = l
	s.mu.Unlock()
	l.start()
}

// Resign ends the term, lets go of everyone who waits in it, and returns when
// its goroutines have ended.
func (s *Streams) Resign() {
	s.mu.Lock()
	l := s.leader
	s.leader = nil
	s.mu.Unlock()
	if l != nil {
		l.stop()
	}
}

func (s *Streams) leading() (*leader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leader == nil {
		return nil, fmt.Errorf("stream: %w", consensus.ErrNotLeader)
	}
	return s.leader, nil
}

// Observe wakes those who wait for what the replica applied.
func (s *Streams) Observe(results []state.GroupResult) {
	s.mu.Lock()
	l := s.leader
	s.mu.Unlock()
	if l == nil {
		return
	}
	for _, g := range results {
		for _, r := range g.Results {
			if res, ok := r.(*groups.Result); ok {
				l.cursors.changed(res.Moved)
				for _, n := range res.Touched {
					l.wake(n)
				}
			}
		}
	}
}

// Lookup reads a stream as this server has applied it; one that is being
// deleted is not there.
func (s *Streams) Lookup(n groups.Name) (*meshv1.StreamRecord, bool) {
	rec, ok := groups.Stream(s.State, n)
	return rec, ok && !rec.Deleting
}

// List reads the streams of a tenant, or of all for "", as this server has
// applied them.
func (s *Streams) List(tenant string) []*meshv1.StreamRecord {
	var out []*meshv1.StreamRecord
	for rec := range groups.Streams(s.State, tenant) {
		out = append(out, rec)
	}
	return out
}

// Create makes a stream. existed: it was there, with the same settings; with
// others the error is a *groups.ExistsError.
func (s *Streams) Create(ctx context.Context, rec *meshv1.StreamRecord) (stream *meshv1.StreamRecord, existed bool, err error) {
	l, err := s.leading()
	if err != nil {
		return nil, false, err
	}
	res, err := l.command(ctx, &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Create{Create: &meshv1.StreamCreate{Stream: rec}}})
	if err != nil {
		return nil, false, err
	}
	// A repeat does again what a crash left out.
	if err := l.place(ctx, res.Stream); err != nil {
		return nil, false, fmt.Errorf("stream: create %s/%s: %w", rec.Tenant, rec.Name, err)
	}
	return res.Stream, res.Existed, nil
}

// place opens the stream in the broker and commits the mark that it gives: where
// messages were appended, another broker in its place must be recognised.
func (l *leader) place(ctx context.Context, rec *meshv1.StreamRecord) error {
	n := groups.Name{Tenant: rec.Tenant, Stream: rec.Name}
	m, err := l.Messages.Open(ctx, n.Tenant, n.Stream, rec.Partitions)
	if err != nil {
		return err
	}
	if len(m) > 0 && !bytes.Equal(m, rec.Mark) {
		cmd := &meshv1.StreamPlaced{Name: n.Message(), Mark: m}
		if _, err := l.command(ctx, &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Placed{Placed: cmd}}); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.placed[n] = len(m) == 0
	return nil
}

// mustPlace reports whether the stream must be opened before an append.
func (l *leader) mustPlace(rec *meshv1.StreamRecord) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(rec.Mark) == 0 && !l.placed[groups.Name{Tenant: rec.Tenant, Stream: rec.Name}]
}

// Delete drops a stream, its messages and its groups. What is left when the
// caller goes away, the leader finishes.
func (s *Streams) Delete(ctx context.Context, n groups.Name) error {
	l, err := s.leading()
	if err != nil {
		return err
	}
	cmd := &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Delete{Delete: &meshv1.StreamDelete{Name: n.Message()}}}
	if _, err := l.command(ctx, cmd); err != nil {
		return err
	}
	return l.drop(ctx, n)
}

// Leave takes a session out of its group.
func (s *Streams) Leave(ctx context.Context, g groups.Group, session string) error {
	l, err := s.leading()
	if err != nil {
		return err
	}
	cmd := &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Leave{Leave: &meshv1.GroupLeave{Name: g.Message(), Session: session}}}
	_, err = l.command(ctx, cmd)
	return err
}

// Ack says what became of deliveries. Verdicts are in the order of the items.
func (s *Streams) Ack(ctx context.Context, g groups.Group, session string, items []*meshv1.GroupAckItem) ([]groups.Verdict, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	cmd := &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Ack{Ack: &meshv1.GroupAck{Name: g.Message(), Session: session, Items: items}}}
	res, err := l.command(ctx, cmd)
	if err != nil {
		return nil, err
	}
	return res.Verdicts, nil
}

// leader is one term's memory. Nothing in it is truth.
type leader struct {
	*Streams
	ctx   context.Context //nolint:containedctx // of the term
	end   context.CancelFunc
	loops sync.WaitGroup
	clock meshClock
	// cursors are those that were looked at.
	cursors cursors
	// publishing are those who looked a stream up and append to it.
	publishing underway

	mu    sync.Mutex
	wakes map[groups.Name]*waiters      // of streams that somebody waits for
	open  map[session]*calls            // sessions with calls under way
	kept  map[groups.Name]*kept         // of streams that were looked through for old messages
	drops map[groups.Name]chan struct{} // of streams that are being dropped, closed at the end
	// placed are the streams that were opened and get no mark.
	placed map[groups.Name]bool
}

// session is one member of one group.
type session struct {
	groups.Group
	id string
}

func newLeader(s *Streams) *leader {
	ctx, end := context.WithCancel(context.Background())
	leaseMs, wallMs := groups.ReadClocks(s.State)
	return &leader{
		Streams: s, ctx: ctx, end: end, clock: newClock(leaseMs, wallMs, s.Wall(), time.Now()),
		cursors: cursors{known: map[groups.CursorName]*knownCursor{}}, placed: map[groups.Name]bool{},
		publishing: underway{of: map[groups.Name]*publishes{}}, kept: map[groups.Name]*kept{}, drops: map[groups.Name]chan struct{}{},
		wakes: map[groups.Name]*waiters{}, open: map[session]*calls{},
	}
}

func (l *leader) start() {
	l.loops.Go(l.tickLoop)
	l.loops.Go(l.renewLoop)
	l.loops.Go(l.retainLoop)
}

func (l *leader) stop() {
	l.end()
	l.loops.Wait()
}

// command stamps the clocks and commits one command, with the broker's in front
// of it in the same group.
func (l *leader) command(ctx context.Context, cmd *meshv1.StreamCommand, before ...[]byte) (*groups.Result, error) {
	results, err := l.commit(ctx, cmd, before...)
	if err != nil {
		return nil, err
	}
	res, ok := results[len(results)-1].(*groups.Result)
	if !ok {
		return nil, fmt.Errorf("stream: apply command: unexpected result %T", results[len(results)-1])
	}
	return res, nil
}

// commit is command with the results of all; that of cmd is the last.
func (l *leader) commit(ctx context.Context, cmd *meshv1.StreamCommand, before ...[]byte) ([]any, error) {
	if l.ctx.Err() != nil {
		return nil, fmt.Errorf("stream: propose after the term: %w", consensus.ErrNotLeader)
	}
	cmd.Clocks = l.clock.read(time.Now())
	body, err := proto.Marshal(cmd)
	if err != nil {
		return nil, fmt.Errorf("stream: encode command: %w", err)
	}
	var group []state.Command
	for _, b := range before {
		group = append(group, state.Command{Machine: state.BrokerMachine, Body: b})
	}
	group = append(group, state.Command{Machine: state.StreamMachine, Body: body})
	out, err := l.Log.Propose(ctx, state.EncodeGroup(group))
	if err != nil {
		return nil, err
	}
	res, ok := out.(state.GroupResult)
	if !ok {
		return nil, fmt.Errorf("stream: apply command: unexpected result %T", out)
	}
	return res.Results, res.Err
}

// wake lets everyone look again who waits for the stream. It must not block.
func (l *leader) wake(n groups.Name) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.wakes[n]; w != nil {
		close(w.woken)
		delete(l.wakes, n)
	}
}

// waiters are those who wait for one stream.
type waiters struct {
	n     int
	woken chan struct{}
}

// await returns what the next wake closes. Its caller calls done when it waits no
// more: the name may be of no stream.
func (l *leader) await(n groups.Name) (woken <-chan struct{}, done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.wakes[n]
	if w == nil {
		w = &waiters{woken: make(chan struct{})}
		l.wakes[n] = w
	}
	w.n++
	return w.woken, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if w.n--; w.n == 0 && l.wakes[n] == w {
			delete(l.wakes, n)
		}
	}
}

// calls are those of one session that are under way. Deliveries are made one
// after the other, so that together they are within what it may hold; those of
// other sessions are of other partitions.
type calls struct {
	n       int
	deliver sync.Mutex
}

// Hold keeps a session in its group until release is called, once or more: while its
// consumer takes what it was given. It does nothing where this server does not lead.
func (s *Streams) Hold(m Member) (release func()) {
	l, err := s.leading()
	if err != nil {
		return func() {}
	}
	_, release = l.hold(session{m.Group, m.Session})
	return sync.OnceFunc(release)
}

// hold keeps a session in its group while a call of it is under way.
func (l *leader) hold(s session) (c *calls, release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c = l.open[s]; c == nil {
		c = &calls{}
		l.open[s] = c
	}
	c.n++
	return c, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if c.n--; c.n == 0 {
			delete(l.open, s)
		}
	}
}
