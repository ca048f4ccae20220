package scheduler

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// session is one run of one worker process, as its cell's leader sees it.
type session struct {
	id, worker string
	total      mesh.Capacity
	free       mesh.Capacity
	runtimes   []string
	functions  []string // only these, when not empty
	warm       map[string]bool
	out        *stream   // nil while not connected
	poll       *poll     // a Lease call that waits
	polls      bool      // it uses the unary calls
	batch      mesh.Cost // bound of one answer to it; 0 is none
	seen       time.Time // last message
	since      time.Time
	pid        int64
}

// poll is one Lease call under way.
type poll struct {
	request string
	want    int       // more that may be granted
	pending int       // granted and not handed over yet: the answer waits for them
	held    mesh.Cost // of what was granted to it
	batch   mesh.Cost // bound of that
	got     []*isobarv1.Assignment
	tried   bool          // a round of dispatch has seen it
	late    bool          // its time is over
	ready   chan struct{} // closed when there is an answer
	closed  bool
}

// running is one attempt on a worker of this cell.
type running struct {
	ref
	session  *session
	function string
	variant  string
	demand   mesh.Demand
	granted  time.Time
	guest    bool
	invoke   bool
	handed   bool                 // its assignment left, or waits in the stream
	ending   bool                 // its worker has said how it ended, and waits for the verdict
	assigned *isobarv1.Assignment // kept until the lease is confirmed by a poller
	poll     *poll                // the Lease call it was granted to, until handed over
	request  string               // of that call
}

// fits reports whether the answer may bring one more of that cost.
func (p *poll) fits(c mesh.Cost) bool { return c.Over(p.held, p.batch) == mesh.Cost{} }

func (p *poll) finish() {
	if !p.closed {
		p.closed = true
		close(p.ready)
	}
}

func stopMessage(r ref) *isobarv1.WorkResponse {
	return &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Stop{Stop: &isobarv1.LeaseRef{TaskId: r.task, Attempt: r.attempt}}}
}

// session finds or makes the session and brings its offer up to date.
func (l *leader) session(id, worker string, offer *isobarv1.Offer) *session {
	now := time.Now()
	ses := l.sessions[id]
	if ses == nil {
		ses = &session{id: id, worker: worker, since: now, warm: map[string]bool{}}
		l.sessions[id] = ses
	}
	ses.seen = now
	ses.total, ses.runtimes, ses.functions = CapacityOf(offer), offer.GetRuntimes(), offer.GetFunctions()
	slices.Sort(ses.runtimes)
	ses.free = ses.total
	for _, run := range l.running {
		if run.session == ses {
			ses.free, _ = ses.free.Take(run.demand)
		}
	}
	return ses
}

// adopt takes over attempts that a worker says it runs, and lists those that
// are not its to run.
func (l *leader) adopt(ses *session, held []*isobarv1.LeaseRef) (stop []*isobarv1.LeaseRef) {
	for _, h := range held {
		r := ref{h.GetTaskId(), h.GetAttempt()}
		if run := l.running[r]; run != nil {
			if run.session != ses {
				stop = append(stop, h)
			}
			continue
		}
		if !l.adoptOne(ses, r) {
			stop = append(stop, h)
		}
	}
	return stop
}

func (l *leader) adoptOne(ses *session, r ref) bool {
	if rec, ok := fsm.Task(l.State, r.task); ok {
		if rec.Lease == nil || rec.Attempt != r.attempt || rec.Lease.Holder.Session != ses.id {
			return false
		}
		l.occupyDemand(ses, r, rec.Function, rec.Lease.Variant, l.demandOf(rec.Version, rec.Lease.Variant, rec)).handed = true
		return true
	}
	g, ok := fsm.Guest(l.State, r.task, r.attempt)
	if !ok || !g.Started || g.Ended != nil || g.Session != ses.id {
		return false
	}
	run := l.occupyDemand(ses, r, g.Function, g.Variant, l.demandOf(g.Version, g.Variant, g))
	run.guest, run.handed = true, true
	return true
}

// pickSession chooses a worker for the variant: warm ones first, then the one
// with most room, then by name. nil when none has room. Guests and invokes go
// to streaming workers only: a poller may not come back in time.
func (l *leader) pickSession(function string, v *isobarv1.Variant, d mesh.Demand, streaming bool) *session {
	var best *session
	for _, s := range l.sessions {
		if (streaming && s.out == nil) || !l.takes(s) || !s.can(function, v, &d) {
			continue
		}
		if best == nil || s.before(best, function+"/"+v.Name) {
			best = s
		}
	}
	return best
}

func (s *session) can(function string, v *isobarv1.Variant, d *mesh.Demand) bool {
	switch {
	case s.out != nil:
		if s.out.bytes > fullStream {
			return false
		}
	case s.poll == nil || s.poll.closed || s.poll.over() || s.poll.want <= 0 || !s.poll.fits(d.Cost):
		return false
	}
	return s.free.Fits(d) && s.offers(function, v)
}

// offers reports whether the worker runs that function's variant at all.
func (s *session) offers(function string, v *isobarv1.Variant) bool {
	return slices.Contains(s.runtimes, v.Runtime) && (len(s.functions) == 0 || slices.Contains(s.functions, function))
}

// unserved says why no worker of this cell would run the variant if it had room;
// "" when one would.
func (l *leader) unserved(function string, v *isobarv1.Variant, d mesh.Demand) string {
	bare := demand(v)
	var most mesh.Capacity // of those that lack nothing but the bound
	for _, s := range l.sessions {
		whole := s.whole()
		if !s.offers(function, v) || !whole.Fits(&bare) {
			continue
		}
		if whole.Fits(&d) {
			return ""
		}
		most = most.Widest(whole)
	}
	what := function + "/" + v.GetName()
	if most.Most == (mesh.Cost{}) {
		return "no_worker: no worker of " + string(l.Cell.ID) + " takes " + what
	}
	return "cost: no worker of " + string(l.Cell.ID) + " that takes " + what + " holds " + d.Cost.Over(mesh.Cost{}, most.Most).String() + " at once"
}

// whole is what one attempt may take of the worker when nothing else runs there.
func (s *session) whole() mesh.Capacity {
	c := s.total
	c.Most = lesser(c.Most, s.batch)
	return c
}

func (s *session) before(o *session, variant string) bool {
	if s.warm[variant] != o.warm[variant] {
		return s.warm[variant]
	}
	return cmp.Or(-cmp.Compare(s.free.CPUMilli, o.free.CPUMilli), cmp.Compare(s.worker, o.worker), cmp.Compare(s.id, o.id)) < 0
}

func (l *leader) occupy(s *session, r ref, function string, v *isobarv1.Variant, d mesh.Demand) *running {
	run := l.occupyDemand(s, r, function, v.Name, d)
	if s.out == nil {
		s.poll.held = s.poll.held.Plus(d.Cost)
		run.poll, run.request = s.poll, s.poll.request
		s.poll.want--
		s.poll.pending++
	}
	return run
}

func (l *leader) occupyDemand(s *session, r ref, function, variant string, d mesh.Demand) *running {
	run := &running{ref: r, session: s, function: function, variant: variant, granted: time.Now()}
	s.free, run.demand = s.free.Take(d)
	l.running[r] = run
	return run
}

// release frees the room of an attempt; the caller holds the lock.
func (l *leader) release(run *running) {
	if l.running[run.ref] != run {
		return
	}
	delete(l.running, run.ref)
	run.session.free = run.session.free.Give(run.demand)
	if p := run.poll; p != nil {
		// Not handed over: the call may have another one instead.
		run.poll = nil
		p.want++
		p.held = p.held.Plus(run.demand.Cost.Times(-1))
		p.settle()
	}
	l.kick()
}

// over reports whether nothing more is granted to the call: its time has passed,
// and what was ready when it came had its chance.
func (p *poll) over() bool { return p.late && p.tried }

// settle notes that one grant less is on its way to the call.
func (p *poll) settle() {
	p.pending--
	p.answer()
}

// answer answers the call once nothing more is on its way to it.
func (p *poll) answer() {
	if p.pending == 0 && (len(p.got) > 0 || p.over()) {
		p.finish()
	}
}

// deliver hands a committed attempt to its worker, unless it was stopped since.
// It reports whether it did.
func (l *leader) deliver(run *running, a *isobarv1.Assignment) bool {
	if a.Lease == nil {
		a.Lease = durationpb.New(l.WorkerLease)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running[run.ref] == run && a.Lease.AsDuration() > 0 && l.hand(run, a) {
		run.handed = true
		return true
	}
	l.undelivered(run)
	return false
}

// undelivered takes back an attempt that never reached its worker: it is not
// counted, and what it was of is tried again. Of one that had ended for another
// reason this changes nothing. The caller holds the lock.
func (l *leader) undelivered(run *running) {
	l.release(run)
	const why = "the worker went away before it was told"
	switch {
	case run.invoke:
		l.endInvoke(run.task, &isobarv1.Outcome{Status: "undelivered", Message: why})
	case run.guest:
		go l.endGuest(run.ref, &meshv1.Ended{Status: "undelivered", Message: why, Worker: run.session.worker})
	default:
		go l.endAttempt(run.ref, &meshv1.Ended{Status: "undelivered", Message: why, Worker: run.session.worker})
	}
}

func (l *leader) hand(run *running, a *isobarv1.Assignment) bool {
	s, p := run.session, run.poll
	if run.request == "" {
		return s.send(&isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Assign{Assign: a}})
	}
	if p == nil || p.closed || s.poll != p {
		return false
	}
	run.poll, run.assigned = nil, a
	p.got = append(p.got, a)
	p.settle()
	return true
}

// loseSessions gives up workers that have not been heard of for a lease, and
// streams nobody reads, soon enough that what waits in them is returned and not
// lost with its lease: their worker comes back and announces what it holds.
func (l *leader) loseSessions(now time.Time) {
	for id, s := range l.sessions {
		if s.poll != nil && !s.poll.closed {
			s.seen = now // its call waits for us
		}
		if s.out != nil && s.out.stalled(now, l.WorkerLease/2) {
			l.letGo(s)
		}
		if now.Sub(s.seen) <= l.WorkerLease {
			continue
		}
		l.letGo(s)
		delete(l.sessions, id)
		for r, run := range l.running {
			if run.session != s {
				continue
			}
			l.release(run)
			switch {
			case run.guest:
				go l.endGuest(r, &meshv1.Ended{Status: "lost", Message: "its worker was not heard of", Worker: s.worker, Started: true})
			case run.invoke:
				l.endInvoke(r.task, &isobarv1.Outcome{Status: "lost", Message: "its worker was not heard of"})
			}
			// A task of this cell: its lease runs out by lease time.
		}
	}
}

// Workers lists the sessions, by worker.
func (s *Scheduler) Workers() ([]*isobarv1.WorkerInfo, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[*session]int64{}
	for _, run := range l.running {
		counts[run.session]++
	}
	var out []*isobarv1.WorkerInfo
	for _, ses := range l.sessions {
		info := &isobarv1.WorkerInfo{
			Worker: ses.worker, Session: ses.id, Total: OfferOf(ses.total, ses.runtimes), Free: OfferOf(ses.free, nil),
			Running: counts[ses], Since: timestamppb.New(ses.since), Pid: ses.pid,
		}
		for v := range ses.warm {
			info.Warm = append(info.Warm, v)
		}
		slices.Sort(info.Warm)
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b *isobarv1.WorkerInfo) int { return cmp.Compare(a.Worker+a.Session, b.Worker+b.Session) })
	return out, nil
}

// checkOffer refuses amounts that no machine has.
func checkOffer(o *isobarv1.Offer) error {
	ok := o.GetCpu() >= 0 && o.GetCpu() <= 1e6 && o.GetMemoryMib() >= 0 && o.GetMemoryMib() <= 1<<40
	for _, a := range o.GetAccelerators() {
		ok = ok && a.GetModel() != "" && a.GetCount() >= 0 && a.GetCount() <= 1e6
	}
	if err := CheckCost("offer.inFlight", o.GetInFlight()); err != nil {
		return err
	}
	if !ok || len(o.GetAccelerators()) > 64 {
		return &Refusal{Reason: BadRequest, Field: "offer", Message: "the offer's amounts are negative, not numbers or beyond any machine", Hint: "cpu is in cores, memoryMib in MiB"}
	}
	return nil
}

// CapacityOf reads an offer's amounts.
func CapacityOf(o *isobarv1.Offer) mesh.Capacity {
	c := mesh.Capacity{CPUMilli: int64(o.GetCpu()*1000 + 0.5), MemoryMiB: o.GetMemoryMib(), Most: CostOf(o.GetInFlight())}
	for _, a := range o.GetAccelerators() {
		c = c.Plus(mesh.Capacity{GPUs: []mesh.Accelerators{{Model: a.Model, Count: a.Count}}})
	}
	return c
}

// OfferOf writes a capacity as an offer.
func OfferOf(c mesh.Capacity, runtimes []string) *isobarv1.Offer {
	o := &isobarv1.Offer{Cpu: float64(c.CPUMilli) / 1000, MemoryMib: c.MemoryMiB, Runtimes: runtimes, InFlight: fsm.CostMessage(c.Most)}
	for _, g := range c.GPUs {
		o.Accelerators = append(o.Accelerators, &isobarv1.AcceleratorCount{Model: g.Model, Count: g.Count})
	}
	return o
}
