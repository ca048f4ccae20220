package sim

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// numbered is one attempt of one task.
type numbered struct {
	task    string
	attempt uint64
}

func (n numbered) String() string { return fmt.Sprintf("%s/%d", name(n.task), n.attempt) }

// name is the readable part of a task id.
func name(id string) string {
	for i := range id {
		if id[i] != '0' {
			return id[i:]
		}
	}
	return id
}

func compare(a, b numbered) int {
	if a.task != b.task {
		if a.task < b.task {
			return -1
		}
		return 1
	}
	return int(a.attempt) - int(b.attempt)
}

// sorted is the keys of a map in a fixed order: no step may depend on Go's.
func sorted[V any](m map[numbered]V) []numbered {
	return slices.SortedFunc(maps.Keys(m), compare)
}

// truth is what an observer of the whole mesh knows; no cell sees it.
type truth struct {
	started  map[numbered]string // by which worker
	finished map[numbered]bool   // a worker made its result
	granted  map[numbered]string
	ended    map[string]isobarv1.TaskState
	accepted map[string]*cell // promised to a client
	poison   map[string]bool  // never end
	redriven map[string]bool
	keys     map[string]string
	lines    map[string][]string // by cell and ordering key, in the order of accepts
}

func newTruth() truth {
	return truth{
		started: map[numbered]string{}, finished: map[numbered]bool{}, granted: map[numbered]string{},
		ended: map[string]isobarv1.TaskState{}, accepted: map[string]*cell{}, keys: map[string]string{},
		poison: map[string]bool{}, redriven: map[string]bool{}, lines: map[string][]string{},
	}
}

// starts is called by a worker that begins to run an attempt.
func (w *world) starts(at numbered, worker string) {
	if by, ok := w.truth.started[at]; ok {
		w.violate("attempt %s starts on %s, after it started on %s", at, worker, by)
	}
	w.truth.started[at] = worker
	w.note("start %s on %s", at, worker)
}

// promised is called by a client that was told its task is accepted.
func (w *world) promised(id string, home *cell, key string) {
	w.truth.accepted[id] = home
	if key == "" {
		return
	}
	if first, ok := w.truth.keys[key]; ok && first != id {
		w.violate("key %s is task %s, and was task %s", key, id, first)
	}
	w.truth.keys[key] = id
}

// committed sees every command that took effect in a cell.
func (w *world) committed(c *cell, cmd *meshv1.SchedulerCommand, res *fsm.Result) {
	switch m := cmd.Command.(type) {
	case *meshv1.SchedulerCommand_Accept:
		if m.Accept.Task.Function == poison {
			w.truth.poison[m.Accept.Task.Id] = true
		}
		w.joins(c, res.Task)
	case *meshv1.SchedulerCommand_Redrive:
		w.redrives(m.Redrive.TaskId, res)
		if res.Count > 0 {
			w.joins(c, res.Task)
		}
	case *meshv1.SchedulerCommand_Grant:
		w.inOrder(c, res.Task)
		w.grants(numbered{m.Grant.TaskId, m.Grant.Attempt}, m.Grant.Holder)
	case *meshv1.SchedulerCommand_Complete:
		w.completes(c, m.Complete, res)
	case *meshv1.SchedulerCommand_Cancel:
		if n := len(res.Task.Attempts); res.Verdict == fsm.Accepted && n > 0 && res.Task.Attempts[n-1].Outcome == "cancelled" {
			w.saw(SawCancelled)
		}
	}
	for _, e := range res.Effects {
		if e.Kind != fsm.TaskEnded {
			continue
		}
		if was, ok := w.truth.ended[e.TaskID]; ok {
			w.violate("task %s ends as %s, after it ended as %s", e.TaskID, e.State, was)
		}
		w.truth.ended[e.TaskID] = e.State
	}
}

// redrives lets a task that was dead end once more.
func (w *world) redrives(id string, res *fsm.Result) {
	if res.Count == 0 {
		w.saw(SawRedrivenTwo)
		return
	}
	if was := w.truth.ended[id]; was != isobarv1.TaskState_TASK_STATE_DEAD {
		w.violate("task %s is redriven, but had ended as %s", id, was)
	}
	delete(w.truth.ended, id)
	w.truth.redriven[id] = true
	w.saw(SawRedriven)
}

// joins puts a task at the end of its ordering key's line, where one that was
// redriven is too.
func (w *world) joins(c *cell, rec *meshv1.TaskRecord) {
	if rec.OrderingKey == "" {
		return
	}
	line := c.id + " " + rec.OrderingKey
	w.truth.lines[line] = append(slices.DeleteFunc(w.truth.lines[line], func(id string) bool { return id == rec.Id }), rec.Id)
	if len(w.truth.lines[line]) > 1 && rec.Held {
		w.saw(SawHeld)
	}
}

// inOrder holds a grant against the line: what is before it has ended, or, relaxed,
// been granted.
func (w *world) inOrder(c *cell, rec *meshv1.TaskRecord) {
	for _, before := range w.truth.lines[c.id+" "+rec.OrderingKey] {
		if before == rec.Id {
			return
		}
		_, ended := w.truth.ended[before]
		_, granted := w.truth.granted[numbered{before, 1}]
		if !ended && (!rec.OrderRelaxed || !granted) {
			w.violate("task %s is granted, and %s is before it with key %s", rec.Id, before, rec.OrderingKey)
		}
	}
}

func (w *world) grants(at numbered, holder *meshv1.Holder) {
	to := holder.Cell + holder.Session
	if was, ok := w.truth.granted[at]; ok {
		w.violate("attempt %s granted to %s, after to %s", at, to, was)
	}
	w.truth.granted[at] = to
	if at.attempt >= 2 {
		w.saw(SawRetry)
	}
}

func (w *world) completes(c *cell, m *meshv1.Complete, res *fsm.Result) {
	at := numbered{m.TaskId, m.Attempt}
	switch res.Verdict {
	case fsm.Fenced:
		w.saw(SawFenced)
	case fsm.Accepted:
		if !w.truth.finished[at] {
			w.violate("completion of %s accepted, but no worker finished it", at)
		}
		result, _ := fsm.TaskResult(c.reader(), m.TaskId)
		if want := (numbered{m.TaskId, res.Task.FinalAttempt}).String(); string(result) != want || res.Task.FinalAttempt != m.Attempt {
			w.violate("task %s keeps result %q of attempt %d, accepted was %s", m.TaskId, result, res.Task.FinalAttempt, at)
		}
		if w.truth.redriven[m.TaskId] && len(res.Effects) > 0 {
			w.saw(SawRevived)
		}
		late := true // a lease given up closes no lease now
		for _, e := range res.Effects {
			late = late && e.Kind != fsm.LeaseGone
		}
		if late && len(res.Effects) > 0 {
			w.saw(SawLateDone)
		}
	}
}

// inspect looks at every cell's state now and then.
func (w *world) inspect() bool {
	for _, id := range slices.Sorted(maps.Keys(w.truth.accepted)) {
		if _, ok := fsm.Task(w.truth.accepted[id].reader(), id); !ok {
			w.violate("task %s was accepted and is lost", id)
		}
	}
	for _, c := range w.cells {
		c.count()
	}
	return w.err == nil
}

// count compares each queue's counters with a scan.
func (c *cell) count() {
	r := c.reader()
	want := map[fsm.Queue]*meshv1.QueueRecord{}
	for rec := range fsm.Tasks(r, "") {
		q := fsm.QueueOf(rec)
		if fsm.Ended(fsm.State(rec)) && fsm.State(rec) != isobarv1.TaskState_TASK_STATE_DEAD {
			continue
		}
		if want[q] == nil {
			want[q] = &meshv1.QueueRecord{}
		}
		if fsm.Kept(rec) {
			want[q].Bytes += rec.PayloadBytes
		}
		if fsm.State(rec) != isobarv1.TaskState_TASK_STATE_DEAD {
			cost := fsm.CostOf(want[q].Cost, 0).Plus(fsm.CostOf(rec.Cost, rec.PayloadBytes))
			if want[q].Cost = fsm.CostMessage(cost); cost.Tokens > queueTokens {
				c.w.violate("cell %s: the tasks of queue %s cost %d tokens, the bound is %d", c.id, q, cost.Tokens, queueTokens)
			}
		}
		switch fsm.State(rec) {
		case isobarv1.TaskState_TASK_STATE_DEFERRED:
			want[q].Deferred++
		case isobarv1.TaskState_TASK_STATE_READY:
			want[q].Ready++
		case isobarv1.TaskState_TASK_STATE_DEAD:
			want[q].Dead++
		default:
			want[q].Leased++
		}
	}
	for q, n := range fsm.Queues(r) {
		if !proto.Equal(n, want[q]) {
			c.w.violate("cell %s: queue %s counts %v, its tasks say %v", c.id, q, n, want[q])
		}
		delete(want, q)
	}
	if len(want) > 0 {
		c.w.violate("cell %s: %d queues are not counted", c.id, len(want))
	}
}

// conclude looks at the healed mesh after it had time to settle.
func (w *world) conclude() {
	if w.err != nil {
		return
	}
	w.inspect()
	for _, c := range w.cells {
		for rec := range fsm.Tasks(c.reader(), "") {
			if !fsm.Ended(fsm.State(rec)) {
				w.violate("task %s is still %s, attempt %d, lease %v", rec.Id, fsm.State(rec), rec.Attempt, rec.Lease)
			}
			if w.truth.ended[rec.Id] != fsm.State(rec) && fsm.Ended(fsm.State(rec)) {
				w.violate("task %s is %s, but ended as %s", rec.Id, fsm.State(rec), w.truth.ended[rec.Id])
			}
		}
		c.letters()
		for g := range fsm.Guests(c.reader()) {
			w.violate("cell %s still keeps guest %s attempt %d: %v", c.id, g.TaskId, g.Attempt, g)
		}
		c.replay()
	}
	if got := len(w.truth.accepted); w.err == nil && got == 0 {
		w.violate("no task was accepted")
	}
}

// letters compares the dead letters with the tasks: none missing, none too many,
// and of those that never end an attempt each with its attempts exactly used up.
func (c *cell) letters() {
	listed := map[string]bool{}
	for q := range fsm.Queues(c.reader()) {
		for id := range fsm.DeadLetters(c.reader(), q, "") {
			listed[id] = true
		}
	}
	for rec := range fsm.Tasks(c.reader(), "") {
		if dead := fsm.State(rec) == isobarv1.TaskState_TASK_STATE_DEAD; dead != listed[rec.Id] {
			c.w.violate("task %s is %s, among the dead letters: %t", rec.Id, fsm.State(rec), listed[rec.Id])
		}
		if !c.w.truth.poison[rec.Id] {
			continue
		}
		// A task whose offers are refused without end ends too, before its attempts.
		refused := rec.Attempt >= 64*uint64(rec.MaxAttempts)
		if fsm.State(rec) != isobarv1.TaskState_TASK_STATE_DEAD || (rec.Counted != rec.MaxAttempts && !refused) {
			c.w.violate("task %s never ends an attempt, and is %s after %d of %d", rec.Id, fsm.State(rec), rec.Counted, rec.MaxAttempts)
		}
	}
}
