package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/broker/embedded"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/consensus/locallog"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
)

// world is a mesh of cells in one synctest bubble: real schedulers over local
// logs and stores in memory, joined by calls that can be made to fail.
type world struct {
	t        *testing.T
	ctx      context.Context
	registry *testRegistry
	cells    map[mesh.CellID]*testCell
	running  sync.WaitGroup

	mu   sync.Mutex
	fail func(call string, from, to mesh.CellID) fault
	made map[string]int // calls between cells, by name
}

// fault is what becomes of a call between cells.
type fault uint8

const (
	passes fault = iota
	lostBefore
	lostAfter // the other cell acts, its answer is lost
)

// inWorld runs a test in a bubble; at its end everything is stopped.
func inWorld(t *testing.T, fn func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &world{
			t: t, ctx: ctx, registry: newTestRegistry(), cells: map[mesh.CellID]*testCell{}, made: map[string]int{},
			fail: func(string, mesh.CellID, mesh.CellID) fault { return passes },
		}
		defer func() {
			cancel()
			w.running.Wait()
		}()
		fn(w)
	})
}

func (w *world) go_(f func()) { w.running.Go(f) }

// faults sets what becomes of calls from now on.
func (w *world) faults(f func(call string, from, to mesh.CellID) fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = f
}

func (w *world) count(call string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.made[call]
}

// all are the cells so far.
func (w *world) all() map[mesh.CellID]*testCell {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.cells)
}

// testCell is one cell of one server.
type testCell struct {
	*Scheduler
	w          *world
	log        *locallog.Log
	late       *lateTestLog
	replica    *state.Replica
	broker     *embedded.Broker
	neighbours *testNeighbours
	spans      *testTracer
	full       atomic.Bool
}

// cell starts a cell. Options may be changed before.
func (w *world) cell(id mesh.CellID, change ...func(*Options)) *testCell {
	w.t.Helper()
	c := &testCell{w: w, neighbours: &testNeighbours{changed: make(chan struct{}, 1)}, spans: &testTracer{open: map[string]int{}, held: map[string][]*isobarv1.Held{}}}
	var err error
	c.replica, err = state.NewReplica(state.NewMemory(), map[state.MachineID]state.Machine{
		state.SchedulerMachine: fsm.Machine{}, state.BrokerMachine: embedded.Machine{},
	}, state.Options{OnApply: func(at consensus.Position, r []state.GroupResult) { c.Observe(at, r) }})
	if err != nil {
		w.t.Fatal(err)
	}
	c.broker = embedded.New(c.replica.Reader(state.BrokerMachine), embedded.Options{})
	region, _, _ := strings.Cut(string(id), "-")
	o := Options{
		Cell: mesh.Cell{ID: id, Region: region, Jurisdictions: []string{region}}, State: c.replica.Reader(state.SchedulerMachine),
		Broker: c.broker, Registry: w.registry, Neighbours: c.neighbours, Peers: &testPeers{w: w, from: id},
		Carbon: func() placement.Energy {
			return placement.Energy{Zone: region, WattsPerCPU: 3.5, PUE: 1.1, Known: true, Intensity: []float64{100}, Kind: "average"}
		},
		Prices: placement.Prices{CPUHour: 0.03}, Policy: placement.Policy{CarbonUSDPerTonne: 100, LatencyUSDPerS: 1e-5, QualityUSD: 0.001},
		Links: func(string) Link { return Link{RTT: 20 * time.Millisecond} }, Logger: slog.New(slog.DiscardHandler), Tracer: c.spans,
		OnLead: c.broker.Lead, OnResign: c.broker.Resign, Full: c.full.Load,
	}
	for _, f := range change {
		f(&o)
	}
	c.late = &lateTestLog{}
	o.Log = c.late
	c.Scheduler = New(o)
	if c.log, err = locallog.Open(&locallog.Disk{}, c.replica, locallog.Options{}); err != nil {
		w.t.Fatal(err)
	}
	c.late.Log = c.log
	w.mu.Lock()
	w.cells[id] = c
	w.mu.Unlock()
	w.go_(func() {
		if err := c.Run(w.ctx); err != nil {
			w.t.Errorf("run %s: %v", id, err)
		}
	})
	w.go_(c.publish)
	synctest.Wait()
	if !c.Leading() {
		w.t.Fatalf("%s does not lead", id)
	}
	time.Sleep(c.Renew + time.Second) // it no longer expects workers of an earlier leader
	return c
}

// lateTestLog is the log for the scheduler, which the log's machine needs first.
// It can lose leadership in the middle of proposals, as a real log does: before,
// or with an outcome that is not told.
type lateTestLog struct {
	*locallog.Log
	mu   sync.Mutex
	p    float64
	rng  *rand.Rand
	lost int
	late time.Duration // of each commit
	told time.Duration // of each answer
	hold chan struct{} // barriers wait for it, when set
	full error         // what becomes of every commit, when set
}

// refuse makes every commit fail; nil is none.
func (l *lateTestLog) refuse(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.full = err
}

// behind makes every barrier wait until hold is closed.
func (l *lateTestLog) behind(hold chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hold = hold
}

func (l *lateTestLog) Barrier(ctx context.Context) error {
	l.mu.Lock()
	hold := l.hold
	l.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return l.Log.Barrier(ctx)
}

// tell makes every answer come that long after its commit.
func (l *lateTestLog) tell(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = d
}

// slow makes every commit take that long.
func (l *lateTestLog) slow(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late = d
}

// fail makes a share p of the proposals end with the term.
func (l *lateTestLog) fail(p float64, seed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.p, l.rng = p, rand.New(rand.NewPCG(seed, 2)) // as repeatable as goroutines are
}

func (l *lateTestLog) Propose(ctx context.Context, group []byte) (any, error) {
	l.mu.Lock()
	kind := -1
	if l.p > 0 && l.rng.Float64() < l.p {
		kind = l.rng.IntN(3)
		l.lost++
	}
	late, told, full := l.late, l.told, l.full
	l.mu.Unlock()
	time.Sleep(late)
	if full != nil {
		return nil, full
	}
	switch kind {
	case 0: // never committed, and known
		l.Depose()
	case 1: // never committed
		l.Depose()
		return nil, consensus.ErrOutcomeUnknown
	case 2: // committed
		_, _ = l.Log.Propose(ctx, group)
		l.Depose()
		return nil, consensus.ErrOutcomeUnknown
	}
	defer time.Sleep(told)
	return l.Log.Propose(ctx, group)
}

// publish spreads the cell's digest as gossip does.
func (c *testCell) publish() {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-c.w.ctx.Done():
			return
		case <-tick.C:
			c.gossip()
		}
	}
}

// gossip shows the cell's digest to the others now.
func (c *testCell) gossip() {
	d := c.Digest()
	if d == nil {
		return
	}
	for id, o := range c.w.all() {
		if id != c.Cell.ID {
			o.neighbours.learn(Neighbour{Cell: c.Cell, Verified: true, Reachable: true, Digest: d, Received: time.Now(), RTT: 20 * time.Millisecond})
		}
	}
}

// meet lets all cells know each other.
func (w *world) meet() {
	for _, c := range w.all() {
		c.gossip()
	}
	synctest.Wait()
}

// changeLeader ends the term and begins another.
func (c *testCell) changeLeader() {
	c.log.Depose()
	synctest.Wait()
	if c.Leading() {
		c.w.t.Fatal("still leading after it was deposed")
	}
	c.log.Elect()
	synctest.Wait()
	if !c.Leading() {
		c.w.t.Fatal("not leading again")
	}
}

// submit accepts a task of the function.
func (c *testCell) submit(function string, change ...func(*isobarv1.TaskSpec)) string {
	c.w.t.Helper()
	r, err := c.trySubmit(function, change...)
	if err != nil {
		c.w.t.Fatalf("submit: %v", err)
	}
	return r.TaskID
}

func (c *testCell) trySubmit(function string, change ...func(*isobarv1.TaskSpec)) (*Receipt, error) {
	spec := &isobarv1.TaskSpec{Tenant: "default", Function: function}
	for _, f := range change {
		f(spec)
	}
	return c.Submit(c.w.ctx, Submission{Spec: spec, Payload: []byte("payload of " + function), ContentType: "text/plain", Traceparent: "00-aaaa-bbbb-01"})
}

// record reads a task that must exist.
func (c *testCell) record(id string) *meshv1.TaskRecord {
	c.w.t.Helper()
	rec, ok := fsm.Task(c.State, id)
	if !ok {
		c.w.t.Fatalf("no task %s", id)
	}
	return rec
}

// wantState checks a task's state.
func (c *testCell) wantState(id string, want isobarv1.TaskState) *meshv1.TaskRecord {
	c.w.t.Helper()
	synctest.Wait()
	rec := c.record(id)
	if got := fsm.State(rec); got != want {
		c.w.t.Fatalf("task is %s, want %s; attempts %v, reason %q, blocked %q", got, want, rec.Attempts, rec.Reason, rec.Blocked)
	}
	return rec
}

// await lets time pass until ok, at most the limit.
func (w *world) await(limit time.Duration, what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(limit); ; {
		synctest.Wait()
		if ok() {
			return
		}
		if !time.Now().Before(end) {
			w.t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(50 * time.Millisecond) // virtual
	}
}

func (c *testCell) awaitState(limit time.Duration, id string, want isobarv1.TaskState) *meshv1.TaskRecord {
	c.w.t.Helper()
	c.w.await(limit, fmt.Sprintf("task %s in %s", id, want), func() bool { return fsm.State(c.record(id)) == want })
	return c.record(id)
}

// guests and attempts that the leader knows of.
func (c *testCell) guests() int {
	l := c.current()
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.guests)
}

func (c *testCell) attempts() int {
	l := c.current()
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.running)
}

// wantIdle fails when the leader still remembers work: a leak, since nothing is
// under way any more.
func (c *testCell) wantIdle() {
	c.w.t.Helper()
	synctest.Wait()
	l := c.current()
	if l == nil {
		c.w.t.Fatal("no leader")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, n := range map[string]int{
		"running": len(l.running), "held": len(l.held.refs), "granting": len(l.granting), "placed": len(l.placed), "invokes": len(l.invokes), "guests": len(l.guests),
		"parked": len(l.parked), "waiters": len(l.waiters), "spans": len(l.spans), "avoid": len(l.avoid),
	} {
		if n != 0 {
			c.w.t.Errorf("%s: %d left in %s", c.Cell.ID, n, name)
		}
	}
	for _, s := range l.sessions {
		if s.free.CPUMilli != s.total.CPUMilli || s.free.MemoryMiB != s.total.MemoryMiB {
			c.w.t.Errorf("%s: worker %s has %v free of %v", c.Cell.ID, s.worker, s.free, s.total)
		}
	}
	c.spans.mu.Lock()
	defer c.spans.mu.Unlock()
	for name, n := range c.spans.open {
		if n != 0 {
			c.w.t.Errorf("%s: %d spans %s never ended", c.Cell.ID, n, name)
		}
	}
}

// testTracer counts spans that are open.
type testTracer struct {
	mu      sync.Mutex
	open    map[string]int
	held    map[string][]*isobarv1.Held // of each task's newest lease
	planned int
}

func (t *testTracer) Lease(parent string, l LeaseInfo) (string, func(string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[l.Name]++
	if l.Record != nil {
		t.held[l.Record.Id] = l.Held
	}
	return parent + "-" + l.Name, func(string) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.open[l.Name]--
	}
}

func (t *testTracer) Planned(string, PlanInfo) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.planned++
}

// testRegistry holds functions by name; each is its own version.
type testRegistry struct {
	mu        sync.Mutex
	functions map[string]*isobarv1.Function
	tenants   map[string]*meshv1.Tenant
}

func newTestRegistry() *testRegistry {
	r := &testRegistry{functions: map[string]*isobarv1.Function{}, tenants: map[string]*meshv1.Tenant{"default": {}}}
	r.add("work", variant("only", "wasm"))
	return r
}

func variant(name, runtime string, change ...func(*isobarv1.Variant)) *isobarv1.Variant {
	v := &isobarv1.Variant{
		Name: name, Runtime: runtime, Quality: 1, Resources: &isobarv1.Resources{Cpu: 1, MemoryMib: 64}, Run: durationpb.New(100 * time.Millisecond),
	}
	for _, f := range change {
		f(v)
	}
	return v
}

func (r *testRegistry) add(name string, variants ...*isobarv1.Variant) *isobarv1.Function {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &isobarv1.Function{Version: "sha-" + name, Spec: &isobarv1.FunctionSpec{
		Tenant: "default", Name: name, Timeout: durationpb.New(time.Minute), Variants: variants, Env: map[string]string{"A": "b"},
		Retry: &isobarv1.RetryPolicy{MaxAttempts: 3, Backoff: durationpb.New(100 * time.Millisecond)},
	}}
	r.functions[name] = f
	return f
}

var errNoFunction = errors.New("no such function")

func (r *testRegistry) Function(_, name string) (*isobarv1.Function, error) {
	return r.Version("sha-" + name)
}

func (r *testRegistry) Version(digest string) (*isobarv1.Function, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f, ok := r.functions[strings.TrimPrefix(digest, "sha-")]; ok {
		return f, nil
	}
	return nil, fmt.Errorf("%s: %w", digest, errNoFunction)
}

func (r *testRegistry) Gone(_, name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.functions[name] == nil
}

func (r *testRegistry) remove(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.functions, name)
}

func (r *testRegistry) tenant(name string, res mesh.Residency) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tenants[name] = &meshv1.Tenant{Name: name, Allowed: res.Allowed, Denied: res.Denied}
}

func (r *testRegistry) Tenant(tenant string) (*meshv1.Tenant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.tenants[tenant]; ok {
		return t, nil
	}
	return nil, &Refusal{Reason: UnknownTenant, Field: "tenant"}
}

func (r *testRegistry) Hash() uint64 { return 7 }

// testNeighbours is what gossip told.
type testNeighbours struct {
	mu      sync.Mutex
	list    []Neighbour
	changed chan struct{}
}

func (n *testNeighbours) learn(x Neighbour) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = slices.DeleteFunc(n.list, func(o Neighbour) bool { return o.ID == x.ID })
	n.list = append(n.list, x)
	slices.SortFunc(n.list, func(a, b Neighbour) int { return strings.Compare(string(a.ID), string(b.ID)) })
	signal(n.changed)
}

// lose marks a cell as not reachable, as gossip would after a while.
func (n *testNeighbours) lose(id mesh.CellID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.list {
		if n.list[i].ID == id {
			n.list[i].Reachable = false
		}
	}
	signal(n.changed)
}

func (n *testNeighbours) All() []Neighbour {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.list)
}

func (n *testNeighbours) Changed() <-chan struct{} { return n.changed }

// testPeers calls the other cell's scheduler.
type testPeers struct {
	w    *world
	from mesh.CellID
}

// call applies the fault and lets a round trip pass.
func call[Req, Res any](p *testPeers, ctx context.Context, name string, to mesh.CellID, r Req, f func(*Scheduler, context.Context, Req) (Res, error)) (Res, error) {
	var none Res
	p.w.mu.Lock()
	p.w.made[name]++
	what := p.w.fail(name, p.from, to)
	p.w.mu.Unlock()
	c := p.w.all()[to]
	select {
	case <-time.After(20 * time.Millisecond):
	case <-ctx.Done():
		return none, ctx.Err()
	}
	if what == lostBefore || c == nil {
		return none, fmt.Errorf("%w: %w", ErrPeerUnavailable, ErrNotTaken)
	}
	res, err := f(c.Scheduler, ctx, r)
	if what == lostAfter {
		return none, ErrPeerUnavailable
	}
	if errors.Is(err, ErrNotLeader) {
		err = ErrPeerUnavailable
	}
	return res, err
}

func (p *testPeers) Offer(ctx context.Context, to mesh.CellID, r *meshv1.OfferRequest) (*meshv1.OfferResponse, error) {
	return call(p, ctx, "offer", to, r, func(s *Scheduler, ctx context.Context, r *meshv1.OfferRequest) (*meshv1.OfferResponse, error) {
		return s.AcceptOffers(ctx, p.from, r)
	})
}

func (p *testPeers) Extend(ctx context.Context, to mesh.CellID, r *meshv1.GuestExtendRequest) (*meshv1.GuestExtendResponse, error) {
	return call(p, ctx, "extend", to, r, func(s *Scheduler, ctx context.Context, r *meshv1.GuestExtendRequest) (*meshv1.GuestExtendResponse, error) {
		return s.GuestExtend(ctx, p.from, r)
	})
}

func (p *testPeers) Report(ctx context.Context, to mesh.CellID, r *meshv1.ReportRequest) (*meshv1.ReportResponse, error) {
	return call(p, ctx, "report", to, r, func(s *Scheduler, ctx context.Context, r *meshv1.ReportRequest) (*meshv1.ReportResponse, error) {
		return s.GuestReport(ctx, p.from, r)
	})
}

func (p *testPeers) Payload(ctx context.Context, to mesh.CellID, r *meshv1.PayloadRequest) (*meshv1.PayloadResponse, error) {
	return call(p, ctx, "payload", to, r, func(s *Scheduler, ctx context.Context, r *meshv1.PayloadRequest) (*meshv1.PayloadResponse, error) {
		return s.GuestPayload(ctx, p.w.all()[p.from].Cell, r)
	})
}

func (p *testPeers) Invoke(ctx context.Context, to mesh.CellID, r *meshv1.CellInvokeRequest) (*meshv1.CellInvokeResponse, error) {
	return call(p, ctx, "invoke", to, r, func(s *Scheduler, ctx context.Context, r *meshv1.CellInvokeRequest) (*meshv1.CellInvokeResponse, error) {
		return s.GuestInvoke(ctx, r)
	})
}
