package gossip

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Placement names one attempt that a home gave to a guest cell.
type Placement struct {
	Task    mesh.TaskID
	Attempt uint64
}

func (p Placement) compare(o Placement) int {
	if c := cmp.Compare(p.Task, o.Task); c != 0 {
		return c
	}
	return cmp.Compare(p.Attempt, o.Attempt)
}

// Inflight is a home's own record of the attempts it placed that a guest's
// digest does not show yet. A digest is a second old or more; without this a
// home would send the work of that second to the one cell that looked idle.
// It is not safe for concurrent use.
//
// An attempt counts from Placed until one of these, whichever is first:
// a digest that shows it (Acknowledged tells which), Released, or the timeout.
type Inflight struct {
	timeout time.Duration
	cells   map[mesh.CellID]map[Placement]flight
}

type flight struct {
	demand mesh.Demand
	at     time.Time
	acked  bool
	shown  Version // the earliest digest that counts it, when acked
}

// NewInflight returns an empty record. timeout is how long an attempt may count
// at most: longer than an offer may take to be answered plus the time between
// two digests; 10 s suits digests of 1 s.
func NewInflight(timeout time.Duration) *Inflight {
	return &Inflight{timeout: timeout, cells: map[mesh.CellID]map[Placement]flight{}}
}

// Placed notes that an attempt is on its way to a cell. Noting it again renews
// it.
func (f *Inflight) Placed(cell mesh.CellID, p Placement, demand mesh.Demand, at time.Time) {
	if f.cells[cell] == nil {
		f.cells[cell] = map[Placement]flight{}
	}
	f.cells[cell][p] = flight{demand: demand, at: at}
}

// Acknowledged notes that the cell took the attempt, and the earliest version
// of its digest that counts it. When the answer came with a digest that counts
// it already, that is its version; when the answer only tells which digest was
// the latest then, it is the Next of it. An unknown attempt is ignored.
func (f *Inflight) Acknowledged(cell mesh.CellID, p Placement, shown Version) {
	fl, ok := f.cells[cell][p]
	if !ok {
		return
	}
	fl.acked, fl.shown = true, shown
	f.cells[cell][p] = fl
}

// Released notes that the attempt takes nothing from the cell: it was refused,
// or has ended. An unknown attempt is ignored.
func (f *Inflight) Released(cell mesh.CellID, p Placement) {
	delete(f.cells[cell], p)
	if len(f.cells[cell]) == 0 {
		delete(f.cells, cell)
	}
}

// Prune drops attempts that the snapshot's digests show or that timed out, and
// returns how many timed out. It changes no answer of Corrected for digests as
// new as the snapshot's; it keeps the record small.
func (f *Inflight) Prune(s Snapshot, now time.Time) (timedOut int) {
	for _, cell := range slices.Sorted(maps.Keys(f.cells)) {
		e, known := s.Cell(cell)
		maps.DeleteFunc(f.cells[cell], func(_ Placement, fl flight) bool {
			if f.expired(fl, now) {
				timedOut++
				return true
			}
			return known && fl.reflected(e.Version())
		})
		if len(f.cells[cell]) == 0 {
			delete(f.cells, cell)
		}
	}
	return timedOut
}

func (f *Inflight) expired(fl flight, now time.Time) bool { return now.Sub(fl.at) >= f.timeout }

func (fl flight) reflected(v Version) bool { return fl.acked && v.Compare(fl.shown) >= 0 }

// Corrected is a cell's capacity less what the home placed there since.
type Corrected struct {
	Capacities
	// Pending counts the attempts that were taken off.
	Pending int
}

// Corrected takes the attempts that e does not show off its free capacity. No
// resource falls below zero or rises; an attempt that does not fit any more
// takes what is left. Widest is bounded by what stays free, since which worker
// an attempt went to is not known here.
func (f *Inflight) Corrected(e Entry, now time.Time) Corrected {
	out := Corrected{Capacities: CapacitiesOf(e.Digest)}
	for _, fl := range f.pending(e, now) {
		out.Free = takeUp(out.Free, fl.demand)
		out.Pending++
	}
	out.Widest = lesser(out.Widest, out.Free)
	return out
}

// pending lists the attempts that e does not show, in the order of placing:
// which accelerator an attempt without a model takes depends on that order.
func (f *Inflight) pending(e Entry, now time.Time) []flight {
	cell := f.cells[e.Cell()]
	// Most have been shown: they stay until they end, and need no order.
	var keys []Placement
	for k, fl := range cell { // any order: what is left is sorted
		if !f.expired(fl, now) && !fl.reflected(e.Version()) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b Placement) int {
		if c := cell[a].at.Compare(cell[b].at); c != 0 {
			return c
		}
		return a.compare(b)
	})
	out := make([]flight, len(keys))
	for i, k := range keys {
		out[i] = cell[k]
	}
	return out
}

// takeUp returns c less d, each resource down to zero at most. Accelerators of
// any model come from the first model that has enough, as mesh.Capacity.Take
// picks them; when none has, from the models in turn.
func takeUp(c mesh.Capacity, d mesh.Demand) mesh.Capacity {
	c.CPUMilli = max(c.CPUMilli-max(d.CPUMilli, 0), 0)
	c.MemoryMiB = max(c.MemoryMiB-max(d.MemoryMiB, 0), 0)
	c.Held = c.Held.Plus(mesh.Cost{Tokens: max(d.Cost.Tokens, 0), Bytes: max(d.Cost.Bytes, 0), AcceleratorMiB: max(d.Cost.AcceleratorMiB, 0)})
	if d.GPUs <= 0 {
		return c
	}
	c.GPUs = slices.Clone(c.GPUs)
	takes := func(g mesh.Accelerators) bool { return d.GPUModel == "" || d.GPUModel == g.Model }
	for i, g := range c.GPUs {
		if takes(g) && g.Count >= d.GPUs {
			c.GPUs[i].Count -= d.GPUs
			return c
		}
	}
	left := d.GPUs
	for i, g := range c.GPUs {
		if takes(g) {
			n := min(g.Count, left)
			c.GPUs[i].Count -= n
			left -= n
		}
	}
	return c
}

// lesser is the smaller of two capacities, resource by resource.
func lesser(a, b mesh.Capacity) mesh.Capacity {
	a.CPUMilli = min(a.CPUMilli, b.CPUMilli)
	a.MemoryMiB = min(a.MemoryMiB, b.MemoryMiB)
	a.GPUs = slices.Clone(a.GPUs)
	for i, g := range a.GPUs {
		a.GPUs[i].Count = min(g.Count, b.GPU(g.Model))
	}
	return a
}
