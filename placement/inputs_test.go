package placement

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

func TestTransferTime(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		bytes int64
		rtt   time.Duration
		want  time.Duration
	}{
		{0, 100 * time.Millisecond, 100 * time.Millisecond},
		{625e6, 0, time.Second},                            // 5 Gbit
		{625e6, time.Millisecond, 1001 * time.Millisecond}, // the window allows more
		{60 << 20, 100 * time.Millisecond, 1100 * time.Millisecond},
		{60 << 20, 200 * time.Millisecond, 2200 * time.Millisecond},
		{math.MaxInt64, time.Hour, maxSpan},
		{-1, -1, 0},
	} {
		if got := TransferTime(tt.bytes, tt.rtt); got != tt.want {
			t.Errorf("%d bytes over %s take %s, want %s", tt.bytes, tt.rtt, got, tt.want)
		}
	}
}

// haulMesh is a home, a region 100 ms away that costs a little less, and one
// beyond it.
func haulMesh() View {
	return View{Cells: []Cell{
		cell("home-1", func(c *Cell) { c.Prices.CPUHour = 0.36 }),
		cell("far-1", func(c *Cell) {
			c.Prices.CPUHour, c.RTT, c.EgressUSDPerGiB, c.ReturnUSDPerGiB, c.NetworkKWhPerGiB = 0.396, 100*time.Millisecond, 0.02, 0.08, 0.001
		}),
		cell("beyond-1", func(c *Cell) { c.Prices.CPUHour, c.RTT, c.ReturnUSDPerGiB = 0.396, 250*time.Millisecond, 0.05 }),
	}}
}

// TestChoiceMovesTowardsTheData: a task goes to where its inputs lie; an equal
// one without stays.
func TestChoiceMovesTowardsTheData(t *testing.T) {
	t.Parallel()
	policy := Policy{CarbonUSDPerTonne: 100, LatencyUSDPerS: 1e-6}
	without := task(variant("v"))
	with := without
	with.Inputs = []Input{{Name: "model", Bytes: 10 << 30, Places: []string{"far"}}}
	if d := Decide(without, haulMesh(), policy, noon(), Options{}); d.Chosen.Cell != "home-1" || d.Chosen.Terms.Data != 0 || d.Chosen.Fetch != 0 {
		t.Fatalf("without inputs: %+v", d.Chosen)
	}
	d := Decide(with, haulMesh(), policy, noon(), Options{Explain: true})
	if d.Chosen.Cell != "far-1" || d.Chosen.Terms.Data != 0 || d.Chosen.Fetch != 0 {
		t.Fatalf("with inputs: %+v", d.Chosen)
	}
	home := candidateAt(t, &d, "home-1")
	// 10 GiB at 0.08 USD, and 6 MiB each 100 ms.
	seconds := 0.1 + 10*1024/6.0*0.1
	within(t, "data", math.Round(1e9*home.Terms.Data)/1e9, math.Round(1e9*(0.8+seconds*1e-6))/1e9)
	within(t, "paid", home.USD, home.Terms.Compute+0.8)
	within(t, "network", home.NetworkKWh, 0.01)
	within(t, "network's grams", home.NetworkGCO2eq, 0.01*100)
	if got := home.Finish.Sub(noon()).Seconds(); math.Abs(got-(1+seconds)) > 1e-6 {
		t.Errorf("ends after %g s, want %g", got, 1+seconds)
	}
	if !strings.HasSuffix(d.Summary(), "mostly for inputs") {
		t.Errorf("summary %q", d.Summary())
	}
	// The time counts for the deadline.
	with.Deadline = noon().Add(time.Minute)
	if d := Decide(with, haulMesh(), policy, noon(), Options{Explain: true}); len(d.Candidates) != 1 || d.Chosen.Cell != "far-1" {
		t.Errorf("with a deadline: %+v", d.Candidates)
	}
	// Where all tasks are decided at once too.
	with.Deadline = time.Time{}
	all := DecideAll([]Task{without, with}, haulMesh(), policy, noon(), Options{})
	if all.Chosen[0].Cell != "home-1" || all.Chosen[1].Cell != "far-1" {
		t.Errorf("at once: %s and %s", all.Chosen[0].Cell, all.Chosen[1].Cell)
	}
}

func candidateAt(t *testing.T, d *Decision, id mesh.CellID) *Candidate {
	t.Helper()
	i := slices.IndexFunc(d.Candidates, func(c Candidate) bool { return c.Cell == id })
	if i < 0 {
		t.Fatalf("%s is no candidate", id)
	}
	return &d.Candidates[i]
}

// TestInputsWidenNoResidency: naming a place allows nothing there.
func TestInputsWidenNoResidency(t *testing.T) {
	t.Parallel()
	view := haulMesh()
	view.Cells[1].Jurisdictions = []string{"us"}
	in := task(variant("v"))
	in.Residency = mesh.Residency{Allowed: []string{"eu"}}
	in.Inputs = []Input{{Name: "model", Bytes: 10 << 30, Places: []string{"far"}}}
	d := Decide(in, view, Policy{LatencyUSDPerS: 1e-6}, noon(), Options{Explain: true})
	if d.Chosen.Cell != "home-1" || len(d.RuledOut) != 1 || d.RuledOut[0].Constraint != Residency {
		t.Errorf("chosen %+v, ruled out %+v", d.Chosen, d.RuledOut)
	}
}

// told are routes by "from to".
type told map[string]Route

func (r told) Between(from, to string) (Route, bool) {
	out, ok := r[from+" "+to]
	return out, ok
}

func TestRouteOfInputs(t *testing.T) {
	t.Parallel()
	in := task(variant("v"))
	for _, tt := range []struct {
		name   string
		places []string
		routes Routes
		at     mesh.CellID
		usd    float64
		rtt    time.Duration
		note   bool
	}{
		{name: "where it lies", places: []string{"far", "home"}, at: "far-1"},
		{name: "from home", places: []string{"home"}, at: "far-1", usd: 0.02, rtt: 100 * time.Millisecond},
		{name: "to home", places: []string{"far"}, at: "home-1", usd: 0.08, rtt: 100 * time.Millisecond},
		{name: "over home", places: []string{"beyond"}, at: "far-1", usd: 0.05, rtt: 350 * time.Millisecond},
		{name: "as told", places: []string{"beyond"}, routes: told{"beyond far": {20 * time.Millisecond, 0.01}}, at: "far-1", usd: 0.01, rtt: 20 * time.Millisecond},
		{name: "told nonsense", places: []string{"beyond"}, routes: told{"beyond far": {RTT: -1}}, at: "far-1", usd: 0.05, rtt: 350 * time.Millisecond},
		{name: "the home knows better", places: []string{"far"}, routes: told{"far home": {}}, at: "home-1", usd: 0.08, rtt: 100 * time.Millisecond},
		{name: "the nearer of two", places: []string{"beyond", "far"}, at: "home-1", usd: 0.08, rtt: 100 * time.Millisecond},
		{name: "from no cell", places: []string{"lake"}, routes: told{"lake far": {time.Millisecond, 0.03}}, at: "far-1", usd: 0.03, rtt: time.Millisecond, note: true},
		{name: "from nowhere", places: []string{"mars"}, at: "home-1", usd: 0.05, rtt: 250 * time.Millisecond, note: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			view := haulMesh()
			view.Routes = tt.routes
			in := in
			in.Inputs = []Input{{Name: "model", Bytes: 1 << 30, Places: tt.places}}
			d := Decide(in, view, Policy{}, noon(), Options{Explain: true})
			c := candidateAt(t, &d, tt.at)
			within(t, "data", c.Terms.Data, tt.usd)
			want := time.Duration(0)
			if tt.rtt > 0 {
				want = TransferTime(1<<30, tt.rtt)
			}
			if c.Fetch != want {
				t.Errorf("fetched in %s, want %s", c.Fetch, want)
			}
			if got := strings.Contains(strings.Join(d.Notes, "\n"), "no way is known from where input model lies"); got != tt.note {
				t.Errorf("notes %q", d.Notes)
			}
		})
	}
}

// TestAnotherPlaceNeverTakesLonger: data that lies in one more known region is
// never longer under way, to no candidate; and the order of inputs and places
// changes nothing but by rounding.
func TestAnotherPlaceNeverTakesLonger(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w := drawWorld(rt)
		region := rapid.SampledFrom([]string{"eu", "us", "in"})
		if len(w.View.Cells) > 0 {
			region = rapid.Custom(func(rt *rapid.T) string { return rapid.SampledFrom(w.View.Cells).Draw(rt, "at").Region })
		}
		w.Task.Inputs = []Input{
			{"a", pick[int64](rt, "a", 0, 1<<20, 1<<34), []string{region.Draw(rt, "in")}},
			{"b", pick[int64](rt, "b", 0, 1<<30), rapid.SliceOfN(region, 1, 3).Draw(rt, "places")},
		}
		w.Task.Deadline = time.Time{}
		before := byPair(w.decide())

		other := w
		other.Task.Inputs = slices.Clone(w.Task.Inputs)
		slices.Reverse(other.Task.Inputs)
		other.Task.Inputs[0].Places = rapid.Permutation(other.Task.Inputs[0].Places).Draw(rt, "permuted")
		same := byPair(other.decide())
		other.Task.Inputs[1].Places = append(slices.Clone(other.Task.Inputs[1].Places), region.Draw(rt, "one more"))
		after := byPair(other.decide())
		for name, c := range before {
			if got := same[name]; math.Abs(got.Score-c.Score) > 1e-9*max(1, c.Score) || got.Fetch != c.Fetch {
				rt.Fatalf("%s costs %g in another order, %g before", name, got.Score, c.Score)
			}
			if after[name].Fetch > c.Fetch {
				rt.Fatalf("%s fetches for %s with one more place, %s before", name, after[name].Fetch, c.Fetch)
			}
		}
	})
}

// byPair are all candidates by cell and variant.
func byPair(d Decision) map[string]Candidate {
	out := map[string]Candidate{}
	for _, c := range d.Candidates {
		out[string(c.Cell)+"/"+c.Variant] = c
	}
	return out
}
