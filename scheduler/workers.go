package scheduler

import (
	"cmp"
	"context"
	"errors"

	"fmt"
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
	out        chan *isobarv1.WorkResponse // nil while not connected
	poll       *poll                       // a Lease call that waits
	polls      bool                        // it uses the unary calls
	seen       time.Time                   // last message
	since      time.Time
	pid        int64
}

// poll is one Lease call under way.
type poll struct {
	request string
	want    int
	got     []*isobarv1.Assignment
	ready   chan struct{} // closed at the first assignment, or by a failure
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
	assigned *isobarv1.Assignment // kept until the lease is confirmed by a poller
	request  string
}

// send queues a message for a streaming worker; false when it can't take it.
func (s *session) send(m *isobarv1.WorkResponse) bool {
	if s.out == nil {
		return false
	}
	select {
	case s.out <- m:
		return true
	default:
		// A worker that doesn't read loses its stream: it comes back and
		// announces what it holds.
		s.close()
		return false
	}
}

func (s *session) close() {
	if s.out != nil {
		close(s.out)
		s.out = nil
	}
	if s.poll != nil {
		s.poll.finish()
	}
}

func (p *poll) finish() {
	if !p.closed {
		p.closed = true
		close(p.ready)
	}
}

func stopMessage(r ref) *isobarv1.WorkResponse {
	return &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Stop{Stop: &isobarv1.LeaseRef{TaskId: r.task, Attempt: r.attempt}}}
}

// Session is a streaming worker's door.
type Session struct {
	l *leader
	s *session
	// Out yields what to send; closed when the server lets the session go.
	Out <-chan *isobarv1.WorkResponse
}

// Open begins a streaming session. The worker announces what it still holds;
// what is not its to run any more is in the Welcome.
func (s *Scheduler) Open(hello *isobarv1.Hello) (*Session, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	if hello.GetWorker() == "" || hello.GetSession() == "" || hello.GetOffer() == nil {
		return nil, &Refusal{Reason: BadRequest, Message: "a hello needs worker, session and offer", Hint: "send Hello first, with all three"}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	ses := l.session(hello.Session, hello.Worker, hello.Offer)
	ses.polls, ses.pid = false, hello.Pid
	if ses.out != nil {
		close(ses.out) // an older stream of the same session
	}
	ses.out = make(chan *isobarv1.WorkResponse, 1024)
	stop := l.adopt(ses, hello.Held)
	ses.send(&isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Welcome{Welcome: &isobarv1.Welcome{
		Cell: string(l.Cell.ID), Region: l.Cell.Region, ExtendEvery: durationpb.New(l.Renew), Lease: durationpb.New(l.WorkerLease), Stop: stop,
	}}})
	l.unparkAll()
	l.kick()
	return &Session{l: l, s: ses, Out: ses.out}, nil
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
		l.occupyDemand(ses, r, rec.Function, rec.Lease.Variant, l.demandOf(rec.Version, rec.Lease.Variant))
		return true
	}
	g, ok := fsm.Guest(l.State, r.task, r.attempt)
	if !ok || !g.Started || g.Ended != nil || g.Session != ses.id {
		return false
	}
	run := l.occupyDemand(ses, r, g.Function, g.Variant, l.demandOf(g.Version, g.Variant))
	run.guest = true
	return true
}

// pickSession chooses a worker for the variant: warm ones first, then the one
// with most room, then by name. nil when none has room.
func (l *leader) pickSession(function string, v *isobarv1.Variant) *session {
	d := demand(v)
	var best *session
	for _, s := range l.sessions {
		if !s.can(function, v, d) {
			continue
		}
		if best == nil || s.before(best, function+"/"+v.Name) {
			best = s
		}
	}
	return best
}

func (s *session) can(function string, v *isobarv1.Variant, d mesh.Demand) bool {
	if s.out == nil && (s.poll == nil || s.poll.closed || len(s.poll.got) >= s.poll.want) {
		return false
	}
	return slices.Contains(s.runtimes, v.Runtime) && s.free.Fits(d) &&
		(len(s.functions) == 0 || slices.Contains(s.functions, function))
}

func (s *session) before(o *session, variant string) bool {
	if s.warm[variant] != o.warm[variant] {
		return s.warm[variant]
	}
	return cmp.Or(-cmp.Compare(s.free.CPUMilli, o.free.CPUMilli), cmp.Compare(s.worker, o.worker), cmp.Compare(s.id, o.id)) < 0
}

func (l *leader) occupy(s *session, r ref, function string, v *isobarv1.Variant) *running {
	run := l.occupyDemand(s, r, function, v.Name, demand(v))
	if s.poll != nil && s.out == nil {
		run.request = s.poll.request
		s.poll.want-- // until delivered or released, it counts against this call
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
	l.kick()
}

// deliver hands a committed attempt to its worker, unless it was stopped since.
func (l *leader) deliver(run *running, a *isobarv1.Assignment) {
	a.Lease = durationpb.New(l.WorkerLease)
	l.mu.Lock()
	ok := l.running[run.ref] == run
	if ok {
		ok = l.hand(run, a)
	}
	if !ok {
		l.release(run)
	}
	l.mu.Unlock()
	if ok {
		return
	}
	ended := &meshv1.Ended{Status: "undelivered", Message: "the worker went away before it was told", Worker: run.session.worker}
	if run.guest {
		l.endGuest(run.ref, ended)
	} else if !run.invoke {
		l.endAttempt(run.ref, ended)
	}
}

func (l *leader) hand(run *running, a *isobarv1.Assignment) bool {
	s := run.session
	if run.request == "" {
		return s.send(&isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Assign{Assign: a}})
	}
	if s.poll == nil || s.poll.closed || s.poll.request != run.request {
		return false
	}
	run.assigned = a
	s.poll.got = append(s.poll.got, a)
	s.poll.finish()
	return true
}

// loseSessions gives up workers that have not been heard of for a lease.
func (l *leader) loseSessions(now time.Time) {
	for id, s := range l.sessions {
		if now.Sub(s.seen) <= l.WorkerLease {
			continue
		}
		s.close()
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

// Close ends the stream; what runs stays leased until it runs out or the
// worker comes back and announces it.
func (s *Session) Close() {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.s.out != nil && s.Out == (<-chan *isobarv1.WorkResponse)(s.s.out) {
		close(s.s.out)
		s.s.out = nil
	}
}

// Receive takes one message of the worker and answers over Out.
func (s *Session) Receive(ctx context.Context, m *isobarv1.WorkRequest) error {
	l := s.l
	switch m := m.Message.(type) {
	case *isobarv1.WorkRequest_Extend:
		m.Extend.Session, m.Extend.Worker = s.s.id, s.s.worker
		res, err := l.Extend(ctx, m.Extend)
		if err != nil {
			return err
		}
		s.answer(&isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Extended{Extended: res}})
	case *isobarv1.WorkRequest_Complete:
		m.Complete.Session, m.Complete.Worker = s.s.id, s.s.worker
		// Commits of one stream go on side by side.
		go func() {
			res, err := l.Complete(ctx, m.Complete)
			if definite(err) {
				res, err = &isobarv1.CompleteResponse{Lease: m.Complete.Lease, Verdict: verdictWord(fsm.Fenced)}, nil
			}
			if err == nil {
				s.answer(&isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Completed{Completed: res}})
			}
		}()
	case *isobarv1.WorkRequest_Fail:
		m.Fail.Session, m.Fail.Worker = s.s.id, s.s.worker
		go func() {
			res, err := l.Fail(ctx, m.Fail)
			if definite(err) {
				res, err = &isobarv1.FailResponse{Lease: m.Fail.Lease, Verdict: verdictWord(fsm.Fenced)}, nil
			}
			if err == nil {
				s.answer(&isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Failed{Failed: res}})
			}
		}()
	case *isobarv1.WorkRequest_Invoked:
		l.mu.Lock()
		l.endInvoke(m.Invoked.GetTaskId(), m.Invoked.GetOutcome())
		l.mu.Unlock()
	case *isobarv1.WorkRequest_Warm:
		l.mu.Lock()
		s.s.warm = map[string]bool{}
		for _, v := range m.Warm.GetVariants() {
			s.s.warm[v] = true
		}
		l.mu.Unlock()
	default:
		return &Refusal{Reason: BadRequest, Message: fmt.Sprintf("unexpected message %T", m), Hint: "after Hello send extend, complete, fail, invoked or warm"}
	}
	return nil
}

// definite reports whether a repeat of the message would fail the same way; the
// worker then must stop repeating it. Otherwise it is left to repeat, here or
// at the next leader.
func definite(err error) bool {
	var refused *Refusal
	return errors.Is(err, fsm.ErrBadCommand) || errors.As(err, &refused)
}

func (s *Session) answer(m *isobarv1.WorkResponse) {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.s.seen = time.Now()
	if s.s.out != nil && s.Out == (<-chan *isobarv1.WorkResponse)(s.s.out) {
		s.s.send(m)
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

// CapacityOf reads an offer's amounts.
func CapacityOf(o *isobarv1.Offer) mesh.Capacity {
	c := mesh.Capacity{CPUMilli: int64(o.GetCpu()*1000 + 0.5), MemoryMiB: o.GetMemoryMib()}
	for _, a := range o.GetAccelerators() {
		c = c.Plus(mesh.Capacity{GPUs: []mesh.Accelerators{{Model: a.Model, Count: a.Count}}})
	}
	return c
}

// OfferOf writes a capacity as an offer.
func OfferOf(c mesh.Capacity, runtimes []string) *isobarv1.Offer {
	o := &isobarv1.Offer{Cpu: float64(c.CPUMilli) / 1000, MemoryMib: c.MemoryMiB, Runtimes: runtimes}
	for _, g := range c.GPUs {
		o.Accelerators = append(o.Accelerators, &isobarv1.AcceleratorCount{Model: g.Model, Count: g.Count})
	}
	return o
}
