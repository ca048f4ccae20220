package scheduler

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// reasonOf is what a refusal says; "" for no refusal.
func reasonOf(err error) Reason {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Reason
	}
	return ""
}

// pause sets a function's queues and wants so many changed.
func (c *testCell) pause(function, lane string, paused bool, want int) {
	c.w.t.Helper()
	_, changed, err := c.SetPaused(c.w.ctx, "default", function, lane, paused, "test")
	if err != nil || changed != want {
		c.w.t.Fatalf("pause %t: %d changed, %v; want %d", paused, changed, err, want)
	}
	synctest.Wait()
}

// shown is the queue as List shows it.
func (c *testCell) shown(function, lane string) *isobarv1.Queue {
	c.w.t.Helper()
	list, _, err := c.Queues(c.w.ctx, "default", function, "", 100)
	if err != nil {
		c.w.t.Fatal(err)
	}
	for _, q := range list {
		if q.Lane == lane {
			return q
		}
	}
	c.w.t.Fatalf("no queue %s/%s in %v", function, lane, list)
	return nil
}

// TestAPausedQueueAcceptsAndDispatchesNothing, under the leader that paused it and
// under the next; what runs goes on, other lanes too, and guests elsewhere.
func TestAPausedQueueAcceptsAndDispatchesNothing(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(4, "wasm"), nil)
		first := c.submit("work")
		running := wk.assigned(0)
		c.pause("work", "standard", true, 1)
		c.pause("work", "standard", true, 0)
		for range 3 {
			c.submit("work")
		}
		urgent := c.submit("work", in("critical"))
		w.await(time.Second, "the other lane", func() bool { return wk.count() == 2 })
		if a := wk.assigned(1); a.TaskId != urgent {
			t.Fatalf("%s was assigned", a.TaskId)
		}
		wk.finish(running, "done")
		c.wantState(first, completed)
		c.changeLeader()
		wk.disconnect()
		wk.connect()
		time.Sleep(time.Minute)
		if n := wk.count(); n != 2 {
			t.Fatalf("%d assigned while the queue is paused", n)
		}
		q := c.shown("work", "standard")
		if q.Ready != 3 || q.Leased != 0 || q.Pause.GetReason() != "test" || q.BlockedBy != "paused: test" ||
			time.Since(q.Oldest.AsTime()) < time.Minute {
			t.Errorf("shown as %v", q)
		}
		c.pause("work", "", false, 1)
		w.await(time.Second, "the rest", func() bool { return wk.count() == 5 })
		for _, a := range wk.holds() {
			wk.finish(a, "done")
		}
		c.wantIdle()
	})
}

// TestPausedWhileAGuestRuns: what another cell holds goes on and is completed.
func TestPausedWhileAGuestRuns(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, away := w.cell("eu-1"), w.cell("us-1")
		wk := away.worker("w1", offering(2, "wasm"), nil)
		w.meet()
		id := home.submit("work")
		a := wk.assigned(0)
		home.pause("work", "", true, 4)
		waits := home.submit("work")
		time.Sleep(30 * time.Second)
		wk.finish(a, "done")
		home.awaitState(10*time.Second, id, completed)
		home.wantState(waits, ready)
		home.pause("work", "", false, 4)
		wk.finish(wk.assigned(1), "done")
		home.awaitState(10*time.Second, waits, completed)
	})
}

// TestPurge cancels what waits in steps; what runs and what comes later stays.
// A purge takes all that was accepted before it, also by a leader whose clock was
// ahead, and nothing that came after.
func TestAPurgeTakesWhatAClockAheadAccepted(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		l := c.current()
		ahead := func(by time.Duration, change func(*isobarv1.TaskSpec)) string {
			sub := Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work"}, Payload: []byte("x")}
			change(sub.Spec)
			rec, _, err := l.record(sub)
			if err != nil {
				t.Fatal(err)
			}
			rec.Id = string(mesh.NewTaskID(ulid.MustNew(ulid.Timestamp(time.Now().Add(by)), ulid.DefaultEntropy()).String(), c.Cell.ID, l.incarnation))
			if _, err := l.accept(w.ctx, rec, sub.Payload); err != nil {
				t.Fatal(err)
			}
			return rec.Id
		}
		ids := []string{
			ahead(20*time.Second, func(*isobarv1.TaskSpec) {}), c.submit("work"),
			ahead(40*time.Second, func(s *isobarv1.TaskSpec) { s.NotBefore = timestamppb.New(time.Now().Add(time.Hour)) }),
		}
		if n, next, err := c.Purge(w.ctx, "default", "work", "", "", ""); err != nil || n != len(ids) || next != "" {
			t.Errorf("%d cancelled, next %q, %v; want %d", n, next, err, len(ids))
		}
		for _, id := range ids {
			c.wantState(id, cancelled)
		}
	})
}

func TestPurge(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		runs := c.submit("work")
		wk.assigned(0)
		var waiting []string
		for range purgeStep + 10 {
			waiting = append(waiting, c.submit("work"))
		}
		later := c.submit("work", func(s *isobarv1.TaskSpec) { s.NotBefore = timestamppb.New(time.Now().Add(time.Hour)) })
		other := c.submit("work", in("batch"))
		time.Sleep(10 * time.Millisecond)
		n, next, err := c.Purge(w.ctx, "default", "work", "standard", "too many", "")
		if err != nil || n != len(waiting)+1 || next != "" {
			t.Fatalf("%d cancelled, next %q, %v; want %d", n, next, err, len(waiting)+1)
		}
		for _, id := range []string{waiting[0], waiting[len(waiting)-1], later} {
			if rec := c.wantState(id, cancelled); rec.Reason != "too many" {
				t.Errorf("%s: %q", id, rec.Reason)
			}
		}
		c.wantState(runs, leased)
		c.wantState(other, ready)
		// A token of before takes nothing that was accepted since.
		token := strings.ToLower(newULID())
		time.Sleep(10 * time.Millisecond)
		fresh := c.submit("work")
		if n, _, err := c.Purge(w.ctx, "default", "work", "standard", "", token); err != nil || n != 0 {
			t.Errorf("%d cancelled, %v", n, err)
		}
		c.wantState(fresh, ready)
		if _, _, err := c.Purge(w.ctx, "default", "work", "", "", "x"); reasonOf(err) != BadRequest {
			t.Errorf("a bad token: %v", err)
		}
		if n, _, err := c.Purge(w.ctx, "default", "work", "", "", ""); err != nil || n != 2 {
			t.Errorf("%d cancelled, %v; want the batch task and the fresh one", n, err)
		}
	})
}

func TestQueuesAreListedAndUnknownOnesRefused(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		for _, f := range []string{"a", "b", "c"} {
			w.registry.add(f, variant("only", "wasm"))
			for _, lane := range []string{"critical", "batch"} {
				c.submit(f, in(lane))
			}
		}
		var names []string
		for page := ""; ; {
			list, next, err := c.Queues(w.ctx, "", "", page, 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range list {
				names = append(names, q.Function+"/"+q.Lane)
				if q.Ready != 1 || q.Bytes == 0 || q.Cell != "eu-1" {
					t.Errorf("shown as %v", q)
				}
			}
			if page = next; page == "" {
				break
			}
		}
		if got := strings.Join(names, " "); got != "a/critical a/batch b/critical b/batch c/critical c/batch" {
			t.Errorf("listed %s", got)
		}
		if _, _, err := c.SetPaused(w.ctx, "default", "none", "", true, ""); reasonOf(err) != UnknownQueue {
			t.Errorf("an unknown queue: %v", err)
		}
		if _, _, err := c.SetPaused(w.ctx, "default", "a", "fast", true, ""); reasonOf(err) != UnknownLane {
			t.Errorf("an unknown lane: %v", err)
		}
		w.registry.remove("a") // a deleted function's tasks still wait
		c.pause("a", "critical", true, 1)
	})
}

// TestPeekLeasesNothing reads what is next in order.
func TestPeekLeasesNothing(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		var ids []string
		for range 5 {
			ids = append(ids, c.submit("work"))
			time.Sleep(2 * time.Millisecond)
		}
		recs, payloads, err := c.Peek(w.ctx, "default", "work", "", 3)
		if err != nil || len(recs) != 3 || recs[0].Id != ids[0] || recs[2].Id != ids[2] || string(payloads[1]) != "payload of work" {
			t.Fatalf("peeked %v %q %v", recs, payloads, err)
		}
		c.worker("w1", offering(4, "wasm"), completes)
		for _, id := range ids {
			if rec := c.awaitState(time.Minute, id, completed); rec.Attempt != 1 {
				t.Errorf("%s took %d attempts", id, rec.Attempt)
			}
		}
	})
}

// TestRedrive: a dead task is listed with its cause and redriven under its id, its
// payload included; its key stays its own, its numbers go on.
func TestRedrive(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		fails := true
		wk := c.worker("w1", offering(1, "wasm"), func(wk *testWorker, a *isobarv1.Assignment) {
			if fails {
				wk.finish(a, "failed")
			} else {
				wk.finish(a, "done")
			}
		})
		keyed := func(s *isobarv1.TaskSpec) { s.IdempotencyKey, s.CorrelationId = "k", "order-7" }
		id := c.submit("work", keyed)
		c.awaitState(time.Minute, id, dead)
		alive := c.submit("work", func(s *isobarv1.TaskSpec) { s.NotBefore = timestamppb.New(time.Now().Add(2 * time.Hour)) })
		time.Sleep(time.Hour) // payloads of ended tasks are trimmed, and old ones moved
		list, total, next, err := c.DeadLetters(w.ctx, Letters{Tenant: "default", Limit: 10})
		if err != nil || total != 1 || next != "" || len(list) != 1 {
			t.Fatalf("letters %v, %d, %q, %v", list, total, next, err)
		}
		m := LetterMessage(list[0])
		if m.Cause != "failed" || m.Task.IdempotencyKey != "k" || m.Task.CorrelationId != "order-7" || len(m.Task.Attempts) != 1 || m.Task.Reason == "" {
			t.Errorf("letter %v", m)
		}
		for what, f := range map[string]Letters{
			"cause": {Cause: "lost"}, "function": {Function: "other"}, "lane": {Lane: "batch"}, "tenant": {Tenant: "other"},
			"after": {EndedAfter: time.Now()}, "before": {EndedBefore: time.Now().Add(-2 * time.Hour)},
		} {
			f.Limit = 10
			if list, _, _, err := c.DeadLetters(w.ctx, f); err != nil || len(list) != 0 {
				t.Errorf("another %s: %v, %v", what, list, err)
			}
		}
		fails = false
		got, err := c.Redrive(w.ctx, []string{id, alive, "01jd9x6m2e8k6v8w1b4c5d6e7f-eu-1-" + c.Incarnation(), "x"})
		if err != nil || got[0].Err != nil || got[0].Already {
			t.Fatalf("redriven %v, %v", got, err)
		}
		if reasonOf(got[1].Err) != NotDead || reasonOf(got[2].Err) != UnknownTask || reasonOf(got[3].Err) != BadRequest {
			t.Errorf("others %v", got[1:])
		}
		rec := c.awaitState(time.Minute, id, completed)
		if rec.Attempt != 2 || rec.FinalAttempt != 2 || rec.Redrives != 1 || string(wk.assigned(1).Payload) != "payload of work" {
			t.Errorf("completed as %v", rec)
		}
		if again, err := c.Redrive(w.ctx, []string{id}); err != nil || again[0].Err != nil || !again[0].Already {
			t.Errorf("a repeat: %v, %v", again, err)
		}
		if r, err := c.trySubmit("work", keyed); err != nil || !r.Duplicate || r.TaskID != id {
			t.Errorf("the key gave %v, %v", r, err)
		}
	})
}

// TestRedriveManyPageByPage takes each dead letter once.
func TestRedriveManyPageByPage(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		c.worker("w1", offering(8, "wasm"), func(wk *testWorker, a *isobarv1.Assignment) { wk.finish(a, "failed") })
		lanes := []string{"critical", "standard", "batch"}
		for i := range 30 {
			c.submit("work", in(lanes[i%3]))
		}
		w.await(time.Minute, "all to die", func() bool {
			n := uint64(0)
			for _, q := range fsm.Queues(c.State) {
				n += q.Dead
			}
			return n == 30
		})
		seen := map[string]bool{}
		for page := ""; ; {
			list, total, next, err := c.DeadLetters(w.ctx, Letters{After: page, Limit: 7})
			if err != nil || total != 30 {
				t.Fatalf("%d letters in all, %v", total, err)
			}
			for _, rec := range list {
				if seen[rec.Id] {
					t.Errorf("%s is listed twice", rec.Id)
				}
				seen[rec.Id] = true
			}
			if page = next; page == "" {
				break
			}
		}
		if len(seen) != 30 {
			t.Errorf("%d of 30 listed", len(seen))
		}
		if q := c.shown("work", mesh.Batch.String()); q.Dead != 10 || q.Ready+q.Leased+q.Deferred != 0 {
			t.Errorf("shown as %v", q)
		}
		if _, _, _, err := c.DeadLetters(w.ctx, Letters{After: "x", Limit: 1}); reasonOf(err) != BadRequest {
			t.Errorf("a bad page: %v", err)
		}
	})
}

// TestDeadLettersUnderChangesOfLeader: 200 tasks, every tenth of which is never
// acknowledged, and a leader lost every few seconds. In the end there are exactly
// 20 dead letters, each with its attempts used up.
func TestDeadLettersUnderChangesOfLeader(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		poison := map[string]bool{}
		wk := c.worker("w1", offering(20, "wasm"), func(wk *testWorker, a *isobarv1.Assignment) {
			if strings.Contains(a.Function, "poison") {
				// The attempt is lost with what held it: it is never extended again.
				wk.loses(ref{a.TaskId, a.Attempt})
				return
			}
			wk.finish(a, "done")
		})
		w.registry.add("poison", variant("only", "wasm"))
		var ids []string
		for i := range 200 {
			name := "work"
			if i%10 == 7 {
				name = "poison"
			}
			id := c.submit(name)
			ids, poison[id] = append(ids, id), name == "poison"
			if i%40 == 39 {
				c.changeLeader()
				wk.disconnect()
				wk.connect()
			}
		}
		for range 8 {
			time.Sleep(7 * time.Second)
			c.changeLeader()
			wk.disconnect()
			wk.connect()
		}
		w.await(10*time.Minute, "all to end", func() bool {
			for _, id := range ids {
				if !fsm.Ended(fsm.State(c.record(id))) {
					return false
				}
			}
			return true
		})
		list, total, _, err := c.DeadLetters(w.ctx, Letters{Limit: 1000})
		if err != nil || total != 20 || len(list) != 20 {
			t.Fatalf("%d dead letters, %d counted, %v; want 20", len(list), total, err)
		}
		for _, rec := range list {
			if !poison[rec.Id] || rec.Counted != rec.MaxAttempts {
				t.Errorf("%s is dead after %d of %d: %s", rec.Id, rec.Counted, rec.MaxAttempts, fmt.Sprint(rec.Attempts))
			}
		}
	})
}

// TestNothingIsPrefetched: a worker is leased what fits it now, and no more: what
// waits is there for the next worker, and no lease of it can run out unrun.
func TestNothingIsPrefetched(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		first := c.worker("w1", offering(2, "wasm"), nil)
		for range 10 {
			c.submit("work")
		}
		first.assigned(1)
		time.Sleep(time.Minute)
		if n, q := first.count(), c.shown("work", "standard"); n != 2 || q.Leased != 2 || q.Ready != 8 {
			t.Fatalf("%d assigned to a worker with two cores, shown as %v", n, q)
		}
		if q := c.shown("work", "standard"); !strings.HasPrefix(q.BlockedBy, "room: ") {
			t.Errorf("the rest waits for %q", q.BlockedBy)
		}
		second := c.worker("w2", offering(8, "wasm"), completes)
		w.await(time.Minute, "the rest at the second", func() bool { return second.count() == 8 })
		for _, a := range append(first.all(), second.all()...) {
			if a.Attempt != 1 {
				t.Errorf("attempt %d of %s", a.Attempt, a.TaskId)
			}
		}
	})
}
