package placement

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// drawnTask is a task of a drawn batch.
type drawnTask struct {
	Ways   []drawnWay
	Refuse float64
}

type drawnWay struct {
	Cost, A, B float64
	Place      int
}

func fill(b *Batch, room []float64, tasks []drawnTask) {
	b.Reset(2, room)
	for _, t := range tasks {
		for _, w := range t.Ways {
			b.Way(w.Cost, w.Place, b.Need(Use{0, w.A}, Use{1, w.B}))
		}
		b.Task(t.Refuse)
	}
}

// TestBatchAgainstEveryChoice: the bound is at most the best of all choices,
// the solution at least that, and it keeps every room.
func TestBatchAgainstEveryChoice(t *testing.T) {
	t.Parallel()
	var b Batch
	rapid.Check(t, func(rt *rapid.T) {
		room, tasks := drawTasks(rt)
		fill(&b, room, tasks)
		got := b.Solve()

		load, cost, refused := make([]float64, len(room)), 0.0, 0
		for i, k := range got.Chosen {
			if k < 0 {
				cost += tasks[i].Refuse
				refused++
				continue
			}
			w := tasks[i].Ways[k]
			cost += w.Cost
			load[2*w.Place] += w.A
			load[2*w.Place+1] += w.B
		}
		for i := range load {
			if load[i] > room[i] {
				rt.Fatalf("%g taken of %g", load[i], room[i])
			}
		}
		if refused != got.Refused || math.Abs(cost-got.Cost) > 1e-9 {
			rt.Fatalf("cost %g, said %g; %d refused, said %d", cost, got.Cost, refused, got.Refused)
		}
		best := leastOf(tasks, room)
		if got.Bound > best+1e-9*max(best, 1) || got.Cost < best-1e-9 {
			rt.Fatalf("bound %g, best of all %g, found %g", got.Bound, best, got.Cost)
		}
		fill(&b, room, tasks)
		if diff := cmp.Diff(got, b.Solve()); diff != "" {
			rt.Fatalf("once more (-before +after):\n%s", diff)
		}
	})
}

// drawTasks draws tasks over so many places, each with rooms of two resources.
func drawTasks(rt *rapid.T) (room []float64, tasks []drawnTask) {
	places := rapid.IntRange(1, 3).Draw(rt, "places")
	room = rapid.SliceOfN(rapid.SampledFrom([]float64{0, 1, 2, 4, 9, math.Inf(1)}), 2*places, 2*places).Draw(rt, "room")
	tasks = rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) drawnTask {
		return drawnTask{
			Ways: rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) drawnWay {
				return drawnWay{
					Cost: pick(rt, "cost", 0.0, 1, 1, 2, 5), A: pick(rt, "a", 0.0, 1, 2), B: pick(rt, "b", 0.0, 1, 3),
					Place: rapid.IntRange(0, places-1).Draw(rt, "place"),
				}
			}), 0, 4).Draw(rt, "ways"), Refuse: pick(rt, "refuse", 3.0, 10, 100),
		}
	}), 0, 6).Draw(rt, "tasks")
	return room, tasks
}

// TestBatchRelaxed: at any prices, more room, another way, or a way that takes
// less never raises the bound; and no bound is above a cost that was found with
// less.
func TestBatchRelaxed(t *testing.T) {
	t.Parallel()
	var b Batch
	rapid.Check(t, func(rt *rapid.T) {
		room, tasks := drawTasks(rt)
		if len(tasks) == 0 {
			return
		}
		fill(&b, room, tasks)
		before := b.Solve()
		prices := rapid.SliceOfN(rapid.Float64Range(0, 4), len(room), len(room)).Draw(rt, "prices")
		at := func() float64 {
			copy(b.prices, prices)
			all := make([]int32, len(tasks))
			for i := range all {
				all[i] = int32(i)
			}
			return b.value(all, 1)
		}
		for i := range room {
			if math.IsInf(room[i], 1) {
				prices[i] = 0
			}
		}
		bound := at()

		k := rapid.IntRange(0, len(tasks)-1).Draw(rt, "task")
		switch pick(rt, "relax", "room", "way", "need") {
		case "room":
			room[rapid.IntRange(0, len(room)-1).Draw(rt, "of")]++
		case "way":
			tasks[k].Ways = append(tasks[k].Ways, drawnWay{Cost: pick(rt, "new cost", 0.0, 1, 3), A: 1, Place: 0})
		case "need":
			for i := range tasks[k].Ways {
				tasks[k].Ways[i].A = 0
			}
		}
		fill(&b, room, tasks)
		after := b.Solve()
		if got := at(); got > bound+1e-9*max(1, bound) {
			rt.Fatalf("the bound at %v rises from %g to %g", prices, bound, got)
		}
		if after.Bound > before.Cost+1e-9*max(1, before.Cost) {
			rt.Fatalf("bound %g, a cost found with less room %g", after.Bound, before.Cost)
		}
	})
}

// TestBatchBoundsDividedTasks: by hand, the best that tasks which may be divided
// can do. No choice of whole tasks comes near, and the bound is not above.
func TestBatchBoundsDividedTasks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name           string
		room           []float64
		tasks          []drawnTask
		divided, whole float64
	}{
		{
			// Three halves of the room for two: one and a half at 1, a half refused at 4.
			name: "room for one and a half", room: []float64{1.5, math.Inf(1)},
			tasks:   []drawnTask{{[]drawnWay{{1, 1, 0, 0}}, 4}, {[]drawnWay{{1, 1, 0, 0}}, 4}},
			divided: 3.5, whole: 5,
		},
		{
			// The first is worth 9 for 2, the second 5 for 1: second whole, half of the first.
			name: "by worth for room", room: []float64{2, math.Inf(1)},
			tasks:   []drawnTask{{[]drawnWay{{1, 2, 0, 0}}, 10}, {[]drawnWay{{1, 1, 0, 0}}, 6}},
			divided: 1 + 0.5*1 + 0.5*10, whole: 7,
		},
		{
			// Two places with half a task's room each: one task divided over both.
			name: "over two places", room: []float64{0.5, math.Inf(1), 0.5, math.Inf(1)},
			tasks:   []drawnTask{{[]drawnWay{{1, 1, 0, 0}, {2, 1, 0, 1}}, 10}},
			divided: 1.5, whole: 10,
		},
	} {
		var b Batch
		fill(&b, tt.room, tt.tasks)
		s := b.Solve()
		if s.Bound > tt.divided*(1+1e-9) || s.Bound < 0.9*tt.divided {
			t.Errorf("%s: bound %g, divided tasks cost %g", tt.name, s.Bound, tt.divided)
		}
		if s.Cost < tt.whole {
			t.Errorf("%s: cost %g, the best of whole tasks is %g", tt.name, s.Cost, tt.whole)
		}
	}
}

// leastOf is the cost of the best of all choices.
func leastOf(tasks []drawnTask, room []float64) float64 {
	if len(tasks) == 0 {
		return 0
	}
	best := tasks[0].Refuse + leastOf(tasks[1:], room)
	for _, w := range tasks[0].Ways {
		left := append([]float64(nil), room...)
		left[2*w.Place] -= w.A
		left[2*w.Place+1] -= w.B
		if left[2*w.Place] >= 0 && left[2*w.Place+1] >= 0 {
			best = min(best, w.Cost+leastOf(tasks[1:], left))
		}
	}
	return best
}

// largeBatch is so many tasks over 30 places of all sizes, that want so much of
// the room in all.
func largeBatch(b *Batch, tasks int, load float64) {
	const places = 30
	r := rand.New(rand.NewPCG(uint64(tasks), 1))
	amounts, total := make([]float64, tasks), 0.0
	for t := range amounts {
		amounts[t] = float64(1 + r.IntN(8))
		total += amounts[t]
	}
	room, base := make([]float64, places*2), make([]float64, places)
	for p := range places {
		room[2*p] = total / load / places * (0.5 + r.Float64())
		room[2*p+1] = room[2*p] * 2 * (0.8 + r.Float64())
		base[p] = 20 + 600*r.Float64()
	}
	b.Reset(2, room)
	for t := range tasks {
		n := b.Need(Use{0, amounts[t]}, Use{1, amounts[t] * 2 * r.Float64()})
		home := r.IntN(places)
		for p := range places {
			if d := (p - home + places) % places; d > places/2 && r.IntN(2) == 0 {
				continue // too far
			}
			b.Way(amounts[t]*base[p]*(0.9+0.2*r.Float64()), p, n)
		}
		b.Task(1e5)
	}
}

// TestBatchIsNearTheBound: within 1 % of what the linear relaxation's dual
// allows, so within 1 % of the relaxation itself.
func TestBatchIsNearTheBound(t *testing.T) {
	t.Parallel()
	for _, load := range []float64{0.3, 0.5, 0.7} {
		var b Batch
		largeBatch(&b, 10_000, load)
		if s := b.Solve(); s.Refused > 0 || s.Cost > 1.01*s.Bound {
			t.Errorf("load %g: cost %g, bound %g, %d refused", load, s.Cost, s.Bound, s.Refused)
		}
	}
}
