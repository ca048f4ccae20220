package placement

import (
	"math"
	"slices"
)

// Batch is a joint problem: many tasks at once, each with the ways it may run,
// and how much room there is in the places they would take. Solve chooses a way
// for each, so that every room is kept and the sum of costs is low, and says how
// far from the lowest it can be at most.
//
// A place is a cell, or a cell in one span of time: its rooms are amounts of a
// few resources. Units are the caller's; costs are finite and not negative.
// The zero value is empty. It keeps its scratch memory between problems, and is
// not safe for concurrent use.
type Batch struct {
	resources int
	room      []float64 // by place × resource; +Inf is any
	first     []int32   // by task: its first way; one more at the end
	ways      []way
	refuse    []float64 // by task: the cost of running by none of them
	needs     []need

	prices []float64
	load   []float64
	best   []preferred // by task
	sample []int32     // tasks, in an order of their own
	order  []regret    // tasks, in the order of repair
	kept   []float64   // prices
	chosen []int32     // by task: a way, or -1
}

// Use is an amount of one resource, by its index.
type Use struct {
	Resource int
	Amount   float64
}

// maxUses is how many resources one way takes at most.
const maxUses = 3

// way is one way to run a task. Those of one task are held in the order of cost,
// so that a search may end at the first that alone costs more than the best it
// has: prices are never negative.
type way struct {
	cost  float64
	place int32
	need  int32 // in needs
	nth   int32 // of the task's, as they were added
}

func byCost(x, y way) int {
	switch {
	case x.cost < y.cost:
		return -1
	case x.cost > y.cost:
		return 1
	default:
		return int(x.nth - y.nth)
	}
}

type need struct {
	n        int32
	resource [maxUses]int32
	amount   [maxUses]float64
}

// preferred is the best way of a task at the present prices, and what the best way
// at another place would cost.
type preferred struct {
	way         int32 // -1: refused
	cost, other float64
}

// Solution of a Batch.
type Solution struct {
	// Chosen is, by task, which of its ways it takes, counted from 0 in the order
	// they were added; -1 is none, because nothing had room or refusing it is
	// cheaper.
	Chosen []int
	// Cost is the sum over the tasks. No choice that keeps every room costs less
	// than Bound, even if tasks could be divided over several ways: it is the
	// value of the linear relaxation's dual at Prices.
	Cost, Bound float64
	// Prices are, by place and then resource, what one more unit would save.
	// They are zero where there is room enough.
	Prices []float64
	// Refused is how many tasks take no way.
	Refused int
}

// Reset empties the batch for places with so many resources each. room is by
// place and then resource, and is not kept.
func (b *Batch) Reset(resources int, room []float64) {
	b.resources = resources
	b.room = append(b.room[:0], room...)
	b.first, b.ways, b.refuse, b.needs = append(b.first[:0], 0), b.ways[:0], b.refuse[:0], b.needs[:0]
}

// Need enters what ways may take, at most three resources, and returns its
// number for Way. Amounts that are zero or less are left out.
func (b *Batch) Need(uses ...Use) int {
	var n need
	for _, u := range uses {
		if u.Amount > 0 && n.n < maxUses {
			n.resource[n.n], n.amount[n.n] = int32(u.Resource), u.Amount
			n.n++
		}
	}
	b.needs = append(b.needs, n)
	return len(b.needs) - 1
}

// Way adds a way to the task that Task will end.
func (b *Batch) Way(cost float64, place, need int) {
	nth := int32(len(b.ways)) - b.first[len(b.first)-1]
	b.ways = append(b.ways, way{cost, int32(place), int32(need), nth})
}

// Task ends a task: its ways are those added since the last. refuse is what it
// costs to run it by none of them.
func (b *Batch) Task(refuse float64) {
	slices.SortFunc(b.ways[b.first[len(b.first)-1]:], byCost)
	b.first = append(b.first, int32(len(b.ways)))
	b.refuse = append(b.refuse, refuse)
}

// settled is the relative change of the bound that counts as none.
const settled = 1e-4

// Solve finds prices at which the places are just full, by setting one price
// after the other to where demand meets room; lets each task choose by them;
// moves tasks out of what is still too full, those first that lose least; and
// then lets each move to where it is better off while there is room. Equal
// batches give equal solutions.
func (b *Batch) Solve() Solution {
	b.prices, b.load = zeroed(b.prices, len(b.room)), zeroed(b.load, len(b.room))
	b.best, b.chosen = zeroed(b.best, len(b.refuse)), zeroed(b.chosen, len(b.refuse))
	bound := b.settle()
	clear(b.load)
	b.repair()
	b.improve()
	s := Solution{Chosen: make([]int, len(b.refuse)), Prices: slices.Clone(b.prices)}
	for t, w := range b.chosen {
		if w < 0 {
			s.Chosen[t] = -1
			s.Refused++
			s.Cost += b.refuse[t]
			continue
		}
		s.Chosen[t] = int(b.ways[w].nth)
		s.Cost += b.ways[w].cost
	}
	s.Bound = min(bound, s.Cost)
	return s
}

func zeroed[T any](x []T, n int) []T {
	if cap(x) < n {
		return make([]T, n)
	}
	x = x[:n]
	clear(x)
	return x
}

// reduced is the cost of the way at the present prices. Uses that are not there
// have an amount of zero.
func (b *Batch) reduced(w *way) float64 {
	n := &b.needs[w.need]
	row := b.prices[int(w.place)*b.resources:]
	cost := w.cost + float64(n.amount[0]*row[n.resource[0]]) + float64(n.amount[1]*row[n.resource[1]])
	if n.n < maxUses {
		return cost
	}
	return cost + float64(n.amount[2]*row[n.resource[2]])
}

// respond finds the task's best way and the best at another place.
func (b *Batch) respond(t int32) {
	p := preferred{way: -1, cost: b.refuse[t], other: math.Inf(1)}
	place := int32(-1)
	first := b.first[t]
	ways := b.ways[first:b.first[t+1]]
	for i := range ways {
		w := &ways[i]
		if w.cost >= p.other {
			break
		}
		cost := b.reduced(w)
		if cost >= p.other {
			continue
		}
		switch {
		case cost < p.cost:
			if w.place != place {
				p.other = p.cost
			}
			p.way, p.cost, place = first+int32(i), cost, w.place
		case w.place != place:
			p.other = cost
		}
	}
	b.best[t] = p
}

// liked is the task's best way and its cost, as respond finds them; -1 and what
// refusing costs when that is cheaper.
func (b *Batch) liked(t int32) (best int32, least float64) {
	best, least = -1, b.refuse[t]
	first := b.first[t]
	ways := b.ways[first:b.first[t+1]]
	for i := range ways {
		w := &ways[i]
		if w.cost >= least {
			break
		}
		if cost := b.reduced(w); cost < least {
			best, least = first+int32(i), cost
		}
	}
	return best, least
}

// settle sets the prices and returns the bound. It begins with a sample of the
// tasks, whose rooms are as much smaller: there a step costs little, and leads
// near to the prices of all.
func (b *Batch) settle() float64 {
	n := len(b.refuse)
	b.sample = zeroed(b.sample, n)
	for i := range b.sample {
		b.sample[i] = int32(i)
	}
	shuffle(b.sample)
	b.respondAll()
	b.repair()
	target := b.cost()
	bound := math.Inf(-1)
	for _, l := range levels(n) {
		bound = b.ascend(b.sample[:l.tasks], l.steps, l.size, target)
	}
	b.respondAll()
	return bound
}

func (b *Batch) respondAll() {
	for t := range int32(len(b.refuse)) {
		b.respond(t)
	}
}

// level is a part of the ascent.
type level struct {
	tasks, steps int
	size         float64
}

// levels are made so that each costs about the same. A smaller first sample
// than some hundred tasks leads past the prices of all where places are many.
func levels(n int) []level {
	const few, work, least, most, last = 1024, 1 << 16, 64, 128, 4
	var out []level
	for m, size := n, 0.05; ; m, size = m/4, size*2 {
		if m <= few {
			return append([]level{{m, min(max(work/max(m, 1), least), most), 1}}, out...)
		}
		out = append([]level{{m, max(work/m, last), size}}, out...)
	}
}

// shuffle puts the tasks in an order that has nothing to do with theirs, and is
// the same every time.
func shuffle(x []int32) {
	state := uint64(0x9e3779b97f4a7c15)
	for i := len(x) - 1; i > 0; i-- {
		state = state*6364136223846793005 + 1442695040888963407
		j := int((state >> 33) % uint64(i+1))
		x[i], x[j] = x[j], x[i]
	}
}

// ascend moves the prices by projected subgradient, with Polyak's step towards
// the target, halved when it stalls; it leaves the best and returns its bound.
func (b *Batch) ascend(tasks []int32, steps int, size, target float64) float64 {
	const patience = 4
	part := float64(len(tasks)) / float64(len(b.refuse))
	best, stale := math.Inf(-1), 0
	b.kept = append(b.kept[:0], b.prices...)
	for range steps {
		value := b.value(tasks, part)
		if value > best+settled*math.Abs(best) || math.IsInf(best, -1) {
			stale = 0
		} else if stale++; stale >= patience {
			size, stale = size/2, 0
		}
		if value > best {
			best = value
			copy(b.kept, b.prices)
		}
		if size < 1e-4 || !b.step(size*(target-value), part) {
			break
		}
	}
	copy(b.prices, b.kept)
	return best
}

// cost is that of the present choice.
func (b *Batch) cost() float64 {
	total := 0.0
	for t, w := range b.chosen {
		if w < 0 {
			total += b.refuse[t]
		} else {
			total += b.ways[w].cost
		}
	}
	return total
}

// value lets the tasks choose, and returns the bound, for all if these are a
// part of them.
func (b *Batch) value(tasks []int32, part float64) float64 {
	clear(b.load)
	total := 0.0
	for _, t := range tasks {
		way, cost := b.liked(t)
		total += cost
		if way >= 0 {
			b.take(way, 1)
		}
	}
	total /= part
	for i, price := range b.prices {
		if price > 0 {
			total -= float64(price * b.room[i])
		}
	}
	return total
}

// step moves the prices along what is taken too much, counted in shares of the
// rooms. It returns false where nothing can be moved.
func (b *Batch) step(gap, part float64) bool {
	norm := 0.0
	for i, room := range b.room {
		share := b.over(i, room, part)
		norm += float64(share * share)
	}
	if norm == 0 || gap <= 0 {
		return false
	}
	gap /= norm
	for i, room := range b.room {
		if share := b.over(i, room, part); share != 0 {
			b.prices[i] = max(b.prices[i]+float64(gap*share)/room, 0)
		}
	}
	return true
}

// over is by which share of the room too much is taken; less than nothing
// counts where there is a price that can fall.
func (b *Batch) over(i int, room, part float64) float64 {
	if room <= 0 || math.IsInf(room, 1) {
		return 0
	}
	share := b.load[i]/part/room - 1
	if share < 0 && b.prices[i] == 0 {
		return 0
	}
	return share
}
