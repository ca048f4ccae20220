package simulate_test

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/simulate"
)

// drawn is a small world: tight capacities, few values, so that queues, ties
// and late tasks are common.
type drawn struct {
	mesh  string
	rows  []string // of the trace
	zones map[string][]float64
	opts  simulate.Options
}

func (d drawn) trace() string {
	return "arrival_s,duration_s,home,cpu,max_delay_s,max_rtt_ms,interruptible,residency,function,input_gib,memory_gib,cpu_utilisation\n" + strings.Join(d.rows, "\n") + "\n"
}

func pick[T any](t *rapid.T, name string, from ...T) T { return rapid.SampledFrom(from).Draw(t, name) }

func draw(t *rapid.T, limited bool, tasks int) drawn {
	d := drawn{zones: map[string][]float64{}}
	for _, z := range []string{"A", "B", "C"} {
		d.zones[z] = rapid.SliceOfN(rapid.SampledFrom([]float64{0, 20, 100, 100, 350, 700}), 16, 16).Draw(t, z)
	}
	var b strings.Builder
	b.WriteString("regions:\n")
	for i, name := range []string{"x", "y", "z"} {
		capacity := ""
		if limited {
			capacity = pick(t, "cpu", "", "cpu: 1, ", "cpu: 2, ")
			if i == 0 {
				capacity = "cpu: 2, "
			}
		}
		fmt.Fprintf(&b, "  %s: {zone: %c, jurisdictions: [%s], %s%swatts_per_cpu: 500, usd_per_cpu_hour: %g, pue: %g}\n", name, 'A'+rune(i),
			pick(t, "jurisdiction", "eu", "us"), capacity, pick(t, "model", "", "idle_watts_per_cpu: 100, watts_per_gib: 30, ", "embodied_g_per_cpu_hour: 20, "),
			pick(t, "price", 0.1, 0.2, 1), pick(t, "pue", 1, 1.5))
	}
	b.WriteString("rtt_ms: {x: {y: 20, z: 150}, y: {z: 90}}\negress_usd_per_gib: {x: {y: 0.05}}\n")
	b.WriteString(pick(t, "network", "", "network_kwh_per_gib: 0.2\n"))
	b.WriteString("functions: {f: {variants: {slow: {duration_x: 2, quality: 0.5}, wide: {cpu: 2, duration_x: 0.5, cpu_utilisation: 0.25}}}}\n")
	d.mesh = b.String()
	at := 0
	for range tasks {
		at += pick(t, "gap", 0, 0, 600, 1800, 3600)
		d.rows = append(d.rows, fmt.Sprintf("%d,%d,%s,%d,%d,%s,%t,%s,%s,%d,%d,%s", at, pick(t, "duration", 0, 900, 1800, 3600, 5400),
			pick(t, "home", "x", "y", "z"), pick(t, "cores", 1, 1, 2), pick(t, "delay", 0, 0, 1800, 7200, 14400),
			pick(t, "max rtt", "", "", "20", "100"), rapid.Bool().Draw(t, "interruptible"), pick(t, "residency", "", "", "eu"),
			pick(t, "function", "", "", "f"), pick(t, "input", 0, 1), pick(t, "memory", 0, 4), pick(t, "utilisation", "", "", "0.5", "0")))
	}
	d.opts = simulate.Options{
		Objective: pick(t, "objective", simulate.Objectives()...), CarbonPrice: pick(t, "carbon price", 0.0, 190, 2000),
		LatencyPrice: pick(t, "latency price", 0.0, 1e-5, 1e-3),
	}
	return d
}

func atMost(t *rapid.T, what string, a, b float64) {
	if a > b+1e-9*max(1, math.Abs(b)) {
		t.Fatalf("%s: %.12g is above %.12g", what, a, b)
	}
}

// TestOracleWithoutLimits: alone in the mesh, each task has its best, so no
// policy has less; and isobar, which knows all of it too, has the same.
func TestOracleWithoutLimits(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		d := draw(rt, false, rapid.IntRange(1, 6).Draw(rt, "tasks"))
		got := play(t, input(t, d.mesh, d.trace(), d.zones), d.opts)
		oracle := got["oracle"]
		for name, p := range got {
			atMost(rt, "oracle against "+name, oracle.ObjectiveValue, p.ObjectiveValue)
			if p.DeadlineMisses != 0 || p.Unplaced != oracle.Unplaced {
				rt.Fatalf("%s: %d late, %d unplaced", name, p.DeadlineMisses, p.Unplaced)
			}
		}
		atMost(rt, "isobar against the oracle", got["isobar"].ObjectiveValue, oracle.ObjectiveValue)
		if *oracle.LowerBound != oracle.ObjectiveValue {
			rt.Fatalf("bound %g of %g", *oracle.LowerBound, oracle.ObjectiveValue)
		}
	})
}

// TestOracleIsExact compares with a search over a fine grid of starts, and for
// interruptible work over all choices of quarter hours: all times are
// multiples of a quarter hour here.
func TestOracleIsExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		rows := rapid.SliceOfN(rapid.Float64Range(0, 700), 8, 8).Draw(rt, "rows")
		quarters := rapid.IntRange(1, 6).Draw(rt, "duration")
		slack := rapid.IntRange(0, 7).Draw(rt, "slack")
		arrival := rapid.IntRange(0, 6).Draw(rt, "arrival")
		split := rapid.Bool().Draw(rt, "interruptible")
		price := pick(rt, "latency price", 0, 1e-5, 1e-4)
		in := input(t, oneRegion, fmt.Sprintf("arrival_s,duration_s,max_delay_s,interruptible\n%d,%d,%d,%t\n",
			arrival*900, quarters*900, slack*900, split), map[string][]float64{"A": rows})
		opts := simulate.Options{CarbonPrice: 1000, LatencyPrice: price}
		best := math.Inf(1)
		for used := range 1 << (quarters + slack) {
			count, last, contiguous, carbon := 0, -1, true, 0.0
			for k := range quarters + slack {
				if used&(1<<k) == 0 {
					continue
				}
				contiguous = contiguous && (count == 0 || last == k-1)
				count, last = count+1, k
				carbon += rows[(arrival+k)/4] / 4
			}
			if count == quarters && (split || contiguous) {
				wait := float64(last+1-quarters) * 900
				best = min(best, 0.5*float64(quarters)/4+carbon/1000+price*wait)
			}
		}
		got := play(t, in, opts)
		if g := got["oracle"].ObjectiveValue; math.Abs(g-best) > 1e-9 {
			rt.Fatalf("oracle %.12g, best of all %.12g", g, best)
		}
		if g := got["isobar"].ObjectiveValue; math.Abs(g-best) > 1e-9 {
			rt.Fatalf("isobar %.12g, best of all %.12g", g, best)
		}
	})
}

// TestLimits: the bound is below the oracle, and the oracle below every policy
// that is late as seldom.
func TestLimits(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		d := draw(rt, true, rapid.IntRange(1, 10).Draw(rt, "tasks"))
		d.opts.Forecast = pick(rt, "forecast", simulate.Forecasts()...)
		d.opts.Durations = pick(rt, "durations", simulate.Known, simulate.Learned)
		if rapid.Bool().Draw(rt, "stale") {
			d.opts.DigestAge = 600e9
		}
		in := input(t, d.mesh, d.trace(), d.zones)
		r, err := simulate.Run(in, d.opts)
		if err != nil {
			rt.Fatal(err)
		}
		if err := r.Check(); err != nil {
			rt.Fatal(err)
		}
		oracle := r.Policies[4]
		atMost(rt, "bound", *oracle.LowerBound, oracle.ObjectiveValue)
		for _, p := range r.Policies {
			if p.DeadlineMisses <= oracle.DeadlineMisses {
				atMost(rt, "oracle against "+p.Name, oracle.ObjectiveValue, p.ObjectiveValue)
			}
			if p.Unplaced != oracle.Unplaced {
				rt.Fatalf("%s: %d unplaced, the oracle %d", p.Name, p.Unplaced, oracle.Unplaced)
			}
			if oracle.DeadlineMisses == 0 && p.DeadlineMisses == 0 {
				atMost(rt, "bound against "+p.Name, *oracle.LowerBound, p.ObjectiveValue)
			}
		}
	})
}

// TestPermutation: without limits, tasks that arrive together may stand in any
// order.
func TestPermutation(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		d := draw(rt, false, 5)
		for i, row := range d.rows {
			_, rest, _ := strings.Cut(row, ",")
			d.rows[i] = "600," + rest
		}
		before := play(t, input(t, d.mesh, d.trace(), d.zones), d.opts)
		d.rows = rapid.Permutation(d.rows).Draw(rt, "rows")
		after := play(t, input(t, d.mesh, d.trace(), d.zones), d.opts)
		for name, p := range before {
			q := after[name]
			for _, pair := range [][2]float64{
				{p.ObjectiveValue, q.ObjectiveValue}, {p.GCO2eq, q.GCO2eq}, {p.USD, q.USD}, {p.MeanWaitS, q.MeanWaitS}, {p.P99WaitS, q.P99WaitS},
			} {
				if math.Abs(pair[0]-pair[1]) > 1e-9*max(1, pair[0]) {
					rt.Fatalf("%s: %+v\nbecame %+v", name, p, q)
				}
			}
		}
	})
}

// TestRelaxing: a longer delay, a lifted bound never costs the oracle or
// isobar more.
func TestRelaxing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		d := draw(rt, false, 4)
		before := play(t, input(t, d.mesh, d.trace(), d.zones), d.opts)
		if before["oracle"].Unplaced > 0 {
			return // what was not placed cost nothing
		}
		column := pick(rt, "relax", 4, 5, 7)
		for i, row := range d.rows {
			f := strings.Split(row, ",")
			if f[column] = ""; column == 4 {
				f[column] = "20000"
			}
			d.rows[i] = strings.Join(f, ",")
		}
		after := play(t, input(t, d.mesh, d.trace(), d.zones), d.opts)
		for _, name := range []string{"oracle", "isobar"} {
			atMost(rt, name, after[name].ObjectiveValue, before[name].ObjectiveValue)
		}
	})
}

func TestEqualInputsGiveEqualReports(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		d := draw(rt, true, 8)
		d.opts.Forecast, d.opts.Durations, d.opts.DigestAge = simulate.Model, simulate.Learned, 60e9
		var out [2]bytes.Buffer
		for i := range out {
			r, err := simulate.Run(input(t, d.mesh, d.trace(), d.zones), d.opts)
			if err != nil {
				rt.Fatal(err)
			}
			for _, write := range []error{r.WriteJSON(&out[i]), r.WriteText(&out[i]), r.WriteSVG(&out[i])} {
				if write != nil {
					rt.Fatal(write)
				}
			}
		}
		if !slices.Equal(out[0].Bytes(), out[1].Bytes()) {
			rt.Fatal("two runs differ")
		}
	})
}
