package placement

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// TestConstraints has one cell and variant that break exactly one rule, with
// the words a person is given.
func TestConstraints(t *testing.T) {
	t.Parallel()
	bound := mesh.Residency{Allowed: []string{"eu"}}
	for _, tt := range []struct {
		name       string
		cell       func(*Cell)
		variant    func(*Variant)
		task       func(*Task)
		opts       Options
		constraint Constraint
		detail     string
		hint       string
	}{
		{
			name: "residency allowed", constraint: Residency,
			task:   func(k *Task) { k.Residency = mesh.Residency{Allowed: []string{"in", "uk"}} },
			detail: "residency [in, uk]: eu-1 lies in [eu]",
			hint:   "no region is allowed by residency [in, uk]; eu could run it",
		},
		{
			name: "residency denied", constraint: Residency,
			task:   func(k *Task) { k.Residency = mesh.Residency{Denied: []string{"eu"}} },
			detail: "residency outside [eu]: eu-1 lies in [eu]",
			hint:   "no region is allowed by residency outside [eu]; eu could run it",
		},
		{
			name: "residency not proven", constraint: Residency,
			task: func(k *Task) { k.Residency = bound }, cell: func(c *Cell) { c.Verified = false },
			detail: "residency [eu]: the jurisdictions of eu-1 are not proven by its certificate",
			hint:   "prove the jurisdictions of eu-1 by its certificate: v could then run at eu-1",
		},
		{
			name: "residency of an endpoint", constraint: Residency,
			task: func(k *Task) { k.Residency = bound }, cell: func(c *Cell) { c.Runtimes = []string{"http"} },
			variant: func(v *Variant) { v.Runtime, v.EndpointJurisdictions = "http", []string{"us"} },
			detail:  "residency [eu]: the endpoint of v lies in [us]",
			hint:    "let the residency allow the endpoint of v, which lies in [us]: v could then run at eu-1",
		},
		{
			name: "residency of an undeclared endpoint", constraint: Residency,
			task: func(k *Task) { k.Residency = mesh.Residency{Denied: []string{"us"}} }, cell: func(c *Cell) { c.Runtimes = []string{"http"} },
			variant: func(v *Variant) { v.Runtime = "http" },
			detail:  "residency outside [us]: the endpoint of v declares no jurisdiction",
			hint:    "let the residency allow the endpoint of v, which lies in []: v could then run at eu-1",
		},
		{
			name: "excluded", constraint: Excluded, opts: Options{ExcludeRegions: []string{"eu"}},
			detail: "the question leaves region eu out",
			hint:   "do not leave out region eu: v could then run at eu-1",
		},
		{
			name: "health", constraint: Health, cell: func(c *Cell) { c.Unhealthy = "draining" },
			detail: "eu-1 takes no work: draining",
			hint:   "bring back eu-1, which takes no work (draining): v could then run at eu-1",
		},
		{
			name: "a figure that cannot be", constraint: Health, cell: func(c *Cell) { c.Prices.CPUHour = -0.04 },
			detail: "eu-1 reports a price of a core hour of -0.04, which cannot be",
			hint:   "correct the price of a core hour of eu-1, now -0.04: v could then run at eu-1",
		},
		{
			name: "no worker", constraint: NoWorker,
			cell:   func(c *Cell) { c.Runtimes, c.Total, c.Free = nil, mesh.Capacity{}, mesh.Capacity{} },
			detail: "eu-1 has no worker",
			hint: "start a worker at eu-1, and start a worker with runtime exec at eu-1, and " +
				"ask for no more than 0 cores and 0 MiB, or add capacity there: v could then run at eu-1",
		},
		{
			name: "minimum quality", constraint: MinQuality,
			task: func(k *Task) { k.MinQuality = 0.8 }, variant: func(v *Variant) { v.Quality = 0.72 },
			detail: "quality 0.72 is below the minimum of 0.8",
			hint:   "lower min_quality to 0.72: v could then run at eu-1",
		},
		{
			name: "runtime", constraint: Runtime, variant: func(v *Variant) { v.Runtime = "http" },
			detail: "needs runtime http, eu-1 offers exec, wasm",
			hint:   "start a worker with runtime http at eu-1: v could then run at eu-1",
		},
		{
			name: "accelerator", constraint: Accelerator,
			cell:    func(c *Cell) { c.Total.GPUs = []mesh.Accelerators{{Model: "H100", Count: 1}} },
			variant: func(v *Variant) { v.Demand.GPUs, v.Demand.GPUModel = 2, "H100" },
			detail:  "needs 2 H100, eu-1 has 1",
			hint:    "no region offers 2 H100; add it to eu-1: v could then run at eu-1",
		},
		{
			name: "accelerators of one model", constraint: Accelerator,
			cell: func(c *Cell) {
				c.Total.GPUs = []mesh.Accelerators{{Model: "A100", Count: 1}, {Model: "H100", Count: 1}}
			},
			variant: func(v *Variant) { v.Demand.GPUs = 2 },
			detail:  "needs 2 accelerators of one model, eu-1 has 1 A100, 1 H100",
			hint:    "no region offers 2 accelerators of one model; add it to eu-1: v could then run at eu-1",
		},
		{
			name: "resources", constraint: Resources, variant: func(v *Variant) { v.Demand.CPUMilli = 64500 },
			detail: "needs 64.5 cores and 1024 MiB, eu-1 has 8 cores and 16384 MiB in all",
			hint:   "ask for no more than 8 cores and 16384 MiB, or add capacity there: v could then run at eu-1",
		},
		{
			name: "cost", constraint: Cost, task: func(k *Task) { k.Cost = mesh.Cost{Tokens: 9000, Bytes: 10, AcceleratorMiB: 20} },
			cell:   func(c *Cell) { c.Total.Most = mesh.Cost{Tokens: 4096, Bytes: 10} },
			detail: "costs 9000 tokens, a worker of eu-1 holds 4096 tokens at once",
			hint:   "let a worker of eu-1 hold 9000 tokens at once (in_flight), or submit smaller tasks: v could then run at eu-1",
		},
		{
			name: "deadline", constraint: DeadlineOver,
			task: func(k *Task) { k.Deadline = noon().Add(999 * time.Millisecond) }, cell: func(c *Cell) { c.RTT = 100 * time.Millisecond },
			detail: "would take 1.1s and end 101ms after the deadline",
			hint:   "move the deadline 101ms later, to 2026-03-01T12:00:01.100Z: v could then run at eu-1",
		},
		{
			name: "deadline passed", constraint: DeadlineOver, task: func(k *Task) { k.Deadline = noon().Add(-time.Minute) },
			detail: "the deadline passed 1m0s ago",
			hint:   "move the deadline 1m1s later, to 2026-03-01T12:00:01.000Z: v could then run at eu-1",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, v := cell("eu-1"), variant("v")
			if tt.cell != nil {
				tt.cell(&c)
			}
			if tt.variant != nil {
				tt.variant(&v)
			}
			in := task(v)
			if tt.task != nil {
				tt.task(&in)
			}
			tt.opts.Explain = true
			d := Decide(in, View{Cells: []Cell{c}}, Policy{}, noon(), tt.opts)
			if d.Chosen != nil || len(d.RuledOut) != 1 {
				t.Fatalf("chosen %v, ruled out %v", d.Chosen, d.RuledOut)
			}
			want := RuledOut{Cell: "eu-1", Region: "eu", Variant: "v", Constraint: tt.constraint, Detail: tt.detail}
			if diff := cmp.Diff(want, d.RuledOut[0]); diff != "" {
				t.Errorf("ruled out (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]ConstraintCount{{tt.constraint, 1}}, d.Counts); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
			if d.Hint != tt.hint {
				t.Errorf("hint\n got: %s\nwant: %s", d.Hint, tt.hint)
			}
		})
	}
}

func TestDeadlineIsInclusive(t *testing.T) {
	t.Parallel()
	in := task(variant("v"))
	in.Deadline = noon().Add(time.Second)
	if d := Decide(in, View{Cells: []Cell{cell("eu-1")}}, Policy{}, noon(), Options{}); d.Chosen == nil {
		t.Fatal(d.Hint)
	}
	in.Deadline = in.Deadline.Add(-1)
	if d := Decide(in, View{Cells: []Cell{cell("eu-1")}}, Policy{}, noon(), Options{}); d.Chosen != nil {
		t.Fatal("a nanosecond late was allowed")
	}
}
