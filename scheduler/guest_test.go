package scheduler

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// twoCells are a home without workers and another cell.
func twoCells(w *world) (home, other *testCell) {
	home, other = w.cell("eu-1"), w.cell("us-1")
	return home, other
}

// forgotten waits until no guest record is left anywhere.
func (w *world) forgotten(c *testCell) {
	w.t.Helper()
	w.await(15*time.Second, "guests of "+string(c.Cell.ID)+" forgotten", func() bool {
		for range fsm.Guests(c.State) {
			return false
		}
		return true
	})
}

func TestAGuestFromOfferToResult(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(2, "wasm"), nil)
		w.meet()
		id := home.submit("work")
		a := wk.assigned(0)
		if a.TaskId != id || a.Attempt != 1 || string(a.Payload) != "payload of work" {
			t.Fatalf("assignment %v", a)
		}
		// The start was home's to allow, before it happened.
		rec := home.wantState(id, leased)
		if !rec.Lease.Started || rec.Lease.Holder.Cell != "us-1" {
			t.Fatalf("lease %v", rec.Lease)
		}
		time.Sleep(30 * time.Second)
		if rec := home.wantState(id, leased); rec.Attempt != 1 || wk.extended(a) != "" {
			t.Fatalf("attempt %d, extend %q", rec.Attempt, wk.extended(a))
		}
		wk.finish(a, "done")
		home.awaitState(time.Second, id, completed)
		if got := string(home.Result(id)); got != "result of payload of work" {
			t.Fatalf("result %q", got)
		}
		w.forgotten(other)
		home.wantIdle()
		other.wantIdle()
	})
}

func TestManyGuests(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		other.worker("w1", offering(8, "wasm"), completes)
		w.meet()
		var ids []string
		for range 3 * offerItems {
			ids = append(ids, home.submit("work"))
		}
		for _, id := range ids {
			if rec := home.awaitState(2*time.Minute, id, completed); rec.Counted != 1 {
				t.Fatalf("%s: %d counted of %v", id, rec.Counted, rec.Attempts)
			}
		}
		w.forgotten(other)
		home.wantIdle()
		other.wantIdle()
	})
}

func TestALostOfferIsRepeatedAndRunsOnce(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(2, "wasm"), completes)
		w.meet()
		lost := 0
		w.faults(func(call string, _, _ mesh.CellID) fault {
			if call == "offer" && lost < 3 {
				lost++
				return []fault{lostBefore, lostAfter, lostAfter}[lost-1]
			}
			return passes
		})
		id := home.submit("work")
		rec := home.awaitState(10*time.Second, id, completed)
		if rec.Attempt != 1 || wk.count() != 1 {
			t.Fatalf("attempt %d, %d assignments", rec.Attempt, wk.count())
		}
		w.forgotten(other)
		home.wantIdle()
		other.wantIdle()
	})
}

func TestARefusedOfferGoesElsewhere(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		third := w.cell("ap-1", func(o *Options) { o.Prices.CPUHour = 9 }) // the dearest
		busy := other.worker("w1", offering(1, "wasm"), nil)
		third.worker("w2", offering(1, "wasm"), completes)
		w.meet()
		// Fill the cheap cell behind the home's back: its digest still says free.
		other.submit("work")
		busy.assigned(0)
		id := home.submit("work")
		rec := home.awaitState(10*time.Second, id, completed)
		if len(rec.Attempts) != 2 || rec.Attempts[0].Outcome != "refused" || rec.Attempts[0].Counted || rec.Attempts[1].Cell != "ap-1" {
			t.Fatalf("attempts %v", rec.Attempts)
		}
		w.forgotten(third)
		home.wantIdle()
	})
}

func TestALostCellCostsTheLeaseOnly(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		id := home.submit("work")
		a := wk.assigned(0)
		// The other cell is cut off with the attempt running.
		w.faults(func(string, mesh.CellID, mesh.CellID) fault { return lostBefore })
		home.neighbours.lose("us-1")
		w.await(20*time.Second, "the lease lost", func() bool { return home.record(id).Lease == nil })
		// There the attempt was stopped before home gave the number up.
		if r := wk.extended(a); r != "fenced" {
			t.Fatalf("its worker was told %q", r)
		}
		local := home.worker("w2", offering(1, "wasm"), nil)
		b := local.assigned(0)
		if b.Attempt != 2 {
			t.Fatalf("second attempt %v", b)
		}
		local.finish(b, "done")
		home.awaitState(time.Second, id, completed)
		// Once they meet again the guest's outcome is acknowledged as void.
		w.faults(func(string, mesh.CellID, mesh.CellID) fault { return passes })
		wk.finish(a, "done")
		w.forgotten(other)
		if rec := home.record(id); rec.FinalAttempt != 2 {
			t.Fatalf("attempt %d won", rec.FinalAttempt)
		}
		home.wantIdle()
		other.wantIdle()
	})
}

func TestAGuestStartsOnlyAfterItsLeaseWasConfirmed(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		w.faults(func(call string, _, _ mesh.CellID) fault {
			if call == "extend" {
				return lostBefore
			}
			return passes
		})
		id := home.submit("work")
		time.Sleep(5 * time.Second)
		if n := wk.count(); n != 0 {
			t.Fatalf("started without a word from home: %d", n)
		}
		w.faults(func(string, mesh.CellID, mesh.CellID) fault { return passes })
		a := wk.assigned(0)
		wk.finish(a, "done")
		if rec := home.awaitState(5*time.Second, id, completed); rec.Attempt != 1 {
			t.Fatalf("attempt %d", rec.Attempt)
		}
		w.forgotten(other)
		other.wantIdle()
	})
}

func TestAGuestWhoseWorkerIsLostGivesItsNumberBack(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		first := other.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		id := home.submit("work")
		a := first.assigned(0)
		first.vanish()
		second := other.worker("w2", offering(1, "wasm"), nil)
		b := second.assigned(0)
		if b.TaskId != id || b.Attempt != 2 {
			t.Fatalf("the next attempt: %v", b)
		}
		if at := home.record(id).Attempts[0]; at.Outcome != "lost" || !at.Counted {
			t.Fatalf("the first attempt: %v", at)
		}
		first.connect()
		first.finish(a, "done")
		if v := first.verdict(a); v != "fenced" {
			t.Fatalf("stale completion: %q", v)
		}
		second.finish(b, "done")
		home.awaitState(time.Second, id, completed)
		w.forgotten(other)
		home.wantIdle()
		other.wantIdle()
	})
}

func TestCancelReachesAGuest(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		id := home.submit("work")
		a := wk.assigned(0)
		if _, won, err := home.Cancel(w.ctx, id, ""); err != nil || !won {
			t.Fatalf("cancel: %t, %v", won, err)
		}
		w.await(5*time.Second, "the worker stopped", func() bool { return wk.toldToStop(a) })
		w.forgotten(other)
		home.wantIdle()
		other.wantIdle()
	})
}

func TestReportsAreRepeatedUntilAcknowledged(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		id := home.submit("work")
		a := wk.assigned(0)
		w.faults(func(call string, _, _ mesh.CellID) fault {
			if call == "report" {
				return lostAfter
			}
			return passes
		})
		wk.finish(a, "done")
		home.awaitState(time.Second, id, completed)
		time.Sleep(5 * time.Second)
		if n := w.count("report"); n < 2 {
			t.Fatalf("%d reports", n)
		}
		w.faults(func(string, mesh.CellID, mesh.CellID) fault { return passes })
		w.forgotten(other)
		other.wantIdle()
	})
}

func TestGuestsOverAChangeOfLeaderThere(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(3, "wasm"), nil)
		w.meet()
		runs, ends, lost := home.submit("work"), home.submit("work"), home.submit("work")
		byTask := map[string]*isobarv1.Assignment{}
		for i := range 3 {
			a := wk.assigned(i)
			byTask[a.TaskId] = a
		}
		// One has ended and home does not know; one was lost with the stream.
		w.faults(func(call string, _, _ mesh.CellID) fault {
			if call == "report" {
				return lostBefore
			}
			return passes
		})
		wk.finish(byTask[ends], "done")
		wk.verdict(byTask[ends])
		wk.loses(ref{lost, 1})
		other.changeLeader()
		w.faults(func(string, mesh.CellID, mesh.CellID) fault { return passes })
		wk.connect()
		home.awaitState(5*time.Second, ends, completed)
		again := wk.assigned(3)
		if again.TaskId != lost || again.Attempt != 2 {
			t.Fatalf("assigned again: %v", again)
		}
		if at := home.record(lost).Attempts[0]; at.Outcome != "undelivered" || at.Counted {
			t.Fatalf("the lost one: %v", at)
		}
		time.Sleep(15 * time.Second)
		if rec := home.wantState(runs, leased); rec.Attempt != 1 {
			t.Fatalf("attempt %d", rec.Attempt)
		}
		wk.finish(byTask[runs], "done")
		wk.finish(again, "done")
		home.awaitState(time.Second, runs, completed)
		home.awaitState(time.Second, lost, completed)
		w.forgotten(other)
		home.wantIdle()
		other.wantIdle()
	})
}

func TestAGuestWhoseWorkerNeverComesBackAfterAChangeOfLeader(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		id := home.submit("work")
		wk.assigned(0)
		other.changeLeader()
		wk.vanish()
		w.await(20*time.Second, "the attempt given up", func() bool { return len(home.record(id).Attempts) == 1 })
		if at := home.record(id).Attempts[0]; at.Outcome != "lost" || !at.Counted {
			t.Fatalf("attempt %v", at)
		}
		w.forgotten(other)
	})
}

// After a change of leader the bytes are gone from memory, and come from home.
func TestAGuestsPayloadIsFetchedAgain(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), completes)
		w.meet()
		w.faults(func(call string, _, _ mesh.CellID) fault {
			if call == "extend" {
				return lostBefore
			}
			return passes
		})
		id := home.submit("work")
		w.await(time.Second, "the guest", func() bool { return other.guests() == 1 })
		other.changeLeader()
		w.faults(func(string, mesh.CellID, mesh.CellID) fault { return passes })
		wk.connect()
		rec := home.awaitState(10*time.Second, id, completed)
		if rec.Attempt != 1 || w.count("payload") != 1 {
			t.Fatalf("attempt %d, %d payloads fetched", rec.Attempt, w.count("payload"))
		}
		if got := wk.all(); len(got) != 1 || string(got[0].Payload) != "payload of work" {
			t.Fatalf("assignments %v", got)
		}
		w.forgotten(other)
		other.wantIdle()
	})
}

// What home sends later is held against the record as the offer was.
func TestAGuestsDamagedPayloadNeverRuns(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home := w.cell("eu-1")
		other := w.cell("us-1", func(o *Options) { o.Peers = damagingPeers{o.Peers} })
		wk := other.worker("w1", offering(1, "wasm"), completes)
		w.meet()
		w.faults(func(call string, _, _ mesh.CellID) fault {
			if call == "extend" {
				return lostBefore
			}
			return passes
		})
		id := home.submit("work")
		w.await(time.Second, "the guest", func() bool { return other.guests() == 1 })
		other.changeLeader() // it forgets the bytes of the offer
		w.faults(func(string, mesh.CellID, mesh.CellID) fault { return passes })
		wk.connect()
		w.await(10*time.Second, "given back", func() bool { return len(home.record(id).Attempts) > 0 })
		if a := home.record(id).Attempts[0]; a.Outcome != "refused" || a.Counted || w.count("payload") == 0 {
			t.Errorf("attempt %v, %d payloads fetched", a, w.count("payload"))
		}
		for _, a := range wk.all() {
			if string(a.Payload) != "payload of work" {
				t.Errorf("it ran on %q", a.Payload)
			}
		}
	})
}

// damagingPeers change every payload that is fetched.
type damagingPeers struct{ Peers }

func (p damagingPeers) Payload(ctx context.Context, to mesh.CellID, r *meshv1.PayloadRequest) (*meshv1.PayloadResponse, error) {
	res, err := p.Peers.Payload(ctx, to, r)
	if err != nil {
		return nil, err
	}
	res = proto.CloneOf(res)
	res.Payload[0] ^= 1
	return res, nil
}

func TestOffersAreSentAgainByTheNextLeader(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), completes)
		w.meet()
		w.faults(func(call string, _, _ mesh.CellID) fault {
			if call == "offer" {
				return lostBefore
			}
			return passes
		})
		id := home.submit("work")
		w.await(time.Second, "an offer", func() bool { return w.count("offer") > 0 })
		home.changeLeader()
		w.faults(func(string, mesh.CellID, mesh.CellID) fault { return passes })
		rec := home.awaitState(10*time.Second, id, completed)
		if rec.Attempt != 1 || wk.count() != 1 {
			t.Fatalf("attempt %d, %d assignments", rec.Attempt, wk.count())
		}
		w.forgotten(other)
	})
}

func TestAGuestThatFindsNoWorkerIsRefusedUncounted(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		w.faults(func(call string, _, _ mesh.CellID) fault {
			if call == "extend" {
				return lostBefore
			}
			return passes
		})
		id := home.submit("work")
		w.await(time.Second, "the guest", func() bool { return other.guests() == 1 })
		wk.disconnect()
		w.faults(func(string, mesh.CellID, mesh.CellID) fault { return passes })
		rec := home.awaitState(50*time.Second, id, ready)
		if len(rec.Attempts) == 0 || rec.Counted != 0 || !slices.Contains([]string{"refused", "lost"}, rec.Attempts[0].Outcome) {
			t.Fatalf("attempts %v", rec.Attempts)
		}
		w.forgotten(other)
		other.wantIdle()
	})
}

func TestOnlyTheHolderGetsThePayload(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		id := home.submit("work")
		wk.assigned(0)
		if res, err := home.GuestPayload(w.ctx, other.Cell, &meshv1.PayloadRequest{TaskId: id, Attempt: 1}); err != nil || string(res.Payload) != "payload of work" {
			t.Fatalf("the holder: %v, %v", res, err)
		}
		_, err := home.GuestPayload(w.ctx, mesh.Cell{ID: "ap-1"}, &meshv1.PayloadRequest{TaskId: id, Attempt: 1})
		wantRefusal(t, "another cell", err, NotHolder)
		_, err = home.GuestPayload(w.ctx, other.Cell, &meshv1.PayloadRequest{TaskId: id, Attempt: 2})
		wantRefusal(t, "another number", err, NotHolder)
		// A report for another's lease is fenced, an unknown task acknowledged.
		res, err := home.GuestReport(w.ctx, "ap-1", &meshv1.ReportRequest{Items: []*meshv1.ReportItem{
			{TaskId: id, Attempt: 1, Ended: &meshv1.Ended{Status: "done"}}, {TaskId: "01h-eu-1-abcdef", Attempt: 1, Ended: &meshv1.Ended{Status: "done"}}, {TaskId: id},
		}})
		if err != nil || !slices.Equal(res.Verdicts, []string{"fenced", "unknown", "unknown"}) {
			t.Fatalf("verdicts %v, %v", res, err)
		}
		home.wantState(id, leased)
	})
}

func TestPollersGetNoGuests(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		w.go_(func() { _, _ = other.Lease(w.ctx, question("r1", 1)) })
		w.meet()
		if d := other.Digest(); d.Workers != 1 || len(d.Runtimes) != 0 {
			t.Fatalf("digest %v", d)
		}
		id := home.submit("work")
		time.Sleep(2 * time.Second)
		if rec := home.wantState(id, ready); len(rec.Attempts) != 0 {
			t.Fatalf("offered to a cell whose only worker polls: %v", rec.Attempts)
		}
	})
}

func TestInvokeHere(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), completes)
		in := w.invocation(c)
		for range 4 { // measured times take over from the third on
			out, err := c.Invoke(w.ctx, *in)
			if err != nil || string(out.Outcome.Result) != "result of now" || out.Cell != "eu-1" || out.Worker != "w1" || out.Why == "" {
				t.Fatalf("%v, %v", out, err)
			}
		}
		for _, a := range wk.all() {
			if !a.Invoke || a.Deadline == nil {
				t.Fatalf("assignment %v", a)
			}
		}
		c.wantIdle()
	})
}

func (w *world) invocation(c *testCell) *Invocation {
	w.t.Helper()
	in, err := c.Invocation(Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work"}, Payload: []byte("now")})
	if err != nil {
		w.t.Fatal(err)
	}
	return in
}

func TestInvokeThere(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		other.worker("w1", offering(1, "wasm"), completes)
		w.meet()
		out, err := home.Invoke(w.ctx, *w.invocation(home))
		if err != nil || out.Cell != "us-1" || string(out.Outcome.Result) != "result of now" {
			t.Fatalf("%v, %v", out, err)
		}
		// The other cell refuses what it must not run.
		_, err = other.GuestInvoke(w.ctx, &meshv1.CellInvokeRequest{Allowed: []string{"eu"}})
		wantRefusal(t, "outside its residency", err, ResidencyForbids)
		_, err = other.GuestInvoke(w.ctx, &meshv1.CellInvokeRequest{})
		wantRefusal(t, "nothing to run", err, BadRequest)
		other.wantIdle()
	})
}

func TestInvokeTriesTheNextPlaceOnce(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		third := w.cell("ap-1", func(o *Options) { o.Prices.CPUHour = 9 })
		other.worker("w1", offering(1, "wasm"), completes)
		third.worker("w2", offering(1, "wasm"), completes)
		w.meet()
		w.faults(func(_ string, _, to mesh.CellID) fault {
			if to == "us-1" {
				return lostBefore
			}
			return passes
		})
		out, err := home.Invoke(w.ctx, *w.invocation(home))
		if err != nil || out.Cell != "ap-1" {
			t.Fatalf("%v, %v", out, err)
		}
		w.faults(func(string, mesh.CellID, mesh.CellID) fault { return lostBefore })
		if _, err := home.Invoke(w.ctx, *w.invocation(home)); !errors.Is(err, ErrPeerUnavailable) {
			t.Fatalf("nobody answers: %v", err)
		}
	})
}

func TestInvokeWithoutRoomOrPlace(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		_, err := c.Invoke(w.ctx, *w.invocation(c))
		wantRefusal(t, "no worker at all", err, Infeasible)
		wk := c.worker("w1", offering(1, "wasm"), nil)
		c.submit("work")
		wk.assigned(0)
		_, err = c.Invoke(w.ctx, *w.invocation(c))
		wantRefusal(t, "no room", err, NoRoom)
	})
}

func TestInvokeEndsWithItsTimeAndStopsTheWorker(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		in := w.invocation(c)
		in.Timeout = time.Second
		start := time.Now()
		if _, err := c.Invoke(w.ctx, *in); err == nil || time.Since(start) != time.Second {
			t.Fatalf("%v after %s", err, time.Since(start))
		}
		if a := wk.assigned(0); !wk.toldToStop(a) {
			t.Fatal("the worker was not told to stop")
		}
		c.wantIdle()
	})
}

func TestInvokeEndsWithItsWorkerAndWithTheTerm(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		got := make(chan *Invoked, 2)
		errs := make(chan error, 2)
		invoke := func() {
			out, err := c.Invoke(w.ctx, *w.invocation(c))
			got <- out
			errs <- err
		}
		w.go_(invoke)
		wk.assigned(0)
		wk.vanish()
		out, err := <-got, <-errs
		if err != nil || out.Outcome.Status != "lost" {
			t.Fatalf("%v, %v", out, err)
		}
		wk.connect()
		w.go_(invoke)
		wk.assigned(1)
		c.log.Depose()
		<-got
		wantRefusal(t, "over a change of leader", <-errs, OutcomeUnknown)
	})
}

func TestAnInvokeThatNeverReachedItsWorkerIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		door, err := c.Open(&isobarv1.Hello{Worker: "w1", Session: "s", Offer: offering(1, "wasm")})
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		w.go_(func() {
			_, err := c.Invoke(w.ctx, *w.invocation(c))
			got <- err
		})
		synctest.Wait()
		start := time.Now()
		door.Close()
		wantRefusal(t, "no other place is left", <-got, Infeasible)
		if time.Since(start) != 0 {
			t.Fatalf("after %s", time.Since(start))
		}
		c.wantIdle()
	})
}
