package scheduler

import (
	"fmt"
	"iter"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
)

// That places changed is for the next dispatch to know, whoever looks at them
// before: a Submit that finds the new place leaves what was parked for it to the
// dispatch, and does not take its news away.
func TestNewsOfPlacesWaitsForADispatch(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home := w.cell("eu-1")
		home.worker("w1", offering(1, "wasm"), nil)
		w.registry.add("odd", variant("only", "exec"))
		home.submit("odd")
		synctest.Wait()
		l := home.current()
		parked := func() int {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.parked)
		}
		if n := parked(); n != 1 {
			t.Fatalf("%d tasks parked that no cell can run", n)
		}
		far := w.cell("us-1")
		far.worker("w2", offering(1, "exec"), nil)
		synctest.Wait()
		l.mu.Lock()
		far.gossip() // and no dispatch, while the lock is held
		for range 2 {
			l.view.built = time.Time{}
			l.view.refresh(time.Now(), l)
		}
		l.mu.Unlock()
		synctest.Wait()
		if n := parked(); n != 0 {
			t.Errorf("%d tasks parked still, after a dispatch that could know of the place", n)
		}
		l.mu.Lock()
		if l.view.news() {
			t.Error("the news is told twice")
		}
		l.mu.Unlock()
	})
}

// countingReader counts the records that are read.
type countingReader struct {
	state.Reader
	gets atomic.Int64
}

func (r *countingReader) Get(key []byte) ([]byte, bool) {
	r.gets.Add(1)
	return r.Reader.Get(key)
}

func (r *countingReader) Scan(from, to []byte) iter.Seq2[[]byte, []byte] {
	return r.Reader.Scan(from, to)
}

// A long backlog of which nothing is to start now is not gone through under the
// lock: the records read for a weighing are bounded.
func TestWeighingReadsABoundedPartOfABacklog(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		var records *countingReader
		home := w.cell("eu-1", func(o *Options) {
			records = &countingReader{Reader: o.State}
			o.State = records
		})
		w.cell("us-1")
		w.meet()
		l := home.current()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.view.built = time.Time{}
		l.view.refresh(time.Now(), l)
		if len(l.view.cells) != 2 {
			t.Fatalf("%d cells are known", len(l.view.cells))
		}
		waiting := l.waiting
		defer func() { l.waiting = waiting }()
		l.waiting = newDispatchSet(l.weight)
		for i := range 3 { // none of these has a record any more
			q := l.waiting.queue(queueKey{Queue: fsm.Queue{Tenant: "default", Function: fmt.Sprint("f", i), Lane: mesh.Standard}})
			for k := range window {
				q.items = append(q.items, ref{task: fmt.Sprint("gone-", i, "-", k)})
			}
		}
		before := records.gets.Load()
		tasks, searched := l.nextTasks()
		if read := records.gets.Load() - before; len(tasks) > 0 || !searched || read > 2*burstMost || read < burstMost {
			t.Errorf("%d tasks to weigh, searched %t, %d records read of %d, at most %d", len(tasks), searched, read, 3*window, 2*burstMost)
		}
	})
}
