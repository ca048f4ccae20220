package placement

import (
	"cmp"
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
// cells does not matter, nor does that of tasks whose IDs differ. As in Decide,
// a cell of Task.Avoid is taken only where nothing else is allowed.
func DecideAll(tasks []Task, view View, policy Policy, now time.Time, opts Options) Together {
	var d Decider
	return d.DecideAll(tasks, view, policy, now, opts)
}

// lot is the scratch of DecideAll.
type lot struct {
	batch  Batch
	models []string // of accelerators: resources resourceGPU and on
	tasks  []int32  // indexes of the tasks, in the order of the batch
	first  []int32  // by place in it: the task's first way
	ways   []lotWay
	cells  []Cell
	task   Task    // the one that is asked about
	hours  float64 // of all runs
	// nothing is the need of work that queues.
	nothing int
}

// lotWay is what a way of the batch stands for.
type lotWay struct {
	pos, variant int32 // pos is the cell's, in Decider.cells
	queued       bool
}

// The resources of a cell, as a batch counts them.
const (
	resourceCPU = iota
	resourceMemory
	resourceGPU
)

// DecideAll is the function DecideAll.
func (d *Decider) DecideAll(tasks []Task, view View, policy Policy, now time.Time, opts Options) Together {
	here := View{Cells: d.lot.alone(view), Routes: view.Routes}
	q := d.survey(&here, policy, now, opts)
	d.lot.reset(here, d.cells)
	d.lot.order(tasks)
	for _, i := range d.lot.tasks {
		d.lot.first = append(d.lot.first, int32(len(d.lot.ways)))
		d.enlist(&q, &tasks[i])
	}
	solved := d.lot.batch.Solve()
	out := Together{
		Chosen: make([]*Candidate, len(tasks)), Cost: solved.Cost, Bound: solved.Bound, Unplaced: solved.Refused,
		Scarcity: make([]Prices, len(here.Cells)),
	}
	for pos, p := range d.lot.scarcity(solved.Prices, len(tasks)) {
		i := d.cells[pos]
		out.Scarcity[i], here.Cells[i].Scarcity = p, &out.Scarcity[i]
	}
	details := make([]Candidate, len(tasks)-solved.Refused)
	for n, k := range solved.Chosen {
		if k < 0 {
			continue
		}
		i := d.lot.tasks[n]
		out.Chosen[i], details = &details[0], details[1:]
		d.detail(&q, &tasks[i], d.lot.ways[d.lot.first[n]+int32(k)], out.Chosen[i])
	}
	return out
}

// order puts the tasks into the order of their IDs; those of equal IDs keep the
// order given.
func (l *lot) order(tasks []Task) {
	l.tasks = l.tasks[:0]
	sorted := true
	for i := range tasks {
		l.tasks = append(l.tasks, int32(i))
		sorted = sorted && (i == 0 || tasks[i-1].ID <= tasks[i].ID)
	}
	if !sorted {
		slices.SortStableFunc(l.tasks, func(a, b int32) int { return cmp.Compare(tasks[a].ID, tasks[b].ID) })
	}
}

// alone copies the cells, without what does not count.
func (l *lot) alone(view View) []Cell {
	l.cells = append(l.cells[:0], view.Cells...)
	for i := range l.cells {
		l.cells[i].Booked, l.cells[i].Scarcity = nil, nil
	}
	return l.cells
}

// reset begins a batch over the free capacity of the cells, in this order.
func (l *lot) reset(view View, order []int32) {
	l.models, l.first, l.ways, l.hours = l.models[:0], l.first[:0], l.ways[:0], 0
	for i := range view.Cells {
		for _, g := range view.Cells[i].Free.GPUs {
			l.models = append(l.models, g.Model)
		}
	}
	slices.Sort(l.models)
	l.models = slices.Compact(l.models)
	n := resourceGPU + len(l.models)
	room := make([]float64, n*len(order))
	for i, cell := range order {
		free := &view.Cells[cell].Free
		room[i*n+resourceCPU], room[i*n+resourceMemory] = float64(max(free.CPUMilli, 0)), float64(max(free.MemoryMiB, 0))
		for _, g := range free.GPUs {
			room[i*n+resourceGPU+slices.Index(l.models, g.Model)] = float64(max(g.Count, 0))
		}
	}
	l.batch.Reset(n, room)
	l.nothing = l.batch.Need()
}

// now makes the question one about starting the task now.
func (d *Decider) now(q *question, task *Task) {
	d.lot.task = *task
	d.lot.task.StartBy, d.lot.task.Interruptible = time.Time{}, false
	d.ask(q, &d.lot.task)
}

// enlist adds a task: a way for each offer that has room now, and one for
// queueing where that is cheapest. Queues are not bounded.
func (d *Decider) enlist(q *question, task *Task) {
	d.now(q, task)
	for pos := range d.cells {
		d.offer(q, pos, everyOffer, nil)
	}
	most, hours := 0.0, 0.0
	queue, least := lotWay{pos: -1}, math.Inf(1) // the cheapest to queue at
	need, needOf, model := 0, int32(-1), ""
	avoid := d.someAvoided()
	for i, pos := 0, 0; i < len(d.offers); i++ {
		o := &d.offers[i]
		for d.cells[pos] != o.cell {
			pos++
		}
		if avoid && o.avoided {
			continue
		}
		v := &d.variants[o.variant]
		cell := &q.view.Cells[o.cell]
		most, hours = max(most, o.score), max(hours, v.hours)
		score := o.score
		w := lotWay{pos: int32(pos), variant: o.variant}
		if o.free {
			if m := gpuModel(cell, &v.demand); needOf != o.variant || m != model {
				need, needOf, model = d.lot.need(v.demand, m), o.variant, m
			}
			d.lot.batch.Way(score, pos, need)
			d.lot.ways = append(d.lot.ways, w)
			if score >= least {
				continue // to wait there costs no less
			}
			wait := q.full(cell, v)
			if q.deadline && o.total()+wait > q.left {
				continue
			}
			score += float64(wait.Seconds() * q.policy.LatencyUSDPerS)
		}
		if score < least {
			queue, least = w, score
		}
	}
	if queue.pos >= 0 {
		queue.queued, most = true, max(most, least) // to be refused is dearer than to wait
		d.lot.batch.Way(least, int(queue.pos), d.lot.nothing)
		d.lot.ways = append(d.lot.ways, queue)
	}
	d.lot.hours += hours
	const more = 1e-6 // than nothing
	d.lot.batch.Task(10*most + more)
}

// someAvoided reports whether some of the offers, and not all, are at cells to
// avoid.
func (d *Decider) someAvoided() bool {
	some, all := false, true
	for i := range d.offers {
		some, all = some || d.offers[i].avoided, all && d.offers[i].avoided
	}
	return some && !all
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

// detail writes the candidate that a way of the batch stands for.
func (d *Decider) detail(q *question, task *Task, w lotWay, out *Candidate) {
	d.now(q, task)
	cell := &q.view.Cells[d.cells[w.pos]]
	free := cell.Free
	if w.queued {
		cell.Free = mesh.Capacity{}
	}
	d.offer(q, int(w.pos), everyOffer, nil)
	for i := range d.offers {
		if d.offers[i].variant == w.variant {
			*out = d.candidate(q, &d.offers[i])
		}
	}
	cell.Free = free
}
