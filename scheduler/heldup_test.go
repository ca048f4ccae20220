package scheduler

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// heldBefore is what held the task up before its newest attempt, by the decision
// that is stored; it holds that the trace says the same.
func (c *testCell) heldBefore(id string) []*isobarv1.Held {
	c.w.t.Helper()
	list, err := Decisions(c.record(id))
	if err != nil || len(list) == 0 {
		c.w.t.Fatalf("decisions of %s: %v, %v", id, list, err)
	}
	c.spans.mu.Lock()
	defer c.spans.mu.Unlock()
	if told := c.spans.held[id]; len(told) != len(list[0].Held) {
		c.w.t.Errorf("the trace says %v, the decision %v", told, list[0].Held)
	}
	return list[0].Held
}

// wantHeld is one cause, for about so long: dispatch looks about ten times a second.
func (w *world) wantHeld(what string, got []*isobarv1.Held, cause, why string, lasted time.Duration) {
	w.t.Helper()
	if len(got) != 1 {
		w.t.Fatalf("%s was held up by %v, want %s alone", what, got, cause)
	}
	h := got[0]
	if off := h.Lasted.AsDuration() - lasted; h.Cause != cause || !strings.Contains(h.Why, why) || off < -300*time.Millisecond || off > 300*time.Millisecond {
		w.t.Errorf("%s was held up by %v, want %s (%s) for %s", what, h, cause, why, lasted)
	}
}

// TestWhatHeldATaskUp: its decision names the bound and how long it held, from when
// the task was ready; a task that found its place at once was held up by nothing.
func TestWhatHeldATaskUp(t *testing.T) {
	t.Parallel()
	most := &isobarv1.Cost{Tokens: 5_000}
	for name, c := range map[string]struct {
		cause, why string
		metric     string
		bound      func(w *world, o *isobarv1.Offer)
	}{
		"cost of a worker": {"cost", "no worker of eu-1 has room for 4000 tokens", "cost", func(_ *world, o *isobarv1.Offer) { o.InFlight = most }},
		"cost of a function": {"concurrency", "function work is at its bound of 5000 tokens", "function", func(w *world, _ *isobarv1.Offer) {
			w.registry.add("work", variant("only", "wasm")).Spec.Concurrency = &isobarv1.Concurrency{Cost: most}
		}},
		"cost of a tenant": {"concurrency", "tenant default is at its bound of 5000 tokens", "tenant", func(w *world, _ *isobarv1.Offer) {
			w.registry.setTenant(&meshv1.Tenant{Name: "default", Concurrency: &isobarv1.Concurrency{Cost: most}})
		}},
		"pace": {"paced", "function work starts 0.5 a second", "paced", func(w *world, _ *isobarv1.Offer) {
			w.registry.paced("work").Spec.Pace = &isobarv1.Pace{Most: 0.5, Start: 0.5, Least: 0.1, Errors: 0.2, Window: durationpb.New(10 * time.Second)}
		}},
		"room": {"room", "every place that may run it is taken", "room", func(_ *world, o *isobarv1.Offer) { o.Cpu = 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inWorld(t, func(w *world) {
				home := w.cell("eu-1")
				offer := offering(50, "wasm")
				c.bound(w, offer)
				wk := home.worker("w1", offer, func(wk *testWorker, a *isobarv1.Assignment) {
					time.AfterFunc(2*time.Second, func() { wk.finish(a, "done") })
				})
				time.Sleep(10 * time.Second)
				first := home.submit("work", costs(4_000))
				time.Sleep(500 * time.Millisecond)
				second := home.submit("work", costs(4_000))
				time.Sleep(5 * time.Millisecond) // ids of one millisecond have no order
				third := home.submit("work", costs(4_000))
				time.Sleep(time.Second)
				w.wantHeld("the second, so far", home.HeldUp(home.record(second)), c.cause, c.why, time.Second)
				w.wantHeld("the third, behind it", home.HeldUp(home.record(third)), c.cause, c.why, time.Second)
				if got := home.QueuesHeld(); len(got) != 1 || got[c.metric] != 1 {
					t.Errorf("queues are held %v, want one by %s", got, c.metric)
				}
				home.awaitState(time.Minute, third, completed)
				if got := home.QueuesHeld(); len(got) != 0 {
					t.Errorf("queues are held %v after all ended", got)
				}
				if got := home.heldBefore(first); len(got) != 0 {
					t.Errorf("the first was held up by %v", got)
				}
				w.wantHeld("the second", home.heldBefore(second), c.cause, c.why, 1500*time.Millisecond)
				w.wantHeld("the third", home.heldBefore(third), c.cause, c.why, 3500*time.Millisecond)
				if got := home.HeldUp(home.record(third)); got != nil {
					t.Errorf("an ended task is held up by %v", got)
				}
				wk.disconnect()
			})
		})
	}
}

// TestATaskAboveEveryBoundWasHeldUp: since it was found that nothing can run it,
// whoever led; a retry tells of its own wait only.
func TestATaskAboveEveryBoundWasHeldUp(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		small := c.worker("w1", holdingMost(offering(4, "wasm"), 1_000), completes)
		big := c.submit("work", costs(5_000), func(s *isobarv1.TaskSpec) { s.Retry = &isobarv1.RetryPolicy{MaxAttempts: 2} })
		time.Sleep(10 * time.Second)
		c.changeLeader()
		small.disconnect()
		small.connect()
		time.Sleep(10 * time.Second)
		w.wantHeld("the task, so far", c.HeldUp(c.record(big)), "cost", "hold 5000 tokens at once", 20*time.Second)
		wk := c.worker("w2", holdingMost(offering(4, "wasm"), 5_000), nil)
		a := wk.assigned(0)
		if got := c.heldBefore(big); len(got) == 0 || got[0].Cause != "cost" || got[0].Lasted.AsDuration() < 20*time.Second {
			t.Errorf("the task was held up by %v", got)
		}
		wk.finish(a, "retry")
		wk.assigned(1)
		if got := c.heldBefore(big); len(got) != 0 {
			t.Errorf("the retry was held up by %v", got)
		}
	})
}

// TestHeldUpByTurns: causes that come and go are told once each, and what fell
// before the task's own wait is not told.
func TestHeldUpByTurns(t *testing.T) {
	t.Parallel()
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	q := &queue{key: queueKey{}}
	for s := 0; s < 3*keepSpans; s += 3 {
		q.holdUp("paced: function f starts 1 a second", at(s))
		q.holdUp("cost: no worker of c has room for 9 tokens beside what it holds", at(s+1))
		q.goesOn(at(s + 2))
	}
	q.holdUp("paced: function f starts 1.5 a second", at(3*keepSpans))
	if len(q.spans) > keepSpans {
		t.Errorf("%d spans are kept", len(q.spans))
	}
	end := 3*keepSpans + 4
	got := q.heldUp(at(end-10), at(end))
	if len(got) != 2 || got[0].Cause != "paced" || got[0].Lasted.AsDuration() != 6*time.Second || !strings.HasSuffix(got[0].Why, "1.5 a second") ||
		got[1].Cause != "cost" || got[1].Lasted.AsDuration() != 2*time.Second {
		t.Errorf("held up by %v, want 6 s by the pace and 2 s by the cost", got)
	}
	if got := q.heldUp(at(end), at(end)); got != nil {
		t.Errorf("who came just now was held up by %v", got)
	}
	// A head that goes and the next that waits for the same are one wait.
	q = &queue{}
	for s := range 100 {
		q.goesOn(at(s))
		q.holdUp("concurrency: tenant t is at its bound of "+(mesh.Cost{Tokens: 9}).String(), at(s))
	}
	if len(q.spans) != 1 {
		t.Errorf("%d spans of one cause without a gap", len(q.spans))
	}
}
