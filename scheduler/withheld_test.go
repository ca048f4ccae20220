package scheduler

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// unreadable is a broker that hands out no payload of some functions, of all, or of
// some tasks.
type unreadable struct {
	broker.Broker
	mu        sync.Mutex
	functions []string
	all       bool
	refs      [][]byte
	failed    int
}

func (b *unreadable) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

func (b *unreadable) failures() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

func (b *unreadable) Fetch(ctx context.Context, t broker.Topic, r broker.Reference) (broker.Stored, error) {
	b.mu.Lock()
	fails := b.all || slices.Contains(b.functions, t.Function) || slices.ContainsFunc(b.refs, func(bad []byte) bool { return string(bad) == string(r) })
	if fails {
		b.failed++
	}
	b.mu.Unlock()
	if fails {
		time.Sleep(50 * time.Millisecond)
		return broker.Stored{}, fmt.Errorf("this topic: %w", broker.ErrUnavailable)
	}
	return b.Broker.Fetch(ctx, t, r)
}

// unreadableCell is a cell on such a broker, with functions bad0 to bad4 beside work.
func (w *world) unreadableCell() (*testCell, *unreadable) {
	b := &unreadable{}
	for i := range 5 {
		w.registry.add(fmt.Sprint("bad", i), variant("only", "wasm"))
	}
	return w.cell("eu-1", func(o *Options) { b.Broker = o.Broker; o.Broker = b }), b
}

// A topic whose payloads can't be read holds up its own queue and no other.
func TestATopicThatFailsHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c, b := w.unreadableCell()
		b.set(func() { b.functions = []string{"bad0"} })
		for range 40 {
			c.submit("bad0")
		}
		const n = 1000
		for range n {
			c.submit("work")
		}
		began := time.Now()
		wk := c.worker("w1", offering(16, "wasm"), func(w *testWorker, a *isobarv1.Assignment) {
			time.Sleep(50 * time.Millisecond)
			w.finish(a, "done")
		})
		w.await(10*time.Minute, "the others", func() bool { return wk.count() >= n })
		// 1,000 of 50 ms side by side on 16 take 3.2 s, and withheld for each failure minutes.
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("one topic that fails: %d tasks of another took %s", n, took)
		}
		if why := c.whyWaits("bad0"); why != "broker: the payloads of this queue can't be read now" {
			t.Errorf("the queue waits for %q", why)
		}
		time.Sleep(10 * time.Minute)
		if got := b.failures(); got < 100 || got > 200 { // one task each 4 s, after the first 16
			t.Errorf("%d reads of it in ten minutes", got)
		}
		b.set(func() { b.functions = nil })
		w.await(2*time.Minute, "its own, once it can be read", func() bool { return wk.count() >= n+40 })
	})
}

// A payload that fails alone does not hold up those behind it in its queue.
func TestAPayloadThatFailsAloneIsPassed(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c, b := w.unreadableCell()
		bad := c.submit("work")
		b.set(func() { b.refs = [][]byte{c.record(bad).PayloadRef} })
		const n = 100
		for range n {
			c.submit("work")
		}
		wk := c.worker("w1", offering(1, "wasm"), completes)
		w.await(10*time.Second, "those behind it", func() bool { return wk.count() >= n })
		if rec := c.record(bad); rec.Attempt != 0 || rec.Blocked != "broker: its payload can't be read now" {
			t.Errorf("it is at attempt %d and waits for %q", rec.Attempt, rec.Blocked)
		}
		for range 10 { // it fails again and again, and they notice nothing
			began, was := time.Now(), wk.count()
			for range n {
				c.submit("work")
			}
			w.await(500*time.Millisecond, "those behind it", func() bool { return wk.count() >= was+n })
			time.Sleep(10*time.Second - time.Since(began))
		}
		b.set(func() { b.refs = nil })
		c.awaitState(time.Minute, bad, completed)
	})
}

// When several topics fail in a row it is the broker: then one read at a time tries
// it for the whole cell, and all goes on when it is back.
func TestABrokerThatIsAwayIsTriedOnceForAll(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c, b := w.unreadableCell()
		b.set(func() { b.all = true })
		for range 20 {
			for i := range 5 {
				c.submit(fmt.Sprint("bad", i))
			}
		}
		wk := c.worker("w1", offering(16, "wasm"), completes)
		time.Sleep(time.Minute)
		before := b.failures()
		time.Sleep(10 * time.Minute)
		if got := b.failures() - before; got < 100 || got > 160 {
			t.Errorf("%d reads in ten minutes, want one each 4 s", got)
		}
		b.set(func() { b.all = false })
		w.await(20*time.Second, "all, once it is back", func() bool { return wk.count() == 100 })
		l := c.current()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.withheld.cell != nil || len(l.withheld.tasks) != 0 || len(l.withheld.queues) != 0 {
			t.Errorf("left over: %+v", l.withheld)
		}
	})
}

// What ended while it was tried leaves nothing behind.
func TestATaskCancelledWhileItsPayloadIsReadIsForgotten(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c, b := w.unreadableCell()
		b.set(func() { b.functions = []string{"bad0"} })
		c.worker("w1", offering(1, "wasm"), completes)
		id := c.submit("bad0")
		time.Sleep(10 * time.Millisecond) // within the read
		if _, won, err := c.Cancel(w.ctx, id, ""); err != nil || !won {
			t.Fatal(won, err)
		}
		next := c.submit("bad0")
		time.Sleep(5 * time.Second)
		b.set(func() { b.functions = nil })
		c.awaitState(time.Minute, next, completed)
		l := c.current()
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.parked) != 0 || len(l.withheld.tasks) != 0 || l.withheld.queues[fsm.QueueOf(c.record(next))] != nil {
			t.Errorf("left over: parked %v, %+v", l.parked, l.withheld)
		}
	})
}
