package simulate

import (
	"cmp"
	"slices"
	"time"
)

// way is an option of a task, and when it has room.
type way struct {
	option *option
	run    time.Duration
	// rooms are the times in which it has, long enough for the run: from now on,
	// none when it would be late.
	rooms []span
	dear  float64 // what its capacity counts by shadow prices
}

// startsAt reports whether the run has room from the instant on.
func (y *way) startsAt(t time.Duration) bool {
	return slices.ContainsFunc(y.rooms, func(s span) bool { return s.from <= t && t+y.run <= s.to })
}

// inSequence decides as systems do that have a tool for each question: first
// the region, then the start, then the variant. Each step knows what it could:
// the region is that of the lowest mean cost of its variants at the present
// intensity, of those with room; the start is the best by the forecast, of a run
// as long and as strong as the region's variants on the mean, at which any of
// them has room; the variant is the cheapest that has room then. Work is not
// interrupted. ok is false when nothing has room in time.
func (a *asker) inSequence(q *question) (out answer, ok bool) {
	regions := make([][]way, len(a.w.regions))
	for k := range q.job.shape.options {
		o := &q.job.shape.options[k]
		regions[o.region] = append(regions[o.region], a.way(q, o))
	}
	place, atOnce := a.region(q, regions)
	if place < 0 {
		return out, false
	}
	ways := slices.DeleteFunc(regions[place], func(y way) bool { return len(y.rooms) == 0 })
	longest := time.Duration(0)
	for _, y := range ways {
		longest = max(longest, y.run)
	}
	expected := a.expected(place, q.now, q.slack+longest)
	start := a.start(q, expected, ways)
	y := a.variant(q, expected, ways, start)
	return answer{option: y.option, plan: []span{{start, start + y.run}}, blocked: !atOnce}, true
}

func (a *asker) way(q *question, o *option) way {
	y := way{option: o, run: q.run.of(o)}
	y.rooms = []span{{q.now, q.now + q.slack + y.run}}
	if q.books != nil && len(o.need) > 0 {
		y.rooms = q.books[o.region].free(nil, q.now, q.now+q.slack+max(y.run, 1), o.need)
		y.rooms = slices.DeleteFunc(y.rooms, func(s span) bool { return s.to-s.from < y.run })
	}
	if q.dear != nil {
		y.dear = q.dear.cost(o, y.run, a.scarcity(q, o.region))
	}
	return y
}

// region is the first step: -1 when none has room in time. A chooser that does
// not read what is booked takes those with room at once first.
func (a *asker) region(q *question, regions [][]way) (place int, atOnce bool) {
	place = -1
	var best float64
	for i, ways := range regions {
		now, inTime, mean := false, false, 0.0
		for k := range ways {
			y := &ways[k]
			now = now || y.startsAt(q.now)
			inTime = inTime || len(y.rooms) > 0
			cost := a.w.fixed(q.job, y.option) + y.dear +
				a.w.weights.gram*a.w.kw(q.job, y.option)*y.run.Hours()*a.w.regions[i].carbon.at(q.now)
			mean += cost / float64(len(ways))
		}
		if !inTime {
			continue
		}
		first := now && !atOnce && a.opts.Choice == InSequence
		last := !now && atOnce && a.opts.Choice == InSequence
		if place < 0 || first || (!last && below(mean, best)) {
			place, best, atOnce = i, mean, now
		}
	}
	return place, atOnce
}

// expected is the region's carbon from now on as the forecast has it.
func (a *asker) expected(place int, now, over time.Duration) *curve {
	c := newCurve(hour, slices.Clone(a.foretell.ahead(place, now, int(over/hour)+2)))
	c.origin = now.Truncate(hour)
	return c
}

// start is the second step.
func (a *asker) start(q *question, expected *curve, ways []way) time.Duration {
	n := len(ways)
	f := force{carbon: expected}
	in := window{from: q.now, wait: q.slack, second: a.w.weights.second}
	for _, y := range ways {
		f.gram += a.w.weights.gram * a.w.kw(q.job, y.option) / float64(n)
		in.run += y.run / time.Duration(n)
	}
	for _, y := range ways {
		for _, s := range y.rooms {
			in.free = append(in.free, span{s.from, s.to - y.run + in.run}) // the same starts
		}
	}
	slices.SortFunc(in.free, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	start, _, _ := f.contiguous(&in)
	return start
}

// variant is the third step: the start has room for at least one.
func (a *asker) variant(q *question, expected *curve, ways []way, start time.Duration) *way {
	var best *way
	var lowest float64
	for k := range ways {
		y := &ways[k]
		if !y.startsAt(start) {
			continue
		}
		f := force{carbon: expected, gram: a.w.weights.gram * a.w.kw(q.job, y.option)}
		if cost := a.w.fixed(q.job, y.option) + y.dear + f.over(start, start+y.run); best == nil || below(cost, lowest) {
			best, lowest = y, cost
		}
	}
	return best
}
