package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// stream is one connection of a streaming worker: what waits to be sent. It is
// bounded by what the worker holds and asks, not by a count of its own: a burst
// of assignments to a large worker must not look like one that doesn't read.
// The leader's lock guards it.
type stream struct {
	queue []*isobarv1.WorkResponse
	bytes int           // payloads in queue
	wake  chan struct{} // holds one signal: queue or gone changed
	gone  bool
	since time.Time // when the head of the queue came to its place
}

// fullStream is how many bytes of payloads may wait in a stream before its
// worker is given no more: a slow reader's backlog stays at the home.
const fullStream = 8 << 20

func newStream() *stream { return &stream{wake: make(chan struct{}, 1)} }

func (c *stream) push(m *isobarv1.WorkResponse) {
	if len(c.queue) == 0 {
		c.since = time.Now()
	}
	c.queue = append(c.queue, m)
	c.bytes += len(m.GetAssign().GetPayload())
	signal(c.wake)
}

// pop takes the head; what is taken counts as delivered.
func (c *stream) pop() *isobarv1.WorkResponse {
	m := c.queue[0]
	c.queue[0] = nil
	if c.queue = c.queue[1:]; len(c.queue) == 0 {
		c.queue = nil
	}
	c.bytes -= len(m.GetAssign().GetPayload())
	c.since = time.Now()
	return m
}

// stalled reports whether the worker has not read for that long.
func (c *stream) stalled(now time.Time, limit time.Duration) bool {
	return len(c.queue) > 0 && now.Sub(c.since) > limit
}

// takes reports whether work may be given to the session. A streaming worker
// extends every Renew, also when it holds nothing: one that was silent twice is
// given nothing more, or the attempts of a lost worker would go to it again.
func (l *leader) takes(s *session) bool {
	if s.out == nil {
		return s.poll != nil
	}
	return time.Since(s.seen) <= 2*l.Renew+l.Renew/4
}

// send queues a message for a streaming worker; false when it has no stream.
func (s *session) send(m *isobarv1.WorkResponse) bool {
	if s.out == nil {
		return false
	}
	s.out.push(m)
	return true
}

// letGo ends the session's stream and its waiting Lease call. Assignments that
// were not taken from the stream never reached the worker: they are returned.
func (l *leader) letGo(s *session) {
	if s.poll != nil {
		s.poll.finish()
	}
	c := s.out
	if c == nil {
		return
	}
	s.out, c.gone = nil, true
	signal(c.wake)
	for _, m := range c.queue {
		if a := m.GetAssign(); a != nil {
			if run := l.running[ref{a.TaskId, a.Attempt}]; run != nil && run.session == s {
				l.undelivered(run)
			}
		}
	}
	c.queue, c.bytes = nil, 0
}

// Session is a streaming worker's door.
type Session struct {
	l *leader
	s *session
	c *stream
}

// Open begins a streaming session. The worker announces what it still holds;
// what is not its to run any more is in the Welcome, and what it was given and
// does not hold never reached it.
func (s *Scheduler) Open(hello *isobarv1.Hello) (*Session, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	if hello.GetWorker() == "" || hello.GetSession() == "" || hello.GetOffer() == nil {
		return nil, &Refusal{Reason: BadRequest, Message: "a hello needs worker, session and offer", Hint: "send Hello first, with all three"}
	}
	if err := checkOffer(hello.Offer); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("scheduler: open session of %s: %w", hello.Worker, ErrNotLeader)
	}
	known := l.sessions[hello.Session] != nil
	ses := l.session(hello.Session, hello.Worker, hello.Offer)
	ses.polls, ses.pid = false, hello.Pid
	l.letGo(ses) // an older stream of the same session
	stop := l.adopt(ses, hello.Held)
	l.returnUnheld(ses, hello.Held, known)
	ses.out = newStream()
	ses.send(&isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Welcome{Welcome: &isobarv1.Welcome{
		Cell: string(l.Cell.ID), Region: l.Cell.Region, ExtendEvery: durationpb.New(l.Renew), Lease: durationpb.New(l.WorkerLease), Stop: stop,
	}}})
	l.unparkAll()
	l.kick()
	return &Session{l: l, s: ses, c: ses.out}, nil
}

// returnUnheld takes back what the session was given on an earlier stream, by
// this leader or by one before it, and does not hold: it was lost with the
// stream, since a worker announces also what it has reported and not yet been
// answered.
func (l *leader) returnUnheld(ses *session, held []*isobarv1.LeaseRef, known bool) {
	has := make(map[ref]bool, len(held))
	for _, h := range held {
		has[ref{h.GetTaskId(), h.GetAttempt()}] = true
	}
	for r, run := range l.running {
		// An invoke is not announced: its outcome comes, or its caller gives up.
		if run.session == ses && run.handed && !run.invoke && !has[r] {
			l.undelivered(run)
		}
	}
	if known {
		return
	}
	lost := &meshv1.Ended{Status: "undelivered", Message: "lost on its way to the worker in a change of leader", Worker: ses.worker}
	for rec := range fsm.Leases(l.State) {
		r := ref{rec.Id, rec.Attempt}
		if rec.Lease.Holder.Session == ses.id && !has[r] {
			go l.endAttempt(r, proto.CloneOf(lost))
		}
	}
	for r, g := range l.guests {
		if rec, ok := fsm.Guest(l.State, r.task, r.attempt); ok && g.started && rec.Session == ses.id && !g.ended && !has[r] {
			go l.endGuest(r, proto.CloneOf(lost))
		}
	}
}

// Next waits for the next message to send to the worker. ErrNotLeader when the
// session is let go: a newer stream took its place, or this server leads no
// longer. What it returned counts as delivered.
func (s *Session) Next(ctx context.Context) (*isobarv1.WorkResponse, error) {
	for {
		s.l.mu.Lock()
		gone := s.c.gone
		var m *isobarv1.WorkResponse
		if !gone && len(s.c.queue) > 0 {
			full := s.c.bytes > fullStream
			m = s.c.pop()
			if full && s.c.bytes <= fullStream {
				s.l.kick()
			}
		}
		s.l.mu.Unlock()
		switch {
		case m != nil:
			return m, nil
		case gone:
			return nil, fmt.Errorf("scheduler: session of %s: %w", s.s.worker, ErrNotLeader)
		}
		select {
		case <-s.c.wake:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Close ends the stream; what runs stays leased until it runs out or the
// worker comes back and announces it.
func (s *Session) Close() {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.s.out == s.c {
		s.l.letGo(s.s)
	}
}

// Receive takes one message of the worker; answers come out of Next.
func (s *Session) Receive(ctx context.Context, m *isobarv1.WorkRequest) error {
	l := s.l
	switch m := m.Message.(type) {
	case *isobarv1.WorkRequest_Extend:
		m.Extend.Session, m.Extend.Worker = s.s.id, s.s.worker
		res, err := l.extend(ctx, m.Extend)
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
	if s.s.out == s.c {
		s.s.send(m)
	}
}
