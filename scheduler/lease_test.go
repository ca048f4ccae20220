package scheduler

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// What a function says of its failure may be in any language and of any length.
func TestALongMessageIsCutBetweenCharacters(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		c := w.cell("eu-1")
		id := c.submit("work")
		got := c.lease(question("r1", 1))
		c.extendPolled(got[0])
		_, err := c.Fail(w.ctx, &isobarv1.FailRequest{
			Worker: "poller", Lease: &isobarv1.LeaseRef{TaskId: id, Attempt: 1},
			Outcome: &isobarv1.Outcome{Status: "failed", Message: strings.Repeat("€", 800)},
		})
		if err != nil {
			t.Fatal(err)
		}
		rec := c.wantState(id, dead)
		if m := rec.Attempts[0].Message; !utf8.ValidString(m) || len(m) > 1024 || !strings.HasSuffix(m, "€") {
			t.Fatalf("message %q", m)
		}
	})
}

// A worker counts its lease from when it was last answered, so what it is told
// must be what is left, however long the commit took.
func TestAWorkersLeaseEndsBeforeItsCells(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		c.late.slow(2 * time.Second)
		id := c.submit("work")
		w.await(10*time.Second, "assigned", func() bool { return wk.count() > 0 })
		lease := wk.assigned(0).Lease.AsDuration()
		now := leaseNow(c)
		if left := time.Duration(c.record(id).Lease.UntilLeaseMs-now) * time.Millisecond; lease > left {
			t.Fatalf("the worker was told %s, its cell keeps the lease for %s", lease, left)
		}
	})
}

// The same of a lease that is told again.
func TestALeaseToldAgainIsWhatIsLeft(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		c := w.cell("eu-1")
		id := c.submit("work")
		c.lease(question("r1", 1))
		time.Sleep(4 * time.Second)
		again := c.lease(question("r1", 1))
		if len(again) != 1 || again[0].Lease.AsDuration() > 2*time.Second {
			t.Fatalf("told again: %v", again)
		}
		c.changeLeader()
		again = c.lease(question("r1", 1))
		now := leaseNow(c)
		if left := time.Duration(c.record(id).Lease.UntilLeaseMs-now) * time.Millisecond; len(again) != 1 || again[0].Lease.AsDuration() > left {
			t.Fatalf("told by the next leader: %v, left %s", again, left)
		}
	})
}

func leaseNow(c *testCell) int64 { return c.current().clock.read(time.Now()).LeaseMs }
