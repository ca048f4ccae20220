package server

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/state"
)

// TestModulesLiveUntilTheirLastTaskEnds: of three versions, one that a task is
// pinned to and the newest stay on disk, the one nothing needs goes, later.
func TestModulesLiveUntilTheirLastTaskEnds(t *testing.T) {
	t.Parallel()
	m := startCell(t, 1, time.Hour)[0]
	modules := make([]string, 3)
	for i, content := range []string{"pinned", "between", "newest"} {
		var err error
		if modules[i], err = m.code.Put(strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-2 * sweepEvery)
		if err := os.Chtimes(filepath.Join(m.cfg.Data, "code", strings.TrimPrefix(modules[i], "sha256:")), old, old); err != nil {
			t.Fatal(err)
		}
		command, _, err := m.reg.Deploy(&isobarv1.FunctionSpec{
			Name: "f", Variants: []*isobarv1.Variant{{Name: "only", Runtime: registry.RuntimeWasm, Module: modules[i]}},
		}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := m.commitRegistry(t.Context(), command); err != nil {
			t.Fatal(err)
		}
		if content == "pinned" {
			if _, err := m.sched.Submit(t.Context(), scheduler.Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "f"}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	w := &sweep{registry: m.reg, tasks: m.state.Reader(state.SchedulerMachine), modules: m.code}
	for i, want := range [][]string{modules, {modules[0], modules[2]}, {modules[0], modules[2]}} {
		if _, err := w.once(time.Now()); err != nil {
			t.Fatal(err)
		}
		got, err := m.code.List()
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(want))
		if !slices.Equal(got, want) {
			t.Errorf("after sweep %d there are %v, want %v", i+1, got, want)
		}
	}
}
