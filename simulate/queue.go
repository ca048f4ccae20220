package simulate

import (
	"cmp"
	"container/heap"
	"time"
)

// ending is work that gives its capacity back at an instant.
type ending struct {
	at     time.Duration
	option *option
	job    int
}

// endings is a heap, the earliest first.
type endings []ending

func (e endings) Len() int { return len(e) }
func (e endings) Less(i, j int) bool {
	return e[i].at < e[j].at || (e[i].at == e[j].at && e[i].job < e[j].job)
}
func (e endings) Swap(i, j int) { e[i], e[j] = e[j], e[i] }

// Push is for package heap.
func (e *endings) Push(x any) { *e = append(*e, x.(ending)) }

// Pop is for package heap.
func (e *endings) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// usage is what is taken of each region's resources.
type usage [][]int64

func (w *world) newUsage() usage {
	u := make(usage, len(w.regions))
	for i := range u {
		u[i] = make([]int64, len(w.regions[i].caps))
	}
	return u
}

func (u usage) add(o *option, sign int64) {
	for _, a := range o.need {
		u[o.region][a.resource] += sign * a.n
	}
}

// room reports whether the option fits beside what is taken.
func (w *world) room(u usage, o *option) bool {
	for _, a := range o.need {
		if u[o.region][a.resource]+a.n > w.regions[o.region].caps[a.resource] {
			return false
		}
	}
	return true
}

// queue plays one of the simple policies: a task starts at once in the best
// region with room; if none has, it waits in the one queue, in order of
// arrival and then of row, and nobody overtakes.
func (w *world) queue(p Policy, progress func(done, of int)) []placing {
	out := make([]placing, len(w.jobs))
	var running endings
	var waiting []int
	taken := w.newUsage()
	start := func(i int, now time.Duration) bool {
		j := &w.jobs[i]
		o := w.pick(p, j, taken, now)
		if o == nil {
			return false
		}
		out[i] = placing{option: o, start: now}
		if len(o.need) > 0 {
			taken.add(o, 1)
			heap.Push(&running, ending{at: now + j.run(o), option: o, job: i})
		}
		return true
	}
	for next := 0; next < len(w.jobs) || len(waiting) > 0; {
		var now time.Duration
		switch {
		case next == len(w.jobs):
			now = running[0].at
		case len(running) > 0 && running[0].at <= w.jobs[next].arrival:
			now = running[0].at
		default:
			now = w.jobs[next].arrival
		}
		for len(running) > 0 && running[0].at <= now {
			taken.add(running[0].option, -1)
			heap.Pop(&running)
		}
		for len(waiting) > 0 && start(waiting[0], now) {
			waiting = waiting[1:]
		}
		if len(running) > 0 && running[0].at <= now {
			continue // work of no length: it has ended already
		}
		for ; next < len(w.jobs) && w.jobs[next].arrival == now; next++ {
			if next%1024 == 0 {
				progress(next, len(w.jobs))
			}
			if len(w.jobs[next].shape.options) == 0 {
				continue // nothing can run it: it holds nobody up
			}
			if len(waiting) > 0 || !start(next, now) {
				waiting = append(waiting, next)
			}
		}
	}
	progress(len(w.jobs), len(w.jobs))
	return out
}

// pick is the policy's best option with room now, or nil.
func (w *world) pick(p Policy, j *job, taken usage, now time.Duration) *option {
	var best *option
	var bestKey, bestUSD float64
	for i := range j.shape.options {
		o := &j.shape.options[i]
		if !w.room(taken, o) || (best != nil && p == Home && w.nearer(best, o) < 0) {
			continue
		}
		key, usd := 0.0, w.usd(j, o)
		switch p {
		case Cheapest:
			key = usd
		case Greenest:
			key = w.kwh(j, o)*w.regions[o.region].carbon.at(now) + w.beside(j, o)
		}
		// The wait is the same for all, and options are in order of region name.
		better := best == nil || (p == Home && w.nearer(o, best) < 0) ||
			below(key, bestKey) || (!below(bestKey, key) && below(usd, bestUSD))
		if better {
			best, bestKey, bestUSD = o, key, usd
		}
	}
	return best
}

// nearer orders regions by how near they are to home: home itself, then by
// round trip, those that the mesh gives none for last.
func (w *world) nearer(a, b *option) int {
	rank := func(o *option) int {
		switch {
		case o.home:
			return 0
		case o.known:
			return 1
		default:
			return 2
		}
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.rttMs, b.rttMs))
}
