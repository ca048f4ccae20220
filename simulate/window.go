package simulate

import (
	"slices"
	"time"
)

// forever is later than any instant of a run.
const forever = time.Duration(1) << 62

// force is what running costs over time: the carbon of an hour, and the prices
// of the capacity that is held.
type force struct {
	carbon *curve
	gram   float64 // cost of carbon: weight × kW, for one unit of intensity and an hour
	prices []priced
}

// priced is the price of a resource, for as much as is held of it.
type priced struct {
	curve *curve
	n     float64
}

// over is the cost of running over [from, to).
func (f *force) over(from, to time.Duration) float64 {
	x := 0.0
	if f.gram != 0 {
		x = f.gram * f.carbon.integral(from, to)
	}
	for _, p := range f.prices {
		x += p.n * p.curve.integral(from, to)
	}
	return x / float64(hour)
}

// rate is the cost of an hour at the instant t.
func (f *force) rate(t time.Duration) float64 {
	x := f.gram * f.carbon.at(t)
	for _, p := range f.prices {
		x += p.n * p.curve.at(t)
	}
	return x
}

// step is the finest step of what the force is made of.
func (f *force) step() time.Duration {
	step := f.carbon.step
	for _, p := range f.prices {
		step = min(step, p.curve.step)
	}
	return step
}

func (f *force) flat() bool { return f.gram == 0 && len(f.prices) == 0 }

// window is when one job may run by one option: it begins at from or later,
// takes run, and may wait for so long in all. What it waits costs second an
// instant's second.
type window struct {
	from, run, wait time.Duration
	second          float64
	// free lists when there is room, in order and not touching; nil is always.
	free []span
}

// contiguous finds the best start of work that is not interrupted. The cost is
// a straight line between the instants at which the start or the end stands on
// a step or on the edge of what is free, so these are all that is tried. Of
// equal costs the earliest start is taken. ok is false when there is no room.
func (f *force) contiguous(w *window) (start time.Duration, cost float64, ok bool) {
	enter := func(s time.Duration, c float64) {
		if !ok || below(c, cost) || (c <= cost+same*max(c, cost) && s < start) {
			start, cost, ok = s, c, true
		}
	}
	try := func(s time.Duration) { enter(s, f.over(s, s+w.run)+w.second*(s-w.from).Seconds()) }
	low := f.gram * f.carbon.low * float64(w.run) / float64(hour)
	search := func(first, last time.Duration) {
		if first > last {
			return
		}
		try(first)
		if f.flat() {
			return
		}
		if f.oneCurve(first, last+w.run) {
			f.grid(w, first, last, enter)
			try(last)
			return
		}
		step := f.step()
		starts, ends := (first/step+1)*step, ((first+w.run)/step+1)*step-w.run
		for at := min(starts, ends); at < last; at = min(starts, ends) {
			if low+w.second*(at-w.from).Seconds() >= cost {
				return // waiting alone costs more from here on
			}
			try(at)
			if starts == at {
				starts += step
			}
			if ends == at {
				ends += step
			}
		}
		try(last)
	}
	last := w.from + w.wait
	if w.free == nil {
		search(w.from, last)
		return start, cost, ok
	}
	for _, s := range w.free {
		search(max(s.from, w.from), min(s.to-w.run, last))
	}
	return start, cost, ok
}

// oneCurve reports whether the force is one price and carbon that does not
// change over [from, to): so it is for short work in the search for prices.
func (f *force) oneCurve(from, to time.Duration) bool {
	return len(f.prices) == 1 && (f.gram == 0 || from/f.carbon.step == to/f.carbon.step)
}

// grid tries the starts after first and before last at which the start or the
// end stands on a step of the one price, by its running sums.
func (f *force) grid(w *window, first, last time.Duration, enter func(s time.Duration, c float64)) {
	c, n := f.prices[0].curve, f.prices[0].n/float64(hour)
	base, wide := 0.0, float64(c.step)
	if f.gram != 0 {
		base = f.gram * f.carbon.at(first) * w.run.Hours()
	}
	whole, rest := int(w.run/c.step), float64(w.run%c.step)
	cost := func(s time.Duration, sum float64) { enter(s, base+n*sum+w.second*(s-w.from).Seconds()) }
	i := int((first-c.origin)/c.step) + 1
	for at := c.origin + time.Duration(i)*c.step; at < last; at += c.step {
		cost(at, (c.sum(i+whole)-c.sum(i))*wide+c.row(i+whole)*rest)
		i++
	}
	if rest == 0 {
		return // the ends are where the starts are
	}
	i = int((first+w.run-c.origin)/c.step) + 1
	for at := c.origin + time.Duration(i)*c.step - w.run; at < last; at += c.step {
		cost(at, (c.sum(i)-c.sum(i-whole))*wide+c.row(i-whole-1)*rest)
		i++
	}
}

// chunk is time at one rate that a job may use.
type chunk struct {
	span
	rate float64
}

// interruptible finds the best pieces of work that may be suspended. For a
// given finish the cheapest time before it is used; and as the finish moves on
// through time at one rate, what is used gets cheaper more and more slowly. So
// in each step only its start, its end, and the instants at which the dearest
// time in use is used up need to be looked at.
func (f *force) interruptible(w *window) (pieces []span, cost float64, ok bool) {
	used := make([]chunk, 0, 32) // a heap, the dearest first
	total, filled, energy := w.run, time.Duration(0), 0.0
	finish := time.Duration(0)
	consider := func(at time.Duration) {
		if c := energy + w.second*(at-w.from-w.run).Seconds(); !ok || below(c, cost) {
			cost, finish, ok = c, at, true
		}
	}
	f.chunks(w, func(c chunk) bool {
		if filled < total {
			take := min(c.to-c.from, total-filled)
			used = push(used, chunk{span{c.from, c.from + take}, c.rate})
			energy += c.rate * take.Hours()
			filled += take
			c.from += take
			if filled < total {
				return true
			}
			consider(c.from)
		}
		for c.from < c.to && len(used) > 0 && used[0].rate > c.rate {
			top := used[0]
			take := min(top.to-top.from, c.to-c.from)
			if take == top.to-top.from {
				used = pop(used)
			} else {
				used[0].to -= take
			}
			used = push(used, chunk{span{c.from, c.from + take}, c.rate})
			energy -= (top.rate - c.rate) * take.Hours()
			c.from += take
			consider(c.from)
		}
		return true
	})
	if total == 0 {
		s, c, ok := f.contiguous(w)
		return []span{{s, s}}, c, ok
	}
	if !ok {
		return nil, 0, false
	}
	return f.pieces(w, finish), cost, true
}

// chunks calls visit with the time the window offers, in order, divided at the
// steps, until visit returns false.
func (f *force) chunks(w *window, visit func(chunk) bool) {
	step := f.step()
	end := w.from + w.wait + w.run
	free := w.free
	if free == nil {
		free = []span{{w.from, end}}
	}
	for _, s := range free {
		from, to := max(s.from, w.from), min(s.to, end)
		for from < to {
			till := min((from/step+1)*step, to)
			if !visit(chunk{span{from, till}, f.rate(from)}) {
				return
			}
			from = till
		}
	}
}

// pieces is the cheapest time that ends by finish: of equal rates the earliest.
func (f *force) pieces(w *window, finish time.Duration) []span {
	var all []chunk
	f.chunks(w, func(c chunk) bool {
		c.to = min(c.to, finish)
		if c.from < c.to {
			all = append(all, c)
		}
		return c.to < finish
	})
	slices.SortStableFunc(all, func(a, b chunk) int {
		switch {
		case below(a.rate, b.rate):
			return -1
		case below(b.rate, a.rate):
			return 1
		default:
			return 0
		}
	})
	left := w.run
	for i := range all {
		take := min(all[i].to-all[i].from, left)
		all[i].to = all[i].from + take
		if left -= take; left == 0 {
			all = all[:i+1]
			break
		}
	}
	slices.SortFunc(all, func(a, b chunk) int { return int(a.from - b.from) })
	var out []span
	for _, c := range all {
		if n := len(out); n > 0 && out[n-1].to == c.from {
			out[n-1].to = c.to
			continue
		}
		out = append(out, c.span)
	}
	return out
}

// push and pop keep a heap with the dearest chunk first.
func push(h []chunk, c chunk) []chunk {
	h = append(h, c)
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if h[parent].rate >= h[i].rate {
			break
		}
		h[parent], h[i] = h[i], h[parent]
		i = parent
	}
	return h
}

func pop(h []chunk) []chunk {
	n := len(h) - 1
	h[0] = h[n]
	h = h[:n]
	for i := 0; ; {
		top := i
		for _, k := range [...]int{2*i + 1, 2*i + 2} {
			if k < n && h[k].rate > h[top].rate {
				top = k
			}
		}
		if top == i {
			return h
		}
		h[top], h[i] = h[i], h[top]
		i = top
	}
}
