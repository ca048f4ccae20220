package fsm

import (
	"fmt"
	"iter"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
)

// Queues as users know them: dead letters that can be sent again, queues that
// can be paused and purged.

// keepDeaths is how many earlier deaths a record tells of.
const keepDeaths = 8

// purgeLimit is how many tasks one Purge cancels when it names no limit.
const purgeLimit = 256

// redrive gives a dead task new attempts under the same id. Numbers go on, so a
// holder of an old one stays fenced; keys stay its own, so what was one task stays
// one. A repeat of what was done is accepted and changes nothing.
func (a *apply) redrive(c *meshv1.Redrive) error {
	rec, err := a.task(c.TaskId)
	if err != nil {
		return err
	}
	a.result.Task = rec
	if State(rec) != dead && rec.Redrives > 0 && rec.RedrivenAttempt == c.Attempt {
		return a.verdict(Accepted)
	}
	switch {
	case State(rec) != dead:
		return fmt.Errorf("fsm: redrive task %s: %w", rec.Id, ErrNotDead)
	case rec.Attempt != c.Attempt:
		return fmt.Errorf("fsm: redrive task %s: %w", rec.Id, ErrStale)
	case rec.PayloadLost:
		return fmt.Errorf("fsm: redrive task %s: %w", rec.Id, ErrPayloadLost)
	case rec.DeadlineMs != 0 && rec.DeadlineMs <= a.clocks.WallMs:
		return fmt.Errorf("fsm: redrive task %s: %w", rec.Id, ErrDeadlinePast)
	}
	q := QueueOf(rec)
	// One that its key waits for has its place: what fills the queue may stand
	// behind it.
	if rec.OrderSeq == 0 {
		if err := a.room(rec, c.Cap, 0); err != nil {
			return fmt.Errorf("fsm: redrive task %s: %w", rec.Id, err)
		}
	}
	a.Delete(calendarKey(rec.EndedMs+rec.RetentionMs, kindRetention, rec.Id))
	a.Delete(deadKey(q, rec.Id))
	a.queueAdd(q, func(r *meshv1.QueueRecord) { r.Dead-- })
	a.costs(rec, 1)
	rec.Deaths = append(rec.Deaths, &meshv1.Death{
		EndedMs: rec.EndedMs, Reason: rec.Reason, Cause: Cause(rec), Attempt: rec.Attempt, Counted: rec.Counted, RedrivenMs: a.clocks.WallMs,
	})
	rec.Deaths = rec.Deaths[max(0, len(rec.Deaths)-keepDeaths):]
	rec.Redrives++
	rec.RedrivenAttempt, rec.Counted, rec.EndedMs, rec.Reason = rec.Attempt, 0, 0, ""
	// It has as long to live as it had when it was accepted.
	rec.LifetimeMs = max(rec.LifetimeMs, a.clocks.WallMs+min(max(rec.LifetimeMs-born(rec), 1), maxMs))
	a.Set(calendarKey(expiry(rec), kindExpire, rec.Id), nil)
	if rec.OrderSeq == 0 {
		a.enter(rec) // those that were behind it have gone on
	}
	a.toReady(rec)
	a.result.Verdict, a.result.Count = Accepted, 1
	a.store(rec)
	return nil
}

// born is when the record's present life began.
func born(rec *meshv1.TaskRecord) int64 {
	if n := len(rec.Deaths); n > 1 {
		return rec.Deaths[n-2].RedrivenMs
	}
	return rec.SubmittedMs
}

// Cause is the outcome of a dead task's last attempt: failed, retry, timeout,
// memory, lost, refused, undelivered or payload_lost.
func Cause(rec *meshv1.TaskRecord) string {
	if n := len(rec.Attempts); n > 0 {
		return rec.Attempts[n-1].Outcome
	}
	return ""
}

// pauseQueue stops and resumes a queue's grants. A repeat changes nothing: the
// first pause's time and reason stay.
func (a *apply) pauseQueue(c *meshv1.PauseQueue) error {
	if !nameable(c.Tenant, c.Function, c.Lane) || c.Function == "" {
		return fmt.Errorf("fsm: pause queue %s/%s: %w", c.Tenant, c.Function, ErrBadCommand)
	}
	q := Queue{Tenant: c.Tenant, Function: c.Function, Lane: mesh.Lane(c.Lane)}
	old := a.queue(q).Pause
	a.result.Verdict, a.result.Pause = Accepted, old
	if c.Paused == (old != nil) {
		return nil
	}
	kind := QueueResumed
	a.result.Count, a.result.Pause = 1, nil
	if c.Paused {
		kind, a.result.Pause = QueuePaused, &meshv1.Pause{SinceMs: a.clocks.WallMs, Reason: c.Reason}
	}
	a.queueAdd(q, func(r *meshv1.QueueRecord) { r.Pause = a.result.Pause })
	a.effect(Effect{Kind: kind, Queue: q})
	return nil
}

// purge cancels what waits in a queue, ready tasks first. What is leased goes on.
func (a *apply) purge(c *meshv1.Purge) error {
	if !nameable(c.Tenant, c.Function, c.Lane) || c.BeforeId == "" {
		return fmt.Errorf("fsm: purge queue %s/%s: %w", c.Tenant, c.Function, ErrBadCommand)
	}
	q := Queue{Tenant: c.Tenant, Function: c.Function, Lane: mesh.Lane(c.Lane)}
	limit := int(c.Limit)
	if limit == 0 {
		limit = purgeLimit
	}
	// The ids are read before anything changes.
	var ids []string
	for _, key := range []func(Queue, string) []byte{readyKey, deferredKey} {
		from := key(q, "")
		for k := range a.Scan(from, key(q, c.BeforeId)) {
			if len(ids) == limit {
				a.result.More = true
				break
			}
			ids = append(ids, string(k[len(from):]))
		}
	}
	for _, id := range ids {
		rec, err := a.task(id)
		if err != nil {
			return err
		}
		reason := c.Reason
		if reason == "" {
			reason = "its queue was purged"
		}
		a.end(rec, cancelled, reason)
		put(a, taskKey(id), rec)
	}
	a.result.Count, a.result.Verdict = len(ids), Accepted
	return nil
}

// Deferred yields ids of the queue's deferred tasks in order, those after the id.
func Deferred(r state.Reader, q Queue, afterID string) iter.Seq[string] {
	return idsOf(r, deferredKey, q, afterID)
}

// DeadLetters yields ids of the queue's dead tasks in order, those after the id.
func DeadLetters(r state.Reader, q Queue, afterID string) iter.Seq[string] {
	return idsOf(r, deadKey, q, afterID)
}

func idsOf(r state.Reader, key func(Queue, string) []byte, q Queue, afterID string) iter.Seq[string] {
	return func(yield func(string) bool) {
		prefix := key(q, "")
		from := prefix
		if afterID != "" {
			from = append(key(q, afterID), 0)
		}
		for k := range r.Scan(from, after(prefix)) {
			if !yield(string(k[len(prefix):])) {
				return
			}
		}
	}
}
