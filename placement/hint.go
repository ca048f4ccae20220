package placement

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// relaxation is what would have to give so that one pair could run.
type relaxation struct {
	pos     int // in Decider.cells
	variant int
	broken  rules
	timing  timing
	late    time.Duration
}

// asker are the rules that whoever asks can relax; the others need an operator.
const asker = rules(1<<ruleResidency | 1<<ruleExcluded | 1<<ruleMinQuality | 1<<ruleRoundTrip | 1<<ruleDeadline)

// hint says what would make the task possible, by the fewest changes. It is
// called when no offer was made.
func (d *Decider) hint(q *question) string {
	switch {
	case len(d.variants) == 0:
		return "the function has no variant"
	case len(d.cells) == 0:
		return "no cell is known"
	}
	best := d.leastRelaxation(q)
	cell, v := &q.view.Cells[d.cells[best.pos]], &d.variants[best.variant]
	if best.broken == 1<<ruleResidency && !cell.Within(q.task.Residency) && v.broken == 0 {
		return d.residencyHint(q, cell)
	}
	var asks []string
	for r := range ruleCount {
		if best.broken.has(r) {
			asks = append(asks, q.ask(r, cell, v, &best.timing))
		}
	}
	return fmt.Sprintf("%s: %s could then run at %s", strings.Join(asks, ", and "), v.Name, cell.ID)
}

// leastRelaxation finds the pair that breaks the fewest rules: of these one
// that the asker can relax alone, and then the one nearest to what was asked.
func (d *Decider) leastRelaxation(q *question) relaxation {
	var best relaxation
	for pos, i := range d.cells {
		cell := &q.view.Cells[i]
		cellBroken := d.state[pos] | q.cellBreaks(cell)
		d.at(q, cell, d.known[pos])
		names, _ := warmOf(cell.Warm, d.prefix, 0)
		for j := range d.variants {
			v := &d.variants[j]
			r := relaxation{pos: pos, variant: j}
			var isWarm bool
			isWarm, names = nextWarm(names, len(d.prefix), v.Name)
			q.timing(&r.timing, cell, v, isWarm)
			r.late = q.late(&r.timing)
			r.broken = cellBroken | v.broken | pairBreaks(cell, v) | when(ruleDeadline, r.late > 0)
			if r.broken == 0 {
				r.broken = 1 << ruleDeadline // there is room, but too little of it in time
			}
			if best.broken == 0 || d.easier(r, best) {
				best = r
			}
		}
	}
	return best
}

// easier reports whether a is the better advice. Equal ones keep the order of
// cell and variant names.
func (d *Decider) easier(a, b relaxation) bool {
	order := cmp.Or(
		cmp.Compare(a.broken.count(), b.broken.count()),
		cmp.Compare((a.broken&^asker).count(), (b.broken&^asker).count()),
		cmp.Compare(a.broken&^asker, b.broken&^asker), // a cell comes back sooner than hardware is bought
		-cmp.Compare(a.broken&asker, b.broken&asker),  // a residency is the last to give
	)
	if order == 0 && a.broken.has(ruleMinQuality) {
		order = -cmp.Compare(fraction(d.variants[a.variant].Quality), fraction(d.variants[b.variant].Quality))
	}
	if order == 0 && a.broken.has(ruleDeadline) {
		order = cmp.Compare(a.late, b.late)
	}
	return order < 0
}

// residencyHint tells why the allowed cells do not do, and names one that does.
func (d *Decider) residencyHint(q *question, could *Cell) string {
	var counts [ruleCount]int
	var sample [ruleCount]*variantFacts
	within := false
	for pos, i := range d.cells {
		cell := &q.view.Cells[i]
		cellBroken := d.state[pos] | q.cellBreaks(cell)
		if cellBroken.has(ruleResidency) {
			continue
		}
		within = true
		for j := range d.variants {
			v := &d.variants[j]
			if v.broken.has(ruleResidency) {
				continue
			}
			broken := cellBroken | v.broken | pairBreaks(cell, v)
			if broken == 0 {
				broken = 1 << ruleDeadline // all that is left, as no offer was made
			}
			r := broken.first()
			counts[r]++
			if sample[r] == nil {
				sample[r] = v
			}
		}
	}
	residency := residencyWords(q.task.Residency)
	if !within {
		return fmt.Sprintf("no region is allowed by %s; %s could run it", residency, could.Region)
	}
	most := rule(0)
	for r := range ruleCount {
		if counts[r] > counts[most] {
			most = r
		}
	}
	if counts[most] == 0 {
		return fmt.Sprintf("no variant may run within %s; %s could run it", residency, could.Region)
	}
	return fmt.Sprintf("no region allowed by %s %s; %s does", residency, q.virtue(most, sample[most]), could.Region)
}

// virtue is what a cell that keeps the rule does.
func (q *question) virtue(r rule, v *variantFacts) string {
	switch r {
	case ruleNoWorker:
		return "has a worker"
	case ruleMinQuality:
		return fmt.Sprintf("offers quality %g", q.minQuality)
	case ruleRuntime:
		return "offers runtime " + v.Runtime
	case ruleAccelerator:
		if v.demand.GPUModel != "" && v.demand.GPUs == 1 {
			return "offers accelerator " + v.demand.GPUModel
		}
		return "offers " + gpuWords(v.demand)
	case ruleResources:
		return "offers " + demandWords(v.demand)
	case ruleCost:
		return "has a worker that holds " + v.demand.Cost.String()
	case ruleRoundTrip:
		return "lies within a round trip of " + short(q.task.MaxRTT)
	case ruleDeadline:
		return "ends in time"
	default:
		return "takes work"
	}
}

// ask is the change that would keep the rule.
func (q *question) ask(r rule, c *Cell, v *variantFacts, t *timing) string {
	switch r {
	case ruleResidency:
		if v.broken.has(ruleResidency) {
			return fmt.Sprintf("let the residency allow the endpoint of %s, which lies in %s", v.Name, list(v.EndpointJurisdictions))
		}
		if c.Within(q.task.Residency) {
			return fmt.Sprintf("prove the jurisdictions of %s by its certificate", c.ID)
		}
		return fmt.Sprintf("let the residency allow %s, which lies in %s", c.Region, list(c.Jurisdictions))
	case ruleExcluded:
		return "do not leave out region " + c.Region
	case ruleHealth:
		if c.Unhealthy != "" {
			return fmt.Sprintf("bring back %s, which takes no work (%s)", c.ID, c.Unhealthy)
		}
		name, value := unusableFigure(c)
		return fmt.Sprintf("correct the %s of %s, now %g", name, c.ID, value)
	case ruleNoWorker:
		return fmt.Sprintf("start a worker at %s", c.ID)
	case ruleMinQuality:
		return "lower min_quality to " + strconv.FormatFloat(fraction(v.Quality), 'g', -1, 64)
	case ruleRuntime:
		return fmt.Sprintf("start a worker with runtime %s at %s", v.Runtime, c.ID)
	case ruleAccelerator:
		for i := range q.view.Cells {
			if offersGPU(&q.view.Cells[i].Total, &v.demand) {
				return fmt.Sprintf("add %s to %s", gpuWords(v.demand), c.ID)
			}
		}
		return fmt.Sprintf("no region offers %s; add it to %s", gpuWords(v.demand), c.ID)
	case ruleResources:
		return fmt.Sprintf("ask for no more than %s, or add capacity there", capacityWords(c.Total))
	case ruleCost:
		return fmt.Sprintf("let a worker of %s hold %s at once (in_flight), or submit smaller tasks", c.ID, v.demand.Cost.Over(mesh.Cost{}, c.Total.Most))
	case ruleRoundTrip:
		return fmt.Sprintf("allow a round trip of %s to %s", short(c.RTT), c.ID)
	default:
		return q.askTime(t)
	}
}

// askTime is the time that would be enough: a later deadline, a later start, or
// both.
func (q *question) askTime(t *timing) string {
	var asks []string
	if late := q.lateEnd(t); late > 0 {
		at := q.task.Deadline.Add(late)
		if t := at.Truncate(time.Millisecond); t.Before(at) {
			at = t.Add(time.Millisecond)
		}
		asks = append(asks, fmt.Sprintf("move the deadline %s later, to %s", short(late), at.UTC().Format("2006-01-02T15:04:05.000Z07:00")))
	}
	if late := q.lateStart(t); late > 0 || len(asks) == 0 {
		asks = append(asks, fmt.Sprintf("let the task start %s later", short(max(late, 0))))
	}
	return strings.Join(asks, ", and ")
}
