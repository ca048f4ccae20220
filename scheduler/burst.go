package scheduler

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// burstMost bounds how many waiting tasks are decided at once while the lock is
// held, some more than places that come free between two times; and burstPairs how
// many tasks times cells, so that a large mesh does not hold it for longer.
const (
	burstMost  = 128
	burstPairs = 4096
)

// weigh decides at once about the tasks that are next in all queues, and takes
// over what room is worth to them: decided one after the other, the first takes
// the place that another needs more. Each is still decided about when its turn
// comes, with that price in its score. Where one task waits, or one cell is
// known, there is nothing to weigh. The caller holds the lock.
func (l *leader) weigh(now time.Time) {
	if len(l.view.cells) < 2 || now.Sub(l.view.weighed) < maxViewAge {
		return
	}
	var tasks []placement.Task
	var searched bool
	if !l.expecting(now) && !l.withheld.cell.holds(now) {
		tasks, searched = l.nextTasks()
	}
	if len(tasks) < 2 {
		l.view.scarcity = nil
		if searched {
			l.view.weighed = now
		}
		return // else what comes next is weighed at once
	}
	l.view.weighed = now
	l.view.own(l)
	cells := slices.Clone(l.view.cells)
	for i := range cells {
		if cells[i].ID == l.Cell.ID {
			cells[i].Free = l.freeInAll()
		}
	}
	all := l.view.decider.DecideAll(tasks, placement.View{Cells: cells, Routes: l.Routes}, l.Policy, l.clock.wall(now), placement.Options{})
	l.view.scarcity = map[mesh.CellID]*placement.Prices{}
	for i := range cells {
		if p := dearer(all.Scarcity[i]); p != nil {
			l.view.scarcity[cells[i].ID] = p
		}
	}
}

// dearer raises shadow prices a little. They end where some task is indifferent
// between two places, and there decide nothing: a little above, it leaves the
// one that others want more. It returns nil where there is room enough.
func dearer(p placement.Prices) *placement.Prices {
	const by = 1.1
	p.CPUHour, p.MemoryGiBHour = by*p.CPUHour, by*p.MemoryGiBHour
	for i := range p.GPUHour {
		p.GPUHour[i].USD *= by
	}
	if p.CPUHour == 0 && p.MemoryGiBHour == 0 && len(p.GPUHour) == 0 {
		return nil
	}
	return &p
}

// nextTasks are those that are next, of each queue in turn, as far as they may
// start now. searched: many records were read for them, and there may be more: a
// backlog that waits for its hour is not gone through under the lock.
func (l *leader) nextTasks() (out []placement.Task, searched bool) {
	var queues []*queue
	waiting := 0
	for _, q := range l.waiting.queues {
		if _, paused := l.paused[q.key.Queue]; !q.key.guest && !paused && len(q.items) > 0 {
			queues = append(queues, q)
			waiting += len(q.items)
		}
	}
	if waiting < 2 {
		return nil, false
	}
	slices.SortFunc(queues, func(a, b *queue) int {
		return cmp.Or(cmp.Compare(a.key.Lane, b.key.Lane), strings.Compare(a.key.Tenant, b.key.Tenant), strings.Compare(a.key.Function, b.key.Function))
	})
	most := min(burstMost, max(burstPairs/len(l.view.cells), 2))
	looked := 0
	for i := 0; len(queues) > 0; i++ {
		queues = slices.DeleteFunc(queues, func(q *queue) bool { return i >= len(q.items) })
		for _, q := range queues {
			if looked++; looked > 2*most {
				return out, true
			}
			if t, ok := l.startable(q.items[i]); ok {
				if out = append(out, t); len(out) == most {
					return out, true
				}
			}
		}
	}
	return out, looked > most
}

// startable is the task as placement wants it, if it is to start as soon as it
// can.
func (l *leader) startable(r ref) (placement.Task, bool) {
	rec, ok := fsm.Task(l.State, r.task)
	if !ok || rec.State != uint32(isobarv1.TaskState_TASK_STATE_READY) || l.granting[r.task] || fsm.MayPutOff(rec) {
		return placement.Task{}, false
	}
	fn, err := l.Registry.Version(rec.Version)
	if err != nil {
		return placement.Task{}, false
	}
	return l.placementTask(rec, fn), true
}

// freeInAll is what all workers of this cell have free together.
func (l *leader) freeInAll() mesh.Capacity {
	var free mesh.Capacity
	for _, s := range l.sessions {
		if l.takes(s) {
			free = free.Plus(s.free)
		}
	}
	return free
}

// decideNow decides about a task whose turn it is. What room is worth to others
// chooses between places that are free, and lets none stay idle: who would wait
// for a full place is decided about by what the places cost alone.
func (l *leader) decideNow(rec *meshv1.TaskRecord, fn *isobarv1.Function, now time.Time) placement.Decision {
	d := l.decide(rec, fn, l.Policy, now, placement.Options{})
	prices := l.view.scarcity
	if len(prices) == 0 || d.Chosen == nil || d.Chosen.Free > 0 {
		return d
	}
	l.view.scarcity = nil
	defer func() { l.view.scarcity = prices }()
	return l.decide(rec, fn, l.Policy, now, placement.Options{})
}

// priced is the view as a task of the lane sees it. Lanes that somebody waits for
// pay nothing for what room is worth to others: a backlog of batch work must not
// send them away.
func (v *view) priced(lane mesh.Lane) placement.View {
	for i := range v.cells {
		v.cells[i].Scarcity = nil
		if lane >= mesh.Standard {
			v.cells[i].Scarcity = v.scarcity[v.cells[i].ID]
		}
	}
	return v.placement()
}
