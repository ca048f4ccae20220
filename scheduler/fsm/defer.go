package fsm

import (
	"fmt"
	"iter"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
)

// StartBy is until when a task's start may be put off by choice, wall clock in
// milliseconds; 0 for a task whose start may not. It follows from the record
// alone, so no decision moves it.
func StartBy(rec *meshv1.TaskRecord) int64 {
	if rec.MaxDelayMs == 0 {
		return 0
	}
	return max(rec.SubmittedMs, rec.NotBeforeMs) + rec.MaxDelayMs
}

// MayPutOff reports whether the start of a task may still be put off by choice:
// it was asked for, no attempt has started, and nobody redrove it.
func MayPutOff(rec *meshv1.TaskRecord) bool {
	return rec.MaxDelayMs > 0 && rec.Counted == 0 && rec.Redrives == 0
}

// putOff puts the start of a ready task off, or moves the start of one that is
// put off. Once its time has come by the calendar, or when the new time is not
// ahead, the task is ready.
func (a *apply) putOff(c *meshv1.Defer) error {
	rec, err := a.task(c.TaskId)
	if err != nil {
		return err
	}
	if !inRange(c.UntilMs) || c.UntilMs > StartBy(rec) || c.UntilMs >= expiry(rec) {
		return fmt.Errorf("fsm: defer task %s until %d: %w", rec.Id, c.UntilMs, ErrBadCommand)
	}
	if !MayPutOff(rec) || (State(rec) != ready && !rec.PutOff) || rec.Attempt != c.Attempt || rec.Plans != c.Plans {
		return fmt.Errorf("fsm: defer task %s: %w", rec.Id, ErrStale)
	}
	a.result.Verdict = Planned
	switch {
	case c.UntilMs > a.clocks.WallMs:
		if State(rec) == ready {
			a.effect(Effect{Kind: TaskUnready, TaskID: rec.Id, Queue: QueueOf(rec)})
		}
		a.toDeferred(rec, c.UntilMs)
		a.Set(putOffKey(rec.Id), nil)
		rec.PutOff, rec.Plan, rec.PlanMs = true, c.Decision, c.UntilMs
		rec.Plans++
	case rec.PutOff:
		a.toReady(rec)
	}
	a.store(rec)
	return nil
}

// PutOff yields the records of the tasks whose start is put off by choice, in id
// order, those after the id.
func PutOff(r state.Reader, afterID string) iter.Seq[*meshv1.TaskRecord] {
	return func(yield func(*meshv1.TaskRecord) bool) {
		from := putOffKey("")
		if afterID != "" {
			from = append(putOffKey(afterID), 0)
		}
		for k := range r.Scan(from, []byte("e")) {
			if rec, ok := Task(r, string(k[1:])); ok && !yield(rec) {
				return
			}
		}
	}
}
