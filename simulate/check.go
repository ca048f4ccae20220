package simulate

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrBroken is returned by Report.Check.
var ErrBroken = errors.New("schedule breaks a rule")

// Check looks at every schedule of the report anew: each task runs for its
// whole time, not before it arrives, in pieces that do not overlap and only if
// it may be interrupted, and no capacity is exceeded at any instant.
func (r *Report) Check() error {
	for k := range r.Policies {
		if err := r.world.check(r.schedules[k]); err != nil {
			return fmt.Errorf("simulate: policy %s: %w", r.Policies[k].Name, err)
		}
	}
	return nil
}

func (w *world) check(schedule []placing) error {
	type edge struct {
		at   time.Duration
		sign int64
		o    *option
	}
	var edges []edge
	for i := range w.jobs {
		j, p := &w.jobs[i], &schedule[i]
		if p.option == nil {
			if len(j.shape.options) > 0 {
				return fmt.Errorf("task at line %d is unplaced: %w", j.Line, ErrBroken)
			}
			continue
		}
		run, total, last := j.run(p.option), time.Duration(0), j.arrival
		ok := p.pieces == nil || len(p.pieces) == 1 || j.Interruptible
		p.spans(run, func(s span) {
			ok = ok && s.from >= last && s.to >= s.from
			total, last = total+s.to-s.from, s.to
			if s.from < s.to {
				edges = append(edges, edge{s.from, 1, p.option}, edge{s.to, -1, p.option})
			}
		})
		if !ok || total != run {
			return fmt.Errorf("task at line %d runs %v of %v from %v: %w", j.Line, total, run, p.start, ErrBroken)
		}
	}
	slices.SortStableFunc(edges, func(a, b edge) int {
		if a.at != b.at {
			return int(min(max(a.at-b.at, -1), 1))
		}
		return int(a.sign - b.sign)
	})
	taken := w.newUsage()
	for _, e := range edges {
		if e.sign > 0 && !w.room(taken, e.o) {
			return fmt.Errorf("%s is over capacity at %v: %w", w.regions[e.o.region].Name, e.at, ErrBroken)
		}
		taken.add(e.o, e.sign)
	}
	return nil
}
