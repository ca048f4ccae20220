package fsm

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

const (
	deferred  = isobarv1.TaskState_TASK_STATE_DEFERRED
	ready     = isobarv1.TaskState_TASK_STATE_READY
	leased    = isobarv1.TaskState_TASK_STATE_LEASED
	completed = isobarv1.TaskState_TASK_STATE_COMPLETED
	dead      = isobarv1.TaskState_TASK_STATE_DEAD
	cancelled = isobarv1.TaskState_TASK_STATE_CANCELLED
	expired   = isobarv1.TaskState_TASK_STATE_EXPIRED
)

// grantsPerAttempt bounds how often a task may be granted without starting, so
// that offers that are always refused end too: "nothing waits for ever".
const grantsPerAttempt = 64

// accept makes the record of a new task, or says that it is known.
func (a *apply) accept(c *meshv1.Accept) error {
	rec := c.Task
	if !acceptable(rec) {
		return fmt.Errorf("fsm: accept task %s: %w", rec.GetId(), ErrBadCommand)
	}
	if Incarnation(a) == "" {
		return fmt.Errorf("fsm: accept task %s: %w", rec.Id, ErrNotBootstrapped)
	}
	if err := a.known(rec); err != nil {
		return fmt.Errorf("fsm: accept task %s: %w", rec.Id, err)
	}
	if _, ok := a.Get(taskKey(rec.Id)); ok {
		return fmt.Errorf("fsm: accept task %s: %w", rec.Id, &DuplicateError{ID: rec.Id})
	}
	if expiry(rec) <= a.clocks.WallMs {
		return fmt.Errorf("fsm: accept task %s: %w", rec.Id, ErrDeadlinePast)
	}
	q := QueueOf(rec)
	if err := a.freeRef(q.String(), rec.PayloadRef); err != nil {
		return fmt.Errorf("fsm: accept task %s: %w", rec.Id, err)
	}
	if err := a.room(rec, c.Cap, rec.PayloadBytes); err != nil {
		return fmt.Errorf("fsm: accept task %s: %w", rec.Id, err)
	}
	a.queueAdd(q, func(r *meshv1.QueueRecord) { r.Bytes += rec.PayloadBytes })
	a.costs(rec, 1)
	if rec.RequestId != "" {
		a.Set(requestKey(rec.Tenant, rec.RequestId), []byte(rec.Id))
	}
	if rec.IdempotencyKey != "" {
		a.Set(keyKey(rec.Tenant, rec.IdempotencyKey), append(append([]byte(nil), rec.IdempotencyHash...), rec.Id...))
	}
	if len(rec.PayloadRef) > 0 {
		a.Set(payloadKey(q.String(), rec.PayloadRef), []byte(rec.Id))
		a.raise(q.String(), rec.PayloadRef)
	}
	a.fresh(rec)
	a.enter(rec)
	a.Set(calendarKey(expiry(rec), kindExpire, rec.Id), nil)
	if rec.NotBeforeMs > a.clocks.WallMs {
		a.toDeferred(rec, rec.NotBeforeMs)
	} else {
		a.toReady(rec)
	}
	a.result.Verdict = Accepted
	a.store(rec)
	return nil
}

// acceptable reports whether the record of a new task can be stored: its names
// keep the keys apart, its numbers cannot overflow.
func acceptable(rec *meshv1.TaskRecord) bool {
	return rec.GetId() != "" && nameable(rec.Tenant, rec.Function, rec.Lane) && !strings.Contains(rec.OrderingKey, "\x00") && rec.PayloadBytes <= maxBytes &&
		rec.LifetimeMs > 0 && costable(rec.Cost) && (rec.IdempotencyKey == "" || len(rec.IdempotencyHash) == sha256.Size) &&
		inRange(rec.DeadlineMs, rec.NotBeforeMs, rec.LifetimeMs, rec.RetentionMs, rec.TimeoutMs, rec.BackoffMs, rec.MaxBackoffMs, rec.MaxDelayMs, rec.MaxRttUs)
}

// fresh takes out of a new record what only the machine may say. The decision
// of Submit stays.
func (a *apply) fresh(rec *meshv1.TaskRecord) {
	rec.SubmittedMs, rec.AppendedMs = a.clocks.WallMs, a.clocks.WallMs
	rec.State, rec.Attempt, rec.Counted, rec.Lease, rec.Attempts = 0, 0, 0, nil, nil
	rec.NextMs, rec.EndedMs, rec.Reason, rec.FinalAttempt, rec.Blocked, rec.BlockedMs = 0, 0, "", 0, "", 0
	rec.ResultBytes, rec.ResultSha256, rec.ReadyMs = 0, nil, 0
	rec.PutOff, rec.Plans, rec.Plan, rec.PlanMs = false, 0, nil, 0
	rec.OrderSeq, rec.Held = 0, false
	rec.OrderBlocks = rec.OrderBlocks && !rec.OrderRelaxed
	rec.Redrives, rec.RedrivenAttempt, rec.Deaths, rec.PayloadLost = 0, 0, nil, false
	rec.Decisions = rec.Decisions[max(0, len(rec.Decisions)-keepDecisions):]
}

// nameable reports whether the names make a queue of their own: keys end names
// with a zero byte, topics a tenant with a slash.
func nameable(tenant, function string, lane uint32) bool {
	return !strings.ContainsAny(tenant, "\x00/") && !strings.Contains(function, "\x00") && lane <= uint32(mesh.Batch)
}

// freeRef reports whether a payload's place can be a record's: not trimmed, and
// no other record's, or the end of one would free the payload of both.
func (a *apply) freeRef(topic string, ref []byte) error {
	if len(ref) == 0 {
		return nil
	}
	if bytes.Compare(ref, TrimPosition(a, topic)) < 0 {
		return ErrTrimmed
	}
	if id, ok := a.Get(payloadKey(topic, ref)); ok {
		return fmt.Errorf("reference %x is the payload of %s: %w", ref, id, ErrBadCommand)
	}
	return nil
}

// known looks the task up by request id, then by idempotency key.
func (a *apply) known(rec *meshv1.TaskRecord) error {
	if rec.RequestId != "" {
		if id, ok := a.Get(requestKey(rec.Tenant, rec.RequestId)); ok {
			return &DuplicateError{ID: string(id)}
		}
	}
	if rec.IdempotencyKey == "" {
		return nil
	}
	v, ok := a.Get(keyKey(rec.Tenant, rec.IdempotencyKey))
	if !ok {
		return nil
	}
	id := string(v[sha256.Size:])
	if !bytes.Equal(v[:sha256.Size], rec.IdempotencyHash) {
		return &ConflictError{ID: id}
	}
	return &DuplicateError{ID: id, ByKey: true}
}

func expiry(rec *meshv1.TaskRecord) int64 {
	if rec.DeadlineMs != 0 {
		return min(rec.DeadlineMs, rec.LifetimeMs)
	}
	return rec.LifetimeMs
}

// leave takes the record out of the indexes of its present state.
func (a *apply) leave(rec *meshv1.TaskRecord) {
	q := QueueOf(rec)
	switch State(rec) {
	case deferred:
		if !rec.Held {
			a.Delete(calendarKey(rec.NextMs, kindNext, rec.Id))
		}
		a.Delete(deferredKey(q, rec.Id))
		a.queueAdd(q, func(r *meshv1.QueueRecord) { r.Deferred-- })
		if rec.PutOff {
			a.Delete(putOffKey(rec.Id))
		}
		rec.NextMs, rec.PutOff, rec.Held = 0, false, false
	case ready:
		a.Delete(readyKey(q, rec.Id))
		a.queueAdd(q, func(r *meshv1.QueueRecord) { r.Ready-- })
		rec.Blocked, rec.BlockedMs = "", 0
	case leased:
		a.Delete(leaseKey(rec.Lease.UntilLeaseMs, rec.Id))
		a.queueAdd(q, func(r *meshv1.QueueRecord) { r.Leased-- })
		rec.Lease = nil
	}
	rec.State = 0
}

func (a *apply) toDeferred(rec *meshv1.TaskRecord, at int64) {
	a.leave(rec)
	rec.State, rec.NextMs = uint32(deferred), at
	a.Set(calendarKey(at, kindNext, rec.Id), nil)
	a.Set(deferredKey(QueueOf(rec), rec.Id), nil)
	a.queueAdd(QueueOf(rec), func(r *meshv1.QueueRecord) { r.Deferred++ })
}

// toReady makes the task ready, or holds it while others are before it in the
// line of its ordering key.
func (a *apply) toReady(rec *meshv1.TaskRecord) {
	if !a.first(rec) {
		a.toHeld(rec)
		return
	}
	a.leave(rec)
	rec.State, rec.ReadyMs = uint32(ready), a.clocks.WallMs
	q := QueueOf(rec)
	a.Set(readyKey(q, rec.Id), nil)
	a.queueAdd(q, func(r *meshv1.QueueRecord) { r.Ready++ })
	a.effect(Effect{Kind: TaskReady, TaskID: rec.Id, Queue: q})
}

// end makes the state terminal and starts its retention.
func (a *apply) end(rec *meshv1.TaskRecord, s isobarv1.TaskState, reason string) {
	q := QueueOf(rec)
	if State(rec) == ready {
		a.effect(Effect{Kind: TaskUnready, TaskID: rec.Id, Queue: q})
	}
	a.leave(rec)
	a.costs(rec, -1)
	rec.State, rec.Reason, rec.EndedMs = uint32(s), reason, a.clocks.WallMs
	a.Delete(calendarKey(expiry(rec), kindExpire, rec.Id))
	a.Set(calendarKey(rec.EndedMs+rec.RetentionMs, kindRetention, rec.Id), nil)
	if s == dead {
		a.Set(deadKey(q, rec.Id), nil)
		a.queueAdd(q, func(r *meshv1.QueueRecord) { r.Dead++ })
	}
	if s != dead || !rec.OrderBlocks {
		a.pass(rec)
	}
	if !Kept(rec) {
		a.dropPayload(rec)
	}
	a.effect(Effect{Kind: TaskEnded, TaskID: rec.Id, Queue: q, State: s, Task: rec})
}

// Kept reports whether the record's payload is kept: until the task has ended,
// and of a dead letter until it is forgotten, so that it can be redriven.
func Kept(rec *meshv1.TaskRecord) bool {
	return !Ended(State(rec)) || (State(rec) == dead && !rec.PayloadLost)
}

// dropPayload lets the broker trim the record's payload.
func (a *apply) dropPayload(rec *meshv1.TaskRecord) {
	q := QueueOf(rec)
	if len(rec.PayloadRef) > 0 {
		a.Delete(payloadKey(q.String(), rec.PayloadRef))
	}
	a.queueAdd(q, func(r *meshv1.QueueRecord) { r.Bytes -= rec.PayloadBytes })
}

// forget drops all that is kept of an ended task.
func (a *apply) forget(rec *meshv1.TaskRecord) {
	a.pass(rec)
	if State(rec) == dead {
		a.Delete(deadKey(QueueOf(rec), rec.Id))
		a.queueAdd(QueueOf(rec), func(r *meshv1.QueueRecord) { r.Dead-- })
		if Kept(rec) {
			a.dropPayload(rec)
		}
	}
	a.Delete(taskKey(rec.Id))
	a.Delete(resultKey(rec.Id))
	if rec.RequestId != "" {
		a.Delete(requestKey(rec.Tenant, rec.RequestId))
	}
	if rec.IdempotencyKey != "" {
		a.Delete(keyKey(rec.Tenant, rec.IdempotencyKey))
	}
}

// cancel ends a task at once; the holder learns of it by its next extend.
func (a *apply) cancel(c *meshv1.Cancel) error {
	rec, err := a.task(c.TaskId)
	if err != nil {
		return err
	}
	a.result.Task = rec
	if Ended(State(rec)) {
		a.result.Verdict = Terminal
		return nil
	}
	a.voidLease(rec, "cancelled", c.Reason)
	a.end(rec, cancelled, cmp.Or(c.Reason, "cancelled"))
	a.result.Verdict = Accepted
	a.store(rec)
	return nil
}

// voidLease closes the running attempt of a leased task, if there is one.
func (a *apply) voidLease(rec *meshv1.TaskRecord, outcome, message string) {
	if State(rec) != leased {
		return
	}
	a.closeAttempt(rec, &meshv1.Ended{Status: outcome, Message: message, Started: rec.Lease.Started})
	a.effect(Effect{Kind: LeaseGone, TaskID: rec.Id, Attempt: rec.Attempt, Queue: QueueOf(rec), Holder: rec.Lease.Holder})
}

// block notes why a ready task is not placed; "" when it can be again.
func (a *apply) block(c *meshv1.Block) error {
	rec, err := a.task(c.TaskId)
	if err != nil {
		return err
	}
	if State(rec) != ready || rec.Attempt != c.Attempt {
		return fmt.Errorf("fsm: block task %s: %w", rec.Id, ErrStale)
	}
	switch {
	case c.Constraint == "":
		rec.BlockedMs = 0
	case rec.Blocked == "":
		rec.BlockedMs = a.clocks.WallMs
	}
	rec.Blocked = c.Constraint
	a.store(rec)
	return nil
}

// trim raises a topic's trim position, the first reference that is kept: below
// it nothing is, and no record is accepted. It never passes a live payload.
func (a *apply) trim(c *meshv1.Trim) error {
	if c.Topic == "" || strings.Contains(c.Topic, "\x00") {
		return fmt.Errorf("fsm: trim %q: %w", c.Topic, ErrBadCommand)
	}
	if bytes.Compare(c.Ref, TrimPosition(a, c.Topic)) <= 0 {
		return nil
	}
	for k := range a.Scan(payloadKey(c.Topic, nil), payloadKey(c.Topic, c.Ref)) {
		_, ref, _ := cutTopic(k[1:])
		return fmt.Errorf("fsm: trim %s: payload %x: %w", c.Topic, ref, ErrLive)
	}
	a.Set(trimKey(c.Topic), c.Ref)
	if _, due := a.Get(tellKey(c.Topic)); due || c.Outside {
		a.Set(tellKey(c.Topic), c.Ref)
	}
	if high, ok := a.Get(highKey(c.Topic)); ok && bytes.Compare(high, c.Ref) < 0 {
		a.Delete(highKey(c.Topic)) // nothing is left to trim
	}
	return nil
}

// trimTold closes the effect of a trim, unless a later one is to be told by now.
func (a *apply) trimTold(c *meshv1.TrimTold) {
	if due, ok := a.Get(tellKey(c.Topic)); ok && bytes.Compare(due, c.Ref) <= 0 {
		a.Delete(tellKey(c.Topic))
	}
}

// raise notes the highest reference a topic has been given.
func (a *apply) raise(topic string, ref []byte) {
	if high, _ := a.Get(highKey(topic)); bytes.Compare(ref, high) > 0 {
		a.Set(highKey(topic), ref)
	}
}

// moved points a task at its payload's new place.
func (a *apply) moved(c *meshv1.Moved) error {
	rec, err := a.task(c.TaskId)
	if err != nil {
		return err
	}
	if !Kept(rec) || len(c.OldRef) == 0 || !bytes.Equal(rec.PayloadRef, c.OldRef) {
		return fmt.Errorf("fsm: move payload of %s: %w", rec.Id, ErrStale)
	}
	topic := QueueOf(rec).String()
	if len(c.NewRef) == 0 {
		return fmt.Errorf("fsm: move payload of %s: %w", rec.Id, ErrBadCommand)
	}
	if err := a.freeRef(topic, c.NewRef); err != nil {
		return fmt.Errorf("fsm: move payload of %s: %w", rec.Id, err)
	}
	a.Delete(payloadKey(topic, c.OldRef))
	a.Set(payloadKey(topic, c.NewRef), []byte(rec.Id))
	a.raise(topic, c.NewRef)
	rec.PayloadRef, rec.AppendedMs = c.NewRef, a.clocks.WallMs
	a.store(rec)
	return nil
}

// queue is the counts of a queue, with the changes of this command.
func (a *apply) queue(q Queue) *meshv1.QueueRecord {
	if a.counts == nil || a.queueOf != q {
		a.storeQueue()
		a.queueOf, a.counts = q, &meshv1.QueueRecord{}
		get(a, queueKey(q), a.counts)
	}
	return a.counts
}

func (a *apply) queueAdd(q Queue, change func(*meshv1.QueueRecord)) {
	change(a.queue(q))
	a.queueDirty = true
}

// storeQueue writes the counts that this command changed and are not written.
func (a *apply) storeQueue() {
	if !a.queueDirty {
		return
	}
	a.queueDirty = false
	if r := a.counts; r.Ready == 0 && r.Deferred == 0 && r.Leased == 0 && r.Bytes == 0 && r.Dead == 0 && r.Pause == nil {
		a.Delete(queueKey(a.queueOf))
		return
	}
	put(a, queueKey(a.queueOf), a.counts)
}

// backoff is the pause before another attempt, in milliseconds: it doubles with
// each counted attempt up to the policy's longest, and is spread by a fifth
// either way, by task and attempt, so that tasks that failed together do not
// come back together.
func backoff(rec *meshv1.TaskRecord) int64 {
	pause := rec.BackoffMs
	for i := uint32(1); i < rec.Counted && pause < rec.MaxBackoffMs; i++ {
		pause *= 2
	}
	pause = min(pause, max(rec.MaxBackoffMs, rec.BackoffMs))
	h := fnv.New32a()
	_, _ = h.Write([]byte(rec.Id))
	_, _ = h.Write([]byte{byte(rec.Counted)})
	spread := int64(h.Sum32()%401) - 200 // thousandths
	return pause + pause*spread/1000
}
