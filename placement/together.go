package placement

import (
	"math"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Together is the record of tasks that were decided at once.
type Together struct {
	// Chosen is by task; nil where nothing may run it, or nothing has room in
	// time. Each says what its cell's shadow price added to the score.
	Chosen []*Candidate
	// Scarcity is the shadow price of each cell's free capacity, in the order of
	// View.Cells: what a core, a GiB, an accelerator more for an hour of the mean
	// run would have saved. Cells with room for all who want it have zeros.
	Scarcity []Prices
	// Cost is the sum of the scores without scarcity, and Bound is at most what
	// any choice costs that keeps what is free, even if tasks could be divided.
	Cost, Bound float64
	Unplaced    int
}

// DecideAll decides for many tasks of one home at once. What they take together
// of a cell is at most what is free there; the rest queues, which costs them the
// wait, or goes elsewhere: those first that lose least by it. It decides about
// starting now, so Task.StartBy and Cell.Booked count as unset. The order of
// tasks and cells does not matter but between equals.
func DecideAll(tasks []Task, view View, policy Policy, now time.Time, opts Options) Together {
	var d Decider
	return d.DecideAll(tasks, view, policy, now, opts)
}

// lot is the scratch of DecideAll.
type lot struct {
	batch  Batch
	models []string // of accelerators: resources resourceGPU and on
	ways   []lotWay
	cells  []Cell
	hours  float64 // of the mean run
	// nothing is the need of work that queues.
	nothing int
}

// lotWay is what a way of the batch stands for.
type lotWay struct {
	cell, variant int32
	queued        bool
}

// The resources of a cell, as a batch counts them.
const (
	resourceCPU = iota
	resourceMemory
	resourceGPU
)

// DecideAll is the function DecideAll.
func (d *Decider) DecideAll(tasks []Task, view View, policy Policy, now time.Time, opts Options) Together {
	d.lot.reset(view)
	first := make([]int32, 0, len(tasks)+1)
	for i := range tasks {
		first = append(first, int32(len(d.lot.ways)))
		d.enlist(tasks[i], view, policy, now, opts)
	}
	solved := d.lot.batch.Solve()
	out := Together{
		Chosen: make([]*Candidate, len(tasks)), Cost: solved.Cost, Bound: solved.Bound, Unplaced: solved.Refused,
		Scarcity: d.lot.scarcity(solved.Prices, len(tasks)),
	}
	d.lot.cells = append(d.lot.cells[:0], view.Cells...)
	for i := range d.lot.cells {
		d.lot.cells[i].Booked, d.lot.cells[i].Scarcity = nil, &out.Scarcity[i]
	}
	for i, k := range solved.Chosen {
		if k < 0 {
			continue
		}
		out.Chosen[i] = d.detail(tasks[i], policy, now, opts, d.lot.ways[first[i]+int32(k)])
	}
	return out
}

// reset begins a batch over the free capacity of the view.
func (l *lot) reset(view View) {
	l.models, l.ways, l.hours = l.models[:0], l.ways[:0], 0
	for i := range view.Cells {
		for _, g := range view.Cells[i].Free.GPUs {
			l.models = append(l.models, g.Model)
		}
	}
	slices.Sort(l.models)
	l.models = slices.Compact(l.models)
	n := resourceGPU + len(l.models)
	room := make([]float64, n*len(view.Cells))
	for i := range view.Cells {
		free := &view.Cells[i].Free
		room[i*n+resourceCPU], room[i*n+resourceMemory] = float64(max(free.CPUMilli, 0)), float64(max(free.MemoryMiB, 0))
		for _, g := range free.GPUs {
			room[i*n+resourceGPU+slices.Index(l.models, g.Model)] = float64(max(g.Count, 0))
		}
	}
	l.batch.Reset(n, room)
	l.nothing = l.batch.Need()
}

// enlist adds a task: a way for each offer that has room now, and one for
// queueing where that is cheapest. Queues are not bounded.
func (d *Decider) enlist(task Task, view View, policy Policy, now time.Time, opts Options) {
	task.StartBy, task.Interruptible = time.Time{}, false
	q := d.prepare(&task, &view, policy, now, opts)
	for pos := range d.cells {
		d.offer(&q, pos, everyOffer, nil)
	}
	most, hours := 0.0, 0.0
	queue, least := int32(-1), math.Inf(1) // the cheapest to queue at
	need, needOf, model := 0, int32(-1), ""
	for i := range d.offers {
		o := &d.offers[i]
		v := &d.variants[o.variant]
		cell := &view.Cells[o.cell]
		most, hours = max(most, o.score), max(hours, v.hours)
		score := o.score
		if o.free {
			if m := gpuModel(cell, v.demand); needOf != o.variant || m != model {
				need, needOf, model = d.lot.need(v.demand, m), o.variant, m
			}
			d.lot.batch.Way(score, int(o.cell), need)
			d.lot.ways = append(d.lot.ways, lotWay{cell: o.cell, variant: o.variant})
			wait := q.full(cell, v)
			if q.deadline && o.total()+wait > q.left {
				continue
			}
			score += float64(wait.Seconds() * q.policy.LatencyUSDPerS)
		}
		if score < least {
			queue, least = int32(i), score
		}
	}
	if queue >= 0 {
		o := &d.offers[queue]
		d.lot.batch.Way(least, int(o.cell), d.lot.nothing)
		d.lot.ways = append(d.lot.ways, lotWay{cell: o.cell, variant: o.variant, queued: true})
	}
	d.lot.hours += hours
	const more = 1e-6 // than nothing
	d.lot.batch.Task(10*most + more)
}

// need of a demand in the batch.
func (l *lot) need(d mesh.Demand, model string) int {
	uses := [...]Use{
		{resourceCPU, float64(d.CPUMilli)}, {resourceMemory, float64(d.MemoryMiB)},
		{resourceGPU + max(slices.Index(l.models, model), 0), float64(d.GPUs)},
	}
	if d.GPUs == 0 {
		return l.batch.Need(uses[:2]...)
	}
	return l.batch.Need(uses[:]...)
}

// scarcity is the prices of the batch in the unit of a cell's prices.
func (l *lot) scarcity(prices []float64, tasks int) []Prices {
	n := resourceGPU + len(l.models)
	hours := l.hours / float64(max(tasks, 1))
	if hours <= 0 {
		hours = 1
	}
	out := make([]Prices, len(prices)/n)
	for i := range out {
		p := prices[i*n : (i+1)*n]
		out[i] = Prices{CPUHour: p[resourceCPU] * 1000 / hours, MemoryGiBHour: p[resourceMemory] * mibPerGiB / hours}
		for k, model := range l.models {
			if x := p[resourceGPU+k]; x > 0 {
				out[i].GPUHour = append(out[i].GPUHour, ModelPrice{model, x / hours})
			}
		}
	}
	return out
}

// detail is the candidate that a way of the batch stands for.
func (d *Decider) detail(task Task, policy Policy, now time.Time, opts Options, w lotWay) *Candidate {
	task.StartBy, task.Interruptible = time.Time{}, false
	cell := &d.lot.cells[w.cell]
	free := cell.Free
	if w.queued {
		cell.Free = mesh.Capacity{}
	}
	view := View{Cells: d.lot.cells}
	q := d.prepare(&task, &view, policy, now, opts)
	for pos, i := range d.cells {
		if i == w.cell {
			d.offer(&q, pos, everyOffer, nil)
		}
	}
	var out *Candidate
	for i := range d.offers {
		if d.offers[i].variant == w.variant {
			c := d.candidate(&q, &d.offers[i])
			out = &c
		}
	}
	cell.Free = free
	return out
}
