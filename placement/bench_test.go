package placement

import (
	"fmt"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// benchMesh is a mesh of n cells, all different, each with warm functions and
// a day of carbon.
func benchMesh(n int) View {
	var v View
	for i := range n {
		day := make([]float64, 24)
		for h := range day {
			day[h] = float64(20 + (i*37+h*11)%600)
		}
		var warmed []string
		for k := range 24 {
			warmed = append(warmed, fmt.Sprintf("function-%02d/small", k))
		}
		c := Cell{
			Cell:     mesh.Cell{ID: mesh.CellID(fmt.Sprintf("region-%04d-1", i)), Region: fmt.Sprintf("region-%04d", i), Jurisdictions: []string{"eu", "se"}},
			Verified: true,
			Total:    mesh.Capacity{CPUMilli: 64000, MemoryMiB: 256 << 10, GPUs: []mesh.Accelerators{{Model: "A100", Count: 8}, {Model: "H100", Count: 4}}},
			Free:     mesh.Capacity{CPUMilli: int64(i%5) * 1000, MemoryMiB: 64 << 10, GPUs: []mesh.Accelerators{{Model: "A100", Count: int64(i % 3)}, {Model: "H100", Count: 1}}},
			Backlog:  [4]time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second},
			Runtimes: []string{"exec", "http", "wasm"},
			Warm:     warmed,
			Prices:   Prices{CPUHour: 0.03 + float64(i%7)/100, MemoryGiBHour: 0.004, GPUHour: []ModelPrice{{"A100", 3.7}, {"H100", 7}}},
			RTT:      time.Duration(i*13%200) * time.Millisecond,
			Energy: Energy{
				Zone: "Z", WattsPerCPU: 3.5, WattsPerGPU: []ModelWatts{{"A100", 400}, {"H100", 700}}, PUE: 1.1,
				Known: true, Intensity: day, Kind: "average",
			},
			EgressUSDPerGiB: 0.02, ReturnUSDPerGiB: 0.02,
		}
		v.Cells = append(v.Cells, c)
	}
	return v
}

func benchTask() Task {
	return Task{
		Function: "function-07", Lane: mesh.Standard, InputBytes: 1 << 20, OutputBytes: 64 << 10,
		Residency: mesh.Residency{Allowed: []string{"eu"}}, MinQuality: 0.5, Home: "region-0000-1",
		Deadline: benchNow().Add(time.Hour),
		Variants: []Variant{
			{Name: "cached", Runtime: "exec", Demand: mesh.Demand{CPUMilli: 100, MemoryMiB: 64}, Quality: 0.6, Duration: 5 * time.Millisecond},
			{Name: "large", Runtime: "exec", Demand: mesh.Demand{CPUMilli: 4000, MemoryMiB: 8192, GPUs: 1}, Quality: 0.9, Duration: 2 * time.Second, ColdStart: 8 * time.Second},
			{Name: "small", Runtime: "wasm", Demand: mesh.Demand{CPUMilli: 1000, MemoryMiB: 512}, Quality: 0.72, Duration: 300 * time.Millisecond, ColdStart: 50 * time.Millisecond},
		},
	}
}

func benchNow() time.Time { return time.Date(2026, 3, 1, 12, 59, 59, 0, time.UTC) }

func benchPolicy() Policy {
	return Policy{CarbonUSDPerTonne: 80, LatencyUSDPerS: 0.0001, QualityUSD: 0.001}
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		view, task, policy, now := benchMesh(n), benchTask(), benchPolicy(), benchNow()
		for _, explain := range []bool{false, true} {
			name := "dispatch"
			if explain {
				name = "explain"
			}
			b.Run(fmt.Sprintf("%s/cells=%d", name, n), func(b *testing.B) {
				var d Decider
				b.ReportAllocs()
				for b.Loop() {
					if dec := d.Decide(task, view, policy, now, Options{Explain: explain}); dec.Chosen == nil {
						b.Fatal(dec.Hint)
					}
				}
			})
		}
	}
}
