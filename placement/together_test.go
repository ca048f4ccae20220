package placement

import (
	"fmt"
	"math"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// drawLot draws a view and tasks of one home.
func drawLot(t *rapid.T) (world, []Task) {
	w := drawWorld(t)
	w.Task.Cost = mesh.Cost{} // a batch has rooms of cores, memory and accelerators
	var tasks []Task
	for i := range rapid.IntRange(0, 8).Draw(t, "tasks") {
		in := w.Task
		in.ID = mesh.TaskID(fmt.Sprintf("t-%d", i))
		in.InputBytes = int64(i%5) << 18 // some are equal but for the ID
		in.MinQuality = pick(t, "task quality", 0, 0, 0.6)
		tasks = append(tasks, in)
	}
	return w, tasks
}

// TestTogetherKeepsWhatIsFree: what starts at once fits into what is free; each
// choice is one that Decide allows; terms sum to the score.
func TestTogetherKeepsWhatIsFree(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w, tasks := drawLot(rt)
		got := DecideAll(tasks, w.View, w.Policy, w.Now, w.Opts)
		taken, memory, gpus := map[mesh.CellID]int64{}, map[mesh.CellID]int64{}, map[mesh.CellID]int64{}
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
				memory[c.Cell] += v.Demand.MemoryMiB
				gpus[c.Cell] += v.Demand.GPUs
			}
		}
		for _, x := range w.View.Cells {
			if taken[x.ID] > x.Free.CPUMilli || memory[x.ID] > x.Free.MemoryMiB || gpus[x.ID] > x.Free.GPU("H100") {
				rt.Fatalf("%s: %d cores, %d MiB and %d accelerators taken of %+v", x.ID, taken[x.ID], memory[x.ID], gpus[x.ID], x.Free)
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
		got := DecideAll(tasks, w.View, w.Policy, w.Now, w.Opts)
		for i, in := range tasks {
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

// TestTogetherInAnyOrder: whatever the order of tasks, cells and variants, and
// with a reused Decider, each task has the same candidate to the bit.
func TestTogetherInAnyOrder(t *testing.T) {
	t.Parallel()
	var reused Decider
	rapid.Check(t, func(rt *rapid.T) {
		w, tasks := drawLot(rt)
		before := DecideAll(tasks, w.View, w.Policy, w.Now, w.Opts)
		byID := func(tasks []Task, cells []Cell, x Together) (map[mesh.TaskID]*Candidate, map[mesh.CellID]Prices) {
			chosen, scarcity := map[mesh.TaskID]*Candidate{}, map[mesh.CellID]Prices{}
			for i := range tasks {
				chosen[tasks[i].ID] = x.Chosen[i]
			}
			for i := range cells {
				scarcity[cells[i].ID] = x.Scarcity[i]
			}
			return chosen, scarcity
		}
		chosen, scarcity := byID(tasks, w.View.Cells, before)

		tasks = rapid.Permutation(tasks).Draw(rt, "tasks permuted")
		w.View.Cells = rapid.Permutation(w.View.Cells).Draw(rt, "cells permuted")
		for i := range tasks {
			tasks[i].Variants = rapid.Permutation(tasks[i].Variants).Draw(rt, "variants permuted")
		}
		after := reused.DecideAll(tasks, w.View, w.Policy, w.Now, w.Opts)
		chosenAfter, scarcityAfter := byID(tasks, w.View.Cells, after)
		if diff := cmp.Diff(chosen, chosenAfter); diff != "" {
			rt.Fatalf("chosen (-before +after):\n%s", diff)
		}
		if diff := cmp.Diff(scarcity, scarcityAfter); diff != "" {
			rt.Fatalf("scarcity (-before +after):\n%s", diff)
		}
		if before.Cost != after.Cost || before.Bound != after.Bound || before.Unplaced != after.Unplaced {
			rt.Fatalf("cost %g, bound %g, %d unplaced; in another order %g, %g, %d",
				before.Cost, before.Bound, before.Unplaced, after.Cost, after.Bound, after.Unplaced)
		}
	})
}

// TestTogetherRelaxed: the choice is found by a heuristic, so relaxing a
// constraint may cost more by as much as that is off. What holds: no bound of the
// relaxed tasks is above what the others were found to cost; and with room for
// all, where nothing is left to chance, relaxing never costs more. More free room
// is not among the constraints: what can start now is priced by this hour's
// carbon, and what must wait by that of its start, which may be the cleaner one.
func TestTogetherRelaxed(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w, tasks := drawLot(rt)
		for i := range tasks {
			tasks[i].Avoid = nil // not a constraint: it ranks
		}
		roomy := rapid.Bool().Draw(rt, "roomy")
		if roomy {
			for i := range w.View.Cells {
				c := &w.View.Cells[i]
				c.Total.CPUMilli *= 1000
				c.Total.MemoryMiB *= 1000
				for k := range c.Total.GPUs {
					c.Total.GPUs[k].Count *= 1000
				}
				c.Free = c.Total
			}
		}
		before := DecideAll(tasks, w.View, w.Policy, w.Now, w.Opts)
		relaxed := slices.Clone(tasks)
		what := pick(rt, "relax", "residency", "quality", "deadline", "exclude")
		for i := range relaxed {
			switch what {
			case "residency":
				relaxed[i].Residency = mesh.Residency{}
			case "quality":
				relaxed[i].MinQuality = 0
			case "deadline":
				relaxed[i].Deadline = time.Time{}
			}
		}
		if what == "exclude" {
			w.Opts.ExcludeRegions = nil
		}
		after := DecideAll(relaxed, w.View, w.Policy, w.Now, w.Opts)
		if roomy && after.Unplaced > before.Unplaced {
			rt.Fatalf("%s: %d unplaced, %d before", what, after.Unplaced, before.Unplaced)
		}
		if before.Unplaced > 0 || after.Unplaced > 0 {
			return // what refusing costs is made up
		}
		slack := 1e-9 * max(1, before.Cost)
		if after.Bound > before.Cost+slack || (roomy && after.Cost > before.Cost+slack) {
			rt.Fatalf("%s: cost %g and bound %g, before %g and %g", what, after.Cost, after.Bound, before.Cost, before.Bound)
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

// TestNoneIsLeftOutWhoMayWait: a run for nothing, now, where the wait costs more
// than all runs do.
func TestNoneIsLeftOutWhoMayWait(t *testing.T) {
	t.Parallel()
	full := cell("a-1", func(c *Cell) { c.Free.CPUMilli, c.Backlog = 4000, [4]time.Duration{mesh.Standard: time.Minute} })
	tasks := slices.Repeat([]Task{task(variant("v", func(v *Variant) { v.Duration = 0 }))}, 5)
	got := DecideAll(tasks, View{Cells: []Cell{full}}, Policy{LatencyUSDPerS: 1e-5}, noon(), Options{})
	if got.Unplaced > 0 || math.Abs(got.Cost-60e-5) > 1e-12 {
		t.Errorf("%d unplaced, cost %g", got.Unplaced, got.Cost)
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

// BenchmarkDecideAll puts up to 10,000 tasks on 30 cells; 128 is what a leader
// weighs at once. "gap" is how far the choice
// is from the bound at most, in percent; "cpu-ms" is the processor's time.
func BenchmarkDecideAll(b *testing.B) {
	policy := Policy{CarbonUSDPerTonne: 190, LatencyUSDPerS: 1.33e-5}
	for _, n := range []int{128, 1000, 10_000} {
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
