package server

import (
	"context"
	"time"

	"github.com/isobar-mesh/isobar/registry"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
)

// sweep removes modules from this server's disk that nothing here needs: no
// function stands for a version that names them, and no record of a task, ended
// or not, and no guest record is pinned to one. A home keeps what its tasks need,
// so that another cell, whose own copy went, fetches it from there.
type sweep struct {
	registry *registry.Registry
	tasks    state.Reader
	modules  interface {
		List() ([]string, error)
		Keep(set map[string]struct{}, before time.Time) (removed int, err error)
	}
	// unused are the modules nothing needed at the sweep before. One goes at its
	// second: a task that was accepted just as its function moved on may have
	// been on its way into the state at the first.
	unused map[string]struct{}
}

// sweepEvery is how often: longer than any accept is under way.
const sweepEvery = time.Hour

// sweepModules sweeps until ctx ends.
func (s *Server) sweepModules(ctx context.Context) {
	w := &sweep{registry: s.reg, tasks: s.state.Reader(state.SchedulerMachine), modules: s.code}
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			n, err := w.once(now)
			if err != nil {
				s.log.Warn("modules not swept", "error", err)
			} else if n > 0 {
				s.log.Info("modules that nothing needs any more were removed", "count", n)
			}
		}
	}
}

// once sweeps, and says how many modules it removed.
func (w *sweep) once(now time.Time) (removed int, err error) {
	pinned := map[string]struct{}{}
	for rec := range fsm.Tasks(w.tasks, "") {
		pinned[rec.Version] = struct{}{}
	}
	for g := range fsm.Guests(w.tasks) {
		pinned[g.Version] = struct{}{}
	}
	needed, err := w.registry.Pinned(pinned)
	if err != nil {
		return 0, err
	}
	all, err := w.modules.List()
	if err != nil {
		return 0, err
	}
	keep, unused := map[string]struct{}{}, map[string]struct{}{}
	for _, digest := range needed {
		keep[digest] = struct{}{}
	}
	for _, digest := range all {
		if _, ok := keep[digest]; ok {
			continue
		}
		unused[digest] = struct{}{}
		if _, before := w.unused[digest]; !before {
			keep[digest] = struct{}{}
		}
	}
	w.unused = unused
	return w.modules.Keep(keep, now.Add(-sweepEvery))
}
