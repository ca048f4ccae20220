package simulate

import (
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// staleness is what the homes know of other regions when digests are old: what
// was taken there that long ago, and on top of it what this home itself has
// started and seen end since.
type staleness struct {
	w       *world
	age     time.Duration
	blind   bool // homes forget what they sent themselves
	log     []change
	shown   int     // log entries that digests show by now
	digest  usage   // by region
	flights []usage // by home: own changes that no digest shows yet
}

// change is work that started (sign 1) or ended (-1).
type change struct {
	at     time.Duration
	home   int
	option *option
	sign   int64
}

func newStaleness(w *world, age time.Duration, blind bool) *staleness {
	s := &staleness{w: w, age: age, blind: blind, digest: w.newUsage()}
	for range w.regions {
		s.flights = append(s.flights, w.newUsage())
	}
	return s
}

// note enters a change.
func (s *staleness) note(at time.Duration, home int, o *option, sign int64) {
	if len(o.need) == 0 {
		return
	}
	s.log = append(s.log, change{at, home, o, sign})
	if !s.blind {
		s.flights[home].add(o, sign)
	}
}

// advance moves what is old enough from the flights into the digests.
func (s *staleness) advance(now time.Duration) {
	for s.shown < len(s.log) && s.log[s.shown].at <= now-s.age {
		c := s.log[s.shown]
		s.digest.add(c.option, c.sign)
		if !s.blind {
			s.flights[c.home].add(c.option, -c.sign)
		}
		s.shown++
	}
	if s.shown > 1<<12 && s.shown > len(s.log)/2 {
		s.log = append(s.log[:0], s.log[s.shown:]...)
		s.shown = 0
	}
}

// free is what the home thinks is free in the region.
func (s *staleness) free(home, place int, total mesh.Capacity) mesh.Capacity {
	left := func(resource int) int64 {
		return max(s.w.regions[place].caps[resource]-s.digest[place][resource]-s.flights[home][place][resource], 0)
	}
	if s.w.regions[place].caps[resourceCPU] != unlimited {
		total.CPUMilli = left(resourceCPU)
	}
	if s.w.regions[place].caps[resourceMemory] != unlimited {
		total.MemoryMiB = left(resourceMemory)
	}
	gpus := make([]mesh.Accelerators, len(total.GPUs))
	for i, g := range total.GPUs {
		gpus[i] = mesh.Accelerators{Model: g.Model, Count: left(resourceGPU + i)}
	}
	total.GPUs = gpus
	return total
}
