package scheduler

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/placement"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// grid is a feed that a test can change: intensities by the hour from its start.
type grid struct {
	mu    sync.Mutex
	start time.Time
	step  time.Duration
	hours []float64
}

// brief is how long an hour lasts of a feed whose clock is fast, so that tests are.
const brief = 2 * time.Minute

func newGrid(step time.Duration, hours ...float64) *grid {
	return &grid{start: time.Now().Truncate(step), step: step, hours: hours}
}

// foretell changes the hours from the present one on.
func (g *grid) foretell(hours ...float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.start, g.hours = time.Now().Truncate(g.step), hours
}

// read is the energy as a feed tells it: from the present hour on.
func (g *grid) read() placement.Energy {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now().Truncate(g.step)
	i := min(int(now.Sub(g.start)/g.step), len(g.hours)-1)
	return placement.Energy{
		Zone: "eu", WattsPerCPU: 1000, PUE: 1, Known: true, Kind: "average", Intensity: g.hours[i:], From: now, Step: g.step,
	}
}

// green makes carbon all that counts, and a wait by choice nearly free.
func green(g *grid) func(*Options) {
	return func(o *Options) {
		o.Carbon = g.read
		o.Policy = placement.Policy{CarbonUSDPerTonne: 1e6, DelayUSDPerS: 1e-12}
	}
}

func within(delay time.Duration) func(*isobarv1.TaskSpec) {
	return func(s *isobarv1.TaskSpec) { s.MaxDelay = durationpb.New(delay) }
}

func due(at time.Duration) func(*isobarv1.TaskSpec) {
	return func(s *isobarv1.TaskSpec) { s.Deadline = timestamppb.New(time.Now().Add(at)) }
}

// startOf is when the first attempt was leased.
func startOf(t *testing.T, c *testCell, id string, since time.Time) time.Duration {
	t.Helper()
	rec := c.record(id)
	if rec.Lease == nil || rec.Attempt != 1 {
		t.Fatalf("task is %s, attempt %d", fsm.State(rec), rec.Attempt)
	}
	return time.UnixMilli(rec.Lease.GrantedMs).Sub(since)
}

func TestStartIsPutOffToTheCleanHourWhoeverLeads(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		g := newGrid(time.Hour, 300, 200, 50, 400)
		c := w.cell("eu-1", green(g))
		wk := c.worker("w1", offering(2, "wasm"), nil)
		id := c.submit("work", within(3*time.Hour+30*time.Minute))
		rec := c.awaitState(time.Second, id, deferred)
		m := TaskMessage(rec)
		if !m.Plan.GetWaits() || m.Plan.Reason != "starts about 02:00 UTC in eu, because carbon is 250 g/kWh lower then" || m.Plan.Cell != "eu-1" {
			t.Fatalf("plan %v", m.Plan)
		}
		if by := m.StartBy.AsTime(); by.Sub(m.Submitted.AsTime()) != 3*time.Hour+30*time.Minute {
			t.Fatalf("start by %s", by)
		}
		for range 5 { // whoever leads neither starts it early nor forgets it
			time.Sleep(20 * time.Minute)
			c.changeLeader()
			wk.connect()
			c.wantState(id, deferred)
		}
		if c.spans.planned != 1 {
			t.Fatalf("%d plans in the trace, and nothing changed", c.spans.planned)
		}
		c.awaitState(time.Hour, id, leased)
		a := wk.assigned(0)
		if at := startOf(t, c, id, g.start); at < 2*time.Hour || at > 2*time.Hour+time.Second {
			t.Fatalf("started after %s", at)
		}
		wk.finish(a, "done")
		rec = c.wantState(id, completed)
		plan, err := Plan(rec)
		if err != nil || plan.Later != m.Plan.Reason || len(plan.Starts) < 4 {
			t.Fatalf("the plan that is kept: %v, %v", plan, err)
		}
		if m := TaskMessage(rec); m.Plan.Waits || m.Plan.Reason == "" || len(m.Attempts) != 1 {
			t.Fatalf("message %v", m)
		}
		c.wantIdle()
	})
}

func TestPlansFollowTheForecast(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		foretel []float64 // half an hour later
		start   time.Duration
		plans   uint32
	}{
		{"as it was", []float64{300, 200, 50, 400}, 2 * brief, 1},
		{"later is better", []float64{300, 200, 50, 10}, 3 * brief, 2},
		{"now is best", []float64{20, 200, 50, 400}, brief / 2, 1},
		{"beyond what is allowed nothing counts", []float64{300, 200, 50, 50, 50, 1}, 2 * brief, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			inWorld(t, func(w *world) {
				g := newGrid(brief, 300, 200, 50, 400)
				first := g.start
				c := w.cell("eu-1", green(g))
				c.worker("w1", offering(2, "wasm"), nil)
				id := c.submit("work", within(3*brief+brief/2))
				c.awaitState(time.Second, id, deferred)
				time.Sleep(time.Until(g.start.Add(brief / 2)))
				g.foretell(tt.foretel...)
				c.awaitState(4*brief, id, leased)
				if at := startOf(t, c, id, first); at < tt.start || at > tt.start+5*time.Second {
					t.Errorf("started after %s, want %s", at, tt.start)
				}
				if rec := c.record(id); rec.Plans != tt.plans {
					t.Errorf("planned %d times, want %d", rec.Plans, tt.plans)
				}
			})
		})
	}
}

func TestNeverPastTheLatestSafeStart(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		g := newGrid(time.Hour, 300, 200, 50, 10)
		c := w.cell("eu-1", green(g))
		c.worker("w1", offering(2, "wasm"), nil)
		// Nothing was measured: a run may take the function's timeout, a minute.
		id := c.submit("work", within(2*time.Hour+50*time.Minute), due(3*time.Hour))
		rec := c.awaitState(time.Second, id, deferred)
		if got := time.UnixMilli(rec.PlanMs).Sub(g.start); got != 2*time.Hour {
			t.Fatalf("planned for %s", got)
		}
		// Measured, the slowest of its runs counts, not their mean.
		for _, run := range []time.Duration{time.Second, time.Second, time.Second, 20 * time.Minute} {
			c.learned.add("sha-work", "only", run, 0, 0, true)
		}
		left := time.Until(g.start.Add(2*time.Hour + 15*time.Minute))
		id = c.submit("work", within(left-10*time.Minute), due(left))
		rec = c.awaitState(time.Second, id, deferred)
		if got := time.UnixMilli(rec.PlanMs).Sub(g.start); got >= 2*time.Hour-5*time.Minute || got < time.Hour {
			t.Fatalf("planned for %s", got)
		}
		if d := c.latestSafe(rec); time.UnixMilli(rec.PlanMs).After(d) {
			t.Fatalf("planned for %s, after %s", time.UnixMilli(rec.PlanMs), d)
		}
	})
}

// latestSafe is the latest start after which a slow run would miss the deadline.
func (c *testCell) latestSafe(rec interface{ GetDeadlineMs() int64 }) time.Time {
	fn, _ := c.Registry.Version("sha-work")
	return time.UnixMilli(rec.GetDeadlineMs()).Add(-c.learned.variants(fn)[0].DurationHigh)
}

func TestAFullHourIsNotFilledTwice(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		g := newGrid(time.Hour, 300, 200, 50)
		c := w.cell("eu-1", green(g))
		c.worker("w1", offering(1, "wasm"), nil)
		fn := w.registry.add("long", variant("only", "wasm"))
		for range 3 {
			c.learned.add(fn.Version, "only", 10*time.Minute, 0, 0, true)
		}
		// Ten runs of ten minutes on one core, and an hour from the clean hour to the
		// deadline: not all of them may wait for it.
		var atOnce, clean int
		for range 10 {
			id := c.submit("long", within(2*time.Hour+20*time.Minute), due(3*time.Hour))
			w.await(time.Second, "decided", func() bool { return fsm.State(c.record(id)) != ready || len(c.current().waiting.queues) > 0 })
			if rec := c.record(id); rec.PutOff && time.UnixMilli(rec.PlanMs).Sub(g.start) == 2*time.Hour {
				clean++
			} else {
				atOnce++
			}
		}
		if clean == 0 || clean > 6 {
			t.Errorf("%d wait for the clean hour, %d do not", clean, atOnce)
		}
	})
}

func TestPutOffStartsElsewhere(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		dirty, clean := newGrid(brief, 400, 400, 400), newGrid(brief, 300, 20, 300)
		home, guest := w.cell("eu-1", green(dirty)), w.cell("us-1", green(clean))
		home.worker("w1", offering(1, "wasm"), nil)
		there := guest.worker("w2", offering(1, "wasm"), nil)
		w.meet()
		id := home.submit("work", within(2*brief))
		rec := home.awaitState(time.Second, id, deferred)
		if m := TaskMessage(rec); m.Plan.Cell != "us-1" || !strings.HasPrefix(m.Plan.Reason, "starts about 00:02:00 UTC in us, because carbon is 280 g/kWh lower") {
			t.Fatalf("plan %v", m.Plan)
		}
		if guest.guests() != 0 {
			t.Fatal("a plan books nothing")
		}
		home.awaitState(2*brief, id, leased)
		if at := startOf(t, home, id, clean.start); at < brief || at > brief+time.Second {
			t.Fatalf("left after %s", at)
		}
		w.await(5*time.Second, "assigned", func() bool { return there.count() == 1 })
		there.finish(there.assigned(0), "done")
		home.awaitState(5*time.Second, id, completed)
		home.wantIdle()
	})
}

func TestNoRoomInTheWindowStartsLate(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		g := newGrid(10*time.Second, 300, 50, 50, 50)
		c := w.cell("eu-1", green(g))
		wk := c.worker("w1", offering(1, "wasm"), nil)
		first := c.submit("work")
		a := wk.assigned(0)
		id := c.submit("work", within(20*time.Second))
		time.Sleep(30 * time.Second)
		c.wantState(first, leased)
		if rec := c.wantState(id, ready); rec.Plans > 2 {
			t.Fatalf("planned %d times", rec.Plans)
		}
		wk.finish(a, "done")
		c.awaitState(time.Second, id, leased)
	})
}

func TestCancelAndDeadlineWhilePutOff(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		g := newGrid(time.Hour, 300, 200, 50)
		c := w.cell("eu-1", green(g))
		c.worker("w1", offering(1, "wasm"), nil)
		id := c.submit("work", within(2*time.Hour+30*time.Minute))
		c.awaitState(time.Second, id, deferred)
		if rec, won, err := c.Cancel(w.ctx, id, "enough"); err != nil || !won || fsm.State(rec) != cancelled || rec.PutOff {
			t.Fatalf("cancel: %v, %t, %v", rec, won, err)
		}
		late := c.submit("work", within(2*time.Hour+30*time.Minute), due(3*time.Hour))
		c.awaitState(time.Second, late, deferred)
		c.log.Depose() // nobody leads while it should start, until its deadline is over
		time.Sleep(4 * time.Hour)
		c.log.Elect()
		c.awaitState(5*time.Second, late, expired)
		if rec := c.record(late); rec.Attempt != 0 {
			t.Fatalf("it was granted: %v", rec)
		}
		c.wantIdle()
	})
}

func TestReviewIsBounded(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		g := newGrid(time.Hour, 300, 200, 50, 400)
		c := w.cell("eu-1", green(g))
		c.worker("w1", offering(1, "wasm"), nil)
		const n = 1000
		ids := make([]string, n)
		for i := range ids {
			ids[i] = c.submit("work", within(3*time.Hour+30*time.Minute))
		}
		planned := func(h time.Duration) (count int) {
			for _, id := range ids {
				if rec := c.record(id); rec.PutOff && time.UnixMilli(rec.PlanMs).Sub(g.start) == h {
					count++
				}
			}
			return count
		}
		w.await(time.Minute, "all are put off", func() bool { return planned(2*time.Hour) == n })
		applied := c.log.Status()
		time.Sleep(10 * time.Minute)
		if c.spans.planned != n {
			t.Fatalf("%d plans for %d tasks while nothing changed; %v", c.spans.planned, n, applied)
		}
		g.foretell(300, 200, 50, 10) // within its first hour
		time.Sleep(3 * time.Second)
		if moved := planned(3 * time.Hour); moved == 0 || moved > 12*reviewAtOnce {
			t.Errorf("%d moved within seconds", moved)
		}
		w.await(time.Minute, "all have moved", func() bool { return planned(3*time.Hour) == n })
		if c.spans.planned != 2*n {
			t.Errorf("%d plans", c.spans.planned)
		}
	})
}

func TestStartWindowIsRefused(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		for _, tt := range []struct {
			name string
			spec []func(*isobarv1.TaskSpec)
			want string
		}{
			{"after the deadline", []func(*isobarv1.TaskSpec){within(time.Hour), due(time.Hour)}, "not before the deadline"},
			{"not-before and delay after the deadline", []func(*isobarv1.TaskSpec){within(time.Hour), due(90 * time.Minute), func(s *isobarv1.TaskSpec) {
				s.NotBefore = timestamppb.New(time.Now().Add(40 * time.Minute))
			}}, "not before the deadline"},
			{"beyond the lifetime", []func(*isobarv1.TaskSpec){within(7 * 24 * time.Hour)}, "beyond the lifetime"},
		} {
			var r *Refusal
			if _, err := c.trySubmit("work", tt.spec...); !errors.As(err, &r) || r.Reason != BadRequest || r.Field != "maxDelay" || !strings.Contains(r.Message, tt.want) {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
		// The window is part of what a key stands for.
		keyed := func(s *isobarv1.TaskSpec) { s.IdempotencyKey = "k" }
		c.submit("work", keyed, within(time.Hour))
		for _, change := range []func(*isobarv1.TaskSpec){within(2 * time.Hour), func(s *isobarv1.TaskSpec) {
			s.MaxDelay, s.MaxRtt = durationpb.New(time.Hour), durationpb.New(time.Second)
		}} {
			var r *Refusal
			if _, err := c.trySubmit("work", keyed, change); !errors.As(err, &r) || r.Reason != KeyConflict {
				t.Errorf("another window under the same key: %v", err)
			}
		}
		synctest.Wait()
	})
}

func TestRoundTripBoundsThePlace(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, far := w.cell("eu-1"), w.cell("us-1")
		there := far.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		near := func(d time.Duration) func(*isobarv1.TaskSpec) {
			return func(s *isobarv1.TaskSpec) { s.MaxRtt = durationpb.New(d) }
		}
		kept, sent := home.submit("work", near(19*time.Millisecond)), home.submit("work", near(20*time.Millisecond))
		w.await(5*time.Second, "assigned", func() bool { return there.count() == 1 })
		if a := there.assigned(0); a.TaskId != sent {
			t.Fatalf("%s went away", a.TaskId)
		}
		if rec := home.wantState(kept, ready); !strings.Contains(rec.Blocked, "round_trip") {
			t.Fatalf("blocked by %q", rec.Blocked)
		}
	})
}
