package scheduler

import (
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// learned keeps measured run times: an exponentially weighted mean over about
// the last ten runs of each variant. Measured takes over from declared after
// three runs. It belongs to the server, not to the term, and is not replicated:
// a new leader that has measured nothing starts from what is declared.
type learned struct {
	mu   sync.Mutex
	runs map[string]*measure // version/variant
	out  map[string]float64  // version → mean result bytes
	// names of variants seen, by the hash that digests carry
	names map[uint64]string
}

type measure struct {
	runs      int
	run, cold float64 // seconds
	colds     int
}

const (
	learnWeight = 0.2
	learnAfter  = 3
)

func newLearned() *learned {
	return &learned{runs: map[string]*measure{}, out: map[string]float64{}, names: map[uint64]string{}}
}

func (m *learned) observe(rec *meshv1.TaskRecord, e *meshv1.Ended) {
	variant := ""
	if n := len(rec.Attempts); n > 0 {
		variant = rec.Attempts[n-1].Variant
	}
	m.add(rec.Version, variant, time.Duration(e.RunUs)*time.Microsecond, time.Duration(e.ColdUs)*time.Microsecond, len(e.Result), true)
}

func (m *learned) add(version, variant string, run, cold time.Duration, result int, ok bool) {
	if !ok || run <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := version + "/" + variant
	x := m.runs[key]
	if x == nil {
		if len(m.runs) >= 10_000 {
			m.runs, m.out = map[string]*measure{}, map[string]float64{} // versions come and go; start over
		}
		x = &measure{run: run.Seconds()}
		m.runs[key] = x
	}
	x.runs++
	x.run += learnWeight * (run.Seconds() - x.run)
	if cold > 0 {
		if x.colds++; x.colds == 1 {
			x.cold = cold.Seconds()
		}
		x.cold += learnWeight * (cold.Seconds() - x.cold)
	}
	m.out[version] += learnWeight * (float64(result) - m.out[version])
}

// output is the expected size of a result, in bytes.
func (m *learned) output(version string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(m.out[version])
}

// idle is the share that a declared utilisation leaves.
func idle(utilisation *float64) float64 {
	if utilisation == nil {
		return 0
	}
	return 1 - *utilisation
}

// run is the expected run time of a variant.
func (m *learned) run(version string, v *isobarv1.Variant) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if x := m.runs[version+"/"+v.Name]; x != nil && x.runs >= learnAfter {
		return time.Duration(x.run * float64(time.Second))
	}
	return v.Run.AsDuration()
}

// variants are the function's variants as placement wants them, measured where
// they have been.
func (m *learned) variants(fn *isobarv1.Function) []placement.Variant {
	out := make([]placement.Variant, len(fn.Spec.Variants))
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, v := range fn.Spec.Variants {
		out[i] = placement.Variant{
			Name: v.Name, Runtime: v.Runtime, Demand: demand(v), Quality: v.Quality, Duration: v.Run.AsDuration(),
			ColdStart: v.Cold.AsDuration(), USD: v.Usd, Code: v.Module, EndpointJurisdictions: v.Jurisdictions,
		}
		if r := v.Resources; r != nil {
			out[i].IdleCPU, out[i].IdleGPU = idle(r.CpuUtilisation), idle(r.GpuUtilisation)
		}
		m.names[gossip.Key(fn.Spec.Name+"/"+v.Name)] = fn.Spec.Name + "/" + v.Name
		x := m.runs[fn.Version+"/"+v.Name]
		if x == nil || x.runs < learnAfter {
			continue
		}
		out[i].Duration, out[i].Measured = time.Duration(x.run*float64(time.Second)), true
		if x.colds > 0 {
			out[i].ColdStart = time.Duration(x.cold * float64(time.Second))
		}
	}
	return out
}
