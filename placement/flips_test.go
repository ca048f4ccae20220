package placement

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// powered is a cell where the hour's run of powerTask costs price USD and one
// kWh of so many grams: its score is price + grams/1e6 × carbon price.
func powered(id string, price, grams float64) Cell {
	return cell(id, func(c *Cell) {
		c.Prices.CPUHour = price
		c.Energy = Energy{WattsPerCPU: 1000, PUE: 1, Known: true, Intensity: []float64{grams}, Kind: "average"}
	})
}

func powerTask(avoid ...mesh.CellID) Task {
	in := task(variant("v", func(v *Variant) { v.Duration = time.Hour }))
	in.Avoid = avoid
	return in
}

func TestFlips(t *testing.T) {
	t.Parallel()
	// The lines of all three meet at 100 USD a tonne, at 1.09 USD.
	three := []Cell{powered("a-1", 1, 900), powered("b-1", 1.04, 500), powered("c-1", 1.08, 100)}
	for _, tt := range []struct {
		name   string
		task   Task
		cells  []Cell
		policy Policy
		want   []Flip
	}{
		{
			"of three that meet, going up the flattest", powerTask(), three, Policy{CarbonUSDPerTonne: 20},
			[]Flip{{Weight: weightCarbon, Now: 20, At: 100, Above: true, Cell: "c-1", Variant: "v"}},
		},
		{
			"and going down the steepest", powerTask(), three, Policy{CarbonUSDPerTonne: 200},
			[]Flip{{Weight: weightCarbon, Now: 200, At: 100, Cell: "a-1", Variant: "v"}},
		},
		{
			"one each way", powerTask(), []Cell{powered("a-1", 1, 900), powered("b-1", 1.02, 500), powered("c-1", 1.1, 100)}, Policy{CarbonUSDPerTonne: 60},
			[]Flip{
				{Weight: weightCarbon, Now: 60, At: 50, Cell: "a-1", Variant: "v"},
				{Weight: weightCarbon, Now: 60, At: 200, Above: true, Cell: "c-1", Variant: "v"},
			},
		},
		{
			"a tie at zero goes by name", powerTask(), []Cell{powered("a-1", 1, 900), powered("b-1", 1, 500)}, Policy{CarbonUSDPerTonne: 10},
			[]Flip{{Weight: weightCarbon, Now: 10, At: 0, Cell: "a-1", Variant: "v"}},
		},
		{
			"a tie at the present weight", powerTask(), []Cell{powered("a-1", 1, 900), powered("b-1", 1, 500)}, Policy{},
			[]Flip{{Weight: weightCarbon, Now: 0, At: 0, Above: true, Cell: "b-1", Variant: "v"}},
		},
		{
			"a cell to avoid is no alternative", powerTask("c-1"), three, Policy{CarbonUSDPerTonne: 20},
			[]Flip{{Weight: weightCarbon, Now: 20, At: 100, Above: true, Cell: "b-1", Variant: "v"}},
		},
		{
			"a cell to avoid is none at zero either", powerTask("a-1"), []Cell{powered("a-1", 1, 900), powered("b-1", 1, 500)}, Policy{CarbonUSDPerTonne: 10}, nil,
		},
		{
			"alone", powerTask(), three[:1], Policy{CarbonUSDPerTonne: 20, LatencyUSDPerS: 1, QualityUSD: 1}, nil,
		},
		{
			// near: 0.2 + 100 s × w; far: 0.1 + 102 s × w, of it 1.5 s of cold start.
			"latency with the cold start", task(variant("v", func(v *Variant) { v.Duration, v.ColdStart = 100*time.Second, 1500*time.Millisecond })),
			[]Cell{
				cell("far-1", func(c *Cell) { c.Prices.CPUHour, c.RTT = 3.6, 500*time.Millisecond }),
				cell("near-1", func(c *Cell) { c.Prices.CPUHour, c.Warm = 7.2, []string{"f/v"} }),
			},
			Policy{LatencyUSDPerS: 0.01},
			[]Flip{{Weight: weightLatency, Now: 0.01, At: 0.05, Above: true, Cell: "near-1", Variant: "v"}},
		},
		{
			// small: 0 + 0.25 × w; large: 0.5.
			"quality", task(
				variant("large", func(v *Variant) { v.Quality, v.USD = 1, 0.5 }),
				variant("small", func(v *Variant) { v.Quality = 0.75 }),
			),
			[]Cell{cell("a-1")}, Policy{QualityUSD: 3},
			[]Flip{{Weight: weightQuality, Now: 3, At: 2, Cell: "a-1", Variant: "small"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := Decide(tt.task, View{Cells: tt.cells}, tt.policy, noon(), Options{Explain: true})
			if diff := cmp.Diff(tt.want, d.Flips, cmpopts.EquateApprox(1e-9, 1e-12)); diff != "" {
				t.Errorf("chosen %s/%s, flips (-want +got):\n%s", d.Chosen.Cell, d.Chosen.Variant, diff)
			}
		})
	}
}

func TestHintMovesTheDeadlineLeast(t *testing.T) {
	t.Parallel()
	near := cell("b-1", func(c *Cell) { c.RTT = 100 * time.Millisecond })
	far := cell("a-1", func(c *Cell) { c.RTT = 200 * time.Millisecond })
	in := task(variant("v"))
	in.Deadline = noon().Add(time.Second)
	got := Decide(in, View{Cells: []Cell{near, far}}, Policy{}, noon(), Options{}).Hint
	if want := "move the deadline 100ms later, to 2026-03-01T12:00:01.100Z: v could then run at b-1"; got != want {
		t.Errorf("hint\n got: %s\nwant: %s", got, want)
	}
}
