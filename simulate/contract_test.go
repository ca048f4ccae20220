package simulate_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/internal/meshfile"
	"github.com/isobar-mesh/isobar/simulate"
)

// table is a carbon table with an hour a row: one list of values a zone.
func table(t testing.TB, zones map[string][]float64) *carbon.Table {
	t.Helper()
	names := make([]string, 0, len(zones))
	for _, z := range []string{"A", "B", "C"} {
		if zones[z] != nil {
			names = append(names, z)
		}
	}
	var b strings.Builder
	b.WriteString("datetime_utc," + strings.Join(names, ",") + "\n")
	for h := range zones[names[0]] {
		b.WriteString(time.Date(2022, 1, 1, h, 0, 0, 0, time.UTC).Format(time.RFC3339))
		for _, z := range names {
			fmt.Fprintf(&b, ",%g", zones[z][h])
		}
		b.WriteByte('\n')
	}
	out, err := carbon.ReadTable(strings.NewReader(b.String()), "carbon.csv", carbon.Average)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func input(t testing.TB, mesh, trace string, zones map[string][]float64) simulate.Input {
	t.Helper()
	m, err := meshfile.Parse("mesh.yaml", []byte(mesh))
	if err != nil {
		t.Fatal(err)
	}
	in := simulate.Input{Mesh: m, Carbon: table(t, zones)}
	if in.Trace, err = simulate.ReadTrace(strings.NewReader(trace), "trace.csv", m); err != nil {
		t.Fatal(err)
	}
	return in
}

func play(t testing.TB, in simulate.Input, opts simulate.Options) map[string]simulate.PolicyReport {
	t.Helper()
	r, err := simulate.Run(in, opts)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]simulate.PolicyReport{}
	for _, p := range r.Policies {
		out[p.Name] = p
	}
	return out
}

func near(t testing.TB, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-9*max(1, math.Abs(want)) {
		t.Errorf("%s = %.12g, want %.12g", what, got, want)
	}
}

const (
	// one region with 1 kW for a task of one core.
	oneRegion = "regions: {a: {zone: A, watts_per_cpu: 1000, usd_per_cpu_hour: 0.5}}\n"
	// two regions, b cheaper and 50 ms away.
	twoRegions = `regions:
  a: {zone: A, jurisdictions: [eu], watts_per_cpu: 1000, usd_per_cpu_hour: 2}
  b: {zone: B, jurisdictions: [us], watts_per_cpu: 1000, usd_per_cpu_hour: 1}
rtt_ms: {a: {b: 50}}
egress_usd_per_gib: {a: {b: 0.25}}
`
	head = "arrival_s,duration_s,home,"
)

// figure names one number of a report.
type figure struct {
	policy string
	of     func(simulate.PolicyReport) float64
	want   float64
}

func grams(p simulate.PolicyReport) float64     { return p.GCO2eq }
func paid(p simulate.PolicyReport) float64      { return p.USD }
func energy(p simulate.PolicyReport) float64    { return p.EnergyKWh }
func meanWait(p simulate.PolicyReport) float64  { return p.MeanWaitS }
func p99Wait(p simulate.PolicyReport) float64   { return p.P99WaitS }
func misses(p simulate.PolicyReport) float64    { return float64(p.DeadlineMisses) }
func unplaced(p simulate.PolicyReport) float64  { return float64(p.Unplaced) }
func objective(p simulate.PolicyReport) float64 { return p.ObjectiveValue }
func beyond(p simulate.PolicyReport) float64    { return p.ExtrapolatedS }
func inRegion(name string) func(simulate.PolicyReport) float64 {
	return func(p simulate.PolicyReport) float64 { return float64(p.Regions[name].Tasks) }
}

// TestContract has a case for each rule; every figure is computed by hand.
func TestContract(t *testing.T) {
	t.Parallel()
	flat := map[string][]float64{"A": {100, 100, 100, 100}, "B": {300, 300, 300, 300}}
	for _, tt := range []struct {
		name, mesh, trace string
		zones             map[string][]float64
		opts              simulate.Options
		want              []figure
	}{
		{
			name: "energy is kw × hours × pue", zones: flat,
			mesh:  "regions: {a: {zone: A, watts_per_cpu: 1000, pue: 1.5}}\n",
			trace: "arrival_s,duration_s,kw\n0,1800,2\n", // 2 kW × 0.5 h × 1.5
			want:  []figure{{"home", energy, 1.5}, {"home", grams, 150}, {"home", paid, 0}},
		},
		{
			// 2 h on the slow model at 200 W are 0.4 kWh, 1 h on the fast one 0.7: the second finds the slow one taken.
			name: "a variant names its model of accelerator", zones: flat,
			mesh: `regions: {a: {zone: A, gpus: {FAST: 1, SLOW: 1}, watts_per_gpu: {FAST: 700, SLOW: 200}}}
functions: {f: {variants: {slow: {gpu_model: SLOW, duration_x: 2}, fast: {gpu_model: FAST}}}}
`,
			trace: "arrival_s,duration_s,function,cpu,gpu,gpu_model\n0,3600,f,0,1,FAST\n0,3600,f,0,1,\n",
			opts:  simulate.Options{Objective: simulate.Carbon},
			want:  []figure{{"isobar", energy, 1.1}, {"greenest", energy, 1.1}, {"oracle", energy, 1.1}},
		},
		{
			// The third takes the place in the clean region that the second was
			// promised, which has time to start after it.
			name: "what has not begun is put in a better order for a newcomer", zones: flat,
			mesh:  "regions:\n  a: {zone: A, cpu: 1, watts_per_cpu: 1000}\n  b: {zone: B, cpu: 1, watts_per_cpu: 1000}\nrtt_ms: {a: {b: 50}}\n",
			trace: head + "max_delay_s\n0,3600,a,0\n600,7200,a,10800\n1200,1800,a,3600\n",
			opts:  simulate.Options{Objective: simulate.Carbon},
			want:  []figure{{"isobar", grams, 350}, {"isobar", misses, 0}, {"oracle", grams, 350}},
		},
		{
			name: "decided one by one, what is planned stays", zones: flat,
			mesh:  "regions:\n  a: {zone: A, cpu: 1, watts_per_cpu: 1000}\n  b: {zone: B, cpu: 1, watts_per_cpu: 1000}\nrtt_ms: {a: {b: 50}}\n",
			trace: head + "max_delay_s\n0,3600,a,0\n600,7200,a,10800\n1200,1800,a,3600\n",
			opts:  simulate.Options{Objective: simulate.Carbon, OneByOne: true}, // the third goes to b
			want:  []figure{{"isobar", grams, 450}, {"isobar", misses, 0}},
		},
		{
			name: "watts where kw is absent, cores and accelerators", zones: flat,
			mesh:  "regions: {a: {zone: A, gpus: {H100: 4}, watts_per_cpu: 10, watts_per_gpu: {H100: 700}, usd_per_cpu_hour: 0.04, usd_per_gpu_hour: {H100: 7}}}\n",
			trace: "arrival_s,duration_s,cpu,gpu,gpu_model\n0,3600,8,2,H100\n",
			want:  []figure{{"home", energy, 1.48}, {"home", paid, 8*0.04 + 14}},
		},
		{
			name: "idle to busy by utilisation, memory, times pue", zones: flat,
			mesh: `regions: {a: {zone: A, gpus: {H100: 4}, watts_per_cpu: 10, idle_watts_per_cpu: 4, watts_per_gib: 0.5, watts_per_gpu: {H100: 700}, idle_watts_per_gpu: {H100: 100}, pue: 2}}
functions: {f: {variants: {v: {gpu_utilisation: 1}}}}
`,
			trace: "arrival_s,duration_s,function,cpu,memory_gib,gpu,cpu_utilisation,gpu_utilisation\n0,3600,,8,16,2,0.5,0.25\n0,3600,f,8,16,2,,0.25\n0,3600,,8,16,0,0,\n",
			// 8×7 + 16×0.5 + 2×250, 8×10 + 8 + 2×700 and 8×4 + 8 watts
			want: []figure{{"home", energy, 2 * (0.564 + 1.488 + 0.04)}},
		},
		{
			name: "the network at the mean of both ends when the task arrives, without pue", mesh: strings.Replace(twoRegions, "watts_per_cpu: 1000", "pue: 2, watts_per_cpu: 1000", 1) + "network_kwh_per_gib: 0.25\n",
			zones: map[string][]float64{"A": {100, 900, 900}, "B": {300, 10, 10}},
			trace: head + "input_gib,max_delay_s,kw\n0,3600,a,2,3600,1\n",
			// Isobar moves for the second hour: 10 g there, and 0.5 kWh at 200 g on the way; at home it would be 200 g.
			opts: simulate.Options{Objective: simulate.Carbon},
			want: []figure{
				{"home", energy, 2}, {"home", grams, 200}, {"isobar", energy, 1.5}, {"isobar", grams, 110}, {"oracle", grams, 110},
				{"greenest", grams, 200}, {"isobar", func(p simulate.PolicyReport) float64 { return p.NetworkGCO2eq }, 100},
				{"isobar", func(p simulate.PolicyReport) float64 { return p.NetworkKWh }, 0.5},
			},
		},
		{
			name: "embodied carbon, by the hour it is held", zones: flat,
			mesh:  "regions: {a: {zone: A, gpus: {H100: 4}, watts_per_cpu: 0, watts_per_gpu: {H100: 0}, embodied_g_per_cpu_hour: 3, embodied_g_per_gpu_hour: {H100: 40}}}\n",
			trace: "arrival_s,duration_s,cpu,gpu,kw\n0,1800,8,2,\n0,3600,1,0,2\n",
			want:  []figure{{"home", grams, (8*3+2*40)*0.5 + 3 + 200}, {"home", func(p simulate.PolicyReport) float64 { return p.EmbodiedGCO2eq }, 55}, {"home", energy, 2}},
		},
		{
			name: "hours are split exactly", mesh: oneRegion, zones: map[string][]float64{"A": {100, 400, 50}},
			trace: "arrival_s,duration_s\n1800,5400\n", // half an hour at 100, an hour at 400
			want:  []figure{{"home", grams, 0.5*100 + 400}, {"home", paid, 0.75}},
		},
		{
			name: "past the table the last row holds", mesh: oneRegion, zones: map[string][]float64{"A": {100, 400}},
			trace: "arrival_s,duration_s\n3600,7200\n",
			want:  []figure{{"home", grams, 800}, {"home", beyond, 3600}},
		},
		{
			name: "egress is input × price from home, directed", mesh: twoRegions, zones: flat,
			trace: head + "input_gib\n0,3600,a,2\n0,3600,b,2\n",
			// cheapest: 1 + 0.5 there against 2; from b to b nothing
			want: []figure{{"cheapest", paid, 1.5 + 1}, {"cheapest", inRegion("b"), 2}, {"home", paid, 2 + 1}},
		},
		{
			name: "greenest by the present hour", mesh: twoRegions, zones: map[string][]float64{"A": {100, 100}, "B": {90, 900}},
			trace: head + "id\n0,7200,a,x\n", want: []figure{{"greenest", inRegion("b"), 1}, {"greenest", grams, 990}, {"home", grams, 200}},
		},
		{
			name: "residency by any match", mesh: twoRegions, zones: flat,
			trace: head + "residency\n0,3600,a,us;uk\n0,3600,b,eu\n0,3600,a,\n0,3600,a,jp\n",
			want:  []figure{{"home", inRegion("b"), 1}, {"home", inRegion("a"), 2}, {"home", unplaced, 1}, {"isobar", unplaced, 1}, {"oracle", unplaced, 1}},
		},
		{
			name: "round trip is hard and inclusive", mesh: twoRegions, zones: flat,
			trace: head + "max_rtt_ms\n0,3600,a,50\n0,3600,a,49.9\n0,3600,a,0\n",
			want:  []figure{{"cheapest", inRegion("b"), 1}, {"cheapest", inRegion("a"), 2}, {"isobar", inRegion("b"), 1}},
			opts:  simulate.Options{Objective: simulate.Cost},
		},
		{
			name: "one queue without backfill", zones: flat,
			mesh: "regions: {a: {zone: A, cpu: 4, watts_per_cpu: 1000}}\n",
			// The second needs all and waits for the first; the third would fit
			// beside the first but may not overtake.
			trace: "arrival_s,duration_s,cpu\n0,100,1\n10,50,4\n20,30,1\n",
			want:  []figure{{"home", meanWait, (0 + 90 + 130) / 3.0}, {"home", p99Wait, 130}, {"home", misses, 2}},
		},
		{
			name: "equal arrivals queue by row", zones: flat,
			mesh:  "regions: {a: {zone: A, cpu: 1, watts_per_cpu: 1000}}\n",
			trace: "arrival_s,duration_s\n0,100\n0,10\n", want: []figure{{"home", meanWait, 50}, {"home", misses, 1}},
		},
		{
			name: "room at the instant work ends", zones: flat,
			mesh:  "regions: {a: {zone: A, cpu: 1, watts_per_cpu: 1000}}\n",
			trace: "arrival_s,duration_s\n0.1,0.2\n0.3,1\n", want: []figure{{"home", meanWait, 0}, {"isobar", meanWait, 0}, {"oracle", misses, 0}},
		},
		{
			name: "home full: the nearest with room", zones: map[string][]float64{"A": {1, 1}, "B": {1, 1}, "C": {1, 1}},
			mesh: `regions: {a: {zone: A, cpu: 1, watts_per_cpu: 1}, b: {zone: B, cpu: 1, watts_per_cpu: 1}, c: {zone: C, cpu: 1, watts_per_cpu: 1}}
rtt_ms: {a: {b: 50, c: 20}}
`,
			trace: head + "id\n0,100,a,\n0,100,a,\n0,100,a,\n0,100,a,\n",
			want: []figure{
				{"home", inRegion("a"), 2}, {"home", inRegion("b"), 1}, {"home", inRegion("c"), 1}, {"home", meanWait, 25},
			},
		},
		{
			name: "ties by usd, then by name", zones: map[string][]float64{"A": {5, 5}, "B": {5, 5}},
			mesh:  "regions: {b: {zone: A, watts_per_cpu: 1, usd_per_cpu_hour: 1}, a: {zone: B, watts_per_cpu: 1, usd_per_cpu_hour: 2}, c: {zone: B, watts_per_cpu: 1, usd_per_cpu_hour: 1}}\n",
			trace: head + "id\n0,3600,a,\n", opts: simulate.Options{Objective: simulate.Carbon},
			want: []figure{{"greenest", inRegion("b"), 1}, {"isobar", inRegion("b"), 1}, {"oracle", inRegion("b"), 1}},
		},
		{
			name: "a finish at the deadline is in time, a nanosecond later is not", zones: flat,
			mesh:  "regions: {a: {zone: A, cpu: 1, watts_per_cpu: 1}}\n",
			trace: "arrival_s,duration_s,max_delay_s\n0,100,0\n0,10,100\n0,10,109.999999999\n",
			want:  []figure{{"home", misses, 1}},
		},
		{
			name: "contiguous work starts at the end of its window at the latest", mesh: oneRegion,
			zones: map[string][]float64{"A": {400, 300, 200, 100, 1}},
			trace: "arrival_s,duration_s,max_delay_s\n0,3600,9000\n", // at 2 h 30 min: half at 200, half at 100
			opts:  simulate.Options{Objective: simulate.Carbon},
			want:  []figure{{"oracle", grams, 150}, {"isobar", grams, 150}, {"oracle", meanWait, 9000}, {"home", grams, 400}},
		},
		{
			name: "a start on a row, an end on a row", mesh: oneRegion,
			zones: map[string][]float64{"A": {400, 100, 100, 300, 50, 400, 400}},
			// 90 minutes: from 1:00 to 2:30 at 100. 30 minutes more: 50 is cheapest at 4:00.
			trace: "arrival_s,duration_s,max_delay_s\n0,5400,7200\n0,1800,86400\n",
			opts:  simulate.Options{Objective: simulate.Carbon},
			want:  []figure{{"oracle", grams, 150 + 25}, {"isobar", grams, 150 + 25}, {"oracle", meanWait, (3600 + 4*3600) / 2}},
		},
		{
			name: "interruptible work in the cheapest pieces", mesh: oneRegion,
			zones: map[string][]float64{"A": {400, 100, 300, 50, 500}},
			trace: "arrival_s,duration_s,max_delay_s,interruptible\n0,7200,7200,true\n",
			opts:  simulate.Options{Objective: simulate.Carbon},
			want:  []figure{{"oracle", grams, 150}, {"isobar", grams, 150}, {"oracle", meanWait, 7200}, {"oracle", paid, 1}},
		},
		{
			name: "interruptible work keeps its deadline", mesh: oneRegion,
			zones: map[string][]float64{"A": {400, 100, 300, 50, 500}},
			trace: "arrival_s,duration_s,max_delay_s,interruptible\n0,7200,5400,true\n", // till 3:30: half of 50
			opts:  simulate.Options{Objective: simulate.Carbon},
			want:  []figure{{"oracle", grams, 100 + 25 + 150}, {"isobar", grams, 275}, {"oracle", misses, 0}},
		},
		{
			name: "latency price against carbon", mesh: oneRegion, zones: map[string][]float64{"A": {400, 100, 0, 0}},
			// 1 kWh: an hour saves 0.3 kg at 1000 USD/t, 0.3 USD; waiting an hour costs 0.18; two hours 0.36 for 0.4.
			trace: "arrival_s,duration_s,max_delay_s\n0,3600,7200\n",
			opts:  simulate.Options{CarbonPrice: 1000, LatencyPrice: 0.00005},
			want: []figure{
				{"oracle", meanWait, 3600}, {"isobar", meanWait, 3600}, {"oracle", objective, 0.5 + 0.1 + 0.18},
				{"home", objective, 0.5 + 0.4},
			},
		},
		{
			name: "latency is wait and round trip", mesh: twoRegions, zones: flat,
			trace: head + "residency,max_delay_s\n0,3600,a,us,7200\n", opts: simulate.Options{Objective: simulate.Latency},
			want: []figure{{"home", objective, 0.05}, {"oracle", objective, 0.05}, {"isobar", objective, 0.05}},
		},
		{
			name: "a variant changes duration, power, cores", zones: flat,
			mesh: `regions: {a: {zone: A, watts_per_cpu: 1000, usd_per_cpu_hour: 1}}
functions: {f: {min_quality: 0.7, variants: {poor: {quality: 0.6, duration_x: 0.01}, small: {quality: 0.7, duration_x: 0.5, cpu: 1}, large: {quality: 0.9, kw_x: 2}}}}
`,
			trace: "arrival_s,duration_s,function,cpu,kw\n0,7200,f,4,1\n", opts: simulate.Options{Objective: simulate.Carbon},
			// small: 1 h × 1 kW and 1 core; large: 2 h × 2 kW and 4 cores
			want: []figure{
				{"cheapest", paid, 1}, {"cheapest", energy, 1}, {"isobar", grams, 100}, {"oracle", grams, 100},
				{"isobar", func(p simulate.PolicyReport) float64 { return float64(p.Variants["f"]["small"]) }, 1},
				{"isobar", func(p simulate.PolicyReport) float64 { return float64(p.Variants["f"]["poor"]) }, 0},
			},
		},
		{
			name: "any model the region has", zones: flat,
			mesh:  "regions: {a: {zone: A, gpus: {A100: 1, H100: 1}, watts_per_cpu: 0, watts_per_gpu: {A100: 400, H100: 700}, usd_per_gpu_hour: {A100: 9, H100: 7}}}\n",
			trace: "arrival_s,duration_s,gpu,gpu_model\n0,3600,1,\n0,3600,1,\n0,3600,1,B200\n",
			want:  []figure{{"cheapest", paid, 16}, {"cheapest", energy, 1.1}, {"cheapest", unplaced, 1}, {"cheapest", misses, 0}},
		},
		{
			name: "more than a whole region is unplaced", zones: flat,
			mesh:  "regions: {a: {zone: A, cpu: 4, memory_gib: 8, watts_per_cpu: 1}}\n",
			trace: "arrival_s,duration_s,cpu,memory_gib\n0,10,4.1,0\n0,10,1,8.5\n0,10,4,8\n",
			want:  []figure{{"home", unplaced, 2}, {"oracle", unplaced, 2}, {"isobar", unplaced, 2}},
		},
		{
			name: "suspended work holds no capacity", zones: map[string][]float64{"A": {100, 300, 100, 300, 300, 300}},
			mesh:  "regions: {a: {zone: A, cpu: 1, watts_per_cpu: 1000}}\n",
			trace: "arrival_s,duration_s,max_delay_s,interruptible\n0,7200,3600,true\n3600,3600,0,false\n",
			opts:  simulate.Options{Objective: simulate.Carbon},
			want:  []figure{{"oracle", grams, 500}, {"oracle", misses, 0}, {"isobar", misses, 0}, {"isobar", grams, 500}, {"home", misses, 1}},
		},
		{
			name: "start shifts the trace", mesh: oneRegion, zones: map[string][]float64{"A": {100, 200, 400}},
			trace: "arrival_s,duration_s\n0,3600\n",
			opts:  simulate.Options{Start: time.Date(2022, 1, 1, 1, 30, 0, 0, time.UTC)},
			want:  []figure{{"home", grams, 300}, {"oracle", grams, 300}, {"isobar", grams, 300}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := play(t, input(t, tt.mesh, tt.trace, tt.zones), tt.opts)
			for i, f := range tt.want {
				near(t, fmt.Sprintf("figure %d of %s", i, f.policy), f.of(got[f.policy]), f.want)
			}
		})
	}
}

// TestMean7 decides by the mean of the same hour of the days before: the trap
// is in the hours to come, which only perfect knowledge avoids.
func TestMean7(t *testing.T) {
	t.Parallel()
	rows := make([]float64, 12*24)
	for h := range rows {
		rows[h] = 200
		if h%24 == 5 && h < 10*24 {
			rows[h] = 100
		}
		if h%24 == 8 && h >= 10*24 {
			rows[h] = 50
		}
	}
	rows[9*24+3] = 90 // yesterday only
	in := input(t, oneRegion, "arrival_s,duration_s,max_delay_s\n0,3600,43200\n", map[string][]float64{"A": rows})
	opts := simulate.Options{Objective: simulate.Carbon, Start: time.Date(2022, 1, 11, 0, 0, 0, 0, time.UTC)}
	near(t, "perfect", play(t, in, opts)["isobar"].GCO2eq, 50)
	opts.Forecast = simulate.Mean7
	got := play(t, in, opts)["isobar"]
	near(t, "mean7", got.GCO2eq, 200)
	near(t, "mean7 wait", got.MeanWaitS, 5*3600)
	opts.Forecast = simulate.Yesterday
	near(t, "persistence wait", play(t, in, opts)["isobar"].MeanWaitS, 3*3600)
}

func TestStartOutsideTheTable(t *testing.T) {
	t.Parallel()
	in := input(t, oneRegion, "arrival_s,duration_s\n0,1\n", map[string][]float64{"A": {1, 2}})
	for _, start := range []time.Time{time.Date(2021, 12, 31, 23, 0, 0, 0, time.UTC), time.Date(2022, 1, 1, 2, 0, 0, 0, time.UTC)} {
		if _, err := simulate.Run(in, simulate.Options{Start: start}); err == nil || !strings.Contains(err.Error(), "outside the carbon table") {
			t.Errorf("start %v: %v", start, err)
		}
	}
}

// TestLearned: until a task has ended nothing is put off; after that the mean
// decides, and a task that takes longer than thought runs on in time.
func TestLearned(t *testing.T) {
	t.Parallel()
	rows := map[string][]float64{"A": {300, 300, 300, 50, 300, 300, 300, 300}}
	in := input(t, oneRegion, "arrival_s,duration_s,max_delay_s\n0,3600,14400\n3600,5400,14400\n", rows)
	opts := simulate.Options{Objective: simulate.Carbon}
	near(t, "known", play(t, in, opts)["isobar"].GCO2eq, 50+50+150)
	opts.Durations = simulate.Learned
	got := play(t, in, opts)["isobar"]
	// The first starts at once. The second is thought to take an hour, waits
	// until 3:00, and takes half an hour more.
	near(t, "learned", got.GCO2eq, 300+50+150)
	near(t, "wait", got.MeanWaitS, 7200/2)
	near(t, "misses", float64(got.DeadlineMisses), 0)
}

// TestDigestAge: two homes see the same free place in the green region. With
// fresh digests the second sees it taken; with old ones it goes there, is
// refused, and is placed by what that region then says of itself.
func TestDigestAge(t *testing.T) {
	t.Parallel()
	const mesh = `regions:
  a: {zone: A, watts_per_cpu: 1000}
  b: {zone: A, watts_per_cpu: 1000}
  g: {zone: B, cpu: 1, watts_per_cpu: 1000}
`
	in := input(t, mesh, head+"id\n0,3600,a,\n10,3600,b,\n", map[string][]float64{"A": {300, 300}, "B": {10, 10}})
	for _, age := range []time.Duration{0, time.Second, time.Minute} {
		got := play(t, in, simulate.Options{Objective: simulate.Carbon, DigestAge: age})["isobar"]
		near(t, "grams", got.GCO2eq, 310)
		near(t, "misses", float64(got.DeadlineMisses), 0)
		near(t, "in g", float64(got.Regions["g"].Tasks), 1)
	}
}

// TestUrgentDisplaces: a booking that can wait gives way to a task that cannot.
func TestUrgentDisplaces(t *testing.T) {
	t.Parallel()
	in := input(t, "regions: {a: {zone: A, cpu: 1, watts_per_cpu: 1000}}\n",
		"arrival_s,duration_s,max_delay_s\n0,3600,14400\n6000,3600,0\n", map[string][]float64{"A": {300, 300, 50, 100, 200, 300}})
	got := play(t, in, simulate.Options{Objective: simulate.Carbon})
	// The urgent one from 1:40 to 2:40, the other moves from 2:00 to 2:40.
	const want = (1200*300 + 2400*50 + 1200*50 + 2400*100) / 3600.0
	near(t, "isobar", got["isobar"].GCO2eq, want)
	near(t, "misses", float64(got["isobar"].DeadlineMisses), 0)
	near(t, "oracle", got["oracle"].GCO2eq, want)
}
