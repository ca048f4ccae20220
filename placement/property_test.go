package placement

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// world is one question, drawn from few values so that ties, unknown figures
// and infeasible pairs are common.
type world struct {
	Task   Task
	View   View
	Policy Policy
	Now    time.Time
	Opts   Options
}

func (w world) decide() Decision { return Decide(w.Task, w.View, w.Policy, w.Now, w.Opts) }

func pick[T any](t *rapid.T, name string, from ...T) T { return rapid.SampledFrom(from).Draw(t, name) }

func drawCell(t *rapid.T, i int) Cell {
	region := pick(t, "region", "eu", "us", "in")
	c := Cell{
		Cell:      mesh.Cell{ID: mesh.CellID(fmt.Sprintf("%s-%d", region, i)), Region: region, Jurisdictions: []string{region}},
		Verified:  rapid.IntRange(0, 9).Draw(t, "verified") > 0,
		Unhealthy: pick(t, "unhealthy", "", "", "", "", "draining"),
		Total:     mesh.Capacity{CPUMilli: pick[int64](t, "total cpu", 0, 2000, 8000), MemoryMiB: 4096},
		Runtimes:  pick(t, "runtimes", []string{"exec"}, []string{"exec", "wasm"}, []string{"exec", "http", "wasm"}, nil),
		Warm:      pick(t, "warm", nil, []string{"f/v0"}, []string{"f/v0", "f/v2"}),
		Version:   uint64(i),
		Prices: Prices{
			CPUHour: pick(t, "cpu price", 0, 0.02, 0.04, 1.5, -1), MemoryGiBHour: pick(t, "memory price", 0, 0.005),
			GPUHour: []ModelPrice{{"H100", 7}},
		},
		EgressUSDPerGiB:  pick(t, "egress", 0, 0.02, 0.09),
		ReturnUSDPerGiB:  pick(t, "return", 0, 0.02),
		NetworkKWhPerGiB: pick(t, "network", 0, 0.001, 0.1),
		RTT:              pick(t, "rtt", 0, 10*time.Millisecond, 110*time.Millisecond),
		Energy: Energy{
			WattsPerCPU: pick(t, "watts", 0, 3.5, 10), WattsPerGPU: []ModelWatts{{"H100", 700, 70, pick(t, "embodied gpu", 0, 4.28)}}, PUE: pick(t, "pue", 0, 1, 1.3),
			WattsPerGiB: pick(t, "watts of memory", 0, 0.4), EmbodiedPerCPUHour: pick(t, "embodied", 0, 0.48),
			Known:     rapid.IntRange(0, 5).Draw(t, "known") > 0,
			Intensity: rapid.SliceOfN(rapid.SampledFrom([]float64{0, 16, 320, 680}), 0, 4).Draw(t, "intensity"),
			Kind:      pick(t, "kind", "average", "average", "marginal"),
			Step:      pick(t, "step", 0, 0, time.Second, 7*time.Minute),
			From:      pick(t, "from", time.Time{}, time.Time{}, noon().Add(-90*time.Second), noon().Add(time.Second)),
		},
	}
	c.Energy.IdleWattsPerCPU = c.Energy.WattsPerCPU * pick(t, "idle", 0, 0.2, 1)
	if g := pick[int64](t, "gpus", 0, 0, 4); g > 0 {
		c.Total.GPUs = []mesh.Accelerators{{Model: "H100", Count: g}}
	}
	c.Total.Most = mesh.Cost{Tokens: pick[int64](t, "most tokens", 0, 0, 1000, 8000)}
	c.Free = c.Total
	c.Free.Held.Tokens = pick[int64](t, "held tokens", 0, 0, 6000)
	c.Free.CPUMilli = pick[int64](t, "free cpu", 0, 1000, c.Total.CPUMilli)
	for l := range c.Backlog {
		c.Backlog[l] = pick(t, "backlog", 0, time.Second, time.Minute)
	}
	return c
}

func drawVariant(t *rapid.T, i int) Variant {
	return Variant{
		Name: fmt.Sprintf("v%d", i), Runtime: pick(t, "runtime", "exec", "exec", "wasm", "http"),
		Demand:  mesh.Demand{CPUMilli: pick[int64](t, "cpu", 0, 500, 2000), MemoryMiB: 256, GPUs: pick[int64](t, "gpu", 0, 0, 1)},
		Quality: pick(t, "quality", 0.5, 0.72, 0.9),
		IdleCPU: pick(t, "idle cpu", 0, 0.5, 1), IdleGPU: pick(t, "idle gpu", 0, 0.25),
		Duration:  pick(t, "duration", 0, 20*time.Millisecond, 2*time.Second, 3*time.Hour),
		ColdStart: pick(t, "cold", 0, 500*time.Millisecond, 30*time.Second),
		USD:       pick(t, "usd", 0, 0, 0.0001), EndpointJurisdictions: pick(t, "endpoint", nil, []string{"eu"}),
	}
}

func drawWorld(t *rapid.T) world {
	w := world{
		Now: noon().Add(time.Duration(rapid.Int64Range(0, int64(2*time.Hour)).Draw(t, "now"))),
		Policy: Policy{
			CarbonUSDPerTonne: pick(t, "carbon price", 0.0, 80, 1000),
			LatencyUSDPerS:    pick(t, "latency price", 0.0, 1e-5, 0.001),
			DelayUSDPerS:      pick(t, "delay price", 0.0, 1e-7, 0.001),
			QualityUSD:        pick(t, "quality price", 0.0, 1e-4, 0.1),
		},
	}
	for i := range rapid.IntRange(0, 7).Draw(t, "cells") {
		w.View.Cells = append(w.View.Cells, drawCell(t, i))
	}
	w.Task = Task{
		Function: "f", Lane: pick(t, "lane", mesh.Critical, mesh.Standard, mesh.Batch),
		InputBytes: pick[int64](t, "input", 0, 1<<20), OutputBytes: pick[int64](t, "output", 0, 1<<18),
		MinQuality: pick(t, "min quality", 0, 0, 0.6, 0.95),
		Residency: pick(t, "residency", mesh.Residency{}, mesh.Residency{}, mesh.Residency{Allowed: []string{"eu"}},
			mesh.Residency{Denied: []string{"us"}}, mesh.Residency{Allowed: []string{"eu", "us"}, Denied: []string{"in"}}),
	}
	w.Task.Cost.Tokens = pick[int64](t, "tokens", 0, 0, 900, 4000)
	w.Task.Inputs = pick(t, "inputs", nil, nil, []Input{{"model", 1 << 30, []string{"us"}}},
		[]Input{{"model", 1 << 20, []string{"eu", "in"}}, {"lost", 1 << 22, []string{"mars"}}})
	for i := range rapid.IntRange(0, 4).Draw(t, "variants") {
		w.Task.Variants = append(w.Task.Variants, drawVariant(t, i))
	}
	if within := pick(t, "deadline", 0, time.Second, time.Minute, 5*time.Hour); within > 0 {
		w.Task.Deadline = w.Now.Add(within)
	}
	if len(w.View.Cells) > 0 {
		w.Task.Home = w.View.Cells[0].ID
		if rapid.IntRange(0, 3).Draw(t, "avoid") == 0 {
			w.Task.Avoid = []mesh.CellID{rapid.SampledFrom(w.View.Cells).Draw(t, "avoided").ID}
		}
	}
	w.Opts.ExcludeRegions = pick(t, "exclude", nil, nil, []string{"us"})
	w.Opts.Explain = true
	return w
}

// allowed restates the hard constraints in their plainest form.
func allowed(w world, c Cell, v Variant, finish time.Time) bool {
	resident, takes := true, v.Demand
	takes.Cost = w.Task.Cost
	whole := c.Total
	if w.Task.Residency.Bound() {
		resident = c.Verified && c.Within(w.Task.Residency)
		if v.Runtime == "http" || v.EndpointJurisdictions != nil {
			resident = resident && len(v.EndpointJurisdictions) > 0 &&
				mesh.Cell{Jurisdictions: v.EndpointJurisdictions}.Within(w.Task.Residency)
		}
	}
	return resident && c.Unhealthy == "" && c.Prices.CPUHour >= 0 &&
		!slices.Contains(w.Opts.ExcludeRegions, c.Region) &&
		v.Quality >= w.Task.MinQuality && slices.Contains(c.Runtimes, v.Runtime) && whole.Fits(&takes) &&
		(w.Task.Deadline.IsZero() || !finish.After(w.Task.Deadline))
}

func TestEveryPairIsDecidedOnceAndRightly(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		d := w.decide()
		if got, want := len(d.Candidates)+len(d.RuledOut), len(w.View.Cells)*len(w.Task.Variants); got != want {
			t.Fatalf("%d pairs decided of %d", got, want)
		}
		counted := 0
		for _, c := range d.Counts {
			counted += c.Count
		}
		if counted != len(d.RuledOut) {
			t.Fatalf("%d counted, %d ruled out", counted, len(d.RuledOut))
		}
		find := func(id mesh.CellID, name string) (Cell, Variant) {
			c := w.View.Cells[slices.IndexFunc(w.View.Cells, func(c Cell) bool { return c.ID == id })]
			return c, w.Task.Variants[slices.IndexFunc(w.Task.Variants, func(v Variant) bool { return v.Name == name })]
		}
		for _, got := range d.Candidates {
			c, v := find(got.Cell, got.Variant)
			if !allowed(w, c, v, got.Finish) {
				t.Fatalf("%s/%s is not allowed", got.Cell, got.Variant)
			}
			sum := got.Terms.Compute + got.Terms.Egress + got.Terms.Data + got.Terms.Carbon + got.Terms.Latency + got.Terms.Cold + got.Terms.Quality
			if !(math.Abs(sum-got.Score) <= 1e-9) || got.Score < 0 {
				t.Fatalf("terms sum to %g, score %g", sum, got.Score)
			}
		}
		for _, r := range d.RuledOut {
			c, v := find(r.Cell, r.Variant)
			if r.Constraint != DeadlineOver && allowed(w, c, v, w.Now) {
				t.Fatalf("%s/%s was ruled out by %s without cause", r.Cell, r.Variant, r.Constraint)
			}
			if r.Detail == "" {
				t.Fatalf("%v has no detail", r)
			}
		}
		if (d.Chosen == nil) != (len(d.Candidates) == 0) || (d.Chosen == nil) != (d.Hint != "") {
			t.Fatalf("chosen %v, %d candidates, hint %q", d.Chosen, len(d.Candidates), d.Hint)
		}
		for i := 1; i < len(d.Candidates); i++ {
			a, b := d.Candidates[i-1], d.Candidates[i]
			avoidA, avoidB := slices.Contains(w.Task.Avoid, a.Cell), slices.Contains(w.Task.Avoid, b.Cell)
			if (avoidA && !avoidB) || (avoidA == avoidB && a.Score > b.Score) {
				t.Fatalf("%s/%s is before %s/%s", a.Cell, a.Variant, b.Cell, b.Variant)
			}
		}
	})
}

func TestOrderAndRepetitionChangeNothing(t *testing.T) {
	t.Parallel()
	var reused Decider
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		want := w.decide()
		w.View.Cells = rapid.Permutation(w.View.Cells).Draw(t, "cells")
		w.Task.Variants = rapid.Permutation(w.Task.Variants).Draw(t, "variants")
		if diff := cmp.Diff(want, w.decide()); diff != "" {
			t.Fatalf("permuted (-before +after):\n%s", diff)
		}
		if diff := cmp.Diff(want, reused.Decide(w.Task, w.View, w.Policy, w.Now, w.Opts)); diff != "" {
			t.Fatalf("reused decider (-fresh +reused):\n%s", diff)
		}
	})
}

// TestDispatchAgreesWithExplain: what dispatch leaves out of its reckoning, as
// it cannot be among the best it keeps, changes nothing of them, to the bit.
func TestDispatchAgreesWithExplain(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		for i := range rapid.IntRange(0, 20).Draw(t, "more cells") {
			w.View.Cells = append(w.View.Cells, drawCell(t, 10+i))
			if rapid.IntRange(0, 3).Draw(t, "avoided too") == 0 {
				w.Task.Avoid = append(w.Task.Avoid, w.View.Cells[i].ID)
			}
		}
		want := w.decide()
		want.RuledOut, want.Flips = nil, nil
		if len(want.Candidates) > keep {
			want.Candidates = want.Candidates[:keep]
		}
		w.Opts.Explain = false
		if diff := cmp.Diff(want, w.decide()); diff != "" {
			t.Fatalf("(-explain +dispatch):\n%s", diff)
		}
	})
}

func TestRelaxingNeverCostsMore(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		w.Task.Avoid = nil // not a constraint: it ranks
		before := w.decide()
		switch pick(t, "relax", "residency", "quality", "deadline", "exclude") {
		case "residency":
			w.Task.Residency = mesh.Residency{}
		case "quality":
			w.Task.MinQuality = 0
		case "deadline":
			w.Task.Deadline = time.Time{}
		case "exclude":
			w.Opts.ExcludeRegions = nil
		}
		after := w.decide()
		if before.Chosen != nil && (after.Chosen == nil || after.Chosen.Score > before.Chosen.Score) {
			t.Fatalf("before %+v\nafter %+v", before.Chosen, after.Chosen)
		}
	})
}

// TestHintIsTrueAndLeast relaxes what the hint's reckoning says, and tries all
// that is less.
func TestHintIsTrueAndLeast(t *testing.T) {
	t.Parallel()
	relax := func(w world, s rules, r relaxation, d *Decider) Decision {
		c, v := d.cells[r.pos], d.variants[r.variant]
		cell := w.View.Cells[c]
		in := w.Task
		named := *v.Variant
		if s.has(ruleResidency) {
			in.Residency = mesh.Residency{}
		}
		if s.has(ruleExcluded) {
			w.Opts.ExcludeRegions = nil
		}
		if s.has(ruleHealth) {
			cell.Unhealthy, cell.Prices.CPUHour = "", max(cell.Prices.CPUHour, 0)
		}
		if s.has(ruleMinQuality) {
			in.MinQuality = named.Quality
		}
		if s.has(ruleRuntime) || s.has(ruleNoWorker) {
			cell.Runtimes = append(slices.Clone(cell.Runtimes), named.Runtime)
		}
		if s.has(ruleAccelerator) {
			cell.Total.GPUs = []mesh.Accelerators{{Model: "H100", Count: 1}}
		}
		if s.has(ruleResources) {
			cell.Total.CPUMilli = named.Demand.CPUMilli
		}
		if s.has(ruleCost) {
			cell.Total.Most = mesh.Cost{}
		}
		if s.has(ruleDeadline) {
			in.Deadline = in.Deadline.Add(r.late)
		}
		in.Variants = []Variant{named}
		others := slices.Clone(w.View.Cells) // they tell how far the inputs are
		for i := range others {
			others[i].Unhealthy = "another"
		}
		others[c] = cell
		return Decide(in, View{Cells: others}, w.Policy, w.Now, w.Opts)
	}
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		var d Decider
		if d.Decide(w.Task, w.View, w.Policy, w.Now, w.Opts).Chosen != nil || len(d.cells) == 0 || len(d.variants) == 0 {
			return
		}
		q := d.prepare(&w.Task, &w.View, w.Policy, w.Now, w.Opts)
		least := d.leastRelaxation(&q)
		if got := relax(w, least.broken, least, &d); got.Chosen == nil {
			t.Fatalf("relaxing %b is not enough: %s", least.broken, got.Hint)
		}
		for s := range rules(1 << ruleCount) {
			if s.count() >= least.broken.count() {
				continue
			}
			for pos := range d.cells {
				for i := range d.variants {
					r := relaxation{pos: pos, variant: i, late: 100 * time.Hour}
					if relax(w, s, r, &d).Chosen != nil && !s.has(ruleAccelerator) && !s.has(ruleResources) && !s.has(ruleCost) {
						t.Fatalf("relaxing %b at %d/%d is enough, the hint asks for %b", s, pos, i, least.broken)
					}
				}
			}
		}
	})
}

// at prices one candidate anew with one weight changed, by the definition of
// the terms and not by the code under test.
func at(c Candidate, lost float64, weight string, x float64) float64 {
	t := c.Terms
	switch weight {
	case weightCarbon:
		t.Carbon = c.GCO2eq / 1e6 * x
	case weightLatency:
		t.Latency, t.Cold = (c.RTT+c.Wait+c.Run).Seconds()*x, c.Cold.Seconds()*x
		t.Data = c.USD - c.Terms.Compute - c.Terms.Egress + c.Fetch.Seconds()*x
	case weightQuality:
		t.Quality = lost * x
	}
	return t.Compute + t.Egress + t.Data + t.Carbon + t.Latency + t.Cold + t.Quality
}

func set(p *Policy, weight string) *float64 {
	switch weight {
	case weightCarbon:
		return &p.CarbonUSDPerTonne
	case weightLatency:
		return &p.LatencyUSDPerS
	default:
		return &p.QualityUSD
	}
}

func TestFlipsAreTrue(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		before := w.decide()
		if before.Chosen == nil {
			return
		}
		best := 0.0
		for _, v := range w.Task.Variants {
			best = max(best, v.Quality)
		}
		for _, weight := range []string{weightCarbon, weightLatency, weightQuality} {
			now := *set(&w.Policy, weight)
			// choice decides with the weight at x; ok is false where so small a
			// difference decides that it is rounding.
			choice := func(x float64) (name string, ok bool) {
				v := w
				*set(&v.Policy, weight) = x
				d := v.decide()
				mine := at(*before.Chosen, best-before.Chosen.Quality, weight, x)
				return fmt.Sprint(d.Chosen.Cell, "/", d.Chosen.Variant), math.Abs(d.Chosen.Score-mine) > 1e-12*mine
			}
			old := fmt.Sprint(before.Chosen.Cell, "/", before.Chosen.Variant)
			same := func(x float64) {
				if got, ok := choice(x); got != old && ok {
					t.Fatalf("%s from %g to %g: %s became %s, flips %+v", weight, now, x, old, got, before.Flips)
				}
			}
			var down, up *Flip
			for i, f := range before.Flips {
				switch {
				case f.Weight != weight:
				case f.Above:
					up = &before.Flips[i]
				default:
					down = &before.Flips[i]
				}
			}
			if up == nil {
				for _, x := range []float64{1.001, 2, 10, 1e3, 1e6} {
					same((now + 1e-9) * x)
				}
			} else {
				same(now + (up.At-now)*0.5)
				same(now + (up.At-now)*(1-1e-6))
				became(t, choice, up, up.At*(1+1e-6)+1e-15, old)
			}
			switch {
			case now == 0:
			case down == nil:
				for _, x := range []float64{0.999, 0.5, 1e-3, 0} {
					same(now * x)
				}
			case down.At == 0:
				same(now * 1e-6)
				if got, _ := choice(0); got != fmt.Sprint(down.Cell, "/", down.Variant) {
					t.Fatalf("at zero %s, want %+v", got, *down)
				}
			default:
				same(now + (down.At-now)*0.5)
				same(now + (down.At-now)*(1-1e-6))
				became(t, choice, down, down.At*(1-1e-6), old)
			}
		}
	})
}

func became(t *rapid.T, choice func(float64) (string, bool), f *Flip, x float64, old string) {
	got, sure := choice(x)
	if want := fmt.Sprint(f.Cell, "/", f.Variant); got != want && sure {
		t.Fatalf("%s at %g: %s, want %s by %+v", f.Weight, x, got, want, *f)
	}
	if got == old && sure {
		t.Fatalf("%s at %g: still %s, contrary to %+v", f.Weight, x, old, *f)
	}
}
