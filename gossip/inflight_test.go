package gossip_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// entryOf is a digest of cell b-1 with the free capacity given.
func entryOf(t interface{ Fatal(...any) }, v gossip.Version, free mesh.Capacity) gossip.Entry {
	d := small("b-1", v.Term, v.Sequence)
	gossip.SetCapacities(d, gossip.Capacities{Total: free, Free: free, Widest: free})
	b, _, err := gossip.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	if d, err = gossip.Decode(b); err != nil {
		t.Fatal(err)
	}
	return gossip.Entry{Digest: d, Encoded: b, At: start}
}

func attempt(i int) gossip.Placement {
	return gossip.Placement{Task: mesh.TaskID(fmt.Sprint("task", i)), Attempt: 1}
}

func TestInflightUntilShown(t *testing.T) {
	t.Parallel()
	f := gossip.NewInflight(10 * time.Second)
	free := mesh.Capacity{CPUMilli: 4000, MemoryMiB: 1000}
	demand := mesh.Demand{CPUMilli: 1000, MemoryMiB: 100}
	at := func(seq uint64) gossip.Entry { return entryOf(t, gossip.Version{Term: 2, Sequence: seq}, free) }
	want := func(step string, e gossip.Entry, now time.Time, cpu int64, pending int) {
		t.Helper()
		got := f.Corrected(e, now)
		if got.Free.CPUMilli != cpu || got.Widest.CPUMilli > cpu || got.Pending != pending {
			t.Errorf("%s: free %d, widest %d, pending %d; want %d, %d",
				step, got.Free.CPUMilli, got.Widest.CPUMilli, got.Pending, cpu, pending)
		}
	}
	want("nothing placed", at(5), start, 4000, 0)
	f.Placed("b-1", attempt(1), demand, start)
	f.Placed("b-1", attempt(2), demand, start)
	f.Placed("c-1", attempt(3), demand, start) // another cell's
	want("two placed", at(5), start, 2000, 2)
	want("a newer digest, but no answer yet", at(6), start, 2000, 2)
	f.Acknowledged("b-1", attempt(1), gossip.Version{Term: 2, Sequence: 7})
	f.Acknowledged("b-1", attempt(99), gossip.Version{Term: 2, Sequence: 7})
	want("acknowledged, not shown", at(6), start, 2000, 2)
	want("shown", at(7), start, 3000, 1)
	f.Released("b-1", attempt(2))
	f.Released("b-1", attempt(99))
	want("refused", at(6), start, 3000, 1)
	want("all shown", at(7), start, 4000, 0)
	want("a new leader's digest shows it", entryOf(t, gossip.Version{Term: 3, Sequence: 1}, free), start, 4000, 0)
	want("timed out", at(6), start.Add(10*time.Second), 4000, 0)
}

func TestPrune(t *testing.T) {
	t.Parallel()
	f := gossip.NewInflight(10 * time.Second)
	v := gossip.NewView()
	v.Accept("b-1", "k3f9ab")
	merge(t, v, small("b-1", 1, 5), start)
	d := mesh.Demand{CPUMilli: 100}
	f.Placed("b-1", attempt(1), d, start)                    // shown
	f.Placed("b-1", attempt(2), d, start.Add(5*time.Second)) // acknowledged, not shown
	f.Placed("b-1", attempt(3), d, start.Add(-time.Minute))  // lost
	f.Placed("gone-1", attempt(4), d, start.Add(-time.Minute))
	f.Acknowledged("b-1", attempt(1), gossip.Version{Term: 1, Sequence: 5})
	f.Acknowledged("b-1", attempt(2), gossip.Version{Term: 1, Sequence: 5}.Next())
	e, _ := v.Snapshot().Cell("b-1")
	before := f.Corrected(e, start)
	if n := f.Prune(v.Snapshot(), start); n != 2 {
		t.Errorf("%d timed out, want 2", n)
	}
	if after := f.Corrected(e, start); after.Pending != before.Pending || after.Pending != 1 {
		t.Errorf("pending %d before, %d after", before.Pending, after.Pending)
	}
	// What was pruned is gone for every digest, also an older one.
	if got := f.Corrected(entryOf(t, gossip.Version{Term: 1, Sequence: 1}, mesh.Capacity{}), start); got.Pending != 1 {
		t.Errorf("pending %d", got.Pending)
	}
}

func TestCorrectedAccelerators(t *testing.T) {
	t.Parallel()
	free := mesh.Capacity{CPUMilli: 100, GPUs: []mesh.Accelerators{{Model: "a100", Count: 2}, {Model: "h100", Count: 3}}}
	for name, c := range map[string]struct {
		demands    []mesh.Demand
		a100, h100 int64
	}{
		"named model":             {[]mesh.Demand{{GPUs: 2, GPUModel: "h100"}}, 2, 1},
		"any model, first enough": {[]mesh.Demand{{GPUs: 3}}, 2, 0},
		"any model, order":        {[]mesh.Demand{{GPUs: 2}, {GPUs: 2}}, 0, 1},
		"more than is left":       {[]mesh.Demand{{GPUs: 4}}, 0, 1},
		"unknown model":           {[]mesh.Demand{{GPUs: 1, GPUModel: "tpu"}}, 2, 3},
		"more than all":           {[]mesh.Demand{{GPUs: 100}, {GPUs: 100}}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := gossip.NewInflight(time.Minute)
			for i, d := range c.demands {
				f.Placed("b-1", attempt(i), d, start.Add(time.Duration(i)))
			}
			got := f.Corrected(entryOf(t, gossip.Version{Term: 1, Sequence: 1}, free), start).Free
			if got.GPU("a100") != c.a100 || got.GPU("h100") != c.h100 || len(got.GPUs) != 2 {
				t.Errorf("left %v", got.GPUs)
			}
		})
	}
}

func drawDemand(t *rapid.T) mesh.Demand {
	return mesh.Demand{
		CPUMilli:  rapid.Int64Range(0, 3000).Draw(t, "cpu"),
		MemoryMiB: rapid.Int64Range(0, 3000).Draw(t, "memory"),
		GPUs:      rapid.Int64Range(0, 3).Draw(t, "gpus"),
		GPUModel:  rapid.SampledFrom([]string{"", "a100", "h100", "none"}).Draw(t, "model"),
	}
}

// Each resource stays between zero and what the digest says, widest within
// free, and work that fits is taken off exactly.
func TestCorrectedProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		free := mesh.Capacity{
			CPUMilli: rapid.Int64Range(0, 8000).Draw(t, "free cpu"), MemoryMiB: rapid.Int64Range(0, 8000).Draw(t, "free memory"),
			GPUs: []mesh.Accelerators{
				{Model: "a100", Count: rapid.Int64Range(0, 8).Draw(t, "a100")},
				{Model: "h100", Count: rapid.Int64Range(0, 8).Draw(t, "h100")},
			},
		}
		e := entryOf(t, gossip.Version{Term: 1, Sequence: 1}, free)
		f := gossip.NewInflight(time.Minute)
		exact, fits := free, true
		demands := rapid.SliceOfN(rapid.Custom(drawDemand), 0, 8).Draw(t, "demands")
		for i, d := range demands {
			f.Placed("b-1", attempt(i), d, start.Add(time.Duration(i)))
			if fits = fits && exact.Fits(&d); fits {
				exact, _ = exact.Take(d)
			}
		}
		got := f.Corrected(e, start)
		if got.Pending != len(demands) {
			t.Fatalf("pending %d of %d", got.Pending, len(demands))
		}
		within(t, got.Free, free)
		within(t, got.Widest, got.Free)
		if fits && (got.Free.CPUMilli != exact.CPUMilli || got.Free.MemoryMiB != exact.MemoryMiB ||
			got.Free.GPU("a100") != exact.GPU("a100") || got.Free.GPU("h100") != exact.GPU("h100")) {
			t.Fatalf("all fit: %v, want %v", got.Free, exact)
		}
		// After all ended, the digest stands as it is.
		for i := range demands {
			f.Released("b-1", attempt(i))
		}
		if got := f.Corrected(e, start); got.Pending != 0 || got.Free.CPUMilli != free.CPUMilli {
			t.Fatalf("released: %+v", got)
		}
	})
}

func within(t *rapid.T, c, limit mesh.Capacity) {
	bad := c.CPUMilli < 0 || c.MemoryMiB < 0 || c.CPUMilli > limit.CPUMilli || c.MemoryMiB > limit.MemoryMiB
	for _, g := range c.GPUs {
		bad = bad || g.Count < 0 || g.Count > limit.GPU(g.Model)
	}
	if bad {
		t.Fatalf("%v is not within %v", c, limit)
	}
}

func TestCapacitiesRoundTrip(t *testing.T) {
	t.Parallel()
	in := gossip.Capacities{
		Total:  mesh.Capacity{CPUMilli: 10, MemoryMiB: 20, GPUs: []mesh.Accelerators{{Model: "a100", Count: 4}, {Model: "h100", Count: 8}}},
		Free:   mesh.Capacity{CPUMilli: -5, MemoryMiB: 7, GPUs: []mesh.Accelerators{{Model: "h100", Count: 3}}},
		Widest: mesh.Capacity{CPUMilli: 1, MemoryMiB: 2, GPUs: []mesh.Accelerators{{Model: "a100", Count: -1}}},
	}
	d := small("b-1", 1, 1)
	gossip.SetCapacities(d, in)
	got := gossip.CapacitiesOf(d)
	if got.Total.GPU("a100") != 4 || got.Total.GPU("h100") != 8 || got.Free.CPUMilli != 0 ||
		got.Free.GPU("h100") != 3 || got.Widest.GPU("a100") != 0 {
		t.Errorf("%+v", got)
	}
	d.Gpus[1].Hour = 77
	gossip.SetCapacities(d, in)
	if d.Gpus[1].Hour != 77 {
		t.Error("the price of a known model was lost")
	}
	d.WaitMs = []uint64{5, 1 << 63}
	if w := gossip.WaitOf(d); w[0] != 5*time.Millisecond || w[1] <= 0 || w[2] != 0 {
		t.Errorf("wait %v", w)
	}
}
