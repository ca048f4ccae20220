package scheduler

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// view is the mesh as this leader sees it, in the form placement wants. A
// digest is old when it is read; what this home placed since is corrected for,
// so that many decisions on one digest do not stampede onto one cell.
type view struct {
	s        *Scheduler
	decider  placement.Decider
	cells    []placement.Cell
	index    map[mesh.CellID]int
	digests  map[mesh.CellID]gossip.Entry
	inflight *gossip.Inflight
	built    time.Time
	seq      uint64
	shape    uint64 // of cells, see shapeOf
	changed  bool   // the shape has, since news was asked for
	// scarcity is what room is worth to the tasks that wait, by cell, and weighed
	// when that was found.
	scarcity map[mesh.CellID]*placement.Prices
	weighed  time.Time
	// forecasts tells one state of all cells' intensities from another.
	forecasts uint64
}

func newView(s *Scheduler) *view {
	return &view{
		s: s, index: map[mesh.CellID]int{}, digests: map[mesh.CellID]gossip.Entry{}, inflight: gossip.NewInflight(s.CellLease),
	}
}

func (v *view) placement() placement.View { return placement.View{Cells: v.cells, Routes: v.s.Routes} }

// maxViewAge is how long a view is used before ages and health are read again.
const maxViewAge = 200 * time.Millisecond

// refresh brings the view up to date; the caller holds the leader's lock.
func (v *view) refresh(now time.Time, l *leader) {
	if now.Sub(v.built) < maxViewAge {
		return
	}
	v.built = now
	cells := []placement.Cell{v.ownCell(now)}
	for _, n := range v.s.Neighbours.All() {
		if n.Digest != nil {
			v.learn(n.Digest, n.Received)
		}
		if e, ok := v.digests[n.ID]; ok {
			cells = append(cells, v.cell(n, e, now))
		}
	}
	slices.SortFunc(cells, func(a, b placement.Cell) int { return cmp.Compare(a.ID, b.ID) })
	v.cells = cells
	clear(v.index)
	for i, c := range cells {
		v.index[c.ID] = i
	}
	for id := range v.digests {
		v.correct(id, now)
	}
	v.own(l)
	l.waiting.order.Capacity(v.capacity(l))
	v.built = now
	v.forecasts = forecastsOf(v.cells)
	shape := shapeOf(v.cells)
	v.changed, v.shape = v.changed || shape != v.shape, shape
}

// news reports whether places changed since it was asked last: those that what
// was parked may run in.
func (v *view) news() bool {
	changed := v.changed
	v.changed = false
	return changed
}

// shapeOf hashes what decides whether a task can run somewhere: cells, their
// health, what they have in all. What is free decides only when.
func shapeOf(cells []placement.Cell) uint64 {
	h := fnv.New64a()
	for i := range cells {
		c := &cells[i]
		_, _ = fmt.Fprintln(h, c.ID, c.Verified, c.Unhealthy == "", c.Total, c.Runtimes) // Total has the bounds on costs
	}
	return h.Sum64()
}

// learn takes a digest if it is newer than the one known.
func (v *view) learn(d *meshv1.Digest, received time.Time) {
	if d == nil || mesh.CellID(d.Cell) == v.s.Cell.ID {
		return
	}
	known, ok := v.digests[mesh.CellID(d.Cell)]
	if ok && d.Incarnation == known.Incarnation() && gossip.VersionOf(d).Compare(known.Version()) <= 0 {
		return
	}
	v.digests[mesh.CellID(d.Cell)] = gossip.Entry{Digest: d, At: received}
	v.built = time.Time{}
}

// hear learns the digest that came with a message of a cell, which speaks for
// nobody else.
func (v *view) hear(from mesh.CellID, d *meshv1.Digest) {
	if mesh.CellID(d.GetCell()) == from {
		v.learn(d, time.Now())
	}
}

// took counts an attempt against a cell until a digest of it does.
func (v *view) took(id mesh.CellID, r ref, d mesh.Demand, now time.Time) {
	v.inflight.Placed(id, placementOf(r), d, now)
	v.correct(id, now)
}

// acknowledged says from which digest on the cell itself counts the attempt.
func (v *view) acknowledged(id mesh.CellID, r ref, d *meshv1.Digest) {
	if d != nil {
		v.inflight.Acknowledged(id, placementOf(r), gossip.VersionOf(d))
	}
}

// freed stops counting an attempt.
func (v *view) freed(id mesh.CellID, r ref) {
	v.inflight.Released(id, placementOf(r))
	v.correct(id, time.Now())
}

func placementOf(r ref) gossip.Placement {
	return gossip.Placement{Task: mesh.TaskID(r.task), Attempt: r.attempt}
}

// correct sets the cell's free room: the digest's, less what it does not show.
func (v *view) correct(id mesh.CellID, now time.Time) {
	i, ok := v.index[id]
	e, known := v.digests[id]
	if ok && known {
		v.cells[i].Free = v.inflight.Corrected(e, now).Free
	}
}

func (v *view) incarnation(id mesh.CellID) string {
	e, ok := v.digests[id]
	if !ok {
		return ""
	}
	return e.Incarnation()
}

// cell is another cell's row, without its free room.
func (v *view) cell(n Neighbour, e gossip.Entry, now time.Time) placement.Cell {
	d := e.Digest
	link := v.s.Links(n.Region)
	c := placement.Cell{
		Cell: n.Cell, Unhealthy: d.Health, Verified: n.Verified, Version: d.Sequence, Age: e.Age(now),
		Total: gossip.CapacitiesOf(d).Total, Backlog: gossip.WaitOf(d), Runtimes: d.Runtimes, RTT: cmp.Or(n.RTT, link.RTT),
		EgressUSDPerGiB: link.EgressUSDPerGiB, ReturnUSDPerGiB: link.ReturnUSDPerGiB,
		NetworkKWhPerGiB: link.NetworkKWhPerGiB,
		Prices:           placement.Prices{CPUHour: micro(d.CpuHour), MemoryGiBHour: micro(d.MemoryGibHour)},
		Energy: placement.Energy{
			Zone: d.Zone, WattsPerCPU: thousandths(d.MilliwattsPerCpu), PUE: float64(d.PueMilli) / 1000,
			IdleWattsPerCPU: thousandths(d.IdleMilliwattsPerCpu), WattsPerGiB: thousandths(d.MilliwattsPerGib),
			EmbodiedPerCPUHour: thousandths(d.EmbodiedMgPerCpuHour),
			Known:              d.CarbonKind != 0 && len(d.Carbon) > 0, Kind: carbonKind(d.CarbonKind), Forecast: ForecastOf(d),
		},
	}
	if !n.Reachable {
		c.Unhealthy = cmp.Or(c.Unhealthy, "not reachable")
	}
	if c.Age > staleAfter {
		c.Unhealthy = cmp.Or(c.Unhealthy, "not heard of for "+c.Age.Round(time.Second).String())
	}
	for _, g := range d.Gpus {
		c.Prices.GPUHour = append(c.Prices.GPUHour, placement.ModelPrice{Model: g.Model, USD: micro(g.Hour)})
		c.Energy.WattsPerGPU = append(c.Energy.WattsPerGPU, placement.ModelWatts{
			Model: g.Model, Watts: thousandths(g.Milliwatts), Idle: thousandths(g.IdleMilliwatts), EmbodiedPerHour: thousandths(g.EmbodiedMgPerHour),
		})
	}
	c.Energy.Step = time.Duration(min(d.CarbonStepUs, uint64(maxStep/time.Microsecond))) * time.Microsecond
	if d.CarbonFromMs > 0 {
		c.Energy.From = time.UnixMilli(d.CarbonFromMs)
	}
	for _, x := range d.Carbon {
		c.Energy.Intensity = append(c.Energy.Intensity, float64(x))
	}
	c.Warm = v.warmNames(d)
	return c
}

// maxStep bounds how long an hour of another cell's feed may be said to last.
const maxStep = 365 * 24 * time.Hour

// staleAfter is the age past which a digest no longer speaks for its cell: five
// to ten publications missed.
const staleAfter = 10 * time.Second

// warmNames finds which function variants the digest's hashes mean.
func (v *view) warmNames(d *meshv1.Digest) []string {
	var names []string
	for _, h := range d.Warm {
		if name, ok := v.s.learned.named(h); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// ownCell is this cell's row but for what changes with each dispatch.
func (v *view) ownCell(time.Time) placement.Cell {
	return placement.Cell{Cell: v.s.Cell, Verified: true, Prices: v.s.Prices, Energy: v.s.Carbon()}
}

// own brings this cell's room, backlog and warm variants up to date. Free is
// the widest worker's, since one attempt runs on one worker.
func (v *view) own(l *leader) {
	i, ok := v.index[v.s.Cell.ID]
	if !ok {
		return
	}
	c := &v.cells[i]
	c.Total, c.Free, c.Unhealthy = mesh.Capacity{}, mesh.Capacity{}, ""
	c.Runtimes, c.Warm = c.Runtimes[:0], c.Warm[:0]
	for _, s := range l.sessions {
		if !l.takes(s) && !s.polls {
			continue
		}
		c.Total = c.Total.Widest(s.whole())
		if l.takes(s) { // one that polls comes back: what only it can run waits for it
			c.Free = c.Free.Widest(s.free)
		}
		c.Runtimes = append(c.Runtimes, s.runtimes...)
		for w := range s.warm {
			c.Warm = append(c.Warm, w)
		}
	}
	slices.Sort(c.Runtimes)
	c.Runtimes = slices.Compact(c.Runtimes)
	slices.Sort(c.Warm)
	c.Backlog = l.waits()
}

// capacity is all there is to share: this cell's workers and the other cells.
func (v *view) capacity(l *leader) mesh.Capacity {
	var all mesh.Capacity
	for _, s := range l.sessions {
		all = all.Plus(s.total)
	}
	for i := range v.cells {
		if v.cells[i].ID != v.s.Cell.ID {
			all = all.Plus(v.cells[i].Total)
		}
	}
	return all
}

// waits estimates how long a new task waits in each lane when nothing is free:
// the work that waits ahead of it, at the rate this cell's workers do it. It
// reads every queue that has work, so it is done anew only as often as the view.
func (l *leader) waits() [4]time.Duration {
	if now := time.Now(); now.Sub(l.waited.at) >= maxViewAge {
		l.waited.at, l.waited.lanes = now, l.waitsNow()
	}
	return l.waited.lanes
}

func (l *leader) waitsNow() [4]time.Duration {
	slots := l.slots()
	var work [4]float64
	for k, q := range l.waiting.queues {
		n := float64(len(q.items))
		if q.more {
			n = float64(fsm.QueueCounts(l.State, k.Queue).Ready)
		}
		work[k.Lane] += n * l.meanRun(k.Queue)
	}
	var out [4]time.Duration
	ahead := 0.0
	for _, lane := range mesh.Lanes() {
		ahead += work[lane]
		out[lane] = time.Duration(ahead / slots * float64(time.Second))
	}
	return out
}

// slots is how many cores this cell's workers have; at least one.
func (l *leader) slots() float64 {
	var n float64
	for _, s := range l.sessions {
		n += float64(s.total.CPUMilli) / 1000
	}
	return max(n, 1)
}

// meanRun is the expected run time of a function's first variant, in seconds.
func (l *leader) meanRun(q fsm.Queue) float64 {
	fn, err := l.Registry.Function(q.Tenant, q.Function)
	if err != nil || len(fn.Spec.Variants) == 0 {
		return 0.1
	}
	return max(l.learned.run(fn.Version, fn.Spec.Variants[0]).Seconds(), 0.001)
}

// Digest is what this cell says about itself; nil when this server does not
// lead.
func (s *Scheduler) Digest() *meshv1.Digest {
	l := s.current()
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.digestLocked(time.Now())
}

func (l *leader) digestLocked(_ time.Time) *meshv1.Digest {
	l.view.seq++
	e := l.Carbon()
	d := &meshv1.Digest{
		CarbonForecast: uint32(max(slices.Index(forecasts(), e.Forecast), 0)),
		Cell:           string(l.Cell.ID), Region: l.Cell.Region, Incarnation: l.incarnation, Term: l.term, Sequence: l.view.seq,
		CpuHour: toMicro(l.Prices.CPUHour), MemoryGibHour: toMicro(l.Prices.MemoryGiBHour),
		Zone: e.Zone, CarbonKind: carbonNumber(e), MilliwattsPerCpu: toThousandths(e.WattsPerCPU), PueMilli: uint32(e.PUE*1000 + 0.5),
		IdleMilliwattsPerCpu: toThousandths(e.IdleWattsPerCPU), MilliwattsPerGib: toThousandths(e.WattsPerGiB),
		EmbodiedMgPerCpuHour: toThousandths(e.EmbodiedPerCPUHour),
		Registry:             l.Registry.Hash(), Workers: uint32(len(l.sessions)), Leased: uint64(len(l.placed) + len(l.running)),
	}
	if l.Full != nil && l.Full() {
		d.Health = "disk is full"
	}
	if e.Step != time.Hour {
		d.CarbonStepUs = uint64(e.Step / time.Microsecond)
	}
	if !e.From.IsZero() {
		d.CarbonFromMs = e.From.UnixMilli()
	}
	for _, x := range e.Intensity {
		d.Carbon = append(d.Carbon, uint32(x+0.5))
	}
	var total, free, wide, whole mesh.Capacity
	warm := map[string]bool{}
	for _, s := range l.sessions {
		if s.out == nil || !l.takes(s) {
			continue // other cells' work goes to streaming workers only
		}
		total, free, wide, whole = total.Plus(s.total), free.Plus(s.free), wide.Widest(s.free), whole.Widest(s.total)
		d.Runtimes = append(d.Runtimes, s.runtimes...)
		for w := range s.warm {
			warm[w] = true
		}
	}
	for _, g := range l.guests {
		if !g.started && !g.ended {
			free, _ = free.Take(g.demand)
		}
	}
	total.Most = whole.Most // of any one worker: a task runs on one
	slices.Sort(d.Runtimes)
	d.Runtimes = slices.Compact(d.Runtimes)
	for _, g := range total.GPUs {
		w := gpuWatts(e, g.Model)
		d.Gpus = append(d.Gpus, &meshv1.ModelDigest{
			Model: g.Model, Hour: toMicro(gpuPrice(l.Prices, g.Model)),
			Milliwatts: toThousandths(w.Watts), IdleMilliwatts: toThousandths(w.Idle), EmbodiedMgPerHour: toThousandths(w.EmbodiedPerHour),
		})
	}
	gossip.SetCapacities(d, gossip.Capacities{Total: total, Free: free, Widest: wide})
	waits := l.waits()
	counts := l.backlog()
	for _, lane := range mesh.Lanes() {
		d.Backlog = append(d.Backlog, counts[lane])
		d.WaitMs = append(d.WaitMs, uint64(waits[lane].Milliseconds()))
	}
	for w := range warm {
		d.Warm = append(d.Warm, gossip.Key(w))
	}
	slices.Sort(d.Warm)
	return d
}

func (l *leader) backlog() [4]uint64 {
	var n [4]uint64
	for q, c := range fsm.Queues(l.State) {
		n[q.Lane] += c.Ready
	}
	for lane, g := range l.waiting.guestsByLane() {
		n[lane] += uint64(g)
	}
	return n
}

// named finds a variant this server knows by its hash.
func (m *learned) named(h uint64) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name, ok := m.names[h]
	return name, ok
}

func gpuPrice(p placement.Prices, model string) float64 {
	for _, g := range p.GPUHour {
		if g.Model == model {
			return g.USD
		}
	}
	return 0
}

func gpuWatts(e placement.Energy, model string) placement.ModelWatts {
	for _, g := range e.WattsPerGPU {
		if g.Model == model {
			return g
		}
	}
	return placement.ModelWatts{}
}

func thousandths(n uint64) float64 { return float64(n) / 1000 }

func toThousandths(x float64) uint64 { return uint64(x*1000 + 0.5) }

func micro(n uint64) float64 { return float64(n) / 1e6 }

func toMicro(usd float64) uint64 { return uint64(usd*1e6 + 0.5) }

// forecasts are the names of forecasts by their number in a digest.
func forecasts() []string { return []string{"", "persistence", "model"} }

// ForecastOf names what foretold a digest's hours of carbon; "" when it does not
// say, or says what this version does not know.
func ForecastOf(d *meshv1.Digest) string {
	names := forecasts()
	if n := int(d.GetCarbonForecast()); n < len(names) {
		return names[n]
	}
	return ""
}

func carbonNumber(e placement.Energy) uint32 {
	switch {
	case !e.Known:
		return 0
	case e.Kind == "marginal":
		return 2
	default:
		return 1
	}
}

func carbonKind(n uint32) string {
	if n == 2 {
		return "marginal"
	}
	return "average"
}
