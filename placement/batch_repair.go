package placement

import (
	"math"
	"slices"
)

// passes bounds how often improve looks at each task.
const passes = 6

// regret is what a task loses when it leaves its way.
type regret struct {
	task int32
	loss float64
}

func mostFirst(x, y regret) int {
	switch {
	case x.loss > y.loss:
		return -1
	case x.loss < y.loss:
		return 1
	default:
		return int(x.task - y.task)
	}
}

// take adds the way's needs to the load, or with sign -1 gives them back.
func (b *Batch) take(i int32, sign float64) {
	w := &b.ways[i]
	n := &b.needs[w.need]
	base := int(w.place) * b.resources
	for k := range n.n {
		b.load[base+int(n.resource[k])] += float64(sign * n.amount[k])
	}
}

// fits reports whether the way has room beside the load. What rounding leaves
// over does not count.
func (b *Batch) fits(i int32) bool {
	w := &b.ways[i]
	n := &b.needs[w.need]
	base := int(w.place) * b.resources
	for k := range n.n {
		at := base + int(n.resource[k])
		if b.load[at]+n.amount[k] > b.room[at]*(1+1e-12) {
			return false
		}
	}
	return true
}

// repair gives each task the way it likes at the prices, those first that would
// lose most without it; who finds no room there takes the best that has.
func (b *Batch) repair() {
	order := zeroed(b.order, len(b.refuse))
	b.order = order
	for t := range b.refuse {
		p := &b.best[t]
		loss := 0.0
		if p.way >= 0 && !math.IsInf(p.other, 1) {
			loss = p.other - p.cost
		}
		order[t] = regret{int32(t), loss}
	}
	slices.SortFunc(order, mostFirst)
	for _, r := range order {
		best := b.best[r.task].way
		if best < 0 || !b.fits(best) {
			best = -1
			cost := b.refuse[r.task]
			for i := b.first[r.task]; i < b.first[r.task+1]; i++ {
				if b.ways[i].cost >= cost {
					break
				}
				if c := b.reduced(&b.ways[i]); c < cost && b.fits(i) {
					best, cost = i, c
				}
			}
			if best < 0 {
				best = b.cheapest(r.task, b.refuse[r.task])
			}
		}
		if b.chosen[r.task] = best; best >= 0 {
			b.take(best, 1)
		}
	}
}

// cheapest is the task's way of lowest cost, below so much, that has room; -1
// when there is none.
func (b *Batch) cheapest(t int32, below float64) int32 {
	for i := b.first[t]; i < b.first[t+1] && b.ways[i].cost < below; i++ {
		if b.fits(i) {
			return i
		}
	}
	return -1
}

// improve lets one task after the other move to where it costs less, while
// there is room.
func (b *Batch) improve() {
	for range passes {
		moved := false
		for t := range int32(len(b.refuse)) {
			now, cost := b.chosen[t], b.refuse[t]
			if now >= 0 {
				cost = b.ways[now].cost
				b.take(now, -1)
			}
			if better := b.cheapest(t, cost); better >= 0 {
				b.chosen[t], moved = better, true
			}
			if b.chosen[t] >= 0 {
				b.take(b.chosen[t], 1)
			}
		}
		if !moved {
			return
		}
	}
}
