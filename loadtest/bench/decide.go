package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
)

// decideAim is how long one decision over a hundred cells may take.
const decideAim = 50 * time.Microsecond

// benchDecide times placement as dispatch calls it.
func benchDecide(ctx context.Context, o options, r *report) error {
	for _, n := range []int{10, 100, 1000} {
		took, err := timeDecide(ctx, o.span/5, n)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("Decide, %d cells", n)
		if n == 100 {
			r.aim("decide", name, micros(took), micros(decideAim), "µs", "aim: under 50 µs")
		} else {
			r.add("decide", name, micros(took), "µs", "")
		}
	}
	return nil
}

var errUndecided = errors.New("nothing was chosen")

// timeDecide is the median of batches, so that what else the machine does in
// between does not count.
func timeDecide(ctx context.Context, span time.Duration, cells int) (time.Duration, error) {
	const batch = 50
	view, task, now := decideView(cells), decideTask(), time.Date(2026, 3, 1, 12, 59, 59, 0, time.UTC)
	policy := placement.Policy{CarbonUSDPerTonne: 80, LatencyUSDPerS: 0.0001, QualityUSD: 0.001}
	var d placement.Decider
	var batches []time.Duration
	for end := time.Now().Add(span); time.Now().Before(end) && ctx.Err() == nil; {
		start := time.Now()
		for range batch {
			if got := d.Decide(task, view, policy, now, placement.Options{}); got.Chosen == nil {
				return 0, fmt.Errorf("decide over %d cells: %w: %s", cells, errUndecided, got.Hint)
			}
		}
		batches = append(batches, time.Since(start)/batch)
	}
	if len(batches) == 0 {
		return 0, context.Cause(ctx)
	}
	slices.Sort(batches)
	return batches[len(batches)/2], nil
}

// decideView is a mesh of n cells, all different, each with warm functions,
// accelerators and a day of carbon.
func decideView(n int) placement.View {
	var warm []string
	for k := range 24 {
		warm = append(warm, fmt.Sprintf("function-%02d/small", k))
	}
	var v placement.View
	for i := range n {
		day := make([]float64, 24)
		for h := range day {
			day[h] = float64(20 + (i*37+h*11)%600)
		}
		region := fmt.Sprintf("region-%04d", i)
		v.Cells = append(v.Cells, placement.Cell{
			Cell:     mesh.Cell{ID: mesh.CellID(region + "-1"), Region: region, Jurisdictions: []string{"eu", "se"}},
			Verified: true,
			Total:    mesh.Capacity{CPUMilli: 64000, MemoryMiB: 256 << 10, GPUs: []mesh.Accelerators{{Model: "A100", Count: 8}, {Model: "H100", Count: 4}}},
			Free:     mesh.Capacity{CPUMilli: int64(i%5) * 1000, MemoryMiB: 64 << 10, GPUs: []mesh.Accelerators{{Model: "A100", Count: int64(i % 3)}, {Model: "H100", Count: 1}}},
			Backlog:  [4]time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second},
			Runtimes: []string{"exec", "http", "wasm"}, Warm: warm,
			Prices: placement.Prices{
				CPUHour: 0.03 + float64(i%7)/100, MemoryGiBHour: 0.004,
				GPUHour: []placement.ModelPrice{{Model: "A100", USD: 3.7}, {Model: "H100", USD: 7}},
			},
			RTT: time.Duration(i*13%200) * time.Millisecond,
			Energy: placement.Energy{
				Zone: "Z", WattsPerCPU: 3.5, PUE: 1.1, Known: true, Intensity: day, Kind: "average",
				WattsPerGPU: []placement.ModelWatts{{Model: "A100", Watts: 400}, {Model: "H100", Watts: 700}},
			},
			EgressUSDPerGiB: 0.02, ReturnUSDPerGiB: 0.02,
		})
	}
	return v
}

// decideTask has three variants, a residency and a deadline.
func decideTask() placement.Task {
	return placement.Task{
		Function: "function-07", Lane: mesh.Standard, InputBytes: 1 << 20, OutputBytes: 64 << 10,
		Residency: mesh.Residency{Allowed: []string{"eu"}}, MinQuality: 0.5, Home: "region-0000-1",
		Deadline: time.Date(2026, 3, 1, 13, 59, 59, 0, time.UTC),
		Variants: []placement.Variant{
			{Name: "cached", Runtime: "exec", Demand: mesh.Demand{CPUMilli: 100, MemoryMiB: 64}, Quality: 0.6, Duration: 5 * time.Millisecond},
			{Name: "large", Runtime: "exec", Demand: mesh.Demand{CPUMilli: 4000, MemoryMiB: 8192, GPUs: 1}, Quality: 0.9, Duration: 2 * time.Second, ColdStart: 8 * time.Second},
			{Name: "small", Runtime: "wasm", Demand: mesh.Demand{CPUMilli: 1000, MemoryMiB: 512}, Quality: 0.72, Duration: 300 * time.Millisecond, ColdStart: 50 * time.Millisecond},
		},
	}
}
