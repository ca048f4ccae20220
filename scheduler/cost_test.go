package scheduler

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// costs submits a task of that many tokens.
func costs(tokens int64) func(*isobarv1.TaskSpec) {
	return func(s *isobarv1.TaskSpec) { s.Cost = &isobarv1.Cost{Tokens: tokens} }
}

// holdingMost makes an offer that holds that many tokens at once.
func holdingMost(o *isobarv1.Offer, tokens int64) *isobarv1.Offer {
	o.InFlight = &isobarv1.Cost{Tokens: tokens}
	return o
}

// whyWaits is what the function's standard queue waits for.
func (c *testCell) whyWaits(function string) string {
	synctest.Wait()
	l := c.current()
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.waiting.queues[queueKey{Queue: fsm.Queue{Tenant: "default", Function: function, Lane: mesh.Standard}}]; q != nil {
		return q.why
	}
	return ""
}

// tokens sums what the worker holds.
func (w *testWorker) tokens() (n int64) {
	for _, a := range w.holds() {
		n += a.GetCost().GetTokens()
	}
	return n
}

// TestAWorkerHoldsWhatFits: cores are plenty, tokens are not; tasks without a
// cost are not bounded by it.
func TestAWorkerHoldsWhatFits(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		w.registry.add("free", variant("only", "wasm"))
		wk := c.worker("w1", holdingMost(offering(50, "wasm"), 10_000), nil)
		for range 6 {
			c.submit("work", costs(4_000))
		}
		w.await(time.Second, "two leases", func() bool { return wk.count() == 2 })
		time.Sleep(2 * time.Second)
		if wk.count() != 2 || wk.tokens() != 8_000 {
			t.Fatalf("%d run and hold %d tokens, want 2 of 4000", wk.count(), wk.tokens())
		}
		if why := c.whyWaits("work"); !strings.HasPrefix(why, "cost: ") || !strings.Contains(why, "4000 tokens") {
			t.Errorf("the queue waits for %q", why)
		}
		for range 3 {
			c.submit("free")
		}
		w.await(time.Second, "what costs nothing", func() bool { return wk.count() == 5 })
		// A new leader counts what the worker holds.
		c.changeLeader()
		wk.disconnect()
		wk.connect()
		time.Sleep(c.Renew + time.Second)
		if wk.tokens() != 8_000 {
			t.Fatalf("the worker holds %d tokens under a new leader", wk.tokens())
		}
		most := int64(0)
		for range 40 {
			for _, a := range wk.holds() {
				wk.finish(a, "done")
				break
			}
			time.Sleep(100 * time.Millisecond)
			most = max(most, wk.tokens())
		}
		if wk.count() != 9 || most > 10_000 {
			t.Errorf("%d of 9 ran, at most %d tokens at once", wk.count(), most)
		}
		c.wantIdle()
	})
}

// TestPayloadsCountInBytes: they are known without being declared.
func TestPayloadsCountInBytes(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		o := offering(50, "wasm")
		o.InFlight = &isobarv1.Cost{Bytes: 2*int64(len("payload of work")) + 5}
		wk := c.worker("w1", o, nil)
		for range 3 {
			c.submit("work")
		}
		time.Sleep(time.Second)
		if wk.count() != 2 {
			t.Errorf("%d payloads are held, want 2", wk.count())
		}
	})
}

// TestATaskAboveEveryBoundSaysSo, and runs once a worker holds as much.
func TestATaskAboveEveryBoundSaysSo(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		c.worker("w1", holdingMost(offering(4, "wasm"), 1_000), completes)
		big, small := c.submit("work", costs(5_000)), c.submit("work", costs(500))
		c.awaitState(time.Second, small, completed) // it does not hold up those behind it
		w.await(time.Second, "the reason", func() bool {
			why := c.record(big).Blocked
			return strings.HasPrefix(why, "cost") && strings.Contains(why, "5000 tokens")
		})
		c.worker("w2", holdingMost(offering(4, "wasm"), 5_000), completes)
		c.awaitState(time.Minute, big, completed)
		c.wantIdle()
	})
}

// TestOneWorkerOfAFunctionIsTooSmall: another's bound does not help.
func TestOneWorkerOfAFunctionIsTooSmall(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		only := holdingMost(offering(4, "wasm"), 1_000)
		only.Functions = []string{"work"}
		c.worker("w1", only, completes)
		others := offering(4, "wasm")
		others.Functions = []string{"another"}
		c.worker("w2", others, completes)
		id := c.submit("work", costs(5_000))
		w.await(time.Second, "the reason", func() bool {
			return c.record(id).Blocked == "cost: no worker of eu-1 that takes work/only holds 5000 tokens at once"
		})
	})
}

// TestAGuestsCostIsHonouredThere: the other cell's worker takes what fits, and a
// task that no worker here may hold goes where one may.
func TestAGuestsCostIsHonouredThere(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, other := twoCells(w)
		home.worker("small", holdingMost(offering(4, "wasm"), 1_000), completes)
		wk := other.worker("w1", holdingMost(offering(50, "wasm"), 10_000), nil)
		w.meet()
		var ids []string
		for range 5 {
			ids = append(ids, home.submit("work", costs(4_000)))
		}
		w.await(5*time.Second, "two guests", func() bool { return wk.count() == 2 })
		time.Sleep(5 * time.Second)
		if wk.tokens() != 8_000 {
			t.Fatalf("the guests' worker holds %d tokens", wk.tokens())
		}
		other.changeLeader()
		wk.disconnect()
		wk.connect()
		most := int64(0)
		w.await(5*time.Minute, "all five", func() bool {
			for _, a := range wk.holds() {
				wk.finish(a, "done")
				break
			}
			time.Sleep(200 * time.Millisecond)
			most = max(most, wk.tokens())
			done := 0
			for _, id := range ids {
				if fsm.State(home.record(id)) == completed {
					done++
				}
			}
			return done == len(ids)
		})
		if most > 10_000 {
			t.Errorf("%d tokens at once", most)
		}
		w.forgotten(other)
		home.wantIdle()
		other.wantIdle()
	})
}

// TestAPollersBatch is bounded by its cost and by its count, and what it takes
// in several answers by its offer.
func TestAPollersBatch(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		for range 9 {
			c.submit("work", costs(1_000))
		}
		ask := func(id string, most int32) []*isobarv1.Assignment {
			r := question(id, most)
			r.Offer = holdingMost(offering(50, "wasm"), 6_000)
			r.Batch = &isobarv1.Cost{Tokens: 3_500}
			return c.lease(r)
		}
		first, second, third := ask("r1", 9), ask("r2", 2), ask("r3", 9)
		if len(first) != 3 || len(second) != 2 || len(third) != 1 {
			t.Fatalf("batches of %d, %d and %d, want 3 by cost, 2 by count and 1 by the offer", len(first), len(second), len(third))
		}
		for _, a := range first {
			c.extendPolled(a)
			c.completePolled(a)
		}
		if list := ask("r4", 9); len(list) != 3 {
			t.Errorf("a batch of %d after three ended", len(list))
		}
		id := c.submit("work", costs(4_000))
		for _, a := range c.w.leased(c) {
			if a.Id != id {
				if _, _, err := c.Cancel(w.ctx, a.Id, ""); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.await(time.Minute, "the reason", func() bool {
			_ = ask("r5", 9)
			return strings.HasPrefix(c.record(id).Blocked, "cost")
		})
	})
}

// leased are the tasks of a cell that are not ended.
func (w *world) leased(c *testCell) (out []*meshv1.TaskRecord) {
	for rec := range fsm.Tasks(c.State, "") {
		if !fsm.Ended(fsm.State(rec)) {
			out = append(out, rec)
		}
	}
	return out
}

// TestBoundsByCost: of a function and of a tenant, in each amount, over lanes,
// functions and a change of leader, and for what other cells hold.
func TestBoundsByCost(t *testing.T) {
	t.Parallel()
	payload := int64(len("payload of work"))
	for _, c := range []struct {
		name      string
		most, one *isobarv1.Cost
		want      string
	}{
		{"tokens", &isobarv1.Cost{Tokens: 5_000}, &isobarv1.Cost{Tokens: 2_000}, "5000 tokens"},
		{"bytes", &isobarv1.Cost{Bytes: 5_000}, &isobarv1.Cost{Bytes: 2_000}, "5000 bytes"},
		{"payloads", &isobarv1.Cost{Bytes: 2*payload + 1}, nil, fmt.Sprintf("%d bytes", 2*payload+1)},
		{"accelerators", &isobarv1.Cost{AcceleratorMib: 5_000}, &isobarv1.Cost{AcceleratorMib: 2_000}, "5000 MiB of accelerators"},
		{"the scarcer", &isobarv1.Cost{Tokens: 90_000, AcceleratorMib: 5_000}, &isobarv1.Cost{Tokens: 2_000, AcceleratorMib: 2_000}, "5000 MiB of accelerators"},
	} {
		for _, of := range []string{"function", "tenant"} {
			t.Run(c.name+" of a "+of, func(t *testing.T) {
				t.Parallel()
				inWorld(t, func(w *world) {
					home, other := twoCells(w)
					bound := &isobarv1.Concurrency{Cost: c.most}
					second := "work"
					if of == "tenant" {
						second = "more" // another function of the same tenant
						w.registry.add(second, variant("only", "wasm"))
						w.registry.setTenant(&meshv1.Tenant{Name: "default", Concurrency: bound})
					} else {
						w.registry.add("work", variant("only", "wasm")).Spec.Concurrency = bound
					}
					w1, w2 := home.worker("w1", offering(1, "wasm"), nil), other.worker("w2", offering(50, "wasm"), nil)
					w.meet()
					costing := func(s *isobarv1.TaskSpec) { s.Cost = c.one }
					for range 3 {
						home.submit("work", costing)
						home.submit(second, costing, in("critical")) // a payload of as many bytes
					}
					w.await(5*time.Second, "one here and one there", func() bool { return w1.count() == 1 && w2.count() == 1 })
					time.Sleep(5 * time.Second)
					if n := w1.count() + w2.count(); n != 2 {
						t.Fatalf("%d run, the bound of %v lets 2", n, c.most)
					}
					name := of + " " + map[string]string{"tenant": "default", "function": "work"}[of]
					if why := home.whyWaits("work"); why != "concurrency: "+name+" is at its bound of "+c.want {
						t.Errorf("the queue waits for %q", why)
					}
					home.changeLeader()
					w1.disconnect()
					w1.connect()
					time.Sleep(home.Renew + 5*time.Second)
					if n := w1.count() + w2.count(); n != 2 {
						t.Errorf("%d run under a new leader", n)
					}
				})
			})
		}
	}
}

// TestACallHasACost too: it finds no room where its cost does not fit.
func TestACallHasACost(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", holdingMost(offering(50, "wasm"), 1_000), nil)
		c.submit("work", costs(600))
		wk.assigned(0)
		in, err := c.Invocation(Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work", Cost: &isobarv1.Cost{Tokens: 600}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Invoke(w.ctx, *in); !refusedFor(err, NoRoom) {
			t.Errorf("a call without room: %v", err)
		}
		in.Cost.Tokens = 5_000
		_, err = c.Invoke(w.ctx, *in)
		if r, ok := errors.AsType[*Refusal](err); !ok || !strings.Contains(r.Hint, "let a worker of eu-1 hold 5000 tokens at once") {
			t.Errorf("a call above the bound: %v", err)
		}
	})
}

// TestCostsThatCannotBe are refused wherever they come in.
func TestCostsThatCannotBe(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		for _, bad := range []*isobarv1.Cost{{Tokens: -1}, {Bytes: mesh.MaxCost + 1}, {AcceleratorMib: -1 << 63}, {Tokens: 1<<63 - 1}} {
			if CheckCost("cost", bad) == nil {
				t.Errorf("%v is taken", bad)
			}
			if _, err := c.trySubmit("work", func(s *isobarv1.TaskSpec) { s.Cost = bad }); !refusedFor(err, BadRequest) {
				t.Errorf("a record of %v: %v", bad, err)
			}
			r := question("r1", 1)
			r.Batch = bad
			if _, err := c.Lease(w.ctx, r); !refusedFor(err, BadRequest) {
				t.Errorf("a batch of %v: %v", bad, err)
			}
			r = question("r1", 1)
			r.Offer.InFlight = bad
			if _, err := c.Lease(w.ctx, r); !refusedFor(err, BadRequest) {
				t.Errorf("an offer of %v: %v", bad, err)
			}
		}
	})
}

func refusedFor(err error, why Reason) bool {
	r, ok := errors.AsType[*Refusal](err)
	return ok && r.Reason == why
}
