package scheduler

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// learned keeps measured run times: an exponentially weighted mean over about
// the last ten runs of each variant, and the last of them for a high quantile.
// Measured takes over from declared after
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
	last      [keepRuns]float32 // seconds, a ring
}

// high is a high quantile of the run time: of the runs that are kept, the one
// that highQuantile of them do not exceed. Of fewer than a hundred it is the
// longest. What is older is forgotten, as a function's work changes.
func (x *measure) high() time.Duration {
	var kept [keepRuns]float32
	runs := kept[:copy(kept[:], x.last[:min(x.runs, keepRuns)])]
	slices.Sort(runs)
	return time.Duration(float64(runs[int(math.Ceil(highQuantile*float64(len(runs))))-1]) * float64(time.Second))
}

const (
	learnWeight = 0.2
	learnAfter  = 3
	// keepRuns is enough for highQuantile to be another than the longest.
	keepRuns     = 128
	highQuantile = 0.99
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
	x.last[x.runs%keepRuns] = float32(run.Seconds())
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
			// Nothing is known of a run but that it is stopped at the timeout.
			DurationHigh: fn.Spec.Timeout.AsDuration(),
			ColdStart:    v.Cold.AsDuration(), USD: v.Usd, Code: v.Module, EndpointJurisdictions: v.Jurisdictions,
		}
		if r := v.Resources; r != nil {
			out[i].IdleCPU, out[i].IdleGPU = idle(r.CpuUtilisation), idle(r.GpuUtilisation)
		}
		m.names[gossip.Key(fn.Spec.Name+"/"+v.Name)] = fn.Spec.Name + "/" + v.Name
		x := m.runs[fn.Version+"/"+v.Name]
		if x == nil || x.runs < learnAfter {
			continue
		}
		out[i].Duration, out[i].Measured, out[i].DurationHigh = time.Duration(x.run*float64(time.Second)), true, x.high()
		if x.colds > 0 {
			out[i].ColdStart = time.Duration(x.cold * float64(time.Second))
		}
	}
	return out
}
