package scheduler

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// A task whose answer was lost is there: whatever has changed since, a repeat
// must not be told that it was not accepted, or it is submitted elsewhere.
func TestARepeatOfAnAcceptedSubmitIsNeverRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(w *world, c *testCell){
		"the disk is full":        func(_ *world, c *testCell) { c.full.Store(true) },
		"the function is deleted": func(w *world, _ *testCell) { w.registry.remove("work") },
		"the deadline has passed": func(*world, *testCell) { time.Sleep(2 * time.Minute) },
		"the tenant has moved":    func(w *world, _ *testCell) { w.registry.tenant("default", mesh.Residency{Allowed: []string{"us"}}) },
		"no cell can run it": func(w *world, c *testCell) {
			w.registry.add("work", variant("only", "wasm", func(v *isobarv1.Variant) { v.Quality = 0.1 }))
			c.worker("w1", offering(1, "wasm"), nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inWorld(t, func(w *world) {
				t := w.t
				c := w.cell("eu-1")
				by := timestamppb.New(time.Now().Add(time.Minute))
				same := func(s *isobarv1.TaskSpec) { s.RequestId, s.Deadline, s.MinQuality = "r1", by, 0.5 }
				id := c.submit("work", same)
				change(w, c)
				r, err := c.trySubmit("work", same)
				if err != nil || r.TaskID != id || !r.Duplicate {
					t.Fatalf("repeat: %+v, %v; want the task %s", r, err, id)
				}
			})
		})
	}
}
