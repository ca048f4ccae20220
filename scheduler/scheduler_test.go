package scheduler

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

const (
	ready     = isobarv1.TaskState_TASK_STATE_READY
	deferred  = isobarv1.TaskState_TASK_STATE_DEFERRED
	leased    = isobarv1.TaskState_TASK_STATE_LEASED
	completed = isobarv1.TaskState_TASK_STATE_COMPLETED
	dead      = isobarv1.TaskState_TASK_STATE_DEAD
	cancelled = isobarv1.TaskState_TASK_STATE_CANCELLED
	expired   = isobarv1.TaskState_TASK_STATE_EXPIRED
)

func TestTaskFromSubmitToResult(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(2, "wasm"), nil)
		id := c.submit("work")
		a := wk.assigned(0)
		if a.TaskId != id || a.Attempt != 1 || string(a.Payload) != "payload of work" || a.Env["A"] != "b" || a.Traceparent == "" {
			t.Fatalf("assignment %v", a)
		}
		c.wantState(id, leased)
		wk.finish(a, "done")
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		rec, ended, err := c.Wait(ctx, id)
		if err != nil || !ended || fsm.State(rec) != completed {
			t.Fatalf("wait: %v, %t, %v", rec, ended, err)
		}
		if got := string(c.Result(id)); got != "result of payload of work" {
			t.Fatalf("result %q", got)
		}
		if v := wk.verdict(a); v != "accepted" {
			t.Fatalf("verdict %q", v)
		}
		wk.finish(a, "done")
		if v := wk.verdict(a); v != "accepted" {
			t.Fatalf("a repeat is told %q", v)
		}
		ds, err := Decisions(rec)
		if err != nil || len(ds) != 1 || ds[0].Candidates[0].Cell != "eu-1" || ds[0].Attempt != 1 {
			t.Fatalf("decisions %v, %v", ds, err)
		}
		m := TaskMessage(rec)
		if m.Home != "eu-1" || len(m.Attempts) != 1 || m.Attempts[0].Worker != "w1" || m.Attempts[0].Decision == "" || m.Attempts[0].Region != "eu" {
			t.Fatalf("message %v", m)
		}
		c.wantIdle()
	})
}

func TestWaitEndsWithItsContextAndSaysSo(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		id := c.submit("work")
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		rec, ended, err := c.Wait(ctx, id)
		if err != nil || ended || rec.Id != id {
			t.Fatalf("wait: %v, %t, %v", rec, ended, err)
		}
		// A change of leader ends a wait, which is for the next leader to go on with.
		got := make(chan error, 1)
		w.go_(func() {
			_, _, err := c.Wait(w.ctx, id)
			got <- err
		})
		synctest.Wait()
		c.log.Depose()
		if err := <-got; !errors.Is(err, ErrNotLeader) {
			t.Fatalf("wait over a change of leader: %v", err)
		}
	})
}

func TestLostWorkerCostsAnAttemptAndNoCapacity(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		first := c.worker("w1", offering(1, "wasm"), nil)
		id := c.submit("work")
		a := first.assigned(0)
		first.vanish()
		second := c.worker("w2", offering(1, "wasm"), nil)
		b := second.assigned(0)
		if b.TaskId != id || b.Attempt != 2 {
			t.Fatalf("second assignment %v", b)
		}
		rec := c.wantState(id, leased)
		if len(rec.Attempts) != 1 || rec.Attempts[0].Outcome != "lost" || !rec.Attempts[0].Counted {
			t.Fatalf("attempts %v", rec.Attempts)
		}
		// The first one comes back with its result: the number has moved on.
		first.connect()
		first.finish(a, "done")
		if v := first.verdict(a); v != "fenced" {
			t.Fatalf("stale completion is %q", v)
		}
		second.finish(b, "done")
		c.wantState(id, completed)
		c.wantIdle()
	})
}

func TestExtendKeepsALeaseAndTheTimeoutEndsIt(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		id := c.submit("work")
		a := wk.assigned(0)
		time.Sleep(50 * time.Second)
		if rec := c.wantState(id, leased); rec.Attempt != 1 || wk.extended(a) != "" {
			t.Fatalf("attempt %d, extend %q", rec.Attempt, wk.extended(a))
		}
		w.await(30*time.Second, "the timeout", func() bool { return c.record(id).Attempt == 2 })
		if at := c.record(id).Attempts[0]; at.Outcome != "timeout" || !at.Counted {
			t.Fatalf("attempt %v", at)
		}
		if !wk.toldToStop(a) {
			t.Fatal("the worker was not told")
		}
	})
}

func TestRetriesUntilDead(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		c.worker("w1", offering(1, "wasm"), func(w *testWorker, a *isobarv1.Assignment) { w.finish(a, "retry") })
		id := c.submit("work")
		rec := c.awaitState(20*time.Second, id, dead)
		if rec.Counted != 3 || len(rec.Attempts) != 3 {
			t.Fatalf("%d counted of %v", rec.Counted, rec.Attempts)
		}
		failed := c.submit("work")
		c.awaitState(20*time.Second, failed, dead)
		c.wantIdle()
	})
}

func TestFailedIsDeadAtOnceAndRefusedIsNotCounted(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		n := 0
		c.worker("w1", offering(1, "wasm"), func(w *testWorker, a *isobarv1.Assignment) {
			if n++; n == 1 {
				w.finish(a, "refused")
				return
			}
			w.finish(a, "failed")
		})
		id := c.submit("work")
		rec := c.awaitState(20*time.Second, id, dead)
		if rec.Counted != 1 || len(rec.Attempts) != 2 || rec.Attempts[0].Counted {
			t.Fatalf("%d counted of %v", rec.Counted, rec.Attempts)
		}
		c.wantIdle()
	})
}

func TestLeaderChangeWithLeasesInFlight(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(2, "wasm"), nil)
		kept, lost := c.submit("work"), c.submit("work")
		a, b := wk.assigned(0), wk.assigned(1)
		if b.TaskId == kept {
			a, b = b, a
		}
		// The second assignment is lost with the stream: the worker never held it.
		wk.loses(ref{b.TaskId, b.Attempt})
		c.changeLeader()
		wk.connect()
		if n := len(wk.toStop()); n != 0 {
			t.Fatalf("%d leases to stop", n)
		}
		again := wk.assigned(2)
		if again.TaskId != lost || again.Attempt != 2 {
			t.Fatalf("assigned again: %v", again)
		}
		if at := c.record(lost).Attempts[0]; at.Outcome != "undelivered" || at.Counted {
			t.Fatalf("the lost one: %v", at)
		}
		time.Sleep(20 * time.Second) // leases run on: what was announced is extended
		if rec := c.wantState(kept, leased); rec.Attempt != 1 {
			t.Fatalf("attempt %d", rec.Attempt)
		}
		wk.finish(a, "done")
		wk.finish(again, "done")
		c.wantState(kept, completed)
		c.wantState(lost, completed)
		c.wantIdle()
	})
}

func TestWelcomeStopsWhatIsNotTheWorkersToRun(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		id := c.submit("work")
		a := wk.assigned(0)
		wk.disconnect()
		if _, won, err := c.Cancel(w.ctx, id, "not needed"); err != nil || !won {
			t.Fatalf("cancel: %t, %v", won, err)
		}
		synctest.Wait()
		wk.connect()
		if stop := wk.toStop(); len(stop) != 1 || stop[0].TaskId != a.TaskId {
			t.Fatalf("to stop: %v", stop)
		}
		// Another worker's lease is not to be taken over either.
		other := c.submit("work")
		b := wk.assigned(1)
		thief := c.worker("w2", offering(1, "wasm"), nil)
		thief.claims(ref{other, b.Attempt})
		thief.disconnect()
		thief.connect()
		if stop := thief.toStop(); len(stop) != 1 {
			t.Fatalf("the thief is to stop %v", stop)
		}
		wk.finish(b, "done")
		c.wantState(other, completed)
		c.wantIdle()
	})
}

func TestReconnectTakesBackWhatNeverArrived(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		id := c.submit("work")
		a := wk.assigned(0)
		wk.loses(ref{a.TaskId, a.Attempt}) // taken from the stream, lost on the way
		wk.connect()
		b := wk.assigned(1)
		if b.TaskId != id || b.Attempt != 2 {
			t.Fatalf("assigned again: %v", b)
		}
		if at := c.record(id).Attempts[0]; at.Outcome != "undelivered" || at.Counted {
			t.Fatalf("first attempt: %v", at)
		}
		wk.finish(b, "done")
		c.wantState(id, completed)
		c.wantIdle()
	})
}

func TestUnreadAssignmentsReturnUncounted(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		// A stream that nobody reads, in the hands of the test.
		door, err := c.Open(&isobarv1.Hello{Worker: "w1", Session: "s", Offer: offering(8, "wasm")})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for range 5 {
			ids = append(ids, c.submit("work"))
		}
		synctest.Wait()
		for _, id := range ids {
			c.wantState(id, leased)
		}
		door.Close()
		synctest.Wait()
		for _, id := range ids {
			if rec := c.wantState(id, ready); rec.Counted != 0 || rec.Attempts[0].Outcome != "undelivered" {
				t.Fatalf("attempts %v", rec.Attempts)
			}
		}
		c.worker("w2", offering(8, "wasm"), completes)
		for _, id := range ids {
			c.awaitState(time.Second, id, completed)
		}
		c.wantIdle()
	})
}

func TestAStreamThatNobodyReadsIsLetGo(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		door, err := c.Open(&isobarv1.Hello{Worker: "w1", Session: "s", Offer: offering(1, "wasm")})
		if err != nil {
			t.Fatal(err)
		}
		id := c.submit("work")
		// It goes on to send, so it is not silent.
		for range 8 {
			time.Sleep(time.Second)
			if err := door.Receive(w.ctx, &isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Extend{Extend: &isobarv1.ExtendRequest{}}}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := door.Next(w.ctx); !errors.Is(err, ErrNotLeader) {
			t.Fatalf("next: %v", err)
		}
		if rec := c.wantState(id, ready); rec.Counted != 0 {
			t.Fatalf("counted %d", rec.Counted)
		}
	})
}

func TestABurstDoesNotCostTheStream(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		w.registry.add("small", variant("only", "wasm", func(v *isobarv1.Variant) { v.Resources = &isobarv1.Resources{Cpu: 0.001, MemoryMib: 1} }))
		c := w.cell("eu-1", func(o *Options) { o.QueueCap = &meshv1.QueueCap{} })
		var ids []string
		for range 2*window + 100 {
			ids = append(ids, c.submit("small"))
		}
		wk := c.worker("w1", offering(64, "wasm"), completes)
		w.await(10*time.Second, "all to end", func() bool { return wk.count() >= len(ids) && c.attempts() == 0 })
		for _, id := range ids {
			if rec := c.record(id); fsm.State(rec) != completed || rec.Attempt != 1 {
				t.Fatalf("%s: attempt %d", fsm.State(rec), rec.Attempt)
			}
		}
		c.wantIdle()
	})
}

func TestCancelWhileItRuns(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		id := c.submit("work")
		a := wk.assigned(0)
		rec, won, err := c.Cancel(w.ctx, id, "changed my mind")
		if err != nil || !won || fsm.State(rec) != cancelled || rec.Reason != "changed my mind" {
			t.Fatalf("cancel: %v, %t, %v", rec, won, err)
		}
		if !wk.toldToStop(a) {
			t.Fatal("the worker was not told to stop")
		}
		time.Sleep(3 * time.Second)
		if r := wk.extended(a); r != "cancelled" {
			t.Fatalf("extend says %q", r)
		}
		wk.finish(a, "done")
		if v := wk.verdict(a); v != "fenced" {
			t.Fatalf("completion is %q", v)
		}
		if rec, won, err = c.Cancel(w.ctx, id, "again"); err != nil || won || fsm.State(rec) != cancelled {
			t.Fatalf("second cancel: %v, %t, %v", rec, won, err)
		}
		c.wantIdle()
	})
}

func TestDeadlineAndNotBefore(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		now := time.Now()
		waits := c.submit("work", func(s *isobarv1.TaskSpec) { s.Deadline = timestamppb.New(now.Add(5 * time.Second)) })
		later := c.submit("work", func(s *isobarv1.TaskSpec) { s.NotBefore = timestamppb.New(now.Add(10 * time.Second)) })
		c.wantState(later, deferred)
		c.awaitState(6*time.Second, waits, expired)
		wk := c.worker("w1", offering(1, "wasm"), nil)
		if n := wk.count(); n != 0 {
			t.Fatalf("%d assignments before their time", n)
		}
		a := wk.assigned(0)
		if a.TaskId != later || time.Since(now) < 10*time.Second || time.Since(now) > 11*time.Second {
			t.Fatalf("%s after %s", a.TaskId, time.Since(now))
		}
		wk.finish(a, "done")
		// A deadline also ends what runs.
		runs := c.submit("work", func(s *isobarv1.TaskSpec) { s.Deadline = timestamppb.New(time.Now().Add(5 * time.Second)) })
		b := wk.assigned(1)
		c.awaitState(6*time.Second, runs, expired)
		if !wk.toldToStop(b) {
			t.Fatal("the worker was not told to stop")
		}
		c.wantIdle()
	})
}

func TestParkedUntilAWorkerOffersTheRuntime(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		w.registry.add("native", variant("only", "exec"))
		c := w.cell("eu-1")
		c.worker("w1", offering(1, "wasm"), completes)
		id := c.submit("native")
		time.Sleep(25 * time.Second) // its pause has grown to many seconds
		if rec := c.wantState(id, ready); rec.Blocked == "" {
			t.Fatal("nothing says what blocks it")
		}
		before := time.Now()
		c.worker("w2", offering(1, "exec"), completes)
		c.awaitState(0, id, completed)
		if d := time.Since(before); d != 0 {
			t.Fatalf("decided %s after the worker came", d)
		}
		c.wantIdle()
	})
}

func TestParkedUntilAnotherCellCanRunIt(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		w.registry.add("native", variant("only", "exec"))
		eu, us := w.cell("eu-1"), w.cell("us-1")
		w.meet()
		id := eu.submit("native")
		time.Sleep(25 * time.Second)
		eu.wantState(id, ready)
		us.worker("w1", offering(1, "exec"), completes)
		us.gossip()
		eu.awaitState(time.Second, id, completed)
		w.await(5*time.Second, "the guest forgotten", func() bool { return us.guests() == 0 })
		eu.wantIdle()
		us.wantIdle()
	})
}

func TestAVersionThatArrivesLater(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		id := c.submit("work")
		w.registry.remove("work")
		c.worker("w1", offering(1, "wasm"), completes)
		time.Sleep(2 * time.Second)
		c.wantState(id, ready)
		w.registry.add("work", variant("only", "wasm"))
		c.awaitState(10*time.Second, id, completed)
		c.wantIdle()
	})
}

func TestLanesShareByWeight(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		lanes := []string{"batch", "standard", "interactive", "critical"}
		// One task keeps the worker until all lanes have work, so that no turn is
		// used up before the first that counts.
		wk := c.worker("w1", offering(1, "wasm"), nil)
		c.submit("work")
		first := wk.assigned(0)
		lane := map[string]string{}
		for range 100 {
			for _, name := range lanes {
				lane[c.submit("work", func(s *isobarv1.TaskSpec) { s.Lane = name })] = name
			}
		}
		wk.does = completes
		wk.finish(first, "done")
		w.await(20*time.Second, "all tasks", func() bool { return wk.count() == 1+len(lane) })
		seen := map[string]int{}
		for _, a := range wk.all()[1:86] {
			seen[lane[a.TaskId]]++
		}
		if seen["critical"] != 64 || seen["interactive"] != 16 || seen["standard"] != 4 || seen["batch"] != 1 {
			t.Fatalf("of the first 85: %v", seen)
		}
		w.await(time.Second, "the last to end", func() bool { return c.attempts() == 0 })
		c.wantIdle()
	})
}

func TestANewLeaderDrainsABacklogBeyondTheWindow(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		var ids []string
		for range 2*window + 7 {
			ids = append(ids, c.submit("work"))
		}
		c.changeLeader()
		c.worker("w1", offering(4, "wasm"), completes)
		c.submit("work") // behind the window
		w.await(20*time.Second, "all to end", func() bool {
			return fsm.QueueCounts(c.State, fsm.QueueOf(c.record(ids[0]))).Ready == 0 && c.attempts() == 0
		})
		for _, id := range ids {
			if rec := c.record(id); fsm.State(rec) != completed {
				t.Fatal(fsm.State(rec))
			}
		}
		c.wantIdle()
	})
}

func TestANewLeaderWaitsForItsWorkersBeforeItSendsTasksAway(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := w.cell("eu-1"), w.cell("us-1", func(o *Options) { o.Prices.CPUHour = 9 })
		there := other.worker("w2", offering(1, "wasm"), completes)
		busy := home.worker("w1", offering(1, "wasm"), nil)
		id := home.submit("work")
		busy.assigned(0)
		next := home.submit("work")
		home.changeLeader()
		w.meet()
		time.Sleep(time.Second)
		if rec := home.wantState(next, ready); rec.Blocked != "" || there.count() != 0 {
			t.Fatalf("blocked %q, %d tasks sent away", rec.Blocked, there.count())
		}
		busy.connect()
		busy.finish(busy.assigned(0), "done")
		if a := busy.assigned(1); a.TaskId != next {
			t.Fatalf("assignment %v", a)
		}
		home.wantState(id, completed)
		// Without any worker it does not wait for ever.
		busy.vanish()
		home.changeLeader()
		home.awaitState(20*time.Second, next, completed)
	})
}

func TestAWorkerMayLimitItsFunctions(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		w.registry.add("other", variant("only", "wasm"))
		c := w.cell("eu-1")
		offer := offering(8, "wasm")
		offer.Functions = []string{"other"}
		limited := c.worker("w1", offer, completes)
		id, other := c.submit("work"), c.submit("other")
		c.awaitState(time.Second, other, completed)
		c.wantState(id, ready)
		c.worker("w2", offering(1, "wasm"), completes)
		c.awaitState(time.Second, id, completed)
		if n := limited.count(); n != 1 {
			t.Fatalf("%d assignments to the limited worker", n)
		}
		list, err := c.Workers()
		if err != nil || len(list) != 2 || list[0].Worker != "w1" || list[0].Pid != 42 || list[0].Free.Cpu != 8 {
			t.Fatalf("workers %v, %v", list, err)
		}
		c.wantIdle()
	})
}

func TestWarmWorkersComeFirst(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		c.worker("cold", offering(8, "wasm"), completes)
		warm := c.worker("warm", offering(2, "wasm"), completes)
		warm.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Warm{Warm: &isobarv1.Warm{Variants: []string{"work/only"}}}})
		for range 3 {
			c.awaitState(time.Second, c.submit("work"), completed)
		}
		if n := warm.count(); n != 3 {
			t.Fatalf("%d of 3 went to the warm worker", n)
		}
	})
}

func TestNotTheLeader(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		id := c.submit("work")
		door, err := c.Open(&isobarv1.Hello{Worker: "w1", Session: "s", Offer: offering(1, "exec")})
		if err != nil {
			t.Fatal(err)
		}
		old := c.current()
		c.log.Depose()
		synctest.Wait()
		_, submit := c.trySubmit("work")
		_, get := c.Get(w.ctx, id)
		_, _, cancel := c.Cancel(w.ctx, id, "")
		_, open := c.Open(&isobarv1.Hello{})
		_, lease := c.Lease(w.ctx, &isobarv1.LeaseRequest{})
		_, extend := c.Extend(w.ctx, &isobarv1.ExtendRequest{})
		_, complete := c.Complete(w.ctx, &isobarv1.CompleteRequest{})
		_, fail := c.Fail(w.ctx, &isobarv1.FailRequest{})
		_, invoke := c.Invoke(w.ctx, Invocation{})
		_, workers := c.Workers()
		_, decide := c.Decide(Question{})
		_, offers := c.AcceptOffers(w.ctx, "us-1", nil)
		_, guestExtend := c.GuestExtend(w.ctx, "us-1", nil)
		_, report := c.GuestReport(w.ctx, "us-1", nil)
		_, payload := c.GuestPayload(w.ctx, mesh.Cell{ID: "us-1"}, nil)
		_, guestInvoke := c.GuestInvoke(w.ctx, nil)
		_, next := door.Next(w.ctx)
		_, wait := old.startWaiting(id)
		for name, err := range map[string]error{
			"submit": submit, "get": get, "cancel": cancel, "open": open, "lease": lease, "extend": extend, "complete": complete, "fail": fail,
			"invoke": invoke, "workers": workers, "decide": decide, "offers": offers, "guest extend": guestExtend, "report": report,
			"payload": payload, "guest invoke": guestInvoke, "next": next, "wait": wait,
		} {
			if !errors.Is(err, ErrNotLeader) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if c.Digest() != nil {
			t.Error("a digest without the lead")
		}
		if list, _ := c.List(Filter{Limit: 10}); len(list) != 1 {
			t.Errorf("list without the lead: %v", list)
		}
	})
}
