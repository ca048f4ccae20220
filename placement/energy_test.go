package placement

import (
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// TestEnergyModel: each part of the model by hand. Half an hour of 2 cores, 4
// GiB and 2 accelerators; 3 GiB in, 1 GiB out.
func TestEnergyModel(t *testing.T) {
	t.Parallel()
	energy := func(hours ...float64) Energy {
		return Energy{WattsPerCPU: 3.5, PUE: 1.25, Known: true, Kind: "average", Intensity: hours, WattsPerGPU: []ModelWatts{{Model: "H100", Watts: 700}}}
	}
	gpus := mesh.Capacity{CPUMilli: 8000, MemoryMiB: 64 << 10, GPUs: []mesh.Accelerators{{Model: "H100", Count: 4}}}
	for _, tt := range []struct {
		name               string
		home               Energy
		change             func(c *Cell, v *Variant)
		kwh                float64 // at the meter
		network            float64 // kWh
		netGrams, embodied float64
		intensity          float64
	}{
		{"busy cores and accelerators", energy(50), func(*Cell, *Variant) {}, (2*3.5 + 2*700) * 0.5 / 1000 * 1.25, 0, 0, 0, 400},
		{"idle figures do not count while busy", energy(50), func(c *Cell, _ *Variant) {
			c.Energy.IdleWattsPerCPU, c.Energy.WattsPerGPU[0].Idle = 0.74, 70
		}, (2*3.5 + 2*700) * 0.5 / 1000 * 1.25, 0, 0, 0, 400},
		{"cores half used, accelerators a quarter", energy(50), func(c *Cell, v *Variant) {
			c.Energy.IdleWattsPerCPU, c.Energy.WattsPerGPU[0].Idle = 0.74, 70
			v.IdleCPU, v.IdleGPU = 0.5, 0.75
		}, (2*(0.74+0.5*2.76) + 2*(70+0.25*630)) * 0.5 / 1000 * 1.25, 0, 0, 0, 400},
		{"without idle figures in proportion", energy(50), func(_ *Cell, v *Variant) { v.IdleCPU, v.IdleGPU = 0.5, 0.75 }, (2*1.75 + 2*175) * 0.5 / 1000 * 1.25, 0, 0, 0, 400},
		{"memory", energy(50), func(c *Cell, _ *Variant) { c.Energy.WattsPerGiB = 0.4 }, (2*3.5 + 2*700 + 4*0.4) * 0.5 / 1000 * 1.25, 0, 0, 0, 400},
		{"watts of the whole attempt are all of it", energy(50), func(c *Cell, v *Variant) {
			c.Energy.WattsPerGiB, v.Watts, v.IdleCPU = 0.4, new(float64), 0.5
			*v.Watts = 1000
		}, 1000 * 0.5 / 1000 * 1.25, 0, 0, 0, 400},
		{"network at the mean of both ends, without PUE", energy(50), func(c *Cell, _ *Variant) { c.NetworkKWhPerGiB = 0.001 },
			(2*3.5 + 2*700) * 0.5 / 1000 * 1.25, 4 * 0.001, 4 * 0.001 * (50 + 400) / 2, 0, 400},
		{"network from a home that is not known", Energy{}, func(c *Cell, _ *Variant) { c.NetworkKWhPerGiB = 0.001 },
			(2*3.5 + 2*700) * 0.5 / 1000 * 1.25, 4 * 0.001, 4 * 0.001 * 400, 0, 400},
		{"embodied, by the hour it is held", energy(50), func(c *Cell, _ *Variant) {
			c.Energy.EmbodiedPerCPUHour, c.Energy.WattsPerGPU[0].EmbodiedPerHour = 0.48, 4.28
		}, (2*3.5 + 2*700) * 0.5 / 1000 * 1.25, 0, 0, (2*0.48 + 2*4.28) * 0.5, 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			home := cell("home-1", func(c *Cell) { c.Energy = tt.home })
			there := cell("there-1", func(c *Cell) { c.Energy, c.Total, c.Free = energy(400), gpus, gpus })
			v := Variant{Name: "v", Runtime: "exec", Quality: 1, Duration: 30 * time.Minute, Demand: mesh.Demand{CPUMilli: 2000, MemoryMiB: 4096, GPUs: 2, GPUModel: "H100"}}
			tt.change(&there, &v)
			task := Task{Function: "f", Variants: []Variant{v}, Home: "home-1", InputBytes: 3 << 30, OutputBytes: 1 << 30}
			d := Decide(task, View{Cells: []Cell{home, there}}, Policy{CarbonUSDPerTonne: 100}, noon(), Options{Explain: true})
			if d.Chosen == nil {
				t.Fatal(d.Hint)
			}
			c := d.Chosen
			within(t, "kWh", c.KWh, tt.kwh)
			within(t, "network kWh", c.NetworkKWh, tt.network)
			within(t, "network grams", c.NetworkGCO2eq, tt.netGrams)
			within(t, "embodied grams", c.EmbodiedGCO2eq, tt.embodied)
			within(t, "grams", c.GCO2eq, tt.kwh*tt.intensity+tt.netGrams+tt.embodied)
			within(t, "carbon term", c.Terms.Carbon, c.GCO2eq*100/1e6)
		})
	}
}

// TestNetworkCounts: what moving costs in carbon can keep work at home.
func TestNetworkCounts(t *testing.T) {
	t.Parallel()
	view := func(network float64) View {
		at := func(intensity float64) func(*Cell) {
			return func(c *Cell) {
				c.Energy = Energy{WattsPerCPU: 1000, PUE: 1, Known: true, Kind: "average", Intensity: []float64{intensity}}
				if c.ID != "home-1" {
					c.NetworkKWhPerGiB = network
				}
			}
		}
		return View{Cells: []Cell{cell("clean-1", at(100)), cell("home-1", at(300))}}
	}
	task := Task{
		Function: "f", Home: "home-1", InputBytes: 10 << 30,
		Variants: []Variant{{Name: "v", Runtime: "exec", Quality: 1, Duration: time.Hour, Demand: mesh.Demand{CPUMilli: 1000}}},
	}
	// The hour emits 200 g less there; 10 GiB at 200 g/kWh on the way emit 2,000 g a kWh/GiB.
	for network, want := range map[float64]mesh.CellID{0: "clean-1", 0.09: "clean-1", 0.11: "home-1"} {
		d := Decide(task, view(network), Policy{CarbonUSDPerTonne: 100}, noon(), Options{})
		if d.Chosen.Cell != want {
			t.Errorf("%g kWh/GiB: chosen %s, want %s", network, d.Chosen.Cell, want)
		}
	}
}

// TestBrokenEnergyFigures: a cell whose figures cannot be true takes no work.
func TestBrokenEnergyFigures(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*Cell){
		"power of an idle core":             func(c *Cell) { c.Energy.IdleWattsPerCPU = c.Energy.WattsPerCPU + 1 },
		"power of memory":                   func(c *Cell) { c.Energy.WattsPerGiB = -1 },
		"embodied carbon of a core":         func(c *Cell) { c.Energy.EmbodiedPerCPUHour = 1e300 },
		"energy of the network":             func(c *Cell) { c.NetworkKWhPerGiB = -1 },
		"power of an idle accelerator":      func(c *Cell) { c.Energy.WattsPerGPU = []ModelWatts{{Model: "H100", Watts: 1, Idle: 2}} },
		"embodied carbon of an accelerator": func(c *Cell) { c.Energy.WattsPerGPU = []ModelWatts{{Model: "H100", EmbodiedPerHour: -1}} },
	} {
		v := View{Cells: []Cell{cell("a-1", change)}}
		task := Task{Function: "f", Variants: []Variant{{Name: "v", Runtime: "exec"}}}
		d := Decide(task, v, Policy{}, noon(), Options{Explain: true})
		if d.Chosen != nil || len(d.RuledOut) != 1 || !strings.Contains(d.RuledOut[0].Detail, want) {
			t.Errorf("%s: %+v", want, d.RuledOut)
		}
	}
}
