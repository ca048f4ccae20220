package scheduler

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// The tests here hold rules that the code could break with every other test
// still passing: each was seen to fail with its rule taken out.

// Home, guest and worker each know how long they may go on; none longer than the
// one above it, also when home's commits are slow.
func TestAGuestsWorkerEndsBeforeItsHome(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		// Home confirms once, slowly, and the start takes long to commit.
		asked := 0
		w.faults(func(call string, _, _ mesh.CellID) fault {
			if call == "extend" {
				if asked++; asked > 1 {
					return lostBefore
				}
			}
			return passes
		})
		id := home.submit("work")
		home.late.slow(1500 * time.Millisecond)
		other.late.slow(4 * time.Second)
		w.await(60*time.Second, "assigned", func() bool { return wk.count() > 0 })
		home.late.slow(0)
		other.late.slow(0)
		a := wk.assigned(0)
		keeps := func() time.Duration { return home.current().leaseLeft(home.record(id)) }
		check := func(when string, told time.Duration) {
			t.Helper()
			l := other.current()
			l.mu.Lock()
			until := time.Until(l.guests[ref{id, a.Attempt}].until)
			l.mu.Unlock()
			if until > keeps() || told > until-guestMargin {
				t.Errorf("%s: the worker was told %s, its cell holds %s, home keeps %s", when, told, until, keeps())
			}
		}
		// It was handed over within the tick that await waits for.
		check("at the start", a.Lease.AsDuration()-50*time.Millisecond)
		// The worker asks on.
		for range 5 {
			time.Sleep(time.Second)
			res, err := other.Extend(w.ctx, &isobarv1.ExtendRequest{Worker: "w1", Session: wk.session, Leases: []*isobarv1.LeaseRef{{TaskId: id, Attempt: a.Attempt}}})
			if err != nil {
				t.Fatal(err)
			}
			if r := res.Results[0]; r.Confirmed {
				check("while home is away", r.Duration.AsDuration())
			}
		}
	})
}

// A guest whose confirmation has run out is not started: not by a dispatcher that
// found room too late, nor by a start that took too long to commit.
func TestAGuestIsNotStartedOnAnOldConfirmation(t *testing.T) {
	t.Parallel()
	lose := func(call string, _, _ mesh.CellID) fault {
		if call == "extend" {
			return lostBefore
		}
		return passes
	}
	all := func(string, mesh.CellID, mesh.CellID) fault { return passes }
	confirmed := func(c *testCell) (left time.Duration) {
		l := c.current()
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, g := range l.guests {
			left = time.Until(g.until)
		}
		return left
	}
	t.Run("the room came late", func(t *testing.T) {
		t.Parallel()
		inWorld(t, func(w *world) {
			t := w.t
			home, other := twoCells(w)
			wk := other.worker("w1", offering(1, "wasm"), nil)
			w.meet()
			w.faults(lose)
			id := home.submit("work")
			w.await(time.Second, "the guest", func() bool { return other.guests() == 1 })
			other.submit("work")
			local := wk.assigned(0) // the place that the guest was promised
			w.faults(all)
			w.await(5*time.Second, "confirmed", func() bool { return confirmed(other) > 5*time.Second })
			w.faults(lose)
			w.await(15*time.Second, "nearly over", func() bool { return confirmed(other) < guestMargin-100*time.Millisecond })
			wk.finish(local, "done")
			synctest.Wait()
			if g, ok := fsm.Guest(other.State, id, 1); !ok || g.Started || g.Ended != nil {
				t.Fatalf("the guest is %v", g)
			}
			w.faults(all)
			a := wk.assigned(1)
			if a.TaskId != id || a.Attempt != 1 {
				t.Fatalf("assigned %v", a)
			}
			wk.finish(a, "done")
			home.awaitState(5*time.Second, id, completed)
		})
	})
	t.Run("the start came late", func(t *testing.T) {
		t.Parallel()
		inWorld(t, func(w *world) {
			t := w.t
			home, other := twoCells(w)
			wk := other.worker("w1", offering(1, "wasm"), nil)
			w.meet()
			w.faults(lose)
			id := home.submit("work")
			w.await(time.Second, "the guest", func() bool { return other.guests() == 1 })
			other.late.slow(other.CellLease - guestMargin/2) // home still keeps the lease, the worker may not
			w.faults(all)
			w.await(5*time.Second, "confirmed", func() bool { return confirmed(other) > 5*time.Second })
			w.faults(lose)
			w.await(20*time.Second, "the next attempt", func() bool { return home.record(id).Attempt > 1 || len(home.record(id).Attempts) > 0 })
			other.late.slow(0)
			time.Sleep(15 * time.Second) // what was under way has ended
			for _, a := range wk.all() {
				if a.Attempt == 1 {
					t.Errorf("attempt 1 was handed over %s after its lease", a.Lease.AsDuration())
				}
			}
		})
	})
}

// Lease time stands still without a leader, and the next one waits for holders
// to come back before it gives anything up.
func TestANewLeaderExpiresNothingAtFirst(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		id := c.submit("work")
		wk.assigned(0)
		wk.vanish()
		time.Sleep(5500 * time.Millisecond) // of six and what it had extended
		before := c.current().leaseLeft(c.record(id))
		c.log.Depose()
		synctest.Wait()
		time.Sleep(time.Hour)
		c.log.Elect()
		synctest.Wait()
		if left := c.current().leaseLeft(c.record(id)); left < before-time.Second {
			t.Fatalf("%s of the lease were left, an hour without a leader made it %s", before, left)
		}
		time.Sleep(c.Renew - 200*time.Millisecond)
		if left := c.current().leaseLeft(c.record(id)); left > 0 {
			t.Fatalf("the lease is not over yet, %s are left: nothing is tested", left)
		}
		c.wantState(id, leased)
		time.Sleep(2 * time.Second)
		if rec := c.record(id); len(rec.Attempts) != 1 || rec.Attempts[0].Outcome != "lost" {
			t.Fatalf("attempts %v", rec.Attempts)
		}
	})
}

// A leader whose wall clock is behind goes on from what was committed, at half
// speed until it has caught up.
func TestCalendarTimeNeverGoesBack(t *testing.T) {
	t.Parallel()
	now := time.Now()
	if c := newClock(5, now.UnixMilli()+60_000, now, now).read(now.Add(time.Second)); c.WallMs != now.UnixMilli()+60_500 || c.LeaseMs != 1005 {
		t.Fatalf("%v at %d", c, now.UnixMilli())
	}
}

// An accept that has its place and not yet its record holds the trim back,
// though everything around it has ended.
func TestATrimWaitsForAnAcceptUnderWay(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		b := &placingBroker{hold: make(chan struct{})}
		c := w.cell("eu-1", func(o *Options) { b.Broker = o.Broker; o.Broker = b })
		c.worker("w1", offering(1, "wasm"), completes)
		c.awaitState(5*time.Second, c.submit("work"), completed)
		b.slow = true
		var err error
		w.go_(func() { _, err = c.trySubmit("work") })
		synctest.Wait()
		b.slow = false
		c.awaitState(5*time.Second, c.submit("work"), completed) // above it
		time.Sleep(3 * trimEvery)
		close(b.hold)
		synctest.Wait()
		if err != nil {
			t.Fatalf("the place was trimmed under it: %v", err)
		}
	})
}

// placingBroker holds an accept between its place and its record. The test
// changes slow only while nothing runs.
type placingBroker struct {
	broker.Broker
	slow bool
	hold chan struct{}
}

func (b *placingBroker) Prepare(ctx context.Context, msgs []broker.Message) ([]broker.Prepared, error) {
	slow := b.slow
	out, err := b.Broker.Prepare(ctx, msgs)
	if slow {
		<-b.hold
	}
	return out, err
}

// One key with another payload is another task, and refused.
func TestAKeyIsOfItsPayload(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		c := w.cell("eu-1")
		submit := func(payload string) error {
			_, err := c.Submit(w.ctx, Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work", IdempotencyKey: "k"}, Payload: []byte(payload)})
			return err
		}
		if err := submit("one"); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, "another payload", submit("two"), KeyConflict)
	})
}

// The holder's certificate may have changed since the lease: it is asked again
// before the bytes leave.
func TestNoPayloadLeavesItsResidency(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		id := home.submit("work", func(s *isobarv1.TaskSpec) { s.Residency = &isobarv1.Residency{Allowed: []string{"eu", "us"}} })
		wk.assigned(0)
		moved := mesh.Cell{ID: other.Cell.ID, Region: "us", Jurisdictions: []string{"cn"}}
		res, err := home.GuestPayload(w.ctx, moved, &meshv1.PayloadRequest{TaskId: id, Attempt: 1})
		wantRefusal(t, "a holder outside", err, ResidencyForbids)
		if bytes.Contains(res.GetPayload(), []byte("payload")) {
			t.Error("the bytes left")
		}
	})
}
