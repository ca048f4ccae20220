package scheduler

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fairness"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
)

// ref names one attempt.
type ref struct {
	task    string
	attempt uint64
}

// leader is the memory of one term of leadership. Nothing in it is truth: all
// can be rebuilt from the state, by rebuild and by holders announcing what
// they hold.
type leader struct {
	*Scheduler
	// ctx ends with the term, and so does all that was started in it; loops ends
	// it when one of the leader's loops does.
	ctx         context.Context //nolint:containedctx // of the term
	loops       *errgroup.Group
	term        uint64
	incarnation string
	clock       clock

	// One loop dispatches; effects wait for it in order.
	kicked  chan struct{}
	effects struct {
		sync.Mutex
		list []fsm.Effect
	}

	slowing sync.Mutex // falls of paces, one after the other; taken before mu

	mu       sync.Mutex
	closed   bool                      // the term is over; nothing new may wait for it
	waiting  dispatchSet               // ready tasks and confirmed guests
	paused   map[fsm.Queue]string      // queues that wait for Resume, and why
	held     held                      // what runs, by tenant and function
	paces    map[owner]*fairness.Pace  // of functions that have one
	granting map[string]bool           // tasks whose grant is being committed
	guests   map[ref]*guest            // guests this cell holds
	links    map[mesh.CellID]*homeLink // to the homes of guests
	outboxes map[mesh.CellID]*outbox   // offers to other cells
	placed   map[ref]*placed           // attempts leased to other cells
	sessions map[string]*session       // workers, by session id
	running  map[ref]*running          // attempts on workers of this cell
	asked    []*poll                   // Lease calls that no round of dispatch has seen
	trying   []*poll                   // those the present one does
	invokes  map[string]*invocation
	parked   map[string]*parked // tasks nothing can run now
	// unparkDue: some of them are to be decided again by the next dispatch.
	unparkDue bool
	withheld  withheld // while payloads can't be read
	waiters   map[string][]*waiter
	spans     map[ref]func(string)
	avoid     map[string][]mesh.CellID // cells that refused or lost a task
	view      *view
	review    review   // of the tasks that are put off
	waited    struct { // what waits answered last, and when
		at    time.Time
		lanes [4]time.Duration
	}
	inflight *inflightRefs
	payloads *payloads

	// Of the trim loop alone.
	untold map[string]untold // trims, by topic
	lost   map[lostPayload]bool
	// brokerOut is since when nothing could be stored in the broker.
	brokerOut atomic.Pointer[time.Time]
}

func newLeader(ctx context.Context, s *Scheduler, term uint64, incarnation string) *leader {
	leaseMs, wallMs := fsm.ReadClocks(s.State)
	loops, ctx := errgroup.WithContext(ctx)
	return &leader{
		Scheduler: s, ctx: ctx, loops: loops, term: term, incarnation: incarnation,
		clock:    newClock(leaseMs, wallMs, s.Wall(), time.Now()),
		kicked:   make(chan struct{}, 1),
		waiting:  newDispatchSet(s.weight),
		held:     newHeld(),
		paces:    map[owner]*fairness.Pace{},
		paused:   map[fsm.Queue]string{},
		granting: map[string]bool{},
		avoid:    map[string][]mesh.CellID{},
		guests:   map[ref]*guest{},
		links:    map[mesh.CellID]*homeLink{},
		outboxes: map[mesh.CellID]*outbox{},
		placed:   map[ref]*placed{},
		sessions: map[string]*session{},
		running:  map[ref]*running{},
		invokes:  map[string]*invocation{},
		parked:   map[string]*parked{},
		withheld: newWithheld(),
		waiters:  map[string][]*waiter{},
		spans:    map[ref]func(string){},
		view:     newView(s),
		review:   review{due: true, queued: map[mesh.CellID]float64{}},
		inflight: newInflightRefs(),
		untold:   map[string]untold{},
		lost:     map[lostPayload]bool{},
		payloads: newPayloads(ctx, s.Broker, s.PayloadCache, func(topic string, ref []byte) (string, bool) { return fsm.PayloadOwner(s.State, topic, ref) }),
	}
}

// command stamps the clocks and proposes.
func (l *leader) command(ctx context.Context, cmd *meshv1.SchedulerCommand) (*fsm.Result, error) {
	cmd.Clocks = l.clock.read(time.Now())
	return l.propose(ctx, cmd)
}

// inTerm fails once the term is over, though this server may lead again: the
// next term has its own leader and clocks, and those of this one went on while
// nobody led. A call that was held up by a broker is such a one.
func (l *leader) inTerm() error {
	if l.ctx.Err() != nil || l.Log.Status().Term != l.term {
		return fmt.Errorf("scheduler: propose in term %d: %w", l.term, ErrNotLeader)
	}
	return nil
}

func (l *leader) propose(ctx context.Context, cmd *meshv1.SchedulerCommand, before ...state.Command) (*fsm.Result, error) {
	if err := l.inTerm(); err != nil {
		return nil, err
	}
	return l.Scheduler.propose(ctx, cmd, before...)
}

func (l *leader) proposeGroup(ctx context.Context, group []state.Command) ([]any, error) {
	if err := l.inTerm(); err != nil {
		return nil, err
	}
	return l.Scheduler.proposeGroup(ctx, group)
}

// rebuild finds in the state what has to happen: ready tasks, offers that may
// not have arrived, guests to start and outcomes to report.
func (l *leader) rebuild() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for q, counts := range fsm.Queues(l.State) {
		if counts.Pause != nil {
			l.paused[q] = counts.Pause.Reason
		}
		if counts.Ready > 0 {
			l.waiting.queue(queueKey{Queue: q}).more = true
		}
	}
	for rec := range fsm.Leases(l.State) {
		cell := mesh.CellID(rec.Lease.Holder.GetCell())
		r := ref{rec.Id, rec.Attempt}
		l.hold(r, rec.Tenant, rec.Function, l.demandOf(rec.Version, rec.Lease.Variant, rec), true)
		if cell == "" {
			// A worker of this cell announces what it holds, or the lease runs out.
			continue
		}
		p := &placed{cell: cell, demand: l.demandOf(rec.Version, rec.Lease.Variant, rec)}
		l.placed[r] = p
		if !rec.Lease.Started {
			// The cell's digest may not count it: without this the room it takes
			// would be given away a second time.
			l.view.took(cell, r, p.demand, time.Now())
			l.outboxTo(cell).add(r)
		}
	}
	for g := range fsm.Guests(l.State) {
		l.adoptGuest(g)
	}
}

func (l *leader) observe(effects []fsm.Effect) {
	l.effects.Lock()
	l.effects.list = append(l.effects.list, effects...)
	l.effects.Unlock()
	l.kick()
}

// kick wakes the loop.
func (l *leader) kick() {
	select {
	case l.kicked <- struct{}{}:
	default:
	}
}

// run is the leader's loop; it ends with the term.
func (l *leader) run() error {
	l.loops.Go(func() error { return l.watch(l.ctx) })
	l.loops.Go(func() error { return l.dispatchLoop(l.ctx) })
	l.loops.Go(func() error { return l.tickLoop(l.ctx) })
	l.loops.Go(func() error { return l.trimLoop(l.ctx) })
	err := l.loops.Wait()
	l.close()
	return err
}

// watch ends the term when the log says so.
func (l *leader) watch(ctx context.Context) error {
	for {
		if st := l.Log.Status(); st.Role != consensus.Leader || st.Term != l.term {
			return consensus.ErrNotLeader
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.Log.Changes():
		case <-time.After(time.Second):
		}
	}
}

// close lets go of everyone who waits for this leader.
func (l *leader) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, s := range l.sessions {
		l.letGo(s)
	}
	for _, list := range l.waiters {
		for _, w := range list {
			close(w.done)
		}
	}
	l.waiters = map[string][]*waiter{}
	for _, inv := range l.invokes {
		inv.end(nil)
	}
	for _, end := range l.spans {
		end("leader changed")
	}
}

func (l *leader) dispatchLoop(ctx context.Context) error {
	ticker := time.NewTicker(l.Renew / 8)
	defer ticker.Stop()
	// A round that is not over goes on at once, and nothing it found stuck is
	// tried again until something has changed: else many queues without room
	// would keep the loop busy.
	goOn := make(chan struct{})
	close(goOn)
	for more := false; ; {
		var next <-chan struct{}
		if more {
			next = goOn
		}
		fresh := true
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.kicked:
		case <-l.Neighbours.Changed():
			l.mu.Lock()
			l.view.built = time.Time{}
			l.mu.Unlock()
		case <-ticker.C:
			l.housekeep(time.Now())
		case <-next:
			fresh = false
		}
		l.runEffects()
		more = l.dispatch(time.Now(), fresh)
	}
}

// housekeep drops lost workers and tries again what was parked.
func (l *leader) housekeep(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loseSessions(now)
	l.unpark(now)
	l.reviewPlans(now)
}

// runEffects takes the effects seen since the last time, in log order.
func (l *leader) runEffects() {
	l.effects.Lock()
	list := l.effects.list
	l.effects.list = nil
	l.effects.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range list {
		l.effect(e)
	}
}

func (l *leader) effect(e fsm.Effect) {
	r := ref{e.TaskID, e.Attempt}
	switch e.Kind {
	case fsm.TaskReady:
		l.waiting.queue(queueKey{Queue: e.Queue}).add(ref{task: e.TaskID})
	case fsm.TaskUnready:
		l.waiting.queue(queueKey{Queue: e.Queue}).remove(ref{task: e.TaskID})
		delete(l.parked, e.TaskID)
	case fsm.TaskEnded:
		l.payloads.forget(e.TaskID)
		delete(l.avoid, e.TaskID)
		delete(l.withheld.tasks, e.TaskID)
		for _, w := range l.waiters[e.TaskID] {
			w.task = e.Task
			close(w.done)
		}
		delete(l.waiters, e.TaskID)
	case fsm.LeaseGone:
		l.leaseGone(r, e)
	case fsm.QueuePaused:
		l.paused[e.Queue] = fsm.QueueCounts(l.State, e.Queue).GetPause().GetReason()
	case fsm.QueueResumed:
		delete(l.paused, e.Queue)
	case fsm.GuestReady:
		// Dispatched once its home has confirmed the lease. One whose offer was
		// given up before its commit is not known yet.
		l.knowGuest(r)
	case fsm.GuestEnded:
		l.letGoOf(r)
		if g := l.knowGuest(r); g != nil {
			g.ended = true
			l.linkTo(g.home).report(r)
		}
	case fsm.GuestGone:
		l.letGoOf(r)
		l.forgetGuest(r)
	}
}

// leaseGone frees what the lease held and tells a worker to stop.
func (l *leader) leaseGone(r ref, e fsm.Effect) {
	l.letGoOf(r)
	if end, ok := l.spans[r]; ok {
		end(stateName(e))
		delete(l.spans, r)
	}
	if p, ok := l.placed[r]; ok {
		l.view.freed(p.cell, r)
		delete(l.placed, r)
	}
	if run, ok := l.running[r]; ok {
		l.release(run)
		if !run.ending {
			run.session.send(stopMessage(r))
		}
	}
}

func stateName(e fsm.Effect) string {
	if e.State == 0 {
		return "released"
	}
	return e.State.String()
}

// leaseWatch looks for the lease that ends first, seldom while that is far ahead:
// ends that are gone lie in front of it in the store until it is compacted, two
// for each task, and each look goes over them.
type leaseWatch struct {
	every time.Duration
	next  time.Time // the time of the next look
	first int64
	out   bool
}

// look reports whether a lease has ended, at most every too late, and whether any
// is out.
func (w *leaseWatch) look(r state.Reader, now time.Time, leaseMs int64) (due, out bool) {
	if !now.Before(w.next) || w.out && w.first <= leaseMs {
		w.first, w.out = fsm.FirstLeaseEnd(r)
		w.next = now.Add(w.every)
	}
	return w.out && w.first <= leaseMs, w.out
}

// tickLoop commits time: when something is due, and once a second while
// leases are out, so that lease time goes on.
func (l *leader) tickLoop(ctx context.Context) error {
	elected := time.Now()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	last, more := elected, false
	leases := leaseWatch{every: l.Renew / 4}
	for {
		// What one Tick left over must not wait for the next.
		if !more {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-ticker.C:
			}
		}
		now := time.Now()
		clocks := l.clock.read(now)
		expire := now.Sub(elected) > l.Renew
		due, out := leases.look(l.State, now, clocks.LeaseMs)
		due = due && expire || fsm.DueByCalendar(l.State, clocks.WallMs)
		if !due && (!out || now.Sub(last) < time.Second) {
			more = false
			continue
		}
		last = now
		cmd := &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Tick{Tick: &meshv1.Tick{Limit: 512, ExpireLeases: expire}}}
		res, err := l.command(ctx, cmd)
		if more = err == nil && res.More; err != nil && ctx.Err() == nil {
			l.Logger.Warn("tick failed", "error", err)
		}
	}
}
