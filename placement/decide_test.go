package placement

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// noon is the start of an hour, so hand-computed hours are easy.
func noon() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// cell is a healthy cell with room, no distance, no price and no power.
func cell(id string, change ...func(*Cell)) Cell {
	c := Cell{
		Cell:     mesh.Cell{ID: mesh.CellID(id), Region: strings.TrimSuffix(id, "-1"), Jurisdictions: []string{"eu"}},
		Verified: true,
		Total:    mesh.Capacity{CPUMilli: 8000, MemoryMiB: 16384},
		Free:     mesh.Capacity{CPUMilli: 8000, MemoryMiB: 16384},
		Runtimes: []string{"exec", "wasm"},
		Energy:   Energy{PUE: 1, Known: true, Intensity: []float64{100}, Kind: "average"},
		Version:  7,
		Age:      3 * time.Second,
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func variant(name string, change ...func(*Variant)) Variant {
	v := Variant{
		Name: name, Runtime: "exec", Quality: 1, Duration: time.Second,
		Demand: mesh.Demand{CPUMilli: 1000, MemoryMiB: 1024},
	}
	for _, f := range change {
		f(&v)
	}
	return v
}

func task(variants ...Variant) Task {
	return Task{Function: "f", Lane: mesh.Standard, Variants: variants, Home: "home-1"}
}

func within(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-12*max(1, math.Abs(want)) {
		t.Errorf("%s = %.15g, want %.15g", what, got, want)
	}
}

// TestTerms prices one candidate with every term at work; each figure is
// computed by hand.
func TestTerms(t *testing.T) {
	t.Parallel()
	c := cell("eu-1", func(c *Cell) {
		c.Total.GPUs = []mesh.Accelerators{{Model: "H100", Count: 4}}
		c.Free = mesh.Capacity{CPUMilli: 0} // nothing free: backlog
		c.Backlog = [4]time.Duration{1 * time.Second, 2 * time.Second, 30 * time.Minute, 9 * time.Second}
		c.Prices = Prices{CPUHour: 0.04, MemoryGiBHour: 0.005, GPUHour: []ModelPrice{{"A100", 3}, {"H100", 7}}}
		c.EgressUSDPerGiB, c.ReturnUSDPerGiB = 0.02, 0.09
		c.RTT = 200 * time.Millisecond
		c.Energy = Energy{WattsPerCPU: 10, WattsPerGPU: []ModelWatts{{Model: "H100", Watts: 700}}, PUE: 1.25, Known: true, Intensity: []float64{100, 400}, Kind: "average"}
	})
	large := variant("large", func(v *Variant) {
		v.Demand = mesh.Demand{CPUMilli: 2000, MemoryMiB: 4096, GPUs: 2}
		v.Duration, v.ColdStart = 30*time.Minute, 10*time.Minute
		v.Quality, v.USD = 0.75, 0.001
	})
	best := variant("best", func(v *Variant) { v.Runtime = "http" }) // quality 1, cannot run here
	in := task(large, best)
	in.InputBytes, in.OutputBytes = 1<<30, 1<<29

	policy := Policy{CarbonUSDPerTonne: 50, LatencyUSDPerS: 0.001, QualityUSD: 2}
	d := Decide(in, View{Cells: []Cell{c}}, policy, noon(), Options{})
	if d.Chosen == nil {
		t.Fatal(d.Hint)
	}
	got := *d.Chosen

	// Half an hour of 2 cores, 4 GiB and 2 H100, and the fee.
	within(t, "compute", got.Terms.Compute, 0.5*(2*0.04+4*0.005+2*7)+0.001)
	within(t, "egress", got.Terms.Egress, 1*0.02+0.5*0.09)
	within(t, "kWh", got.KWh, (2*10+2*700)*0.5/1000*1.25) // 0.8875
	// Running from 12:40:00.1 to 13:10:00.1: 1199.9 s at 100, 600.1 s at 400.
	within(t, "intensity", got.Intensity, (1199.9*100+600.1*400)/1800)
	within(t, "grams", got.GCO2eq, got.KWh*got.Intensity)
	within(t, "carbon", got.Terms.Carbon, got.GCO2eq*50/1e6)
	within(t, "latency", got.Terms.Latency, (0.2+1800+1800)*0.001)
	within(t, "cold", got.Terms.Cold, 600*0.001)
	within(t, "quality", got.Terms.Quality, 2*0.25)
	within(t, "score", got.Score, got.Terms.Compute+got.Terms.Egress+got.Terms.Carbon+got.Terms.Latency+got.Terms.Cold+got.Terms.Quality)
	within(t, "usd", got.USD, got.Terms.Compute+got.Terms.Egress)

	if want := noon().Add(100*time.Millisecond + 30*time.Minute); !got.Start.Equal(want) {
		t.Errorf("start = %v, want %v", got.Start, want)
	}
	if want := noon().Add(200*time.Millisecond + 70*time.Minute); !got.Finish.Equal(want) {
		t.Errorf("finish = %v, want %v", got.Finish, want)
	}
	if got.Free != 0 || got.Warm || got.DigestVersion != 7 || got.DigestAge != 3*time.Second {
		t.Errorf("free %d warm %v digest %d %v", got.Free, got.Warm, got.DigestVersion, got.DigestAge)
	}
}

func TestWaitAndCold(t *testing.T) {
	t.Parallel()
	v := variant("v", func(v *Variant) { v.ColdStart = 5 * time.Second; v.Duration = 8 * time.Second })
	full := func(c *Cell) { c.Free = mesh.Capacity{CPUMilli: 500, MemoryMiB: 16384} }
	for _, tt := range []struct {
		name       string
		change     func(*Cell)
		lane       mesh.Lane
		wait, cold time.Duration
		free       int64
	}{
		{name: "free: no wait, whatever the backlog", change: func(c *Cell) { c.Backlog[mesh.Standard] = time.Hour }, lane: mesh.Standard, cold: 5 * time.Second, free: 8},
		{name: "full: the lane's backlog", change: func(c *Cell) {
			full(c)
			c.Backlog = [4]time.Duration{2 * time.Second, 3 * time.Second, 4 * time.Second, 5 * time.Second}
		}, lane: mesh.Interactive, wait: 3 * time.Second, cold: 5 * time.Second},
		{name: "full and no backlog: until a slot of eight comes free", change: full, lane: mesh.Critical, wait: time.Second, cold: 5 * time.Second},
		{name: "an unknown lane waits as batch", change: func(c *Cell) { full(c); c.Backlog[mesh.Batch] = time.Minute }, lane: 9, wait: time.Minute, cold: 5 * time.Second},
		{name: "warm", change: func(c *Cell) { c.Warm = []string{"e/v", "f/u", "f/v", "f/w", "ff/v"} }, free: 8},
		{name: "another function is warm", change: func(c *Cell) { c.Warm = []string{"f", "f!/v", "fv", "g/v"} }, cold: 5 * time.Second, free: 8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			in := task(v)
			in.Lane = tt.lane
			d := Decide(in, View{Cells: []Cell{cell("eu-1", tt.change)}}, Policy{}, noon(), Options{})
			if got := d.Chosen; got.Wait != tt.wait || got.Cold != tt.cold || got.Free != tt.free || got.Warm != (tt.cold == 0) {
				t.Errorf("wait %v cold %v free %d warm %v, want %v %v %d", got.Wait, got.Cold, got.Free, got.Warm, tt.wait, tt.cold, tt.free)
			}
		})
	}
}

func TestAcceleratorWithoutModel(t *testing.T) {
	t.Parallel()
	c := cell("eu-1", func(c *Cell) {
		c.Total.GPUs = []mesh.Accelerators{{Model: "A100", Count: 8}, {Model: "H100", Count: 8}}
		c.Free.GPUs = []mesh.Accelerators{{Model: "A100", Count: 1}, {Model: "H100", Count: 2}}
		c.Prices.GPUHour = []ModelPrice{{"A100", 3600}, {"H100", 7200}}
	})
	in := task(variant("v", func(v *Variant) { v.Demand.GPUs = 2 }))
	// Two A100 are not free, so two H100 for a second.
	within(t, "compute", Decide(in, View{Cells: []Cell{c}}, Policy{}, noon(), Options{}).Chosen.Terms.Compute, 4)
	c.Free.GPUs = nil
	// None free: the first model that has two in all.
	within(t, "compute", Decide(in, View{Cells: []Cell{c}}, Policy{}, noon(), Options{}).Chosen.Terms.Compute, 2)
}

func TestMeanIntensity(t *testing.T) {
	t.Parallel()
	hours := []float64{100, 200, 400}
	for _, tt := range []struct {
		begin, run time.Duration
		want       float64
	}{
		{0, 0, 100},
		{30 * time.Minute, 30 * time.Minute, 100},
		{30 * time.Minute, time.Hour, 150},
		{45 * time.Minute, time.Hour, 0.25*100 + 0.75*200},
		{30 * time.Minute, 2 * time.Hour, (50 + 200 + 200) / 2.0},
		{0, 10 * time.Hour, (100 + 200 + 8*400) / 10.0},
		{90 * time.Minute, 90 * time.Minute, (100 + 400) / 1.5},
		{100 * time.Hour, time.Hour, 400},
		{time.Hour, 0, 200},
	} {
		within(t, tt.begin.String()+"+"+tt.run.String(), meanIntensity(hours, time.Hour, tt.begin, tt.run), tt.want)
	}
}

func TestUnknownCarbon(t *testing.T) {
	t.Parallel()
	with := func(kind string, known bool, hours ...float64) func(*Cell) {
		return func(c *Cell) {
			c.Energy = Energy{WattsPerCPU: 1000, PUE: 1, Known: known, Intensity: hours, Kind: kind}
		}
	}
	in := task(variant("v", func(v *Variant) { v.Duration = time.Hour }))
	for _, tt := range []struct {
		name  string
		cells []Cell
		want  map[mesh.CellID]float64
		notes []string
	}{
		{
			name:  "the mean of the known",
			cells: []Cell{cell("a-1", with("average", true, 100)), cell("b-1", with("", false)), cell("c-1", with("average", true, 300))},
			want:  map[mesh.CellID]float64{"a-1": 100, "b-1": 200, "c-1": 300},
			notes: []string{"carbon of b-1 unknown: the mean of the known cells used, 200 gCO2eq/kWh"},
		},
		{
			name:  "figures that cannot be are unknown",
			cells: []Cell{cell("a-1", with("average", true, 100)), cell("b-1", with("average", true, math.NaN())), cell("c-1", with("average", true)), cell("d-1", with("average", true, -1))},
			want:  map[mesh.CellID]float64{"a-1": 100, "b-1": 100, "c-1": 100, "d-1": 100},
			notes: []string{"carbon of b-1, c-1, d-1 unknown: the mean of the known cells used, 100 gCO2eq/kWh"},
		},
		{
			name:  "kinds are not mixed: the home's is taken",
			cells: []Cell{cell("a-1", with("average", true, 100)), cell("b-1", with("average", true, 100)), cell("home-1", with("marginal", true, 900))},
			want:  map[mesh.CellID]float64{"a-1": 900, "b-1": 900, "home-1": 900},
			notes: []string{"carbon of a-1, b-1 is not of kind marginal and not compared: the mean of the known cells used, 900 gCO2eq/kWh"},
		},
		{
			name:  "kinds are not mixed: else that of most cells",
			cells: []Cell{cell("a-1", with("marginal", true, 900)), cell("b-1", with("average", true, 100)), cell("c-1", with("average", true, 200))},
			want:  map[mesh.CellID]float64{"a-1": 150, "b-1": 100, "c-1": 200},
			notes: []string{"carbon of a-1 is not of kind average and not compared: the mean of the known cells used, 150 gCO2eq/kWh"},
		},
		{
			name:  "nothing known",
			cells: []Cell{cell("a-1", with("", false)), cell("b-1", with("", false))},
			want:  map[mesh.CellID]float64{"a-1": 0, "b-1": 0},
			notes: []string{"the carbon of no cell is known: carbon is not priced"},
		},
		{
			name: "many unknown",
			cells: []Cell{cell("a-1", with("average", true, 1)), cell("b-1", with("", false)), cell("c-1", with("", false)),
				cell("d-1", with("", false)), cell("e-1", with("", false)), cell("f-1", with("", false))},
			want:  map[mesh.CellID]float64{"a-1": 1, "b-1": 1, "c-1": 1, "d-1": 1, "e-1": 1, "f-1": 1},
			notes: []string{"carbon of b-1, c-1, d-1, 2 more unknown: the mean of the known cells used, 1 gCO2eq/kWh"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := Decide(in, View{Cells: tt.cells}, Policy{CarbonUSDPerTonne: 1}, noon(), Options{})
			got := map[mesh.CellID]float64{}
			for _, c := range d.Candidates {
				got[c.Cell] = c.Intensity
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("intensity (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.notes, d.Notes); diff != "" {
				t.Errorf("notes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAvoid(t *testing.T) {
	t.Parallel()
	cheap := cell("a-1", func(c *Cell) { c.Prices.CPUHour = 1 })
	dear := cell("b-1", func(c *Cell) { c.Prices.CPUHour = 100 })
	in := task(variant("v"))
	in.Avoid = []mesh.CellID{"a-1"}

	d := Decide(in, View{Cells: []Cell{cheap, dear}}, Policy{}, noon(), Options{Explain: true})
	if d.Chosen.Cell != "b-1" || len(d.Candidates) != 2 {
		t.Fatalf("chosen %s of %d", d.Chosen.Cell, len(d.Candidates))
	}
	if want := "b-1/v: $0.028, of it carbon 0 %; a-1/v would cost $0.00028, but refused or lost this task just now"; d.Summary() != want {
		t.Errorf("summary\n got: %s\nwant: %s", d.Summary(), want)
	}
	d = Decide(in, View{Cells: []Cell{cheap}}, Policy{}, noon(), Options{})
	if d.Chosen == nil || len(d.Notes) != 1 || d.Notes[0] != "a-1 refused or lost this task just now; nothing else is left" {
		t.Fatalf("chosen %v, notes %q", d.Chosen, d.Notes)
	}
}

func TestTies(t *testing.T) {
	t.Parallel()
	slow := func(c *Cell) { c.RTT = time.Second }
	fast, late := variant("b"), variant("a", func(v *Variant) { v.Duration = 2 * time.Second })
	var got []string
	view := View{Cells: []Cell{cell("y-1"), cell("x-1", slow), cell("z-1"), cell("w-1")}}
	for _, c := range Decide(task(late, fast, variant("c")), view, Policy{}, noon(), Options{Explain: true}).Candidates {
		got = append(got, string(c.Cell)+"/"+c.Variant)
	}
	// All cost nothing: by finish, then cell, then variant.
	want := []string{"w-1/b", "w-1/c", "y-1/b", "y-1/c", "z-1/b", "z-1/c", "w-1/a", "x-1/b", "x-1/c", "y-1/a", "z-1/a", "x-1/a"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestBadWeights(t *testing.T) {
	t.Parallel()
	d := Decide(task(variant("v")), View{Cells: []Cell{cell("a-1")}},
		Policy{CarbonUSDPerTonne: math.NaN(), LatencyUSDPerS: math.Inf(1), QualityUSD: -1}, noon(), Options{Explain: true})
	if d.Policy != (Policy{}) || d.Chosen.Score != 0 {
		t.Errorf("policy %+v score %g", d.Policy, d.Chosen.Score)
	}
	want := []string{
		"carbon_price of NaN cannot be a price: 0 used",
		"latency_price of +Inf cannot be a price: 0 used",
		"quality_price of -1 cannot be a price: 0 used",
	}
	if diff := cmp.Diff(want, d.Notes); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
}

func TestCostAt(t *testing.T) {
	t.Parallel()
	near := cell("home-1", func(c *Cell) { c.Prices.CPUHour = 3.6; c.Energy.Known = false; c.Energy.WattsPerCPU = 3600 })
	far := cell("far-1", func(c *Cell) { c.Prices.CPUHour = 0.36 })
	in := task(variant("cheap"), variant("dear", func(v *Variant) { v.USD = 1 }))
	in.Avoid = []mesh.CellID{"home-1"}
	view, policy := View{Cells: []Cell{near, far}}, Policy{CarbonUSDPerTonne: 1e4}

	got, ok := CostAt(in, view, policy, noon(), "home-1")
	if !ok || got.Cell != "home-1" || got.Variant != "cheap" {
		t.Fatalf("got %+v, %v", got, ok)
	}
	within(t, "compute", got.Terms.Compute, 0.001)
	within(t, "carbon by the mean of the whole view", got.Terms.Carbon, 0.001*100*1e4/1e6)

	for _, c := range Decide(in, view, policy, noon(), Options{Explain: true}).Candidates {
		if c.Cell == "home-1" && c.Variant == "cheap" {
			if diff := cmp.Diff(c, got); diff != "" {
				t.Errorf("differs from Decide (-decide +costAt):\n%s", diff)
			}
		}
	}
	if _, ok := CostAt(in, view, policy, noon(), "gone-1"); ok {
		t.Error("a cell outside the view was priced")
	}
	in.MinQuality = 0.5
	in.Variants[0].Quality, in.Variants[1].Quality = 0, 0
	if _, ok := CostAt(in, view, policy, noon(), "home-1"); ok {
		t.Error("a forbidden variant was priced")
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	a := cell("a-1", func(c *Cell) { c.Prices.CPUHour = 0.036; c.Energy.WattsPerCPU = 36 })
	b := cell("b-1", func(c *Cell) { c.Prices.CPUHour = 0.036; c.Energy.WattsPerCPU = 36; c.RTT = 100 * time.Millisecond })
	in, policy := task(variant("v")), Policy{CarbonUSDPerTonne: 1000, LatencyUSDPerS: 0.00008}
	for _, tt := range []struct {
		name   string
		task   Task
		cells  []Cell
		policy Policy
		want   string
	}{
		// 10 µ$ compute, 0.01 Wh × 100 g × 1000 $/t = 1 µ$, 80 µ$ latency.
		{"next", in, []Cell{a, b}, policy, "a-1/v: $0.000091, of it carbon 1 %; next b-1/v costs 1.1x, mostly for latency"},
		{"same", in, []Cell{a, b}, Policy{}, "a-1/v: $0.00001, of it carbon 0 %; next b-1/v costs the same"},
		{"alone", in, []Cell{a}, policy, "a-1/v: $0.000091, of it carbon 1 %; nothing else is allowed"},
		{"free", in, []Cell{cell("a-1"), b}, Policy{}, "a-1/v: $0.00; next b-1/v costs $0.00001, mostly for compute"},
		{"none", in, nil, policy, "nowhere to run: no cell is known"},
		{"no variant", task(), []Cell{a}, policy, "nowhere to run: the function has no variant"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := Decide(tt.task, View{Cells: tt.cells}, tt.policy, noon(), Options{})
			if got := d.Summary(); got != tt.want {
				t.Errorf("\n got: %s\nwant: %s", got, tt.want)
			}
		})
	}
	if got := (&Decision{}).Summary(); got != "nowhere to run" {
		t.Errorf("empty decision: %s", got)
	}
	if got := ratio(1.0004); got != "1.0004" {
		t.Errorf("ratio(1.0004) = %s", got)
	}
}

// TestWarmOf: what is found is what a plain look at each name finds, wherever
// one looks first.
func TestWarmOf(t *testing.T) {
	t.Parallel()
	name := rapid.SampledFrom([]string{"", "f", "f/", "f/a", "f/b", "f/c", "f-/a", "f0/a", "fo/a", "e/z", "g/a", "f/a/b"})
	rapid.Check(t, func(t *rapid.T) {
		sorted := rapid.SliceOfNDistinct(name, 0, 12, rapid.ID[string]).Draw(t, "names")
		slices.Sort(sorted)
		for _, function := range []string{"f", "fo", "e", "h", ""} {
			var want []string
			for _, s := range sorted {
				if strings.HasPrefix(s, function+"/") {
					want = append(want, s)
				}
			}
			for guess := range 14 {
				got, at := warmOf(sorted, []byte(function+"/"), guess)
				if !slices.Equal(got, want) || len(want) > 0 && sorted[at] != want[0] {
					t.Fatalf("of %q in %q from %d: %q at %d, want %q", function, sorted, guess, got, at, want)
				}
			}
		}
	})
}

func TestDecisionsOutliveTheDecider(t *testing.T) {
	t.Parallel()
	var d Decider
	view, in := benchMesh(20), benchTask()
	first := d.Decide(in, view, benchPolicy(), benchNow(), Options{Explain: true})
	want := Decide(in, view, benchPolicy(), benchNow(), Options{Explain: true})
	d.Decide(in, benchMesh(5), Policy{}, benchNow(), Options{})
	if diff := cmp.Diff(want, first); diff != "" {
		t.Errorf("a later decision changed an earlier one:\n%s", diff)
	}
}

func TestDispatchAllocatesNothingPerCandidate(t *testing.T) {
	var d Decider
	in, policy, now := benchTask(), benchPolicy(), benchNow()
	in.Residency = mesh.Residency{Denied: []string{"us"}}
	allocs := func(view View) float64 {
		return testing.AllocsPerRun(20, func() { d.Decide(in, view, policy, now, Options{}) })
	}
	large := allocs(benchMesh(300))
	if small := allocs(benchMesh(10)); large > small {
		t.Errorf("%g allocations at 300 cells, %g at 10", large, small)
	}
}
