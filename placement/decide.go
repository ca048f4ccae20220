package placement

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

const (
	// keep is how many candidates a decision holds when it need not explain.
	keep = 8
	// freeLimit bounds Candidate.Free, for demands that take nothing.
	freeLimit = 1_000_000
)

// Options are the parts of a question that are not the task's.
type Options struct {
	// ExcludeRegions are left out, as in "what if this region were gone".
	ExcludeRegions []string
	// Explain asks for all candidates, for what was ruled out and why, and for
	// the flips. Without it a decision allocates nothing per candidate.
	Explain bool
	// Starts asks for the other starts of a chosen one that is put off, as
	// Explain does of every one that may be.
	Starts bool
	// NoTravel: the way to a cell takes no time off the start, as in a
	// simulation that counts the round trip apart. It is priced all the same.
	NoTravel bool
}

// Decide chooses where and by which variant the task runs. It is pure and
// total: it never fails, and answers Chosen == nil with a Hint when nothing is
// allowed. The order of Cells and Variants does not matter; their IDs and
// names are unique. Inputs are not changed or kept.
//
// Prices and powers that are negative, NaN or beyond 1e12 rule their cell out;
// such a weight of the policy counts as zero, and a note says so. Of a task and
// its variants, negative durations, sizes, demands and prices count as zero.
func Decide(task Task, view View, policy Policy, now time.Time, opts Options) Decision {
	var d Decider
	return d.Decide(task, view, policy, now, opts)
}

// CostAt prices the task as if it had to run at one cell: its cheapest allowed
// variant there. The hard constraints hold as in Decide, but for Task.Avoid.
// ok is false when no variant may run there, or the view has no such cell.
func CostAt(task Task, view View, policy Policy, now time.Time, cell mesh.CellID) (c Candidate, ok bool) {
	task.Avoid = nil
	var d Decider
	q := d.prepare(&task, &view, policy, now, Options{})
	for pos, i := range d.cells {
		if view.Cells[i].ID == cell {
			d.offer(&q, pos, 1, nil)
		}
	}
	if len(d.offers) == 0 {
		return Candidate{}, false
	}
	best := d.best(1)
	return d.candidate(&q, &d.offers[best[0]]), true
}

// Decider decides like the function Decide, and keeps its scratch memory from
// one decision to the next. The zero value is ready. It is not safe for
// concurrent use; decisions it returned are independent of it.
type Decider struct {
	cells    []int32    // indexes in View.Cells, by cell ID
	state    []rules    // by position in cells: what the cell breaks whatever is asked
	known    []bool     // by position in cells: the cell's carbon is known
	warm     [][]string // by position in cells: what is warm there of the function asked about
	prefix   []byte     // of their names
	variants []variantFacts
	offers   []offer // every one, or as many as are kept and one more
	order    []int32 // indexes in offers, best first
	seq      int32   // offers made so far
	counts   [ruleCount]int
	kinds    []kindCount
	plan     planner
	lot      lot
}

// question is one call's input, with what is computed once for it.
type question struct {
	task       *Task
	view       *View
	policy     Policy
	now        time.Time
	excluded   []string
	bound      bool // the residency forbids something
	deadline   bool // there is one
	puttable   bool // the start may be put off: there is a latest one
	minQuality float64
	lane       mesh.Lane
	left       time.Duration // until the deadline
	startBy    time.Duration // until the latest start that was asked for
	noTravel   bool
	intoHour   time.Duration // since the start of the present hour, UTC
	inGiB      float64
	outGiB     float64
	home       mesh.CellID // that the carbon is looked at from
	function   string      // that warm instances are looked for of
	surveyed   bool        // both were looked at
	kind       string      // the kind of carbon figures that is compared
	unknown    float64     // gCO2eq/kWh where no figure of that kind is known
	atHome     float64     // gCO2eq/kWh at home, in the present hour
	homeRegion string
	anyKnown   bool
	here       here
	astray     int // one more than the input that lies nobody knows where; 0 for none
}

// here is what all variants have alike at the cell at hand.
type here struct {
	rtt     time.Duration
	egress  float64       // USD, of payload and result
	network float64       // grams of moving them
	step    time.Duration // of the hours of carbon
	into    time.Duration // how far the first of them is gone
	haul    haul          // of the task's inputs
}

// at goes on to a cell that breaks no constraint of its own.
func (d *Decider) at(q *question, cell *Cell, known bool) {
	h := &q.here
	h.rtt = span(cell.RTT)
	h.egress = float64(q.inGiB*cell.EgressUSDPerGiB) + float64(q.outGiB*cell.ReturnUSDPerGiB)
	h.step, h.into = q.hoursOf(&cell.Energy)
	_, h.network = q.network(cell, known)
	if len(q.task.Inputs) > 0 {
		h.haul = d.haulTo(q, cell, known)
	}
}

// variantFacts is a variant with what is the same at every cell.
type variantFacts struct {
	*Variant
	broken rules
	demand mesh.Demand // nothing in it negative
	run    time.Duration
	cold   time.Duration
	high   time.Duration // of the run, a high quantile
	hours  float64
	cores  float64
	gib    float64
	usd    float64
	lost   float64 // quality below the best variant's
	// lostUSD is what that is worth.
	lostUSD float64
	// utilisation of the cores and accelerators
	busyCPU, busyGPU float64
}

// Decide is the function Decide.
func (d *Decider) Decide(task Task, view View, policy Policy, now time.Time, opts Options) Decision {
	q := d.prepare(&task, &view, policy, now, opts)
	out := Decision{At: now, Home: task.Home, Policy: q.policy}
	var ruled *[]RuledOut
	n := keep
	if opts.Explain {
		ruled, n = &out.RuledOut, everyOffer
	}
	for pos := range d.cells {
		d.offer(&q, pos, n, ruled)
	}
	out.Counts = d.constraintCounts()
	out.Notes = d.notes(&q, policy)
	if len(d.offers) == 0 {
		out.Hint = d.hint(&q)
		return out
	}

	best := d.best(n)
	out.Candidates = make([]Candidate, 0, len(best))
	for _, i := range best {
		out.Candidates = append(out.Candidates, d.candidate(&q, &d.offers[i]))
	}
	out.Chosen = &out.Candidates[0]
	if d.offers[best[0]].avoided {
		out.Notes = append(out.Notes, string(out.Chosen.Cell)+" refused or lost this task just now; nothing else is left")
	}
	switch {
	case opts.Explain && !q.puttable:
		out.Flips = d.flips(&q, best[0])
	case opts.Explain || (opts.Starts && out.Chosen.Put > 0):
		d.explainStart(&q, &d.offers[best[0]], &out)
	}
	return out
}

// prepare puts cells and variants into their canonical order, from which all
// else follows, and computes what every candidate shares.
func (d *Decider) prepare(task *Task, view *View, policy Policy, now time.Time, opts Options) question {
	q := d.survey(view, policy, now, opts)
	d.ask(&q, task)
	return q
}

// survey is the part of prepare that does not depend on the task.
func (d *Decider) survey(view *View, policy Policy, now time.Time, opts Options) question {
	q := question{
		view: view, now: now, excluded: opts.ExcludeRegions,
		policy: Policy{
			CarbonUSDPerTonne: weight(policy.CarbonUSDPerTonne),
			LatencyUSDPerS:    weight(policy.LatencyUSDPerS),
			DelayUSDPerS:      weight(policy.DelayUSDPerS),
			QualityUSD:        weight(policy.QualityUSD),
			UnpaidUSD:         policy.UnpaidUSD,
			UnpricedRun:       policy.UnpricedRun,
		},
		noTravel: opts.NoTravel,
		intoHour: now.Sub(now.Truncate(time.Hour)),
	}
	d.cells, d.state = d.cells[:0], d.state[:0]
	sorted := true
	for i := range view.Cells {
		d.cells = append(d.cells, int32(i))
		sorted = sorted && (i == 0 || view.Cells[i-1].ID <= view.Cells[i].ID)
	}
	if !sorted {
		slices.SortStableFunc(d.cells, func(a, b int32) int { return cmp.Compare(view.Cells[a].ID, view.Cells[b].ID) })
	}
	for _, i := range d.cells {
		d.state = append(d.state, stateBreaks(&view.Cells[i]))
	}
	return q
}

// ask makes the question one about this task. Of tasks of one home, one after
// the other, the carbon is looked at once.
func (d *Decider) ask(q *question, task *Task) {
	if !q.surveyed || q.home != task.Home {
		q.home = task.Home
		d.prepareCarbon(q)
	}
	if !q.surveyed || q.function != task.Function {
		q.function = task.Function
		d.prepareWarm(q)
	}
	q.surveyed = true
	q.task = task
	q.bound = task.Residency.Bound()
	q.deadline = !task.Deadline.IsZero()
	q.puttable = !task.StartBy.IsZero()
	q.minQuality = fraction(task.MinQuality)
	q.lane = min(task.Lane, mesh.Batch)
	q.inGiB = float64(max(task.InputBytes, 0)) / bytesPerGiB
	q.outGiB = float64(max(task.OutputBytes, 0)) / bytesPerGiB
	if q.deadline {
		q.left = min(max(task.Deadline.Sub(q.now), -10*maxSpan), 10*maxSpan)
	}
	if q.puttable {
		q.startBy = min(max(task.StartBy.Sub(q.now), 0), 10*maxSpan)
	}
	q.here, q.astray = here{}, 0
	d.offers, d.order, d.seq = d.offers[:0], d.order[:0], 0
	d.counts = [ruleCount]int{}
	d.plan.summed = nil
	d.prepareVariants(q)
}

// prepareWarm finds what is warm of the function.
func (d *Decider) prepareWarm(q *question) {
	d.warm = d.warm[:0]
	d.prefix = append(append(d.prefix[:0], q.function...), '/')
	at := 0
	for pos, i := range d.cells {
		var names []string
		if d.state[pos] == 0 {
			names, at = warmOf(q.view.Cells[i].Warm, d.prefix, at)
		}
		d.warm = append(d.warm, names)
	}
}

func (d *Decider) prepareVariants(q *question) {
	best := 0.0
	for i := range q.task.Variants {
		best = max(best, fraction(q.task.Variants[i].Quality))
	}
	d.variants = d.variants[:0]
	for i := range q.task.Variants {
		v := &q.task.Variants[i]
		demand, lost := v.Demand, best-fraction(v.Quality)
		demand.CPUMilli, demand.MemoryMiB, demand.GPUs = max(demand.CPUMilli, 0), max(demand.MemoryMiB, 0), max(demand.GPUs, 0)
		demand.Cost = mesh.Cost{Tokens: max(q.task.Cost.Tokens, 0), Bytes: max(q.task.Cost.Bytes, 0), AcceleratorMiB: max(q.task.Cost.AcceleratorMiB, 0)}
		d.variants = append(d.variants, variantFacts{
			Variant: v,
			broken:  q.variantBreaks(v),
			run:     span(v.Duration),
			cold:    span(v.ColdStart),
			high:    span(v.DurationHigh),
			hours:   span(v.Duration).Hours(),
			demand:  demand,
			cores:   float64(demand.CPUMilli) / 1000,
			gib:     float64(demand.MemoryMiB) / mibPerGiB,
			usd:     weight(v.USD),
			busyCPU: 1 - fraction(v.IdleCPU),
			busyGPU: 1 - fraction(v.IdleGPU),
			lost:    lost,
			lostUSD: float64(lost * q.policy.QualityUSD),
		})
	}
	slices.SortStableFunc(d.variants, func(a, b variantFacts) int { return cmp.Compare(a.Name, b.Name) })
}

// everyOffer asks for all offers to be held, in the order they were made.
const everyOffer = math.MaxInt

// offer checks and prices every variant at the cell in this position, and holds
// what is among the best n so far. What is ruled out is counted, and told when
// ruled is not nil.
func (d *Decider) offer(q *question, pos, n int, ruled *[]RuledOut) {
	cell := &q.view.Cells[d.cells[pos]]
	known := d.known[pos]
	cellBroken := d.state[pos] | q.cellBreaks(cell)
	avoided := len(q.task.Avoid) > 0 && slices.Contains(q.task.Avoid, cell.ID)
	warm := d.warm[pos] // from this variant's name on
	if cellBroken == 0 {
		d.at(q, cell, known)
	}
	bar := d.barFor(q, n, avoided)
	for i := range d.variants {
		v := &d.variants[i]
		o := d.slot(n)
		broken := cellBroken | v.broken
		if broken == 0 {
			broken = pairBreaks(cell, v) // all later in the order of checks
		}
		if broken == 0 {
			var isWarm bool
			isWarm, warm = nextWarm(warm, len(d.prefix), v.Name)
			q.timing(&o.timing, cell, v, isWarm)
			said := noTime
			if q.late(&o.timing) <= 0 {
				said = d.price(q, o, cell, v, known, bar)
			}
			switch said {
			case noTime:
				broken = 1 << ruleDeadline
			case dearer:
				d.seq++
				d.offers = d.offers[:len(d.offers)-1]
				continue
			case priced:
			}
		}
		if broken == 0 {
			o.cell, o.variant, o.avoided = d.cells[pos], int32(i), avoided
			o.seq = d.seq
			d.seq++
			if d.enter(n) {
				bar = d.barFor(q, n, avoided)
			}
			continue
		}
		r := broken.first()
		d.counts[r]++
		if ruled != nil {
			*ruled = append(*ruled, RuledOut{
				Cell: cell.ID, Region: cell.Region, Variant: v.Name,
				Constraint: r.constraint(), Detail: q.detail(r, cell, v, &o.timing),
			})
		}
		d.offers = d.offers[:len(d.offers)-1]
	}
}

// slot is room for one more offer, at the end of all. An offer that is not
// entered is taken off the end again.
func (d *Decider) slot(n int) *offer {
	if len(d.offers) == cap(d.offers) {
		d.offers = slices.Grow(d.offers, min(n, 3*len(d.cells)*len(d.variants)/2)+1)
	}
	d.offers = d.offers[:len(d.offers)+1]
	return &d.offers[len(d.offers)-1]
}

// barFor is the score above which an offer is not among the best n: that of the
// last of them, if there are as many. Avoided offers are behind all others.
func (d *Decider) barFor(q *question, n int, avoided bool) float64 {
	if len(d.order) < n || q.puttable {
		return math.Inf(1)
	}
	switch worst := &d.offers[d.order[n-1]]; {
	case worst.avoided == avoided:
		return worst.score
	case avoided:
		return -1
	}
	return math.Inf(1)
}

// enter takes the last offer into the order of the best n, and reports whether
// it is among them. One that falls out gives its slot to the last.
func (d *Decider) enter(n int) bool {
	last := int32(len(d.offers) - 1)
	if n == everyOffer {
		return false
	}
	at := len(d.order)
	if at == n {
		worst := d.order[n-1]
		if !d.before(last, worst) {
			d.offers = d.offers[:last]
			return false
		}
		d.offers[worst] = d.offers[last]
		d.offers = d.offers[:last]
		last = worst
		at--
	} else {
		d.order = append(d.order, last)
	}
	for ; at > 0 && d.before(last, d.order[at-1]); at-- {
		d.order[at] = d.order[at-1]
	}
	d.order[at] = last
	return true
}

// before is compare(i, j) < 0, the scores first.
func (d *Decider) before(i, j int32) bool {
	a, b := &d.offers[i], &d.offers[j]
	if a.avoided == b.avoided && a.score != b.score {
		return a.score < b.score
	}
	return d.compare(i, j) < 0
}

// compare orders offers: cells to avoid last, then by score, what is paid and
// expected finish; their own order is that of cell and variant names.
func (d *Decider) compare(i, j int32) int {
	a, b := &d.offers[i], &d.offers[j]
	if a.avoided != b.avoided {
		if b.avoided {
			return -1
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(a.score, b.score),
		cmp.Compare(a.usd, b.usd),
		cmp.Compare(a.total(), b.total()),
		cmp.Compare(a.seq, b.seq),
	)
}

// best returns the n best offers, or all, best first. The slice is scratch.
func (d *Decider) best(n int) []int32 {
	if n < everyOffer {
		return d.order
	}
	for i := range d.offers {
		d.order = append(d.order, int32(i))
	}
	slices.SortFunc(d.order, d.compare)
	return d.order
}

// candidate is the offer in the words of a decision.
func (d *Decider) candidate(q *question, o *offer) Candidate {
	cell, v := &q.view.Cells[o.cell], &d.variants[o.variant]
	c := Candidate{
		Cell: cell.ID, Region: cell.Region, Variant: v.Name,
		Start:  q.now.Add(q.way(&o.timing) + o.wait + o.put),
		Finish: q.now.Add(o.total()),
		Pieces: d.piecesOf(q, o, cell, v),
		Terms:  o.terms, Score: o.score,
		KWh: o.kwh, GCO2eq: o.grams, Intensity: o.intensity,
		USD:     o.usd,
		Quality: fraction(v.Quality),
		Wait:    o.wait, Put: o.put, Pause: o.pause, Cold: o.cold, Fetch: o.fetch, Run: o.run, RTT: o.rtt,
		Warm:          o.warm,
		DigestVersion: cell.Version, DigestAge: cell.Age,
	}
	c.NetworkKWh, c.NetworkGCO2eq = q.network(cell, o.known)
	if len(q.task.Inputs) > 0 {
		h := d.haulTo(q, cell, o.known)
		c.NetworkKWh, c.NetworkGCO2eq = c.NetworkKWh+h.kwh, c.NetworkGCO2eq+h.grams
	}
	c.EmbodiedGCO2eq = embodied(cell, v, gpuOf(cell, v))
	if o.known {
		c.Forecast = cell.Energy.Forecast
	}
	if o.free {
		c.Free = cell.Free.Count(&v.demand, freeLimit)
	}
	return c
}

func (d *Decider) constraintCounts() []ConstraintCount {
	n := 0
	for _, count := range d.counts {
		if count > 0 {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	out := make([]ConstraintCount, 0, n)
	for r, count := range d.counts {
		if count > 0 {
			out = append(out, ConstraintCount{Constraint: rule(r).constraint(), Count: count})
		}
	}
	return out
}

// weight is a price that can be computed with: zero for one that cannot.
func weight(x float64) float64 {
	if !usable(x) {
		return 0
	}
	return x
}
