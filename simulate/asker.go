package simulate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/internal/meshfile"
	"github.com/isobar-mesh/isobar/placement"
)

const (
	// plenty is an unlimited capacity, as placement counts it.
	plenty = int64(1) << 60
	// perMilli scales the simulator's millionths to placement's thousandths: a
	// demand is handed over a thousand times too large at a thousandth of the
	// price, so that nothing is rounded.
	perMilli = 1000
	// mibPerGiB: placement counts memory in MiB, and is handed millionths of a
	// GiB for them.
	mibPerGiB = 1024
)

// asker puts the simulator's question into the words of the placement code.
type asker struct {
	w        *world
	opts     *Options
	policy   placement.Policy
	decider  placement.Decider
	foretell forecaster
	views    map[int]*placement.View // by home
	books    []*bookings             // by region
	variants []placement.Variant     // scratch
	meaning  []meaning               // of the variants
}

// meaning is which variant and accelerator a name stands for.
type meaning struct {
	name    string
	variant int
	model   string
}

// question is one decision to make.
type question struct {
	job   *job
	now   time.Duration
	slack time.Duration
	run   expectation
	home  int
	// only is the option of a job that has begun, and part what is left of it.
	only *option
	part time.Duration
	// books are nil when nothing is limited; with stale ones, regions other
	// than home and known are seen as their last digests tell.
	books calendars
	stale *staleness
	known []int
	// dear are the shadow prices of capacity; nil is none.
	dear *scarcity
}

// answer is the plan: at least one piece.
type answer struct {
	option  *option
	plan    []span
	blocked bool
}

func newAsker(w *world, opts *Options) asker {
	a := asker{w: w, opts: opts, views: map[int]*placement.View{}, foretell: newForecaster(w, opts.Forecast)}
	// The objective of the contract: the run itself has no price, and money
	// none but in cost and balanced.
	a.policy = placement.Policy{
		CarbonUSDPerTonne: w.weights.gram * 1e6, LatencyUSDPerS: w.weights.second, DelayUSDPerS: w.weights.second,
		UnpaidUSD: w.weights.usd == 0, UnpricedRun: true,
	}
	for i := range w.regions {
		a.books = append(a.books, &bookings{w: w, region: &w.regions[i]})
	}
	return a
}

// view is the mesh as seen from a home.
func (a *asker) view(home int) *placement.View {
	if v := a.views[home]; v != nil {
		return v
	}
	v := &placement.View{}
	from := a.w.regions[home].Name
	for i := range a.w.regions {
		r := &a.w.regions[i]
		c := placement.Cell{
			Cell:     mesh.Cell{ID: mesh.CellID(r.Name), Region: r.Name, Jurisdictions: r.Jurisdictions},
			Verified: true, Runtimes: []string{runtime},
			Total:           mesh.Capacity{CPUMilli: min(r.caps[resourceCPU], plenty), MemoryMiB: min(r.caps[resourceMemory], plenty)},
			Prices:          placement.Prices{CPUHour: r.USDPerCPUHour / perMilli},
			EgressUSDPerGiB: a.w.mesh.EgressUSDPerGiB(from, r.Name),
			Energy:          placement.Energy{Zone: r.Zone, PUE: r.PUE, Known: true, Kind: string(a.w.table.Kind())},
		}
		if r.WattsPerCPU != nil {
			c.Energy.WattsPerCPU, c.Energy.IdleWattsPerCPU = *r.WattsPerCPU/perMilli, r.IdleWattsPerCPU/perMilli
		}
		c.Energy.EmbodiedPerCPUHour = r.EmbodiedGPerCPUHour / perMilli
		c.Energy.WattsPerGiB = r.WattsPerGiB * mibPerGiB / micro
		if i != home {
			c.NetworkKWhPerGiB = a.w.mesh.NetworkKWhPerGiB
		}
		for k, model := range r.models {
			c.Total.GPUs = append(c.Total.GPUs, mesh.Accelerators{Model: model, Count: r.caps[resourceGPU+k]})
			c.Prices.GPUHour = append(c.Prices.GPUHour, placement.ModelPrice{Model: model, USD: r.USDPerGPUHour[model]})
			c.Energy.WattsPerGPU = append(c.Energy.WattsPerGPU, placement.ModelWatts{
				Model: model, Watts: r.WattsPerGPU[model], Idle: r.IdleWattsPerGPU[model], EmbodiedPerHour: r.EmbodiedGPerGPUHour[model],
			})
		}
		c.Free = c.Total
		if ms, ok := a.w.mesh.RTTMs(from, r.Name); ok {
			c.RTT = time.Duration(ms * float64(time.Millisecond))
		}
		v.Cells = append(v.Cells, c)
	}
	a.views[home] = v
	return v
}

// runtime stands for whatever runs a task of a trace.
const runtime = "trace"

// prepare lists the variants of the job's function, one for each model of
// accelerator it may take.
func (a *asker) prepare(q *question) {
	a.variants, a.meaning = a.variants[:0], a.meaning[:0]
	if q.only != nil {
		only := meshfile.Variant{Name: q.only.name, Quality: 1}
		if f, known := a.w.mesh.Function(q.job.Function); known {
			of := &f.Variants[q.only.variant]
			only.CPUUtilisation, only.GPUUtilisation = of.CPUUtilisation, of.GPUUtilisation
		}
		a.add(q, &only, q.only.variant, q.only.model, q.only.gpu, q.only.cpu, q.part, q.only.kwX)
		return
	}
	j := q.job
	variants := []meshfile.Variant{{DurationX: 1, KwX: 1, Quality: 1}}
	function, known := a.w.mesh.Function(j.Function)
	if known {
		variants = function.Variants
	}
	for k := range variants {
		v := &variants[k]
		place := k
		if !known {
			place = -1
		}
		cpu, gpu := j.CPU, j.GPU
		if v.CPU != nil {
			cpu = *v.CPU
		}
		if v.GPU != nil {
			gpu = *v.GPU
		}
		models := []string{""}
		if gpu > 0 {
			models = a.models(cmp.Or(v.GPUModel, j.GPUModel))
		}
		for _, model := range models {
			a.add(q, v, place, model, gpu, cpu, q.run.scaled(v.DurationX), v.KwX)
		}
	}
}

func (a *asker) add(q *question, v *meshfile.Variant, place int, model string, gpu int64, cpu float64, run time.Duration, kwX float64) {
	j := q.job
	name := v.Name
	if model != "" {
		name += "@" + model
	}
	out := placement.Variant{
		Name: name, Runtime: runtime, Quality: v.Quality, Duration: run,
		Demand: mesh.Demand{CPUMilli: capacity(cpu), MemoryMiB: capacity(j.MemoryGiB), GPUs: gpu, GPUModel: model},
	}
	busyCPU, busyGPU := utilisations(j.Task, v)
	out.IdleCPU, out.IdleGPU = 1-busyCPU, 1-busyGPU
	if j.KW != nil {
		watts := *j.KW * kwX * 1000
		out.Watts = &watts
	}
	a.variants = append(a.variants, out)
	a.meaning = append(a.meaning, meaning{name, place, model})
}

// models are the accelerators of the whole mesh, or the one that is asked for.
func (a *asker) models(asked string) []string {
	if asked != "" {
		return []string{asked}
	}
	var out []string
	for i := range a.w.regions {
		out = append(out, a.w.regions[i].models...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// decide asks the placement code.
func (a *asker) decide(q *question) answer {
	if a.opts.Choice != Joint && q.only == nil {
		if out, ok := a.inSequence(q); ok {
			return out
		}
	}
	j := q.job
	a.prepare(q)
	longest := time.Duration(0)
	for i := range a.variants {
		longest = max(longest, a.variants[i].Duration)
	}
	now := a.w.table.Start().Add(q.now)
	task := placement.Task{
		Function: j.Function, Lane: mesh.Batch, Variants: a.variants, Home: mesh.CellID(j.Home),
		InputBytes: int64(j.InputGiB * (1 << 30)), Residency: mesh.Residency{Allowed: j.Residency},
		StartBy: now.Add(q.slack), Interruptible: j.Interruptible,
	}
	if function, ok := a.w.mesh.Function(j.Function); ok {
		task.MinQuality = function.MinQuality
	}
	if j.MaxRTTMs != nil {
		task.MaxRTT = max(time.Duration(*j.MaxRTTMs*float64(time.Millisecond)), 1)
	}
	view := *a.view(q.home)
	hours := int((q.slack+longest)/hour) + 2
	if q.only != nil {
		view.Cells = view.Cells[q.only.region : q.only.region+1]
		task.Residency, task.MaxRTT, task.MinQuality, task.InputBytes = mesh.Residency{}, 0, 0, 0
	}
	for i := range view.Cells {
		c := &view.Cells[i]
		place := a.w.place[c.Region]
		c.Energy.Intensity = a.foretell.ahead(place, q.now, hours)
		c.Booked, c.Free, c.Scarcity = nil, c.Total, nil
		switch {
		case q.books == nil:
		case q.stale != nil && place != q.home && !slices.Contains(q.known, place):
			c.Free = q.stale.free(q.home, place, c.Total)
		default:
			a.books[place].book = q.books[place]
			c.Booked = a.books[place]
			c.Scarcity = a.scarcity(q, place)
		}
	}
	d := a.decider.Decide(task, view, a.policy, now, placement.Options{NoTravel: true})
	if d.Chosen == nil {
		// Too late already: as soon as it can, whatever it costs.
		task.StartBy, task.Interruptible = time.Time{}, false
		d = a.decider.Decide(task, view, placement.Policy{LatencyUSDPerS: 1, DelayUSDPerS: 1, UnpaidUSD: true, UnpricedRun: true}, now,
			placement.Options{NoTravel: true})
	}
	if d.Chosen == nil {
		// The shape has an option, so a constraint was read in two ways.
		panic(fmt.Sprintf("simulate: task at line %d: placement finds nothing: %s", j.Line, d.Hint))
	}
	return a.answer(q, d.Chosen)
}

// scarcity is the shadow price of the region's capacity now, by how long the
// first option there would wait for room.
func (a *asker) scarcity(q *question, place int) *placement.Prices {
	if q.dear == nil || q.only != nil {
		return nil
	}
	for k := range q.job.shape.options {
		if o := &q.job.shape.options[k]; o.region == place && len(o.need) > 0 {
			return q.dear.at(place, q.now, q.books[place].next(q.now, o.need).from-q.now)
		}
	}
	return nil
}

// answer is the decision in the words of the simulator.
func (a *asker) answer(q *question, c *placement.Candidate) answer {
	out := answer{option: q.only, blocked: c.Wait > 0}
	if out.option == nil {
		m := a.meaning[slices.IndexFunc(a.meaning, func(m meaning) bool { return m.name == c.Variant })]
		place := a.w.place[c.Region]
		options := q.job.shape.options
		i := slices.IndexFunc(options, func(o option) bool {
			return o.region == place && o.variant == m.variant && o.model == m.model
		})
		if i < 0 {
			panic(fmt.Sprintf("simulate: task at line %d: placement chose %s/%s, which the trace does not allow",
				q.job.Line, c.Region, strings.TrimSpace(c.Variant)))
		}
		out.option = &options[i]
	}
	start := a.w.table.Start()
	if c.Pieces != nil {
		for _, p := range c.Pieces {
			out.plan = append(out.plan, span{p.From.Sub(start), p.To.Sub(start)})
		}
		return out
	}
	from := c.Start.Sub(start)
	out.plan = []span{{from, from + c.Run}}
	return out
}

// bookings is a region's calendar as the placement code asks it.
type bookings struct {
	w      *world
	book   *calendar
	region *region
	needs  []amount // scratch
}

var _ placement.Calendar = (*bookings)(nil)

// Next implements placement.Calendar. A demand that is not limited here always
// has room.
func (b *bookings) Next(d mesh.Demand, from time.Time) (start, until time.Time, ok bool) {
	b.needs = b.needs[:0]
	for _, n := range [...]amount{{resourceCPU, d.CPUMilli}, {resourceMemory, d.MemoryMiB}} {
		if c := b.region.caps[n.resource]; n.n > 0 && c != unlimited {
			b.needs = append(b.needs, n)
		}
	}
	if d.GPUs > 0 {
		b.needs = append(b.needs, amount{resourceGPU + slices.Index(b.region.models, d.GPUModel), d.GPUs})
	}
	if len(b.needs) == 0 {
		return from, time.Time{}, true
	}
	epoch := b.w.table.Start()
	s := b.book.next(from.Sub(epoch), b.needs)
	if s.to == forever {
		return epoch.Add(s.from), time.Time{}, true
	}
	return epoch.Add(s.from), epoch.Add(s.to), true
}
