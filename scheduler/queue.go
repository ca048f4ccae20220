package scheduler

import (
	"cmp"
	"slices"

	"github.com/isobar-mesh/isobar/internal/mesh"
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
	more  bool // the state's index holds tasks behind the window
	step  int  // how many the last refill was for
	stuck bool // its head found no room in this round
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

func (q *queue) empty() bool { return len(q.items) == 0 && !q.more }

// dispatchSet orders the queues: lanes share by weight (smooth weighted round
// robin, so a light lane is never starved), queues of a lane take turns.
type dispatchSet struct {
	queues map[queueKey]*queue
	lanes  [4][]*queue
	credit [4]int
	before [4]int // credit as it was before the last next
}

func newDispatchSet() dispatchSet { return dispatchSet{queues: map[queueKey]*queue{}} }

// queue returns the queue, made on first use.
func (d *dispatchSet) queue(k queueKey) *queue {
	q := d.queues[k]
	if q == nil {
		q = &queue{key: k}
		d.queues[k] = q
		d.lanes[k.Lane] = append(d.lanes[k.Lane], q)
	}
	return q
}

// next picks the queue to serve, nil when each is empty or stuck; the queue
// moves to the end of its lane's line. Lanes that are not served keep theirs:
// else a lane served every fifth time would always serve the same of five
// queues. Empty queues are dropped on the way.
func (d *dispatchSet) next() *queue {
	var ready [4]int
	total := 0
	for _, lane := range mesh.Lanes() {
		if ready[lane] = d.first(lane); ready[lane] >= 0 {
			total += lane.Weight()
		}
	}
	best := -1
	d.before = d.credit
	for _, lane := range mesh.Lanes() {
		if ready[lane] < 0 {
			continue
		}
		d.credit[lane] += lane.Weight()
		if best < 0 || d.credit[lane] > d.credit[best] {
			best = int(lane)
		}
	}
	if best < 0 {
		return nil
	}
	d.credit[best] -= total
	list, i := d.lanes[best], ready[best]
	q := list[i]
	d.lanes[best] = append(slices.Delete(list, i, i+1), q)
	return q
}

// unserved takes back what next charged: its queue had nothing to run, or no
// room. A lane pays only for what it was given.
func (d *dispatchSet) unserved() { d.credit = d.before }

// first is the place of the lane's first queue with work that is not stuck; -1
// for none.
func (d *dispatchSet) first(lane mesh.Lane) int {
	list := d.lanes[lane]
	for i := 0; i < len(list); {
		switch q := list[i]; {
		case q.empty():
			list = slices.Delete(list, i, i+1)
			d.lanes[lane] = list
			delete(d.queues, q.key)
		case !q.stuck:
			return i
		default:
			i++
		}
	}
	return -1
}

// unstick lets every queue try again.
func (d *dispatchSet) unstick() {
	for _, lane := range d.lanes {
		for _, q := range lane {
			q.stuck = false
		}
	}
}

// guestsByLane counts the guests that wait for a worker; the state counts tasks.
func (d *dispatchSet) guestsByLane() [4]int64 {
	var n [4]int64
	for _, lane := range mesh.Lanes() {
		for _, q := range d.lanes[lane] {
			if q.key.guest {
				n[lane] += int64(len(q.items))
			}
		}
	}
	return n
}
