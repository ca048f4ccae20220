package delay

import (
	"container/heap"
	"sync"
	"time"
)

// maxQueued bounds what waits in a Queue.
const maxQueued = 1 << 16

// Queue delivers messages some time after they were pushed: datagrams under
// way. Messages with the same delay arrive in the order of pushing. It is safe
// for concurrent use.
type Queue[T any] struct {
	deliver func(T)

	mu     sync.Mutex
	heap   arrivals[T]
	pushed uint64
	closed bool

	wake chan struct{} // capacity 1: the earliest arrival or closed changed
	done chan struct{}
}

// NewQueue starts a queue. deliver is called from one goroutine, one message at
// a time; a slow one holds up the others.
func NewQueue[T any](deliver func(T)) *Queue[T] {
	q := &Queue[T]{deliver: deliver, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run()
	return q
}

// Push sends v, to arrive oneWay later. It never blocks; false means that v is
// lost, because the queue is full or closed.
func (q *Queue[T]) Push(v T, oneWay time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.heap) >= maxQueued {
		return false
	}
	q.pushed++
	heap.Push(&q.heap, arrival[T]{due: time.Now().Add(oneWay), number: q.pushed, v: v})
	q.signal()
	return true
}

// Close drops what is under way and returns when no delivery runs any more. It
// must not be called from deliver.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	q.closed, q.heap = true, nil
	q.signal()
	q.mu.Unlock()
	<-q.done
}

func (q *Queue[T]) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *Queue[T]) run() {
	defer close(q.done)
	for {
		v, ok, wait := q.arrived()
		if ok {
			q.deliver(v)
			continue
		}
		if wait < 0 {
			return
		}
		pause(wait, q.wake, nil)
	}
}

// arrived takes the first message when it is due; else it says how long until
// then: zero for nothing under way, less than zero when closed.
func (q *Queue[T]) arrived() (v T, ok bool, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return v, false, -1
	case len(q.heap) == 0:
		return v, false, 0
	}
	if wait := time.Until(q.heap[0].due); wait > 0 {
		return v, false, wait
	}
	return heap.Pop(&q.heap).(arrival[T]).v, true, 0
}

type arrival[T any] struct {
	due    time.Time
	number uint64
	v      T
}

// arrivals is a heap by due time, then by the order of pushing.
type arrivals[T any] []arrival[T]

func (a arrivals[T]) Len() int { return len(a) }
func (a arrivals[T]) Less(i, j int) bool {
	if !a[i].due.Equal(a[j].due) {
		return a[i].due.Before(a[j].due)
	}
	return a[i].number < a[j].number
}
func (a arrivals[T]) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *arrivals[T]) Push(x any)   { *a = append(*a, x.(arrival[T])) }
func (a *arrivals[T]) Pop() any {
	old := *a
	last := old[len(old)-1]
	old[len(old)-1] = arrival[T]{}
	*a = old[:len(old)-1]
	return last
}
