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

// bare scores every (cell, start, variant) with the same figures and nothing
// else: no constraint, no order, no explanation. It is what Decide is measured
// against.
func bare(task *Task, view *View, policy Policy, now time.Time, starts int) (best float64) {
	into := now.Sub(now.Truncate(time.Hour))
	best = 1e300
	for i := range view.Cells {
		c := &view.Cells[i]
		for k := range task.Variants {
			v := &task.Variants[k]
			cores, hours := float64(v.Demand.CPUMilli)/1000, v.Duration.Hours()
			usd := cores*c.Prices.CPUHour*hours + float64(v.Demand.MemoryMiB)/1024*c.Prices.MemoryGiBHour*hours +
				float64(task.InputBytes)/(1<<30)*c.EgressUSDPerGiB
			kwh := cores * c.Energy.WattsPerCPU * hours * c.Energy.PUE / 1000
			for s := range starts {
				begin := into + c.RTT/2 + v.ColdStart + time.Duration(s)*time.Hour
				score := usd + kwh*meanIntensity(c.Energy.Intensity, begin, v.Duration)/1e6*policy.CarbonUSDPerTonne +
					(c.RTT+v.ColdStart+v.Duration+time.Duration(s)*time.Hour).Seconds()*policy.LatencyUSDPerS
				best = min(best, score)
			}
		}
	}
	return best
}

// BenchmarkAgainstBare compares Decide with the bare loop over as many
// candidates; "ratio" is how many times as long it takes.
func BenchmarkAgainstBare(b *testing.B) {
	for _, size := range []struct{ cells, starts int }{{30, 1}, {1000, 24}} {
		b.Run(fmt.Sprintf("%dx%dx3", size.cells, size.starts), func(b *testing.B) {
			view, task, policy, now := benchMesh(size.cells), benchTask(), benchPolicy(), benchNow()
			if size.starts > 1 {
				task.Deadline, task.StartBy = now.Add(48*time.Hour), now.Add(time.Duration(size.starts-1)*time.Hour)
			}
			sink := 0.0
			begin := time.Now()
			const loops = 20
			for range loops {
				sink += bare(&task, &view, policy, now, size.starts)
			}
			one := float64(time.Since(begin)) / loops
			var d Decider
			b.ReportAllocs()
			for b.Loop() {
				if d.Decide(task, view, policy, now, Options{}).Chosen == nil {
					b.Fatal("nothing chosen")
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/one, "ratio")
			if sink == 0 {
				b.Fatal("nothing scored")
			}
		})
	}
}
