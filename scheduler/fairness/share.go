package fairness

import (
	"container/heap"
	"math"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// amounts is a vector over resources: CPU in thousandths, memory in MiB, then
// accelerators by model.
type amounts []float64

func (a amounts) at(i int) float64 {
	if i < len(a) {
		return a[i]
	}
	return 0
}

// tenant is what one tenant uses.
type tenant[K comparable] struct {
	name   string
	seats  [4]*seat[K]
	now    amounts // of what runs
	late   amounts // moving average of now, with time constant Memory
	at     time.Time
	served uint64  // when it was served last, in turns
	share  float64 // what it is ranked by
	weight float64
}

func (o *Order[K]) tenant(name string, now time.Time) *tenant[K] {
	t := o.tenants[name]
	if t == nil {
		t = &tenant[K]{name: name, at: now, weight: positive(o.weight(name))}
		o.tenants[name] = t
	}
	return t
}

func positive(w float64) float64 {
	if w > 0 {
		return w
	}
	return 1
}

// Capacity says what there is to share. A resource that is not there counts as
// used whole by whoever uses any of it.
func (o *Order[K]) Capacity(c mesh.Capacity) {
	o.total = append(o.total[:0], float64(c.CPUMilli), float64(c.MemoryMiB))
	for _, g := range c.GPUs {
		o.total = put(o.total, o.model(g.Model), float64(g.Count))
	}
	o.at = time.Time{} // every share is another
}

// model is where an accelerator model stands in amounts.
func (o *Order[K]) model(name string) int {
	i, ok := o.models[name]
	if !ok {
		i = 2 + len(o.models)
		o.models[name] = i
	}
	return i
}

func put(a amounts, i int, add float64) amounts {
	for len(a) <= i {
		a = append(a, 0)
	}
	a[i] += add
	return a
}

// Take says that the tenant began to use the demand; Give, that it no longer
// does. Each Take is given back once, with the same demand.
func (o *Order[K]) Take(owner string, d mesh.Demand, now time.Time) { o.use(owner, d, 1, now) }

// Give undoes Take.
func (o *Order[K]) Give(owner string, d mesh.Demand, now time.Time) { o.use(owner, d, -1, now) }

func (o *Order[K]) use(owner string, d mesh.Demand, sign float64, now time.Time) {
	t := o.tenant(owner, now)
	t.advance(now)
	t.now = put(t.now, 0, sign*float64(d.CPUMilli))
	t.now = put(t.now, 1, sign*float64(d.MemoryMiB))
	if d.GPUs > 0 {
		t.now = put(t.now, o.model(d.GPUModel), sign*float64(d.GPUs))
	}
	o.rank(t)
	o.fix(t)
}

// advance lets time pass for what ran of late.
func (t *tenant[K]) advance(now time.Time) {
	dt := now.Sub(t.at)
	if dt <= 0 {
		return
	}
	t.at = now
	keep := math.Exp(-dt.Seconds() / Memory.Seconds())
	for len(t.late) < len(t.now) {
		t.late = append(t.late, 0)
	}
	for i := range t.late {
		t.late[i] = t.now.at(i) + (t.late[i]-t.now.at(i))*keep
	}
}

// rank computes the dominant share over the weight.
func (o *Order[K]) rank(t *tenant[K]) {
	t.share = 0
	for i := range max(len(t.now), len(t.late)) {
		used := t.now.at(i) + t.late.at(i)
		if used > quiet {
			t.share = max(t.share, used/max(o.total.at(i), 1))
		}
	}
	t.share /= t.weight
}

// quiet is the amount below which nothing is used: a millionth of a core, a
// thousandth of a MiB. Averages come near zero and never reach it.
const quiet = 1e-3

// refresh brings every share up to date and forgets tenants that neither wait
// nor used anything of late.
func (o *Order[K]) refresh(now time.Time) {
	o.at = now
	for name, t := range o.tenants { // any order
		t.advance(now)
		t.weight = positive(o.weight(name))
		o.rank(t)
		if t.share == 0 && t.seats == [4]*seat[K]{} && t.idle() {
			delete(o.tenants, name)
		}
	}
	for i := range o.lanes {
		heap.Init(&o.lanes[i].seats)
	}
}

func (t *tenant[K]) idle() bool {
	for _, n := range t.now {
		if n > quiet || n < -quiet {
			return false
		}
	}
	return true
}
