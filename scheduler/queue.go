package scheduler

import (
	"cmp"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/scheduler/fairness"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// window is how many ready tasks of a queue are kept in memory; the rest stays
// in the state's index, so a new leader starts in a time that does not grow
// with the backlog.
const window = 512

// queueKey names a queue of the dispatcher. Guests of a function wait apart
// from the cell's own tasks and share the lane with them.
type queueKey struct {
	fsm.Queue
	guest bool
}

// queue is the window onto one queue: the first refs in order.
type queue struct {
	key   queueKey
	items []ref
	more  bool   // the state's index holds tasks behind the window
	step  int    // how many the last refill was for
	why   string // what its head waits for, when it found no room
	spans []span // what held it up, the oldest first
}

// firstStep is how many tasks the first refill reads; each later one reads twice
// as many, up to the window. A new leader's first lease then does not wait for a
// whole window to be read.
const firstStep = 32

// widen is how many tasks the next refill may read.
func (q *queue) widen() int {
	q.step = min(max(2*q.step, firstStep), window)
	return q.step
}

func compareRefs(a, b ref) int {
	return cmp.Or(cmp.Compare(a.task, b.task), cmp.Compare(a.attempt, b.attempt))
}

// add puts in what became ready. What lies behind the window is found when the
// window moves on.
func (q *queue) add(r ref) {
	if n := len(q.items); q.more && (n == 0 || compareRefs(r, q.items[n-1]) > 0) {
		return
	}
	q.insert(r)
}

// insert is add for one that the window passed over as it moved on.
func (q *queue) insert(r ref) {
	i, found := slices.BinarySearchFunc(q.items, r, compareRefs)
	if found {
		return
	}
	q.items = slices.Insert(q.items, i, r)
	if !q.key.guest && len(q.items) > 2*window {
		q.items, q.more = q.items[:window], true
	}
}

func (q *queue) remove(r ref) {
	if i, found := slices.BinarySearchFunc(q.items, r, compareRefs); found {
		q.items = slices.Delete(q.items, i, i+1)
	}
}

// dispatchSet is the windows of the queues that have work, and the order in
// which they are served.
type dispatchSet struct {
	queues map[queueKey]*queue
	order  *fairness.Order[queueKey]
}

func newDispatchSet(weight func(tenant string) float64) dispatchSet {
	return dispatchSet{queues: map[queueKey]*queue{}, order: fairness.New[queueKey](weight)}
}

// queue returns the queue, made on first use.
func (d *dispatchSet) queue(k queueKey) *queue {
	q := d.queues[k]
	if q == nil {
		q = &queue{key: k}
		d.queues[k] = q
		d.order.Want(k, k.Tenant, k.Lane, time.Now())
	}
	return q
}

// next picks the queue to serve; nil when each is empty or stuck.
func (d *dispatchSet) next(now time.Time) *queue {
	k, ok := d.order.Next(now)
	if !ok {
		return nil
	}
	return d.queues[k]
}

// drop forgets a queue without work.
func (d *dispatchSet) drop(q *queue) {
	delete(d.queues, q.key)
	d.order.Drop(q.key)
}

// guestsByLane counts the guests that wait for a worker; the state counts tasks.
func (d *dispatchSet) guestsByLane() [4]int64 {
	var n [4]int64
	for k, q := range d.queues {
		if k.guest {
			n[k.Lane] += int64(len(q.items))
		}
	}
	return n
}
