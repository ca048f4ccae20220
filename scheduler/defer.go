package scheduler

import (
	"hash/fnv"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

const (
	// leastPut is the shortest wait that is worth two commits: twice the grain of
	// the calendar. A start so near is not put off.
	leastPut = 200 * time.Millisecond
	// replanAfter is by how much a start must move to be planned anew.
	replanAfter = time.Second
	// reviewAtOnce bounds the tasks that are decided again while the lock is held.
	reviewAtOnce = 128
	// reviewPause is the least time between two reviews of all that is put off.
	reviewPause = 2 * time.Second
	// keepPlanned is how many candidates a stored plan keeps.
	keepPlanned = 3
)

// review is a walk over all tasks that are put off, to decide about them again.
// One at a time; it goes on where it was, so that however many they are, each
// round does bounded work.
type review struct {
	due     bool // the forecast or the mesh changed
	walking bool
	after   string // the last one decided
	began   time.Time
	seen    uint64 // the forecasts it is for
	// queued is the work, in seconds of a core, that plans will bring to a cell;
	// next is the same as the present walk finds it.
	queued, next map[mesh.CellID]float64
}

// changed notes what the view tells now.
func (r *review) changed(forecasts uint64, shape bool) {
	if shape || forecasts != r.seen {
		r.due, r.seen = true, forecasts
	}
}

// forecastsOf hashes the intensities of all cells by their hours: another one
// means that starts may move.
func forecastsOf(cells []placement.Cell) uint64 {
	h := fnv.New64a()
	var b [8]byte
	number := func(x uint64) {
		for i := range b {
			b[i] = byte(x >> (8 * i))
		}
		_, _ = h.Write(b[:])
	}
	for i := range cells {
		e := &cells[i].Energy
		_, _ = h.Write([]byte(cells[i].ID))
		number(uint64(e.From.UnixMilli()))
		for _, x := range e.Intensity {
			number(math.Float64bits(x))
		}
	}
	return h.Sum64()
}

// decide asks placement about a task. Where no place has room within the time
// that its start may be put off, a late start is better than none.
func (l *leader) decide(rec *meshv1.TaskRecord, fn *isobarv1.Function, p placement.Policy, now time.Time, o placement.Options) placement.Decision {
	wall := l.clock.wall(now)
	t := l.placementTask(rec, fn)
	if by := time.UnixMilli(fsm.StartBy(rec)); fsm.MayPutOff(rec) && by.After(wall) {
		t.StartBy, o.Starts = by, true
		l.expectPlans()
	}
	view := l.view.priced(t.Lane)
	d := l.view.decider.Decide(t, view, p, wall, o)
	if d.Chosen == nil && !t.StartBy.IsZero() {
		t.StartBy = time.Time{}
		d = l.view.decider.Decide(t, view, p, wall, o)
	}
	return d
}

// until is when the chosen start is to be looked at again: when the task must
// leave for it. ok is false for one that is not put off.
func until(d *placement.Decision, wall time.Time) (ms int64, ok bool) {
	c := d.Chosen
	if c == nil || c.Put < leastPut {
		return 0, false
	}
	at := wall.Add(c.Wait + c.Put)
	ms = at.UnixMilli()
	if time.UnixMilli(ms).Before(at) {
		ms++ // never before the hour has turned
	}
	return ms, true
}

// putOff commits that a ready task waits for its start.
func (l *leader) putOff(rec *meshv1.TaskRecord, d *placement.Decision, untilMs int64) outcome {
	delete(l.parked, rec.Id)
	l.review.add(d)
	l.commitPlan(rec, d, untilMs)
	return taken
}

// commitPlan commits a start and then, if the task is ready after all, lets it
// wait for dispatch, which passes over a task whose command is under way.
func (l *leader) commitPlan(rec *meshv1.TaskRecord, d *placement.Decision, untilMs int64) {
	l.granting[rec.Id] = true
	go func() {
		if err := l.plan(rec, d, untilMs); err != nil && l.ctx.Err() == nil {
			l.Logger.Debug("plan not committed", "task", rec.Id, "plans", rec.Plans, "error", err)
		}
		l.mu.Lock()
		delete(l.granting, rec.Id)
		l.mu.Unlock()
		l.comeBack(rec.Id)
	}()
}

// plan commits a start. Nothing is booked by it: room is looked for at the start.
func (l *leader) plan(rec *meshv1.TaskRecord, d *placement.Decision, untilMs int64) error {
	cmd := &meshv1.Defer{TaskId: rec.Id, Attempt: rec.Attempt, Plans: rec.Plans, UntilMs: min(untilMs, fsm.StartBy(rec))}
	msg := DecisionMessage(d)
	msg.Candidates = msg.Candidates[:min(len(msg.Candidates), keepPlanned)]
	var err error
	if cmd.Decision, err = proto.Marshal(msg); err != nil {
		l.Logger.Error("decision does not encode", "task", rec.Id, "error", err)
	}
	res, err := l.command(l.ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Defer{Defer: cmd}})
	if err == nil && res.Task.PutOff {
		l.Tracer.Planned(rec.Traceparent, PlanInfo{Record: res.Task, Until: time.UnixMilli(res.Task.PlanMs), Decision: d})
	}
	return err
}

// add counts a plan's work at its cell.
func (r *review) add(d *placement.Decision) {
	work := max(d.Chosen.Run.Seconds(), 0.001)
	r.queued[d.Chosen.Cell] += work
	if r.walking {
		r.next[d.Chosen.Cell] += work
	}
}

// expectPlans tells placement how long the work that is put off to each cell
// would queue there if all of it came at once.
func (l *leader) expectPlans() {
	for i := range l.view.cells {
		c := &l.view.cells[i]
		slots := float64(c.Total.CPUMilli) / 1000
		if c.ID == l.Cell.ID {
			slots = l.slots()
		}
		c.Ahead = time.Duration(l.review.queued[c.ID] / max(slots, 1) * float64(time.Second))
	}
}

// reviewPlans decides again about some of the tasks that are put off, when a walk is
// under way or one is due. The caller holds the lock.
func (l *leader) reviewPlans(now time.Time) {
	r := &l.review
	if !r.walking {
		if !r.due || now.Sub(r.began) < reviewPause || l.expecting(now) {
			return
		}
		r.due, r.walking, r.after, r.began, r.next = false, true, "", now, map[mesh.CellID]float64{}
	}
	n := 0
	for rec := range fsm.PutOff(l.State, r.after) {
		if n == reviewAtOnce {
			return
		}
		n++
		r.after = rec.Id
		l.reviewPlan(rec, now)
	}
	r.walking, r.queued, r.next = false, r.next, nil
}

// reviewPlan decides again about one task. A plan that stays costs no commit.
func (l *leader) reviewPlan(rec *meshv1.TaskRecord, now time.Time) {
	fn, err := l.Registry.Version(rec.Version)
	if err != nil || l.granting[rec.Id] {
		return // when it is due dispatch says why
	}
	l.view.own(l)
	d := l.decide(rec, fn, l.Policy, now, placement.Options{})
	if d.Chosen == nil {
		return // nobody can take it now; it is decided again when it is due
	}
	untilMs, later := until(&d, l.clock.wall(now))
	if later {
		l.review.next[d.Chosen.Cell] += max(d.Chosen.Run.Seconds(), 0.001)
		moved := time.Duration(untilMs-rec.PlanMs) * time.Millisecond
		if moved.Abs() < replanAfter && l.plannedAt(rec) == string(d.Chosen.Cell)+"/"+d.Chosen.Variant {
			return
		}
	} else {
		untilMs = 0
	}
	l.commitPlan(rec, &d, untilMs)
}

// plannedAt is where the newest plan lets a task run.
func (l *leader) plannedAt(rec *meshv1.TaskRecord) string {
	d, err := Plan(rec)
	if err != nil || len(d.GetCandidates()) == 0 {
		return ""
	}
	return d.Candidates[0].Cell + "/" + d.Candidates[0].Variant
}
