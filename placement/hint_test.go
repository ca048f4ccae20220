package placement

import (
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

func TestHintNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	us := cell("us-east-1", func(c *Cell) {
		c.Region, c.Jurisdictions = "us-east", []string{"us"}
		c.Total.GPUs = []mesh.Accelerators{{Model: "H100", Count: 8}}
	})
	eu := cell("eu-1")
	gpu := variant("large", func(v *Variant) { v.Demand.GPUs, v.Demand.GPUModel = 1, "H100" })
	small := variant("small", func(v *Variant) { v.Quality = 0.72 })
	tiny := variant("tiny", func(v *Variant) { v.Quality = 0.4 })
	euOnly := func(k *Task) { k.Residency.Allowed = []string{"eu"} }
	for _, tt := range []struct {
		name   string
		task   Task
		change func(*Task)
		want   string
	}{
		{"residency against accelerator", task(gpu), euOnly, "no region allowed by residency [eu] offers accelerator H100; us-east does"},
		{
			"a better variant before a wider residency", task(gpu, small, tiny),
			func(k *Task) { euOnly(k); k.MinQuality = 0.9 },
			"lower min_quality to 0.72: small could then run at eu-1",
		},
		{
			"two things at once", task(small),
			func(k *Task) { k.MinQuality = 0.9; k.Deadline = noon().Add(500 * time.Millisecond) },
			"lower min_quality to 0.72, and move the deadline 500ms later, to 2026-03-01T12:00:01.000Z: small could then run at eu-1",
		},
		{
			"deadline within the residency only", task(gpu),
			func(k *Task) { euOnly(k); k.Residency.Denied = []string{"us"} },
			"no region allowed by residency [eu] outside [us] offers accelerator H100; us-east does",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.change(&tt.task)
			d := Decide(tt.task, View{Cells: []Cell{us, eu}}, Policy{}, noon(), Options{})
			if d.Chosen != nil || d.Hint != tt.want {
				t.Errorf("hint\n got: %s\nwant: %s", d.Hint, tt.want)
			}
		})
	}
}

func TestHintSaysOfHardwareOnlyWhatIsTrue(t *testing.T) {
	t.Parallel()
	down := cell("us-1", func(c *Cell) {
		c.Unhealthy = "draining"
		c.Total.GPUs = []mesh.Accelerators{{Model: "H100", Count: 8}}
	})
	in := task(variant("large", func(v *Variant) { v.Demand.GPUs, v.Demand.GPUModel = 1, "H100" }))
	for _, tt := range []struct {
		opts Options
		want string
	}{
		{Options{}, "bring back us-1, which takes no work (draining): large could then run at us-1"},
		{Options{ExcludeRegions: []string{"us"}}, "add 1 H100 to eu-1: large could then run at eu-1"},
	} {
		if got := Decide(in, View{Cells: []Cell{cell("eu-1"), down}}, Policy{}, noon(), tt.opts).Hint; got != tt.want {
			t.Errorf("hint\n got: %s\nwant: %s", got, tt.want)
		}
	}
}
