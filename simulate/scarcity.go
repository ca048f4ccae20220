package simulate

import (
	"time"

	"github.com/isobar-mesh/isobar/placement"
)

// scarcity learns shadow prices of capacity from what has arrived: how much
// one more unit in a region would have saved, had the recent tasks been placed
// all at once. Nothing of what is to come is known to it.
type scarcity struct {
	w      *world
	know   *learner
	recent []int // jobs, oldest first
	fresh  int   // of them, how many came since the prices were set
	batch  placement.Batch
	// prices are the highest of any region by resource, for a unit and an hour;
	// nil until there are any.
	prices map[string]float64
	slack  time.Duration // mean of what recent tasks may wait
}

const (
	// recall is how many tasks are looked back on, and renew after how many new
	// ones the prices are set anew.
	recall = 512
	renew  = 32
)

// note takes in a job that has arrived.
func (s *scarcity) note(i int) {
	if len(s.recent) == recall {
		s.recent = append(s.recent[:0], s.recent[1:]...)
	}
	s.recent = append(s.recent, i)
	s.fresh++
}

// learn places the recent tasks over the time in which they came.
func (s *scarcity) learn(now time.Duration) {
	w := s.w
	s.fresh = 0
	over := now - w.jobs[s.recent[0]].arrival
	if over <= 0 {
		return
	}
	kinds := 0
	for i := range w.regions {
		kinds = max(kinds, len(w.regions[i].caps))
	}
	room := make([]float64, kinds*len(w.regions))
	for i := range w.regions {
		for r, c := range w.regions[i].caps {
			room[i*kinds+r] = float64(c) * over.Hours()
		}
	}
	s.batch.Reset(kinds, room)
	s.slack = 0
	for _, i := range s.recent {
		j := &w.jobs[i]
		s.slack += j.MaxDelay / time.Duration(len(s.recent))
		most := 0.0
		for k := range j.shape.options {
			o := &j.shape.options[k]
			run := s.know.expect(j).of(o).Hours()
			cost := w.fixed(j, o) + w.weights.gram*w.kw(j, o)*run*w.regions[o.region].carbon.at(now)
			most = max(most, cost)
			var uses [3]placement.Use
			for n, a := range o.need {
				uses[n] = placement.Use{Resource: a.resource, Amount: float64(a.n) * run}
			}
			s.batch.Way(cost, o.region, s.batch.Need(uses[:len(o.need)]...))
		}
		s.batch.Task(2 * most)
	}
	s.prices = map[string]float64{}
	for i, price := range s.batch.Solve().Prices {
		name := w.resourceName(i/kinds, i%kinds)
		s.prices[name] = max(s.prices[name], price)
	}
}

// resourceName is what a resource of a region is called in any region.
func (w *world) resourceName(region, resource int) string {
	switch models := w.regions[region].models; {
	case resource == resourceCPU:
		return "cpu"
	case resource == resourceMemory:
		return "memory"
	case resource < resourceGPU+len(models):
		return "gpu " + models[resource-resourceGPU]
	default:
		return ""
	}
}

// at is what the placement code shall take capacity of a region for. It is
// nothing where there is room at once, and rises with how long the region is
// booked out: to the learned price, where that is as long as tasks may wait. So
// those who can go elsewhere do before a region is full, and leave room for
// those who can not; and whose region is full anyway pays no more than others.
// Prices are learned only when they are needed.
func (s *scarcity) at(region int, now, wait time.Duration) *placement.Prices {
	if wait <= 0 {
		return nil
	}
	if s.fresh >= renew {
		s.learn(now)
	}
	if s.prices == nil {
		return nil
	}
	share := 1.0
	if wait < s.slack {
		share = wait.Seconds() / s.slack.Seconds()
	}
	out := &placement.Prices{
		CPUHour: share * s.prices["cpu"] * perMilli, MemoryGiBHour: share * s.prices["memory"] * mibPerGiB,
	}
	for _, model := range s.w.regions[region].models {
		out.GPUHour = append(out.GPUHour, placement.ModelPrice{Model: model, USD: share * s.prices["gpu "+model]})
	}
	return out
}

// cost is what the prices count for a run by the option.
func (s *scarcity) cost(o *option, run time.Duration, p *placement.Prices) float64 {
	if p == nil {
		return 0
	}
	hourly := 0.0
	for _, a := range o.need {
		switch n := float64(a.n); a.resource {
		case resourceCPU:
			hourly += n / perMilli * p.CPUHour
		case resourceMemory:
			hourly += n / mibPerGiB * p.MemoryGiBHour
		default:
			hourly += n * p.GPUHour[a.resource-resourceGPU].USD
		}
	}
	return hourly * run.Hours()
}
