package simulate

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
)

const (
	// settleTries is how often plans are made anew for a newcomer, so many at once
	// at most, out of so many that were looked up.
	settleTries, settleTogether, settleAmong = 24, 8, 64
	// settleEffort bounds the tries of a whole trace, so that large ones end.
	settleEffort = 200_000
)

// outcome is what a few plans are worth, by the forecast. Fewer late ones come
// first.
type outcome struct {
	late int
	cost float64
}

func (o outcome) better(than outcome) bool {
	return o.late < than.late || (o.late == than.late && below(o.cost, than.cost))
}

// settle looks for a better order for a newcomer that did not get what it would
// have alone: it takes the plans of a few that have not begun out of the
// calendars, and makes them anew in another order, and keeps that where it is
// better. Nothing of what is to come is known to it.
func (p *player) settle(i int) {
	if p.stale != nil || !p.know.all || p.hasItsBest(i) {
		return
	}
	rng := rand.New(rand.NewPCG(uint64(i), 1))
	others := p.some(i, rng)
	if len(others) == 0 {
		return
	}
	changed := map[int]bool{}
	for range min(settleTries, max(settleEffort/len(p.w.jobs), 2)) {
		rng.Shuffle(len(others), func(a, b int) { others[a], others[b] = others[b], others[a] })
		few := append([]int{i}, others[:min(len(others), 1+rng.IntN(settleTogether-1))]...)
		job := func(k int) *job { return &p.w.jobs[k] }
		switch rng.IntN(4) {
		case 0:
			slices.SortStableFunc(few, func(a, b int) int { return cmp.Compare(job(a).latest(), job(b).latest()) })
		case 1:
			slices.SortStableFunc(few, func(a, b int) int { return cmp.Compare(job(a).Duration, job(b).Duration) })
		case 2:
			slices.SortStableFunc(few, func(a, b int) int { return cmp.Compare(job(b).Duration, job(a).Duration) })
		default: // the newcomer first, the others as they come
		}
		if p.reorder(few) {
			for _, k := range few {
				changed[k] = true
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(changed)) {
		p.schedule(k)
	}
}

// some finds jobs that have not begun and are booked where job i may run.
func (p *player) some(i int, rng *rand.Rand) []int {
	var out []int
	for n := range min(len(p.events), 4*settleAmong) {
		e := &p.events[n]
		if len(p.events) > 4*settleAmong {
			e = &p.events[rng.IntN(len(p.events))]
		}
		s := &p.states[e.job]
		if e.job != i && e.kind == pieceStarts && e.number == s.number && !s.running && !s.begun && p.sharing(i, e.job) && !slices.Contains(out, e.job) {
			out = append(out, e.job)
		}
		if len(out) == settleAmong {
			break
		}
	}
	return out
}

// reorder makes the plans anew in this order. Where that is no better it
// returns false, and all is as it was.
func (p *player) reorder(few []int) bool {
	before := p.outcome(few)
	was := make([]playing, len(few))
	for n, k := range few {
		was[n] = p.states[k]
		p.enter(k, -1)
	}
	for _, k := range few {
		p.plan(k)
	}
	if p.outcome(few).better(before) {
		return true
	}
	for _, k := range few {
		p.enter(k, -1)
	}
	for n, k := range few {
		p.states[k] = was[n]
		p.enter(k, 1)
	}
	return false
}

// outcome of the present plans of jobs that have not begun.
func (p *player) outcome(few []int) (out outcome) {
	for _, i := range few {
		s := &p.states[i]
		cost, late := p.worth(i, s.option, s.plan)
		out.cost += cost
		if late {
			out.late++
		}
	}
	return out
}

// worth is what a plan costs by the forecast, and whether it is late.
func (p *player) worth(i int, o *option, plan []span) (cost float64, late bool) {
	j := &p.w.jobs[i]
	end := plan[len(plan)-1].to
	f := p.w.force(j, o, nil, nil)
	if p.review {
		f.carbon = p.ask.expected(o.region, p.now, end-p.now)
	}
	cost = p.w.fixed(j, o)
	for _, x := range plan {
		cost += f.over(x.from, x.to)
	}
	wait := end - j.arrival - j.run(o)
	return cost + p.w.weights.second*wait.Seconds(), wait > j.MaxDelay
}

// hasItsBest reports whether the job is planned as it would be alone.
func (p *player) hasItsBest(i int) bool {
	j, s := &p.w.jobs[i], &p.states[i]
	have, late := p.worth(i, s.option, s.plan)
	if late {
		return false
	}
	alone := p.ask.decide(&question{
		job: j, now: p.now, run: p.know.expect(j), home: p.w.place[j.Home], slack: max(j.MaxDelay-(p.now-j.arrival), 0),
	})
	best, _ := p.worth(i, alone.option, alone.plan)
	return !below(best, have)
}
