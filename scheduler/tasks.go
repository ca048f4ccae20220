package scheduler

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// Get answers from the home, with leadership verified: never stale. Of a task
// that has ended nothing needs to be verified: its end was committed and stays
// true, whoever leads. A dead one may have been redriven since.
func (s *Scheduler) Get(ctx context.Context, id string) (*meshv1.TaskRecord, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	if err := l.own(id); err != nil {
		return nil, err
	}
	if rec, ok := fsm.Task(l.State, id); ok && fsm.Ended(fsm.State(rec)) && fsm.State(rec) != isobarv1.TaskState_TASK_STATE_DEAD {
		return rec, nil
	}
	if err := l.Log.Verify(ctx); err != nil {
		return nil, fmt.Errorf("scheduler: read task %s: %w", id, ErrNotLeader)
	}
	rec, ok := fsm.Task(l.State, id)
	if !ok {
		return nil, unknownTask(id)
	}
	return rec, nil
}

// own checks that the task is this cell's, of this incarnation.
func (l *leader) own(id string) error {
	home, incarnation, err := mesh.TaskID(id).Home()
	switch {
	case err != nil:
		return &Refusal{Reason: BadRequest, Field: "taskId", Message: fmt.Sprintf("%q is not a task id", id), Hint: "an id looks like 01jd…-eu-north-1-k3f9ab; Submit returns it"}
	case home != l.Cell.ID:
		return &Refusal{Reason: WrongCell, TaskID: id, Cell: home, Message: "the task's home is " + string(home) + ", this is " + string(l.Cell.ID), Hint: "ask " + string(home)}
	case incarnation != l.incarnation:
		return &Refusal{Reason: UnknownTask, TaskID: id, Message: "the id is of incarnation " + incarnation + " of " + string(home) + ", which is gone; it is " + l.incarnation + " now", Hint: "its tasks went with its data; submit again what is still wanted"}
	}
	return nil
}

func unknownTask(id string) *Refusal {
	return &Refusal{Reason: UnknownTask, TaskID: id, Message: "no task " + id + " is known here", Hint: "records are dropped when their retention ends"}
}

// Ahead is the first of the tasks that hold the task up by its ordering key, and
// how many there are, counted up to 100; "" when none does.
func (s *Scheduler) Ahead(rec *meshv1.TaskRecord) (id string, n uint32) {
	id, ahead := fsm.Ahead(s.State, rec)
	return id, uint32(ahead)
}

// Result reads a completed task's result.
func (s *Scheduler) Result(id string) []byte {
	b, _ := fsm.TaskResult(s.State, id)
	return b
}

// Wait returns the record once the task has ended or ctx is done, whichever is
// first; ended says which.
func (s *Scheduler) Wait(ctx context.Context, id string) (rec *meshv1.TaskRecord, ended bool, err error) {
	l, err := s.leading()
	if err != nil {
		return nil, false, err
	}
	if err := l.own(id); err != nil {
		return nil, false, err
	}
	w, err := l.startWaiting(id)
	if err != nil {
		return nil, false, err
	}
	defer l.stopWaiting(id, w)
	// The waiter is in place before the state is read: an end between the two
	// is not missed. A task that is here needs no verification before the wait,
	// only before it is said that it still goes on.
	if rec, here := fsm.Task(l.State, id); here && !fsm.Ended(fsm.State(rec)) {
		if rec := w.wait(ctx, l); rec != nil {
			return rec, true, nil
		}
	}
	read, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if rec, err = s.Get(read, id); err != nil {
		return nil, false, err
	}
	return rec, fsm.Ended(fsm.State(rec)), nil
}

// waiter waits for one task's end.
type waiter struct {
	done chan struct{}      // closed when the task has ended, or the term
	task *meshv1.TaskRecord // as it ended; read after done
}

// wait returns the record when the task has ended, and nil when ctx or the term
// ends first.
func (w *waiter) wait(ctx context.Context, l *leader) *meshv1.TaskRecord {
	select {
	case <-w.done:
		return w.task
	case <-ctx.Done():
	case <-l.ctx.Done():
	}
	return nil
}

// startWaiting begins to wait for a task, which need not be there yet.
func (l *leader) startWaiting(id string) (*waiter, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("scheduler: wait for task %s: %w", id, ErrNotLeader)
	}
	w := &waiter{done: make(chan struct{})}
	l.waiters[id] = append(l.waiters[id], w)
	return w, nil
}

func (l *leader) stopWaiting(id string, w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.waiters[id]
	for i, other := range list {
		if other == w {
			list = append(list[:i:i], list[i+1:]...)
		}
	}
	if len(list) == 0 {
		delete(l.waiters, id)
		return
	}
	l.waiters[id] = list
}

// Cancel ends a task; the record shows which terminal state won.
func (s *Scheduler) Cancel(ctx context.Context, id, reason string) (rec *meshv1.TaskRecord, won bool, err error) {
	l, err := s.leading()
	if err != nil {
		return nil, false, err
	}
	if err := l.own(id); err != nil {
		return nil, false, err
	}
	if _, ok := fsm.Task(l.State, id); !ok {
		return nil, false, unknownTask(id)
	}
	res, err := l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Cancel{Cancel: &meshv1.Cancel{TaskId: id, Reason: reason}}})
	if err != nil {
		return nil, false, err
	}
	return res.Task, res.Verdict == fsm.Accepted, nil
}

// Filter chooses what List returns.
type Filter struct {
	Tenant   string
	Function string
	State    isobarv1.TaskState
	After    string // id of the last one seen
	Limit    int
}

// List reads this server's state, which may lag behind the leader's.
func (s *Scheduler) List(f Filter) (out []*meshv1.TaskRecord, next string) {
	for rec := range fsm.Tasks(s.State, f.After) {
		if (f.Tenant != "" && rec.Tenant != f.Tenant) || (f.Function != "" && rec.Function != f.Function) ||
			(f.State != 0 && fsm.State(rec) != f.State) {
			continue
		}
		if len(out) == f.Limit {
			return out, out[len(out)-1].Id
		}
		out = append(out, rec)
	}
	return out, ""
}

// Question asks how a task would be placed.
type Question struct {
	// Record of a submitted task, or
	Record *meshv1.TaskRecord
	// the submission of one that is not.
	Submission *Submission
	// Other weights than the cell's own; nil keeps them.
	CarbonPrice, LatencyPrice, DelayPrice, QualityPrice *float64
	WithoutRegions                                      []string
}

// Decide answers a question with a full explanation. Nothing is stored.
func (s *Scheduler) Decide(q Question) (*placement.Decision, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	rec := q.Record
	if rec == nil {
		if rec, _, err = l.record(*q.Submission); err != nil {
			return nil, err
		}
	}
	fn, err := l.Registry.Version(rec.Version)
	if err != nil {
		return nil, err
	}
	p := l.Policy
	for _, o := range []struct {
		weight *float64
		asked  *float64
	}{{&p.CarbonUSDPerTonne, q.CarbonPrice}, {&p.LatencyUSDPerS, q.LatencyPrice}, {&p.DelayUSDPerS, q.DelayPrice}, {&p.QualityUSD, q.QualityPrice}} {
		if o.asked != nil {
			*o.weight = *o.asked
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.view.refresh(now, l)
	l.view.own(l)
	for _, r := range q.WithoutRegions {
		if !l.view.region(r) {
			return nil, &Refusal{Reason: UnknownRegion, Field: "withoutRegions", Message: "no region " + r + " is known", Hint: "isobar mesh lists the regions"}
		}
	}
	d := l.decide(rec, fn, p, now, placement.Options{ExcludeRegions: q.WithoutRegions, Explain: true})
	return &d, nil
}

func (v *view) region(name string) bool {
	for _, c := range v.cells {
		if c.Region == name {
			return true
		}
	}
	return false
}

// Decisions are the stored decisions of a task, newest first.
func Decisions(rec *meshv1.TaskRecord) ([]*isobarv1.Decision, error) {
	var out []*isobarv1.Decision
	for _, v := range slices.Backward(rec.Decisions) {
		var d isobarv1.Decision
		if err := proto.Unmarshal(v, &d); err != nil {
			return nil, fmt.Errorf("scheduler: read decision of %s: %w", rec.Id, err)
		}
		out = append(out, &d)
	}
	return out, nil
}
