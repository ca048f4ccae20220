package simulate

import (
	"cmp"
	"slices"
	"time"
)

// dual is the problem of the capacity's prices. Each job is alone in the mesh
// but pays for the capacity it holds; what the jobs then pay, less what the
// capacity would earn at those prices, is at most what any schedule costs that
// keeps the capacity. The prices are raised where too much is taken and lowered
// where too little is, which moves the bound up.
//
// Capacity is kept on the average of a step here, which asks for no more than
// keeping it at every instant: the bound holds, and is the tighter the finer
// the step.
type dual struct {
	w       *world
	relaxed []placed // each job's best in time, where capacity is free
	// Of the jobs, allowed may be late, by extra at most. tardy is each one's
	// best where capacity is free and it may be late.
	extra   time.Duration
	allowed int
	tardy   []placed
	chosen  []placed // at the present prices
	step    time.Duration
	origin  time.Duration
	slots   int
	prices  prices
	taken   [][][]float64 // by region, resource and slot: units × hours
}

const (
	// rounds bounds the steps of the ascent.
	rounds = 300
	// effort bounds the searches of all rounds, so that large traces end.
	effort = 200_000_000
	// halvings is how often the steps are halved when no round brings a better
	// bound.
	halvings = 15
)

func newDual(w *world, relaxed []placed, extra time.Duration, allowed int) *dual {
	d := &dual{
		w: w, relaxed: relaxed, extra: max(extra, 0), allowed: allowed, chosen: make([]placed, len(relaxed)), origin: w.start.Truncate(hour),
	}
	var end, total time.Duration
	n := 0
	for i := range w.jobs {
		j := &w.jobs[i]
		for k := range j.shape.options {
			run := j.run(&j.shape.options[k])
			end = max(end, j.latest()+d.extra+run)
		}
		if relaxed[i].ok {
			total += j.run(relaxed[i].option)
			n++
		}
	}
	d.step = hour
	for _, step := range [...]time.Duration{hour / 2, hour / 4, hour / 12, hour / 30, hour / 60, hour / 120, hour / 360, hour / 900, hour / 1800, hour / 3600} {
		if d.step > max(total/time.Duration(max(n, 1))/4, (end-d.origin)/960) {
			d.step = step
		}
	}
	d.slots = int((end-d.origin)/d.step) + 1
	d.prices = make(prices, len(w.regions))
	d.taken = make([][][]float64, len(w.regions))
	for i := range w.regions {
		d.prices[i] = make([]*curve, len(w.regions[i].caps))
		d.taken[i] = make([][]float64, len(w.regions[i].caps))
		for r, c := range w.regions[i].caps {
			if c != unlimited {
				d.taken[i][r] = make([]float64, d.slots)
			}
		}
	}
	return d
}

// ascend finds the best bound it can, and the prices at which it was found and
// at which it ended. target is the value of a schedule.
func (d *dual) ascend(target float64, progress func(done, of int)) (bound float64, found []prices) {
	bound = d.free()
	n := rounds
	ways := 0
	for i := range d.w.jobs {
		ways += len(d.w.jobs[i].shape.options)
	}
	n = min(n, max(effort/max(ways, 1), 20))
	size, stale, patience := 1.0, 0, max(n/halvings, 3)
	var best prices
	for k := range n {
		progress(k, n)
		value := d.respond()
		if below(bound, value) || best == nil {
			bound, stale = max(bound, value), 0
			best = d.copy()
		} else if stale++; stale >= patience {
			size, stale = size/2, 0
		}
		gap := target - value
		if gap <= same*target || size < 1e-3 || !d.move(size*gap) {
			break
		}
	}
	progress(n, n)
	if best != nil {
		found = append(found, best)
	}
	return bound, append(found, d.copy())
}

// free is the bound when capacity costs nothing and being late neither.
func (d *dual) free() float64 {
	d.tardy = d.relaxed
	if d.extra > 0 {
		d.tardy = make([]placed, len(d.w.jobs))
		for i := range d.w.jobs {
			d.tardy[i] = d.w.search(&d.w.jobs[i], nil, nil, d.extra)
		}
	}
	total := 0.0
	for i := range d.tardy {
		total += d.tardy[i].cost
	}
	return total
}

// best is the job's best at the present prices. free is its best where capacity
// is: it stays the best as long as it pays nothing.
func (d *dual) best(i int, free []placed, extra time.Duration) placed {
	if j := &d.w.jobs[i]; d.charged(j, &free[i]) {
		return d.w.search(j, nil, d.prices, extra)
	}
	return free[i]
}

// excuse lets those jobs be late, as many as are allowed, that save most by it.
func (d *dual) excuse() {
	if d.extra == 0 {
		return
	}
	type late struct {
		job  int
		gain float64 // at most so much, as prices make no job cheaper
		best placed
	}
	var all, kept []late
	for i := range d.chosen {
		if gain := d.chosen[i].cost - d.tardy[i].cost; d.chosen[i].ok && gain > 0 {
			all = append(all, late{job: i, gain: gain})
		}
	}
	order := func(a, b late) int { return cmp.Or(cmp.Compare(b.gain, a.gain), cmp.Compare(a.job, b.job)) }
	slices.SortFunc(all, order)
	for _, l := range all {
		if len(kept) == d.allowed && (d.allowed == 0 || l.gain <= kept[d.allowed-1].gain) {
			break
		}
		l.best = d.best(l.job, d.tardy, d.extra)
		if l.gain = d.chosen[l.job].cost - l.best.cost; l.gain > 0 {
			at, _ := slices.BinarySearchFunc(kept, l, order)
			kept = slices.Insert(kept, at, l)
			kept = kept[:min(len(kept), d.allowed)]
		}
	}
	for _, l := range kept {
		d.chosen[l.job] = l.best
	}
}

// respond lets each job choose at the present prices, and returns the bound.
func (d *dual) respond() float64 {
	for i := range d.taken {
		for r := range d.taken[i] {
			clear(d.taken[i][r])
		}
	}
	for i := range d.w.jobs {
		if d.chosen[i] = d.relaxed[i]; d.chosen[i].ok {
			d.chosen[i] = d.best(i, d.relaxed, 0)
		}
	}
	d.excuse()
	total := 0.0
	for i := range d.chosen {
		if p := &d.chosen[i]; p.ok {
			total += p.cost
			d.take(&d.w.jobs[i], p)
		}
	}
	for i := range d.prices {
		for r, c := range d.prices[i] {
			if c == nil {
				continue
			}
			capacity := float64(d.w.regions[i].caps[r]) * d.step.Hours()
			for _, price := range c.rows[:d.slots] {
				total -= price * capacity
			}
		}
	}
	return total
}

// charged reports whether the placing holds capacity that has a price. One
// that pays nothing stays the best, as prices only make the others dearer.
func (d *dual) charged(j *job, p *placed) bool {
	charged := false
	for _, a := range p.option.need {
		c := d.prices[p.option.region][a.resource]
		if c == nil {
			continue
		}
		p.spans(j.run(p.option), func(s span) { charged = charged || (s.from < s.to && c.integral(s.from, s.to) > 0) })
	}
	return charged
}

func (d *dual) take(j *job, p *placed) {
	for _, a := range p.option.need {
		slots := d.taken[p.option.region][a.resource]
		p.spans(j.run(p.option), func(s span) {
			for at := s.from; at < s.to; {
				k := int((at - d.origin) / d.step)
				till := min(d.origin+time.Duration(k+1)*d.step, s.to)
				slots[k] += float64(a.n) * (till - at).Hours()
				at = till
			}
		})
	}
}

// move changes the prices along what is taken too much, by a step that would
// close the gap were the bound a straight line. It returns false when nothing
// is taken too much and nothing has a price: the bound is the best there is.
func (d *dual) move(gap float64) bool {
	// Units differ between resources: each is counted in shares of the capacity.
	norm := 0.0
	each := func(f func(share float64, i, r, k int)) {
		for i := range d.taken {
			for r, slots := range d.taken[i] {
				capacity := float64(d.w.regions[i].caps[r]) * d.step.Hours()
				for k, taken := range slots {
					share := taken/capacity - 1
					if share > 0 || (d.prices[i][r] != nil && d.prices[i][r].rows[k] > 0) {
						f(share, i, r, k)
					}
				}
			}
		}
	}
	each(func(share float64, _, _, _ int) { norm += share * share })
	if norm == 0 {
		return false
	}
	each(func(share float64, i, r, k int) {
		if d.prices[i][r] == nil {
			d.prices[i][r] = newCurve(d.step, make([]float64, d.slots+1)) // after the last slot capacity is free
			d.prices[i][r].origin = d.origin
		}
		capacity := float64(d.w.regions[i].caps[r]) * d.step.Hours()
		rows := d.prices[i][r].rows
		rows[k] = max(rows[k]+gap/norm*share/capacity, 0)
	})
	for i := range d.prices {
		for _, c := range d.prices[i] {
			if c != nil {
				c.refresh()
			}
		}
	}
	return true
}

// copy keeps the present prices.
func (d *dual) copy() prices {
	out := make(prices, len(d.prices))
	for i := range d.prices {
		out[i] = make([]*curve, len(d.prices[i]))
		for r, c := range d.prices[i] {
			if c != nil {
				out[i][r] = newCurve(c.step, slices.Clone(c.rows))
				out[i][r].origin = c.origin
			}
		}
	}
	return out
}
