package scheduler

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// Tasks of one key run one at a time in the order of their submits, here and
// abroad, over a change of leader, a retry and a lost worker; those of other keys
// go on beside them.
func TestOrderByKey(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		home, other := twoCells(w)
		wk := other.worker("w1", offering(8, "wasm"), nil)
		w.meet()
		keys := []string{"a", "b", "c"}
		ids := map[string][]string{}
		for range 5 {
			for _, key := range keys {
				ids[key] = append(ids[key], home.submit("work", func(s *isobarv1.TaskSpec) {
					s.OrderingKey, s.Retry = key, &isobarv1.RetryPolicy{MaxAttempts: 9}
				}))
			}
		}
		onlyFirst := func(when string) {
			t.Helper()
			for _, key := range keys {
				w.await(30*time.Second, "the first of key "+key+" to run "+when, func() bool { return fsm.State(home.record(ids[key][0])) == leased })
			}
			time.Sleep(5 * time.Second)
			for _, key := range keys {
				for i, id := range ids[key] {
					rec := home.record(id)
					first, n := home.Ahead(rec)
					if i == 0 && (fsm.State(rec) != leased || n != 0) || i > 0 && (fsm.State(rec) != deferred || first != ids[key][0] || n != uint32(i)) {
						t.Errorf("%s: task %d of key %s is %s, %d ahead, the first %q", when, i, key, fsm.State(rec), n, first)
					}
				}
			}
		}
		onlyFirst("at first")
		home.changeLeader()
		onlyFirst("under the next leader")
		wk.finish(wk.assigned(0), "retry")
		onlyFirst("after a retry")
		wk.vanish()
		time.Sleep(20 * time.Second)
		wk.connect()
		onlyFirst("after its worker was lost")
		wk.vanish()
		other.worker("w2", offering(8, "wasm"), completes)
		for _, key := range keys {
			for i, id := range ids[key] {
				rec := home.awaitState(time.Minute, id, completed)
				if i == 0 {
					continue
				}
				if before := home.record(ids[key][i-1]); rec.Attempts[0].LeasedMs < before.EndedMs {
					t.Errorf("task %d of key %s was leased at %d, the one before it ended at %d", i, key, rec.Attempts[0].LeasedMs, before.EndedMs)
				}
			}
		}
		synctest.Wait()
		home.wantIdle()
	})
}

// What a function's ordering says is what its tasks do.
func TestOrderingOfTheFunction(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		ordering *isobarv1.Ordering
		// States of three tasks of a key: while the first runs, and once it is dead.
		runs, dead [3]isobarv1.TaskState
	}{
		"strict":  {nil, [3]isobarv1.TaskState{leased, deferred, deferred}, [3]isobarv1.TaskState{dead, leased, deferred}},
		"block":   {&isobarv1.Ordering{OnDead: "block"}, [3]isobarv1.TaskState{leased, deferred, deferred}, [3]isobarv1.TaskState{dead, deferred, deferred}},
		"relaxed": {&isobarv1.Ordering{Mode: "relaxed"}, [3]isobarv1.TaskState{leased, leased, leased}, [3]isobarv1.TaskState{dead, leased, leased}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inWorld(t, func(w *world) {
				w.registry.add("work", variant("only", "wasm")).Spec.Ordering = tt.ordering
				c := w.cell("eu-1")
				wk := c.worker("w1", offering(4, "wasm"), nil)
				var ids [3]string
				for i := range ids {
					ids[i] = c.submit("work", func(s *isobarv1.TaskSpec) { s.OrderingKey = "k" })
				}
				check := func(when string, want [3]isobarv1.TaskState) {
					time.Sleep(5 * time.Second)
					for i, id := range ids {
						if got := fsm.State(c.record(id)); got != want[i] {
							w.t.Errorf("%s: task %d is %s, want %s", when, i, got, want[i])
						}
					}
				}
				check("while the first runs", tt.runs)
				wk.finish(wk.assigned(0), "failed")
				check("once it is dead", tt.dead)
			})
		})
	}
}

// Those of a key that are redriven together go on in the order of their submits.
func TestRedriveKeepsOrder(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(4, "wasm"), func(w *testWorker, a *isobarv1.Assignment) { w.finish(a, "failed") })
		var ids []string
		for range 40 {
			ids = append(ids, c.submit("work", func(s *isobarv1.TaskSpec) { s.OrderingKey = "k" }))
		}
		c.awaitState(time.Minute, ids[len(ids)-1], dead)
		before := wk.count()
		wk.does = completes
		asked := slices.Clone(ids)
		slices.Reverse(asked)
		done, err := c.Redrive(w.ctx, asked)
		if err != nil {
			w.t.Fatal(err)
		}
		for i, r := range done {
			if r.TaskID != asked[i] || r.Err != nil {
				w.t.Errorf("redrive of %s: %s, %v", asked[i], r.TaskID, r.Err)
			}
		}
		for _, id := range ids {
			c.awaitState(time.Minute, id, completed)
		}
		var ran []string
		for _, a := range wk.all()[before:] {
			ran = append(ran, a.TaskId)
		}
		if !slices.Equal(ran, ids) {
			w.t.Errorf("they ran as %v, submitted as %v", ran, ids)
		}
		c.wantIdle()
	})
}
