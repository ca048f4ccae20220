package placement

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// hourly is a cell of 1 kW a core with these hours from noon on.
func hourly(id string, hours ...float64) Cell {
	return cell(id, func(c *Cell) { c.Energy.WattsPerCPU, c.Energy.Intensity = 1000, hours })
}

func waits(run time.Duration, slack time.Duration, change ...func(*Task)) Task {
	t := task(variant("v", func(v *Variant) { v.Duration = run }))
	t.StartBy = noon().Add(slack)
	for _, f := range change {
		f(&t)
	}
	return t
}

func interruptible(t *Task) { t.Interruptible = true }

func TestStart(t *testing.T) {
	t.Parallel()
	green := Policy{CarbonUSDPerTonne: 1e6} // a dollar a gram
	for _, tt := range []struct {
		name        string
		task        Task
		cell        Cell
		policy      Policy
		start       time.Duration
		put, pause  time.Duration
		grams       float64
		pieces      int
		wantRunning string
	}{
		{name: "without slack at once", task: task(variant("v", func(v *Variant) { v.Duration = time.Hour })), cell: hourly("a-1", 300, 100), policy: green, grams: 300},
		{name: "the cheapest hour", task: waits(time.Hour, 3*time.Hour), cell: hourly("a-1", 300, 200, 100, 50), policy: green, start: 3 * time.Hour, put: 3 * time.Hour, grams: 50},
		{name: "not after StartBy", task: waits(time.Hour, 150*time.Minute), cell: hourly("a-1", 300, 200, 100, 50), policy: green, start: 150 * time.Minute, put: 150 * time.Minute, grams: 75},
		{
			name: "not after the latest safe start", cell: hourly("a-1", 300, 200, 100, 50), policy: green,
			task: waits(time.Hour, 3*time.Hour, func(t *Task) {
				t.Deadline = noon().Add(4 * time.Hour)
				t.Variants[0].DurationHigh = 2 * time.Hour
			}), start: 2 * time.Hour, put: 2 * time.Hour, grams: 100,
		},
		{name: "an end on the hour", task: waits(30*time.Minute, 3*time.Hour), cell: hourly("a-1", 300, 100, 400, 400), policy: green, start: time.Hour, put: time.Hour, grams: 50},
		{name: "delay has a price", task: waits(time.Hour, 3*time.Hour), cell: hourly("a-1", 300, 200, 100, 50), policy: Policy{CarbonUSDPerTonne: 1e6, LatencyUSDPerS: 99.0 / 3600, DelayUSDPerS: 99.0 / 3600}, start: 2 * time.Hour, put: 2 * time.Hour, grams: 100},
		{name: "of equal hours the earliest", task: waits(time.Hour, 9*time.Hour), cell: hourly("a-1", 300, 100, 100, 100), policy: green, start: time.Hour, put: time.Hour, grams: 100},
		{name: "in pieces", task: waits(2*time.Hour, 2*time.Hour, interruptible), cell: hourly("a-1", 300, 100, 300, 50), policy: green, start: time.Hour, put: time.Hour, pause: time.Hour, grams: 150, pieces: 2},
		{name: "in pieces, no later than allowed", task: waits(2*time.Hour, time.Hour, interruptible), cell: hourly("a-1", 300, 100, 300, 50), policy: green, put: 0, pause: 0, grams: 400, pieces: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := Decide(tt.task, View{Cells: []Cell{tt.cell}}, tt.policy, noon(), Options{Explain: true})
			if d.Chosen == nil {
				t.Fatal(d.Hint)
			}
			c := d.Chosen
			if got := c.Start.Sub(noon()); got != tt.start || c.Put != tt.put || c.Pause != tt.pause || len(c.Pieces) != tt.pieces {
				t.Errorf("start %v, put off %v, suspended %v, %d pieces", got, c.Put, c.Pause, len(c.Pieces))
			}
			within(t, "grams", c.GCO2eq, tt.grams)
			within(t, "score", c.Score, c.Terms.Sum())
			within(t, "carbon", c.Terms.Carbon, c.GCO2eq*tt.policy.CarbonUSDPerTonne/1e6)
			if !tt.task.StartBy.IsZero() && d.Flips != nil {
				t.Errorf("flips %v", d.Flips)
			}
		})
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	far := hourly("b-1", 1)
	far.RTT = 51 * time.Millisecond
	in := task(variant("v"))
	in.MaxRTT = 50 * time.Millisecond
	d := Decide(in, View{Cells: []Cell{far}}, Policy{}, noon(), Options{Explain: true})
	if d.Chosen != nil || d.RuledOut[0].Constraint != RoundTrip || !strings.Contains(d.Hint, "allow a round trip of 51ms to b-1") {
		t.Errorf("%+v, hint %q", d.RuledOut, d.Hint)
	}
	far.RTT = 50 * time.Millisecond
	if d := Decide(in, View{Cells: []Cell{far}}, Policy{}, noon(), Options{}); d.Chosen == nil {
		t.Error("the bound itself is allowed")
	}
}

// gaps is a calendar with room in these spans, in minutes from noon, and from
// the last on.
type gaps []int

func (g gaps) Next(_ mesh.Demand, from time.Time) (start, until time.Time, ok bool) {
	at := func(i int) time.Time { return noon().Add(time.Duration(g[i]) * time.Minute) }
	for i := 0; i < len(g); i += 2 {
		if i+1 == len(g) {
			return later(from, at(i)), time.Time{}, true
		}
		if from.Before(at(i + 1)) {
			return later(from, at(i)), at(i + 1), true
		}
	}
	return time.Time{}, time.Time{}, false
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func TestBooked(t *testing.T) {
	t.Parallel()
	green := Policy{CarbonUSDPerTonne: 1e6}
	for _, tt := range []struct {
		name  string
		task  Task
		gaps  gaps
		start time.Duration
		none  bool
	}{
		{name: "where the run fits", task: task(variant("v", func(v *Variant) { v.Duration = time.Hour })), gaps: gaps{0, 30, 40, 90, 95}, start: 95 * time.Minute},
		{name: "the cheapest with room", task: waits(time.Hour, 4*time.Hour), gaps: gaps{0, 100, 150, 300}, start: 150 * time.Minute},
		{name: "none in time", task: waits(time.Hour, time.Hour), gaps: gaps{0, 30, 100}, none: true},
		{name: "in pieces none in time", task: waits(time.Hour, time.Hour, interruptible), gaps: gaps{0, 30, 100}, none: true},
		{name: "in pieces", task: waits(time.Hour, time.Hour, interruptible), gaps: gaps{0, 30, 90, 300}, start: 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := hourly("a-1", 300, 200, 100, 100, 100)
			c.Booked = tt.gaps
			d := Decide(tt.task, View{Cells: []Cell{c}}, green, noon(), Options{})
			if (d.Chosen == nil) != tt.none {
				t.Fatalf("chosen %+v, hint %q", d.Chosen, d.Hint)
			}
			if d.Chosen != nil && d.Chosen.Start.Sub(noon()) != tt.start {
				t.Errorf("start %v", d.Chosen.Start.Sub(noon()))
			}
		})
	}
}

// TestStartIsCheapest compares with all starts, and all pieces, on a grid of
// quarter hours on which the optimum lies.
func TestStartIsCheapest(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		hours := rapid.SliceOfN(rapid.Float64Range(0, 700), 1, 4).Draw(t, "hours")
		run, slack := rapid.IntRange(1, 5).Draw(t, "run"), rapid.IntRange(0, 7).Draw(t, "slack")
		into := rapid.IntRange(0, 3).Draw(t, "into the hour")
		split := rapid.Bool().Draw(t, "interruptible")
		price := rapid.SampledFrom([]float64{0, 0.01, 0.1}).Draw(t, "price")
		const quarter = 15 * time.Minute
		now := noon().Add(time.Duration(into) * quarter)
		in := waits(time.Duration(run)*quarter, 0)
		in.StartBy, in.Interruptible = now.Add(time.Duration(slack)*quarter), split
		best := math.Inf(1)
		for used := range 1 << (run + slack) {
			n, last, whole, grams := 0, -1, true, 0.0
			for k := range run + slack {
				if used&(1<<k) == 0 {
					continue
				}
				whole = whole && (n == 0 || last == k-1)
				n, last = n+1, k
				grams += hours[min((into+k)/4, len(hours)-1)] / 4
			}
			if n == run && (whole || split) {
				best = min(best, grams+price*float64(last+1)*quarter.Seconds())
			}
		}
		d := Decide(in, View{Cells: []Cell{hourly("a-1", hours...)}}, Policy{CarbonUSDPerTonne: 1e6, LatencyUSDPerS: price, DelayUSDPerS: price}, now, Options{})
		if d.Chosen == nil || math.Abs(d.Chosen.Score-best) > 1e-9*max(1, best) {
			t.Fatalf("chosen %+v, best %g", d.Chosen, best)
		}
		if late := d.Chosen.Finish.Sub(now) - time.Duration(run+slack)*quarter; late > 0 {
			t.Fatalf("late by %v", late)
		}
	})
}

// TestNoAllocationPerCandidate: ten times the cells allocate no more often,
// with a choice of starts too.
func TestNoAllocationPerCandidate(t *testing.T) {
	count := func(n int) float64 {
		view, in := benchMesh(n), benchTask()
		in.StartBy, in.Deadline = benchNow().Add(12*time.Hour), benchNow().Add(24*time.Hour)
		var d Decider
		return testing.AllocsPerRun(5, func() {
			if d.Decide(in, view, benchPolicy(), benchNow(), Options{}).Chosen == nil {
				t.Error("nothing chosen")
			}
		})
	}
	if few, many := count(30), count(300); many > few+1 {
		t.Errorf("%g allocations with 30 cells, %g with 300", few, many)
	}
}
