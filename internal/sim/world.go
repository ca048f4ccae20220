package sim

import (
	"container/heap"
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"
)

// keepLines is how much of the trace a report tells.
const keepLines = 50

// world is virtual time and what happens in it. Everything runs on the one
// goroutine of run; times are milliseconds.
type world struct {
	now   int64
	seq   uint64
	queue events
	rng   *rand.Rand // the world's own: faults and network; cells have theirs
	cfg   Config

	cells  []*cell
	truth  truth
	healed bool

	digest hash.Hash64
	tail   []string
	lines  int
	steps  int
	seen   map[string]int
	err    error
}

func newWorld(seed uint64, cfg Config) *world {
	return &world{
		rng: rand.New(rand.NewPCG(seed, 0)), cfg: cfg, truth: newTruth(),
		digest: fnv.New64a(), seen: map[string]int{},
	}
}

// event is something that happens at a moment; those of one moment happen in
// the order they were planned.
type event struct {
	at  int64
	seq uint64
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || (e[i].at == e[j].at && e[i].seq < e[j].seq)
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	(*e)[len(*e)-1] = event{}
	*e = (*e)[:len(*e)-1]
	return last
}

// after plans an event in d milliseconds.
func (w *world) after(d int64, do func()) {
	w.seq++
	heap.Push(&w.queue, event{at: w.now + max(d, 0), seq: w.seq, do: do})
}

// every does it now and each d milliseconds while it returns true.
func (w *world) every(d int64, do func() bool) {
	if do() {
		w.after(d, func() { w.every(d, do) })
	}
}

// run plays what happens up to the moment, or up to the first error.
func (w *world) run(until int64) {
	for w.err == nil && len(w.queue) > 0 && w.queue[0].at <= until {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		w.steps++
		e.do()
	}
	if w.err == nil {
		w.now = until
	}
}

// note writes a line of the trace; the trace's hash is over all of them.
func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf("%7d ", w.now) + fmt.Sprintf(format, args...)
	_, _ = w.digest.Write([]byte(line))
	w.lines++
	if len(w.tail) == keepLines {
		copy(w.tail, w.tail[1:])
		w.tail = w.tail[:keepLines-1]
	}
	w.tail = append(w.tail, line)
}

// saw counts something that must happen now and then, or the run is too tame.
func (w *world) saw(what string) { w.seen[what]++ }

// violate ends the run: an oracle does not hold.
func (w *world) violate(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("sim: at %d ms: "+format, append([]any{w.now}, args...)...)
		w.note("VIOLATION %v", w.err)
	}
}

func chance(r *rand.Rand, p float64) bool { return r.Float64() < p }

// between is a number from low to high, both included.
func between(r *rand.Rand, low, high int64) int64 { return low + r.Int64N(high-low+1) }
