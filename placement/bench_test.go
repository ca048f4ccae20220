package placement

import (
	"fmt"
	"math"
	"slices"
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
				Zone: "Z", WattsPerCPU: 3.5, IdleWattsPerCPU: 0.74, WattsPerGiB: 0.42, EmbodiedPerCPUHour: 0.48, PUE: 1.1,
				WattsPerGPU: []ModelWatts{{"A100", 400, 40, 4.28}, {"H100", 700, 70, 4.28}},
				Known:       true, Intensity: day, Kind: "average",
			},
			EgressUSDPerGiB: 0.02, ReturnUSDPerGiB: 0.02, NetworkKWhPerGiB: 0.001,
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

// BenchmarkDecide decides as dispatch does, the same with a task that has costs
// in cells with bounds on them, and as explain does. "cpu-µs" is the processor's
// time of a decision, which another load moves less than the clock's.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		for _, of := range []struct {
			name    string
			costs   bool
			explain bool
		}{{name: "dispatch"}, {name: "costs", costs: true}, {name: "explain", explain: true}} {
			b.Run(fmt.Sprintf("%s/cells=%d", of.name, n), func(b *testing.B) {
				view, task, policy, now := benchMesh(n), benchTask(), benchPolicy(), benchNow()
				if of.costs {
					withCosts(&view, &task)
				}
				var d Decider
				b.ReportAllocs()
				begin, rounds := cpuTime(), 0
				for b.Loop() {
					rounds++
					if dec := d.Decide(task, view, policy, now, Options{Explain: of.explain}); dec.Chosen == nil {
						b.Fatal(dec.Hint)
					}
				}
				b.ReportMetric(float64((cpuTime()-begin).Microseconds())/float64(rounds), "cpu-µs")
			})
		}
	}
}

// withCosts gives the task a cost, and each cell a bound that rules it out at a
// few and makes it wait at others.
func withCosts(view *View, task *Task) {
	task.Cost = mesh.Cost{Tokens: 4000, Bytes: 1 << 20, AcceleratorMiB: 512}
	for i := range view.Cells {
		c := &view.Cells[i]
		c.Total.Most = mesh.Cost{Tokens: int64(3+i%13) * 1000, Bytes: 64 << 20, AcceleratorMiB: 40 << 10}
		c.Free.Most, c.Free.Held = c.Total.Most, mesh.Cost{Tokens: int64(i%3) * 2000, Bytes: 1 << 20}
	}
}

// bare is the loop that Decide is measured against: it scores every (cell,
// start, variant) by the same objective with the same figures, and nothing
// else: no constraint, no order, no record of why.
func bare(task *Task, view *View, policy Policy, now time.Time, starts int) (best float64) {
	into := now.Sub(now.Truncate(time.Hour))
	in, out := float64(task.InputBytes)/bytesPerGiB, float64(task.OutputBytes)/bytesPerGiB
	top := 0.0
	var names [4]string
	atHome := 0.0
	for i := range view.Cells {
		if view.Cells[i].ID == task.Home {
			atHome = view.Cells[i].Energy.Intensity[0]
		}
	}
	for k := range task.Variants {
		top = max(top, task.Variants[k].Quality)
		names[k] = task.Function + "/" + task.Variants[k].Name
	}
	best = math.Inf(1)
	for i := range view.Cells {
		c := &view.Cells[i]
		egress := in*c.EgressUSDPerGiB + out*c.ReturnUSDPerGiB
		network := (in + out) * c.NetworkKWhPerGiB * (atHome + c.Energy.Intensity[0]) / 2
		for k := range task.Variants {
			v := &task.Variants[k]
			cores, hours := float64(v.Demand.CPUMilli)/1000, v.Duration.Hours()
			hourly := cores*c.Prices.CPUHour + float64(v.Demand.MemoryMiB)/mibPerGiB*c.Prices.MemoryGiBHour
			watts := cores*c.Energy.WattsPerCPU + float64(v.Demand.MemoryMiB)/mibPerGiB*c.Energy.WattsPerGiB
			embodied := cores * c.Energy.EmbodiedPerCPUHour
			if n := float64(v.Demand.GPUs); n > 0 {
				model := gpuModel(c, &v.Demand)
				hourly += n * gpuPrice(c.Prices.GPUHour, model)
				row := gpuWatts(c.Energy.WattsPerGPU, model)
				watts += n * row.Watts
				embodied += n * row.EmbodiedPerHour
			}
			kwh := watts * hours * c.Energy.PUE / wattsPerKW
			var wait, cold time.Duration
			if !c.Free.Fits(&v.Demand) {
				slots := max(c.Total.Count(&v.Demand, freeLimit), 1)
				wait = max(c.Backlog[task.Lane], v.Duration/time.Duration(slots), minWait)
			}
			if _, warm := slices.BinarySearch(c.Warm, names[k]); !warm {
				cold = v.ColdStart
			}
			fixed := hourly*hours + v.USD + egress + (top-v.Quality)*policy.QualityUSD + (network+embodied*hours)/gramsPerTonne*policy.CarbonUSDPerTonne
			begin := into + c.RTT/2 + wait + cold
			for s := range starts {
				put := time.Duration(0)
				if s > 0 { // a full hour
					put = time.Duration(s)*time.Hour - begin%time.Hour
				}
				intensity := meanIntensity(c.Energy.Intensity, time.Hour, begin+put, v.Duration)
				score := fixed + kwh*intensity/gramsPerTonne*policy.CarbonUSDPerTonne +
					(c.RTT+wait+v.Duration).Seconds()*policy.LatencyUSDPerS + put.Seconds()*policy.DelayUSDPerS + cold.Seconds()*policy.LatencyUSDPerS
				best = min(best, score)
			}
		}
	}
	return best
}

// againstBare is a question over as many cells and starts.
func againstBare(cells, starts int) (Task, View) {
	view, task := benchMesh(cells), benchTask()
	if starts > 1 {
		task.Deadline, task.StartBy = benchNow().Add(48*time.Hour), benchNow().Add(time.Duration(starts-1)*time.Hour)
	}
	return task, view
}

// TestBareScoresTheSame: what Decide is measured against finds the score that
// Decide chooses, where no constraint rules anything out.
func TestBareScoresTheSame(t *testing.T) {
	t.Parallel()
	for _, starts := range []int{1, 24} {
		for _, policy := range []Policy{benchPolicy(), {CarbonUSDPerTonne: 1e6, LatencyUSDPerS: 1e-7, DelayUSDPerS: 1e-7}} {
			task, view := againstBare(100, starts)
			got := Decide(task, view, policy, benchNow(), Options{})
			if len(got.Counts) > 0 {
				t.Fatalf("something is ruled out: %v", got.Counts)
			}
			within(t, "score", bare(&task, &view, policy, benchNow(), starts)/got.Chosen.Score, 1)
		}
	}
}

// BenchmarkAgainstBare compares Decide with the bare loop over the same
// candidates. The two take turns, so that what else the machine does meets both;
// "ratio" is the median of how many times as long Decide takes.
func BenchmarkAgainstBare(b *testing.B) {
	for _, size := range []struct{ cells, starts, loops int }{{30, 1, 200}, {1000, 24, 2}} {
		b.Run(fmt.Sprintf("%dx%dx3", size.cells, size.starts), func(b *testing.B) {
			task, view := againstBare(size.cells, size.starts)
			policy, now := benchPolicy(), benchNow()
			var d Decider
			var ratios []float64
			sink := 0.0
			for b.Loop() {
				begin := time.Now()
				for range size.loops {
					sink += bare(&task, &view, policy, now, size.starts)
				}
				between := time.Now()
				for range size.loops {
					decision := d.Decide(task, view, policy, now, Options{})
					sink += decision.Chosen.Score
				}
				ratios = append(ratios, float64(time.Since(between))/float64(between.Sub(begin)))
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "ratio")
			if sink == 0 {
				b.Fatal("nothing scored")
			}
		})
	}
}
