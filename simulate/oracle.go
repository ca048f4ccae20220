package simulate

import (
	"cmp"
	"slices"
	"time"
)

// placed is the best way found to run a job, and what it counts.
type placed struct {
	placing
	cost float64
	late time.Duration // beyond the deadline
	ok   bool
}

// prices of capacity: by region and resource, USD-like cost of one unit for an
// hour; nil where capacity is free.
type prices [][]*curve

// force of running the job by the option.
func (w *world) force(j *job, o *option, p prices, scratch []priced) force {
	f := force{carbon: w.regions[o.region].carbon, gram: w.weights.gram * w.kw(j, o), prices: scratch[:0]}
	if j.DurationS*o.durX > 0 {
		// The energy is that of the duration as written; its share of a step is
		// counted in whole nanoseconds.
		f.gram *= j.hours(o) / max(j.run(o), 1).Hours()
	}
	if p != nil {
		for _, a := range o.need {
			if c := p[o.region][a.resource]; c != nil {
				f.prices = append(f.prices, priced{c, float64(a.n)})
			}
		}
	}
	return f
}

// fixed is what the option costs whenever the job runs.
func (w *world) fixed(j *job, o *option) float64 {
	return w.weights.usd*w.usd(j, o) + w.weights.second*o.rtt + w.weights.gram*w.beside(j, o)
}

// search finds the best way to run the job: with room in the calendars when
// there are any, at the prices of capacity when there are any, and no later
// than extra beyond its deadline.
func (w *world) search(j *job, c calendars, p prices, extra time.Duration) placed {
	var best placed
	var bestUSD float64
	var bestWait time.Duration
	var scratch [4]priced
	var spans []span
	for i := range j.shape.options {
		o := &j.shape.options[i]
		run := j.run(o)
		f := w.force(j, o, p, scratch[:])
		base := w.fixed(j, o)
		if best.ok && below(best.cost, base+f.gram*f.carbon.low*run.Hours()) {
			continue
		}
		in := window{from: j.arrival, run: run, wait: j.MaxDelay + extra, second: w.weights.second}
		if c != nil && len(o.need) > 0 {
			spans = c[o.region].free(spans[:0], j.arrival, j.arrival+in.wait+max(run, 1), o.need)
			in.free = spans
			if len(spans) == 0 {
				continue
			}
		}
		found := placed{placing: placing{option: o}}
		if j.Interruptible {
			found.pieces, found.cost, found.ok = f.interruptible(&in)
		} else {
			found.start, found.cost, found.ok = f.contiguous(&in)
		}
		if !found.ok {
			continue
		}
		found.cost += base
		if best.ok && below(best.cost, found.cost) {
			continue
		}
		usd, wait := w.usd(j, o), found.finish(run)-j.arrival-run
		better := !best.ok || below(found.cost, best.cost) ||
			cmp.Or(cmp.Compare(usd, bestUSD), cmp.Compare(wait, bestWait)) < 0
		if better {
			found.late = max(wait-j.MaxDelay, 0)
			best, bestUSD, bestWait = found, usd, wait
		}
	}
	return best
}

// late finds, for a job that has no room in time, the way in which it is late
// by least.
func (w *world) late(j *job, c calendars) placed {
	var best placed
	var spans []span
	for i := range j.shape.options {
		o := &j.shape.options[i]
		run := j.run(o)
		found := placed{placing: placing{option: o}, ok: true}
		if j.Interruptible {
			for at, left := j.arrival, run; left > 0; {
				spans = c[o.region].free(spans[:0], at, forever, o.need)
				for _, s := range spans {
					take := min(s.to-s.from, left)
					found.pieces = append(found.pieces, span{s.from, s.from + take})
					if left -= take; left == 0 {
						break
					}
					at = s.to
				}
			}
			if run == 0 {
				s := c[o.region].next(j.arrival, o.need)
				found.pieces = []span{{s.from, s.from}}
			}
		} else {
			for at := j.arrival; ; {
				s := c[o.region].next(at, o.need)
				if s.to-s.from >= run {
					found.start = s.from
					break
				}
				at = s.to
			}
		}
		fig := w.figures(j, &found.placing)
		found.cost, found.late = fig.objective, max(fig.wait-j.MaxDelay, 0)
		if !best.ok || found.late < best.late || (found.late == best.late && below(found.cost, best.cost)) {
			best = found
		}
	}
	return best
}

// insert is the best way for the job beside what the calendars hold.
func (w *world) insert(j *job, c calendars, p prices) placed {
	best := w.search(j, c, p, 0)
	if !best.ok && len(j.shape.options) > 0 {
		best = w.late(j, c)
	}
	return best
}

// plan is a schedule with its worth. Fewer late jobs come first, then the
// objective.
type plan struct {
	placings []placing
	late     int
	most     time.Duration // the largest lateness
	value    float64
}

func (w *world) planOf(s []placing) plan {
	p := plan{placings: s}
	p.value, p.late = w.value(s)
	for i := range w.jobs {
		if s[i].option != nil {
			j := &w.jobs[i]
			run := j.run(s[i].option)
			p.most = max(p.most, s[i].finish(run)-j.arrival-run-j.MaxDelay)
		}
	}
	return p
}

func (p *plan) compare(q *plan) int {
	return cmp.Or(cmp.Compare(p.late, q.late), cmp.Compare(p.value, q.value))
}

// oracle finds the best schedule it can, knowing all, and a lower bound. known
// are the schedules of the other policies: the oracle is never worse than one
// that is late as seldom.
func (w *world) oracle(known [][]placing, progress func(done, of int)) (schedule []placing, bound float64) {
	relaxed := make([]placed, len(w.jobs))
	schedule = make([]placing, len(w.jobs))
	for i := range w.jobs {
		if i%1024 == 0 {
			progress(i, len(w.jobs))
		}
		relaxed[i] = w.search(&w.jobs[i], nil, nil, 0)
		schedule[i] = relaxed[i].placing
	}
	progress(len(w.jobs), len(w.jobs))
	if !w.limits || w.feasible(schedule) {
		// Each job at its best: no schedule is better.
		value, _ := w.value(schedule)
		return schedule, value
	}
	best := w.primal(relaxed, known, progress)
	d := newDual(w, relaxed, best.most, best.late)
	bound, prices := d.ascend(best.value, progress)
	for _, p := range prices {
		s := w.greedy(w.order(byArrival), p)
		w.improve(s, relaxed, 1)
		if found := w.planOf(s); found.most <= best.most && found.compare(&best) < 0 {
			best = found
		}
	}
	return best.placings, min(bound, best.value)
}

// feasible reports whether a schedule keeps every capacity.
func (w *world) feasible(s []placing) bool {
	c := w.newCalendars()
	for i := range w.jobs {
		if s[i].option == nil {
			continue
		}
		run := w.jobs[i].run(s[i].option)
		if !c.open(&s[i], run) {
			return false
		}
		c.book(&s[i], run, 1)
	}
	return true
}

// primal is the best of a few schedules made one job at a time, and of those
// already known, improved by moving one job at a time.
func (w *world) primal(relaxed []placed, known [][]placing, progress func(done, of int)) plan {
	plans := []plan{
		w.planOf(w.greedy(w.order(byArrival), nil)),
		w.planOf(w.greedy(w.order(bySlack), nil)),
	}
	for _, s := range known {
		plans = append(plans, w.planOf(slices.Clone(s)))
	}
	slices.SortStableFunc(plans, func(a, b plan) int { return a.compare(&b) })
	best := plans[0]
	for _, p := range plans[:min(2, len(plans))] {
		s := slices.Clone(p.placings)
		w.improve(s, relaxed, passes)
		if found := w.planOf(s); found.compare(&best) < 0 {
			best = found
		}
	}
	s := slices.Clone(best.placings)
	w.refine(s, relaxed)
	if found := w.planOf(s); found.compare(&best) < 0 {
		best = found
	}
	progress(len(w.jobs), len(w.jobs))
	return best
}

// passes is how often improve looks at each job.
const passes = 3

// byArrival is the order of the trace; bySlack puts first who can wait least.
func byArrival(a, b *job) int { return cmp.Compare(a.row, b.row) }

func bySlack(a, b *job) int {
	return cmp.Or(cmp.Compare(a.MaxDelay, b.MaxDelay), cmp.Compare(a.row, b.row))
}

func (w *world) order(by func(a, b *job) int) []int {
	out := make([]int, len(w.jobs))
	for i := range out {
		out[i] = i
	}
	slices.SortFunc(out, func(a, b int) int { return by(&w.jobs[a], &w.jobs[b]) })
	return out
}

// greedy places one job after the other, each at its best beside those before.
func (w *world) greedy(order []int, p prices) []placing {
	out := make([]placing, len(w.jobs))
	c := w.newCalendars()
	for _, i := range order {
		j := &w.jobs[i]
		if found := w.insert(j, c, p); found.ok {
			out[i] = found.placing
			c.book(&out[i], j.run(out[i].option), 1)
		}
	}
	return out
}

// improve moves one job after the other to where it is better off, until none
// is or the passes are over. The schedule is changed in place.
func (w *world) improve(s []placing, relaxed []placed, passes int) {
	c := w.newCalendars()
	for i := range w.jobs {
		if s[i].option != nil {
			c.book(&s[i], w.jobs[i].run(s[i].option), 1)
		}
	}
	for range passes {
		moved := false
		for i := range w.jobs {
			j := &w.jobs[i]
			if s[i].option == nil {
				continue
			}
			now := w.figures(j, &s[i])
			if !now.late && !below(relaxed[i].cost, now.objective) {
				continue // it has what it would have alone
			}
			c.book(&s[i], j.run(s[i].option), -1)
			found := w.insert(j, c, nil)
			late := max(now.wait-j.MaxDelay, 0)
			if found.ok && found.late <= late && (found.late < late || below(found.cost, now.objective)) {
				s[i], moved = found.placing, true
			}
			c.book(&s[i], j.run(s[i].option), 1)
		}
		if !moved {
			return
		}
	}
}
