package scheduler

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// testWorker is a streaming worker whose moves the test makes.
type testWorker struct {
	c       *testCell
	name    string
	session string
	offer   *isobarv1.Offer
	// does is what becomes of an assignment; nil holds it.
	does func(w *testWorker, a *isobarv1.Assignment)

	mu       sync.Mutex
	door     *Session
	stop     context.CancelFunc
	got      []*isobarv1.Assignment // all ever assigned
	held     map[ref]*isobarv1.LeaseRef
	stopped  map[ref]bool   // told to stop
	verdicts map[ref]string // of outcomes
	extends  map[ref]string // newest answer, "" for confirmed
	welcome  *isobarv1.Welcome
}

func offering(cpu float64, runtimes ...string) *isobarv1.Offer {
	return &isobarv1.Offer{Cpu: cpu, MemoryMib: int64(cpu * 1024), Runtimes: runtimes}
}

// worker connects one and lets it extend what it holds, as workers do.
func (c *testCell) worker(name string, offer *isobarv1.Offer, does func(*testWorker, *isobarv1.Assignment)) *testWorker {
	c.w.t.Helper()
	w := &testWorker{
		c: c, name: name, session: name + "-session", offer: offer, does: does,
		held: map[ref]*isobarv1.LeaseRef{}, stopped: map[ref]bool{}, verdicts: map[ref]string{}, extends: map[ref]string{},
	}
	w.connect()
	return w
}

// connect opens a stream and announces what is held.
func (w *testWorker) connect() {
	w.c.w.t.Helper()
	w.mu.Lock()
	var held []*isobarv1.LeaseRef
	for _, h := range w.held {
		held = append(held, h)
	}
	w.mu.Unlock()
	door, err := w.c.Open(&isobarv1.Hello{Worker: w.name, Session: w.session, Offer: w.offer, Held: held, Pid: 42})
	if err != nil {
		w.c.w.t.Fatalf("open: %v", err)
	}
	ctx, stop := context.WithCancel(w.c.w.ctx)
	w.mu.Lock()
	w.door, w.stop = door, stop
	w.mu.Unlock()
	w.c.w.go_(func() { w.read(ctx, door) })
	w.c.w.go_(func() { w.renew(ctx, door) })
	synctest.Wait()
}

// vanish lets the worker fall silent without a word: its stream stays open.
func (w *testWorker) vanish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stop()
}

// disconnect ends the stream, as a broken connection does.
func (w *testWorker) disconnect() {
	w.vanish()
	w.door.Close()
	synctest.Wait()
}

func (w *testWorker) read(ctx context.Context, door *Session) {
	for {
		m, err := door.Next(ctx)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, ErrNotLeader) {
				w.c.w.t.Errorf("next: %v", err)
			}
			return
		}
		w.receive(m)
	}
}

func (w *testWorker) receive(m *isobarv1.WorkResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch m := m.Message.(type) {
	case *isobarv1.WorkResponse_Welcome:
		w.welcome = m.Welcome
		for _, s := range m.Welcome.Stop {
			delete(w.held, ref{s.TaskId, s.Attempt})
		}
	case *isobarv1.WorkResponse_Assign:
		a := m.Assign
		w.got = append(w.got, a)
		if !a.Invoke {
			w.held[ref{a.TaskId, a.Attempt}] = &isobarv1.LeaseRef{TaskId: a.TaskId, Attempt: a.Attempt}
		}
		if w.does != nil {
			w.c.w.go_(func() { w.does(w, a) })
		}
	case *isobarv1.WorkResponse_Extended:
		for _, r := range m.Extended.Results {
			at := ref{r.Lease.TaskId, r.Lease.Attempt}
			if w.extends[at] = r.Reason; !r.Confirmed {
				delete(w.held, at)
			}
		}
	case *isobarv1.WorkResponse_Completed:
		at := ref{m.Completed.Lease.TaskId, m.Completed.Lease.Attempt}
		w.verdicts[at] = m.Completed.Verdict
		delete(w.held, at)
	case *isobarv1.WorkResponse_Failed:
		at := ref{m.Failed.Lease.TaskId, m.Failed.Lease.Attempt}
		w.verdicts[at] = m.Failed.Verdict
		delete(w.held, at)
	case *isobarv1.WorkResponse_Stop:
		w.stopped[ref{m.Stop.TaskId, m.Stop.Attempt}] = true
	}
}

// renew extends every two seconds.
func (w *testWorker) renew(ctx context.Context, door *Session) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		w.mu.Lock()
		req := &isobarv1.ExtendRequest{}
		for _, h := range w.held {
			req.Leases = append(req.Leases, h)
		}
		w.mu.Unlock()
		_ = door.Receive(ctx, &isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Extend{Extend: req}}) // a deposed leader's
	}
}

func (w *testWorker) send(m *isobarv1.WorkRequest) {
	w.mu.Lock()
	door := w.door
	w.mu.Unlock()
	if err := door.Receive(w.c.w.ctx, m); err != nil && !errors.Is(err, ErrNotLeader) {
		w.c.w.t.Errorf("receive: %v", err)
	}
}

// finish reports an outcome.
func (w *testWorker) finish(a *isobarv1.Assignment, status string) {
	o := &isobarv1.Outcome{
		Status: status, Result: []byte("result of " + string(a.Payload)), RunTime: durationpb.New(50 * time.Millisecond), Message: status + " by test",
	}
	lease := &isobarv1.LeaseRef{TaskId: a.TaskId, Attempt: a.Attempt}
	switch {
	case a.Invoke:
		w.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Invoked{Invoked: &isobarv1.InvokeResult{TaskId: a.TaskId, Outcome: o}}})
	case status == "done":
		w.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Complete{Complete: &isobarv1.CompleteRequest{Lease: lease, Outcome: o}}})
	default:
		o.Result = nil
		w.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Fail{Fail: &isobarv1.FailRequest{Lease: lease, Outcome: o}}})
	}
}

// completes ends every assignment well, at once.
func completes(w *testWorker, a *isobarv1.Assignment) { w.finish(a, "done") }

// assigned is the n-th assignment, counted from 0, once it is there.
func (w *testWorker) assigned(n int) *isobarv1.Assignment {
	w.c.w.t.Helper()
	w.c.w.await(20*time.Second, "assignment to "+w.name, func() bool { return w.count() > n })
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.got[n]
}

func (w *testWorker) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.got)
}

// loses forgets an attempt: its assignment never arrived.
func (w *testWorker) loses(at ref) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.held, at)
}

// claims announces an attempt with the next hello.
func (w *testWorker) claims(at ref) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held[at] = &isobarv1.LeaseRef{TaskId: at.task, Attempt: at.attempt}
}

// toStop is what the newest welcome named.
func (w *testWorker) toStop() []*isobarv1.LeaseRef {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.welcome.Stop
}

// all are the assignments so far.
func (w *testWorker) all() []*isobarv1.Assignment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.got)
}

func (w *testWorker) verdict(a *isobarv1.Assignment) string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.verdicts[ref{a.TaskId, a.Attempt}]
}

func (w *testWorker) toldToStop(a *isobarv1.Assignment) bool {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stopped[ref{a.TaskId, a.Attempt}]
}

func (w *testWorker) extended(a *isobarv1.Assignment) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.extends[ref{a.TaskId, a.Attempt}]
}

// holds are the assignments not yet answered for.
func (w *testWorker) holds() []*isobarv1.Assignment {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*isobarv1.Assignment
	for _, a := range w.got {
		if w.held[ref{a.TaskId, a.Attempt}] != nil {
			out = append(out, a)
		}
	}
	return out
}
