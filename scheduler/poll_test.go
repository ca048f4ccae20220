package scheduler

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

func question(id string, most int32) *isobarv1.LeaseRequest {
	return &isobarv1.LeaseRequest{Worker: "poller", Session: "p", RequestId: id, Offer: offering(4, "wasm"), Max: most, Wait: durationpb.New(5 * time.Second)}
}

func (c *testCell) lease(r *isobarv1.LeaseRequest) []*isobarv1.Assignment {
	c.w.t.Helper()
	res, err := c.Lease(c.w.ctx, r)
	if err != nil {
		c.w.t.Fatalf("lease: %v", err)
	}
	return res.Assignments
}

func (c *testCell) extendPolled(a *isobarv1.Assignment) *isobarv1.ExtendResult {
	c.w.t.Helper()
	res, err := c.Extend(c.w.ctx, &isobarv1.ExtendRequest{Worker: "poller", Session: "p", Leases: []*isobarv1.LeaseRef{{TaskId: a.TaskId, Attempt: a.Attempt}}})
	if err != nil {
		c.w.t.Fatalf("extend: %v", err)
	}
	return res.Results[0]
}

func (c *testCell) completePolled(a *isobarv1.Assignment) string {
	c.w.t.Helper()
	res, err := c.Complete(c.w.ctx, &isobarv1.CompleteRequest{
		Worker: "poller", Session: "p", Lease: &isobarv1.LeaseRef{TaskId: a.TaskId, Attempt: a.Attempt}, Outcome: &isobarv1.Outcome{Result: []byte("ok")},
	})
	if err != nil {
		c.w.t.Fatalf("complete: %v", err)
	}
	return res.Verdict
}

func TestPollerRepeatsItsQuestion(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		id := c.submit("work")
		first := c.lease(question("r1", 1))
		again := c.lease(question("r1", 1))
		if len(first) != 1 || len(again) != 1 || first[0].TaskId != id || again[0].Attempt != 1 {
			t.Fatalf("%v, then %v", first, again)
		}
		if rec := c.wantState(id, leased); rec.Lease.Started {
			t.Fatal("started before the poller said so")
		}
		// Also the next leader knows what the lost answer was.
		c.changeLeader()
		after := c.lease(question("r1", 1))
		if len(after) != 1 || after[0].TaskId != id || string(after[0].Payload) != "payload of work" {
			t.Fatalf("after a change of leader: %v", after)
		}
		if x := c.extendPolled(after[0]); !x.Confirmed || x.Duration.AsDuration() != 6*time.Second {
			t.Fatalf("extend: %v", x)
		}
		if !c.record(id).Lease.Started {
			t.Fatal("not started after the poller said so")
		}
		// Confirmed leases are not told again.
		if more := c.lease(question("r1", 1)); len(more) != 0 {
			t.Fatalf("told again: %v", more)
		}
		if v := c.completePolled(after[0]); v != "accepted" {
			t.Fatalf("complete: %s", v)
		}
		c.wantState(id, completed)
		c.wantIdle()
	})
}

// A poller that comes back to a new leader while the broker hangs waits alone.
func TestAHungBrokerHoldsUpOnePollerOnly(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		hung := &hungBroker{}
		c := w.cell("eu-1", func(o *Options) { hung.Broker = o.Broker; o.Broker = hung })
		id := c.submit("work")
		if got := c.lease(question("r1", 1)); len(got) != 1 {
			t.Fatalf("leased %v", got)
		}
		c.changeLeader()
		hung.mu = &c.current().mu
		hung.hangs.Store(true)
		var got []*isobarv1.Assignment
		began, took := time.Now(), time.Duration(0)
		answered := make(chan struct{})
		w.go_(func() {
			got, took = c.lease(question("r1", 1)), time.Since(began)
			close(answered)
		})
		synctest.Wait()
		if hung.held.Load() {
			t.Fatal("the leader's lock is held while a poller waits for the broker: everybody waits")
		}
		if _, err := c.Get(w.ctx, id); err != nil {
			t.Errorf("get: %v", err)
		}
		c.submit("work")
		if since := time.Since(began); since > 0 {
			t.Errorf("the others were held up for %s", since)
		}
		c.awaitState(10*time.Second, id, ready) // never confirmed
		select {
		case <-answered:
			if len(got) != 0 {
				t.Errorf("told %v after %s", got, took)
			}
		case <-time.After(time.Minute):
			t.Error("not answered within a minute")
		}
	})
}

// hungBroker answers no Fetch while it hangs; but to one under the leader's lock it
// says so and answers: nobody else could, and the test would hang, too.
type hungBroker struct {
	broker.Broker
	hangs atomic.Bool
	mu    *sync.Mutex // the leader's
	held  atomic.Bool
}

// free waits a bounded time until somebody lets the lock go.
func free(mu *sync.Mutex) bool {
	for range 1_000_000 {
		if mu.TryLock() {
			mu.Unlock()
			return true
		}
		runtime.Gosched()
	}
	return false
}

func (b *hungBroker) Fetch(ctx context.Context, t broker.Topic, r broker.Reference) (broker.Stored, error) {
	if b.hangs.Load() && !free(b.mu) {
		b.held.Store(true)
		return broker.Stored{}, broker.ErrUnavailable
	}
	if b.hangs.Load() {
		<-ctx.Done()
		return broker.Stored{}, broker.ErrUnavailable
	}
	return b.Broker.Fetch(ctx, t, r)
}

func TestPolledLeaseThatIsNeverConfirmedIsNotCounted(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		id := c.submit("work")
		if got := c.lease(question("r1", 1)); len(got) != 1 {
			t.Fatalf("leased %v", got)
		}
		rec := c.awaitState(10*time.Second, id, ready)
		if rec.Counted != 0 || rec.Attempts[0].Outcome != "lost" {
			t.Fatalf("attempts %v", rec.Attempts)
		}
		got := c.lease(question("r2", 1))
		if len(got) != 1 || got[0].Attempt != 2 {
			t.Fatalf("leased again: %v", got)
		}
		c.extendPolled(got[0])
		if _, err := c.Fail(w.ctx, &isobarv1.FailRequest{Worker: "poller", Lease: &isobarv1.LeaseRef{TaskId: id, Attempt: 2}}); err != nil {
			t.Fatal(err)
		}
		c.wantState(id, dead)
		c.wantIdle()
	})
}

func TestPollWaitsForWorkAndTakesSeveral(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		got := make(chan []*isobarv1.Assignment, 1)
		w.go_(func() { got <- c.lease(question("r1", 3)) })
		synctest.Wait()
		id := c.submit("work")
		if list := <-got; len(list) != 1 || list[0].TaskId != id {
			t.Fatalf("leased %v", list)
		}
		for range 5 {
			c.submit("work")
		}
		// The worker has room for four and one runs.
		if list := c.lease(question("r2", 9)); len(list) != 3 {
			t.Fatalf("leased %d of 3", len(list))
		}
		start := time.Now()
		if list := c.lease(question("r3", 1)); len(list) != 0 || time.Since(start) != 5*time.Second {
			t.Fatalf("leased %v after %s without room", list, time.Since(start))
		}
	})
}

// A poller whose wait is shorter than a commit gets what is ready all the same, and
// with the first question.
func TestAPollerMayAskWithoutWaiting(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		inWorld(t, func(w *world) {
			c := w.cell("eu-1")
			c.late.slow(50 * time.Millisecond)
			q := question("r0", 1)
			q.Wait = durationpb.New(wait)
			began := time.Now()
			if got := c.lease(q); len(got) != 0 || time.Since(began) != wait {
				t.Errorf("wait %s with nothing ready: %v after %s", wait, got, time.Since(began))
			}
			id := c.submit("work")
			q.RequestId = "r1"
			got := c.lease(q)
			if len(got) != 1 || got[0].TaskId != id || got[0].Attempt != 1 {
				t.Fatalf("wait %s: told %v", wait, got)
			}
			if x := c.extendPolled(got[0]); !x.Confirmed {
				t.Errorf("wait %s: extend %v", wait, x)
			}
		})
	}
}

func TestANewQuestionEndsTheOld(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		old := make(chan int, 1)
		w.go_(func() { old <- len(c.lease(question("r1", 1))) })
		synctest.Wait()
		next := make(chan int, 1)
		w.go_(func() { next <- len(c.lease(question("r2", 1))) })
		if n := <-old; n != 0 {
			t.Fatalf("the old question got %d", n)
		}
		c.submit("work")
		if n := <-next; n != 1 {
			t.Fatalf("the new question got %d", n)
		}
	})
}

func TestAWaitingPollerIsNotLost(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		start := time.Now()
		q := question("r1", 1)
		q.Wait = durationpb.New(25 * time.Second) // longer than a worker's lease
		if list := c.lease(q); len(list) != 0 || time.Since(start) != 25*time.Second {
			t.Fatalf("leased %v after %s", list, time.Since(start))
		}
	})
}

// A grant that comes to nothing must leave the question as it was.
func TestAPollSurvivesAGrantThatFails(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		l := c.current()
		p := &poll{request: "r", want: 1, ready: make(chan struct{})}
		l.mu.Lock()
		s := l.session("p", "poller", offering(1, "wasm"))
		s.poll = p
		v := variant("only", "wasm")
		run := l.occupy(s, ref{"t1", 1}, "work", v, demand(v))
		full := l.pickSession("work", v, demand(v), false)
		l.release(run)
		free := l.pickSession("work", v, demand(v), false)
		l.mu.Unlock()
		if full != nil || free != s || p.want != 1 || p.pending != 0 || p.closed {
			t.Fatalf("%v, %v, %+v", full, free, p)
		}
	})
}

func TestAPollEndsWithItsCallerAndWithTheTerm(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		if res, err := c.Lease(ctx, question("r1", 1)); err != nil || len(res.Assignments) != 0 {
			t.Fatalf("%v, %v", res, err)
		}
		got := make(chan error, 1)
		w.go_(func() {
			res, err := c.Lease(w.ctx, question("r2", 1))
			if err == nil && len(res.Assignments) > 0 {
				err = fmt.Errorf("leased %v", res.Assignments)
			}
			got <- err
		})
		synctest.Wait()
		c.log.Depose()
		if err := <-got; err != nil && !errors.Is(err, ErrNotLeader) {
			t.Fatal(err)
		}
	})
}

func TestPollerNeedsNames(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		for name, r := range map[string]*isobarv1.LeaseRequest{
			"worker":  {Session: "s", RequestId: "r", Offer: offering(1)},
			"session": {Worker: "w", RequestId: "r", Offer: offering(1)},
			"request": {Worker: "w", Session: "s", Offer: offering(1)},
			"offer":   {Worker: "w", Session: "s", RequestId: "r"},
		} {
			_, err := c.Lease(w.ctx, r)
			wantRefusal(t, "lease without "+name, err, BadRequest)
		}
		_, err := c.Open(&isobarv1.Hello{Worker: "w"})
		wantRefusal(t, "hello without a session", err, BadRequest)
		door, err := c.Open(&isobarv1.Hello{Worker: "w", Session: "s", Offer: offering(1)})
		if err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, "a second hello", door.Receive(w.ctx, &isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Hello{}}), BadRequest)
		_, err = c.Complete(w.ctx, &isobarv1.CompleteRequest{Outcome: &isobarv1.Outcome{Result: make([]byte, mesh.MaxResult+1)}})
		wantRefusal(t, "a large result", err, ResultTooLarge)
	})
}

func TestAResultThatIsTooLargeIsFencedOnAStream(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		c.submit("work")
		a := wk.assigned(0)
		lease := &isobarv1.LeaseRef{TaskId: a.TaskId, Attempt: a.Attempt}
		wk.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Complete{Complete: &isobarv1.CompleteRequest{
			Lease: lease, Outcome: &isobarv1.Outcome{Status: "done", Result: make([]byte, mesh.MaxResult+1)},
		}}})
		if v := wk.verdict(a); v != "fenced" {
			t.Fatalf("verdict %q", v)
		}
	})
}

// wantRefusal checks what an error means to whoever asked.
func wantRefusal(t *testing.T, what string, err error, reason Reason) *Refusal {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) || r.Reason != reason {
		t.Fatalf("%s: %v, want %s", what, err, reason)
	}
	if r.Message == "" && reason != UnknownTenant {
		t.Fatalf("%s: nothing is said: %+v", what, r)
	}
	return r
}

// An attempt whose end its own worker has told ends with a verdict, and with no word
// to stop: that would look as if somebody else had taken the lease.
func TestAWorkerIsNotStoppedForItsOwnEnd(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(4, "wasm"), nil)
		for n := range 20 {
			c.submit("work")
			a := wk.assigned(n)
			wk.finish(a, "done")
			if v := wk.verdict(a); v != "accepted" || wk.toldToStop(a) {
				t.Fatalf("task %d: verdict %q, told to stop %t", n, v, wk.toldToStop(a))
			}
		}
	})
}
