package placement

import (
	"fmt"
	"math"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// drawLot draws a view and tasks of one home.
func drawLot(t *rapid.T) (world, []Task) {
	w := drawWorld(t)
	var tasks []Task
	for i := range rapid.IntRange(0, 8).Draw(t, "tasks") {
		in := w.Task
		in.InputBytes = int64(i) << 18
		in.MinQuality = pick(t, "task quality", 0, 0, 0.6)
		tasks = append(tasks, in)
	}
	return w, tasks
}

// TestTogetherKeepsWhatIsFree: what starts at once fits into what is free; each
// choice is one that Decide allows; terms sum to the score; and relaxing what
// is free never raises the bound.
func TestTogetherKeepsWhatIsFree(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w, tasks := drawLot(rt)
		got := DecideAll(tasks, w.View, w.Policy, w.Now, w.Opts)
		taken := map[mesh.CellID]int64{}
		gpus := map[mesh.CellID]int64{}
		unplaced := 0
		for i, c := range got.Chosen {
			if c == nil {
				unplaced++
				continue
			}
			in := tasks[i]
			var cell Cell
			for _, x := range w.View.Cells {
				if x.ID == c.Cell {
					cell = x
				}
			}
			var v Variant
			for _, x := range in.Variants {
				if x.Name == c.Variant {
					v = x
				}
			}
			one := w
			one.Task = in
			if !allowed(one, cell, v, c.Finish) {
				rt.Fatalf("task %d at %s/%s is not allowed", i, c.Cell, c.Variant)
			}
			if math.Abs(c.Terms.Sum()-c.Score) > 1e-9 || c.Terms.Scarcity < 0 {
				rt.Fatalf("terms %+v, score %g", c.Terms, c.Score)
			}
			if c.Wait == 0 {
				taken[c.Cell] += v.Demand.CPUMilli
				gpus[c.Cell] += v.Demand.GPUs
			}
		}
		for _, x := range w.View.Cells {
			if taken[x.ID] > x.Free.CPUMilli || gpus[x.ID] > x.Free.GPU("H100") {
				rt.Fatalf("%s: %d cores and %d accelerators taken of %+v", x.ID, taken[x.ID], gpus[x.ID], x.Free)
			}
		}
		if unplaced != got.Unplaced || got.Bound > got.Cost {
			rt.Fatalf("%d unplaced, said %d; bound %g, cost %g", unplaced, got.Unplaced, got.Bound, got.Cost)
		}
	})
}

// TestTogetherWithRoomIsEachAlone: where there is room for all, each task has
// what Decide gives it, and nothing is scarce.
func TestTogetherWithRoomIsEachAlone(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w, tasks := drawLot(rt)
		for i := range w.View.Cells {
			c := &w.View.Cells[i]
			if c.Total.CPUMilli > 0 {
				c.Total.CPUMilli = 1 << 40
			}
			c.Total.MemoryMiB = 1 << 40
			for k := range c.Total.GPUs {
				c.Total.GPUs[k].Count = 1 << 30
			}
			c.Free = c.Total
		}
		w.Task.Avoid = nil
		got := DecideAll(tasks, w.View, w.Policy, w.Now, w.Opts)
		for i, in := range tasks {
			in.Avoid = nil
			alone := Decide(in, w.View, w.Policy, w.Now, w.Opts)
			switch c := got.Chosen[i]; {
			case (c == nil) != (alone.Chosen == nil):
				rt.Fatalf("task %d: %v, alone %v", i, c, alone.Chosen)
			case c != nil && (c.Score != alone.Chosen.Score || c.Terms.Scarcity != 0):
				rt.Fatalf("task %d: %+v, alone %+v", i, *c, *alone.Chosen)
			}
		}
	})
}

// TestScarcityTellsWhoGoes: of two tasks and one free place, the one that can go
// elsewhere at little cost does.
func TestScarcityTellsWhoGoes(t *testing.T) {
	t.Parallel()
	green := cell("a-1", func(c *Cell) { c.Free.CPUMilli, c.Energy.Intensity, c.Energy.WattsPerCPU = 1000, []float64{10}, 10 })
	brown := cell("b-1", func(c *Cell) { c.Energy.Intensity, c.Energy.WattsPerCPU = []float64{800}, 10 })
	small := task(variant("v", func(v *Variant) { v.Duration = time.Hour }))
	large := task(variant("v", func(v *Variant) { v.Duration = 10 * time.Hour }))
	policy := Policy{CarbonUSDPerTonne: 1e5, LatencyUSDPerS: 1}
	view := View{Cells: []Cell{green, brown}}
	for _, tasks := range [][]Task{{small, large}, {large, small}} {
		got := DecideAll(tasks, view, policy, noon(), Options{})
		for i, in := range tasks {
			want := mesh.CellID("b-1")
			if in.Variants[0].Duration > time.Hour {
				want = "a-1"
			}
			if c := got.Chosen[i]; c == nil || c.Cell != want {
				t.Fatalf("the run of %v is at %+v", in.Variants[0].Duration, c)
			}
		}
		if got.Scarcity[0].CPUHour == 0 || got.Scarcity[1].CPUHour != 0 {
			t.Errorf("scarcity %+v", got.Scarcity)
		}
	}
}

// benchLot is so many tasks over 30 cells which have room for some three
// quarters of them.
func benchLot(n int) ([]Task, View) {
	view := benchMesh(30)
	var tasks []Task
	total := int64(0)
	for i := range n {
		in := benchTask()
		in.InputBytes = int64(i%97) << 16
		in.Variants = []Variant{in.Variants[2]}
		in.Variants[0].Demand.CPUMilli = int64(200 + 100*(i%17))
		in.Variants[0].Demand.MemoryMiB = int64(64 * (1 + i%11))
		in.Variants[0].Duration = time.Duration(1+i%13) * 20 * time.Second
		total += in.Variants[0].Demand.CPUMilli
		tasks = append(tasks, in)
	}
	for i := range view.Cells {
		view.Cells[i].Free.CPUMilli = total * int64(1+i%5) / 3 / 30 * 3 / 4
		view.Cells[i].Free.MemoryMiB = 1 << 30
		view.Cells[i].Total.CPUMilli = 2 * total
		view.Cells[i].Total.MemoryMiB = 1 << 31
		view.Cells[i].Backlog = [4]time.Duration{time.Minute, time.Minute, time.Minute, time.Minute}
	}
	return tasks, view
}

// BenchmarkDecideAll puts 10,000 tasks on 30 cells. "gap" is how far the choice
// is from the bound at most, in percent; "cpu-ms" is the processor's time.
func BenchmarkDecideAll(b *testing.B) {
	policy := Policy{CarbonUSDPerTonne: 190, LatencyUSDPerS: 1.33e-5}
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("%dx30", n), func(b *testing.B) {
			tasks, view := benchLot(n)
			var d Decider
			gap, least := 0.0, math.Inf(1)
			for b.Loop() {
				begin := cpuTime()
				got := d.DecideAll(tasks, view, policy, benchNow(), Options{})
				least = min(least, (cpuTime()-begin).Seconds()*1000)
				gap = 100 * (got.Cost/got.Bound - 1)
				if got.Unplaced > 0 {
					b.Fatalf("%d unplaced", got.Unplaced)
				}
			}
			b.ReportMetric(gap, "gap-%")
			b.ReportMetric(least, "cpu-ms")
		})
	}
}

// cpuTime is what this process has used of the processors.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
