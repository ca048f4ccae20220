package scheduler

import (
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

func (r *testRegistry) setTenant(t *meshv1.Tenant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tenants[t.Name] = t
}

// of submits for a tenant.
func of(tenant string) func(*isobarv1.TaskSpec) {
	return func(s *isobarv1.TaskSpec) { s.Tenant = tenant }
}

// in submits into a lane.
func in(lane string) func(*isobarv1.TaskSpec) {
	return func(s *isobarv1.TaskSpec) { s.Lane = lane }
}

// TestTenantsShareALane: a tenant with a flood and one with a few tasks; the
// second's are next whenever a place is free, by weight.
func TestTenantsShareALane(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		w.registry.setTenant(&meshv1.Tenant{Name: "flood"})
		w.registry.setTenant(&meshv1.Tenant{Name: "quiet"})
		w.registry.setTenant(&meshv1.Tenant{Name: "gold", Weight: 3})
		wk := c.worker("w1", offering(4, "wasm"), nil)
		for range 60 {
			c.submit("work", of("flood"))
		}
		wk.assigned(3)
		time.Sleep(10 * time.Second)
		for range 2 {
			c.submit("work", of("quiet"))
		}
		for i := range 2 {
			wk.finish(wk.all()[i], "done")
			if a := wk.assigned(4 + i); a.Tenant != "quiet" {
				t.Errorf("place %d went to %s", i, a.Tenant)
			}
		}
		// gold shows up beside the flood: three places of four are its.
		for range 60 {
			c.submit("work", of("gold"))
		}
		for i := 2; i < 40; i++ {
			time.Sleep(time.Second)
			wk.finish(wk.all()[i], "done")
			wk.assigned(4 + i)
		}
		got := map[string]int{}
		for _, a := range wk.all()[20:] {
			got[a.Tenant]++
		}
		if share := float64(got["gold"]) / float64(got["gold"]+got["flood"]); share < 0.65 || share > 0.85 {
			t.Errorf("gold got %.2f of the places, want about 0.75: %v", share, got)
		}
	})
}

// TestConcurrencyBounds: a function and a tenant at their bounds wait, others go
// on; a new leader counts what the old one granted.
func TestConcurrencyBounds(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		two := w.registry.add("two", variant("only", "wasm"))
		two.Spec.Concurrency = &isobarv1.Concurrency{Attempts: 2}
		cores := w.registry.add("cores", variant("only", "wasm", func(v *isobarv1.Variant) { v.Resources.Cpu = 2 }))
		cores.Spec.Concurrency = &isobarv1.Concurrency{Cpu: 5}
		w.registry.setTenant(&meshv1.Tenant{Name: "small", Concurrency: &isobarv1.Concurrency{Attempts: 3}})
		wk := c.worker("w1", offering(100, "wasm"), nil)
		running := func(function, tenant string) (n int) {
			l := c.current()
			l.mu.Lock()
			defer l.mu.Unlock()
			if s := l.held.totals[owner{tenant, function}]; s != nil {
				n = int(s.attempts)
			}
			return n
		}
		for range 5 {
			c.submit("two")
			c.submit("two", in("critical")) // a bound is over all lanes
			c.submit("cores")
			c.submit("work", of("small"))
			c.submit("two", of("small"))
		}
		want := func(when string) {
			t.Helper()
			w.await(time.Second, when+": dispatch", func() bool { return running("", "small") == 3 && running("cores", "default") == 2 })
			if n := running("two", "default"); n != 2 {
				t.Errorf("%s: %d attempts of two, want 2", when, n)
			}
			if n := running("two", "small") + running("work", "small"); n != 3 {
				t.Errorf("%s: %d attempts of the tenant, want 3", when, n)
			}
		}
		want("at first")
		c.submit("work")
		w.await(time.Second, "another function's task", func() bool { return running("work", "default") == 1 })
		l := c.current()
		l.mu.Lock()
		why := l.waiting.queue(queueKey{Queue: fsm.Queue{Tenant: "default", Function: "two", Lane: mesh.Standard}}).why
		l.mu.Unlock()
		if !strings.Contains(why, "function two is at its bound of 2 attempts") {
			t.Errorf("the queue waits for %q", why)
		}
		for i, a := range wk.all() {
			if a.Function == "two" && a.Tenant == "default" {
				wk.finish(wk.all()[i], "done")
				break
			}
		}
		want("after one ended")
		c.changeLeader()
		time.Sleep(100 * time.Millisecond)
		wk.disconnect()
		wk.connect()
		time.Sleep(c.Renew + time.Second)
		want("under a new leader")
		most := 0
		for range 200 {
			for _, a := range wk.holds() {
				wk.finish(a, "done")
			}
			time.Sleep(50 * time.Millisecond)
			most = max(most, running("two", "default"), running("", "small")-1, running("cores", "default"))
			if wk.count() == 26 {
				break
			}
		}
		if wk.count() != 26 || most != 2 {
			t.Errorf("%d of 26 ran, at most %d at once", wk.count(), most)
		}
	})
}

// TestABoundBelowOneAttemptDoesNotHoldItForEver: nothing waits for ever.
func TestABoundBelowOneAttemptDoesNotHoldItForEver(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		w.registry.add("work", variant("only", "wasm")).Spec.Concurrency = &isobarv1.Concurrency{Cpu: 0.5, MemoryMib: 1}
		wk := c.worker("w1", offering(4, "wasm"), completes)
		for range 3 {
			c.awaitState(time.Minute, c.submit("work"), completed)
		}
		if wk.count() != 3 {
			t.Errorf("%d attempts", wk.count())
		}
		c.wantIdle()
	})
}

// TestManyQueuesWithoutRoomDoNotKeepTheLoopBusy: a round ends when each queue was
// tried once, however many there are.
func TestManyQueuesWithoutRoomDoNotKeepTheLoopBusy(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		c.submit("work")
		wk.assigned(0)
		for i := range 5 * dispatchAtOnce {
			name := "f" + strings.Repeat("x", i)
			w.registry.add(name, variant("only", "wasm"))
			c.submit(name)
		}
		// A loop that never rested would keep the bubble's clock where it is.
		time.Sleep(time.Minute)
		if n := wk.count(); n != 1 {
			t.Errorf("%d assigned, there is room for one", n)
		}
		wk.finish(wk.all()[0], "done")
		wk.assigned(1)
	})
}
