package fsm

import (
	"cmp"
	"crypto/sha256"
	"fmt"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// grant leases the next attempt of a ready task.
func (a *apply) grant(c *meshv1.Grant) error {
	rec, err := a.task(c.TaskId)
	if err != nil {
		return err
	}
	if c.TtlMs <= 0 || !inRange(c.TtlMs, c.StartWithinMs) || (c.Holder.GetCell() == "" && c.Holder.GetSession() == "") {
		return fmt.Errorf("fsm: grant attempt %d of %s: %w", c.Attempt, rec.Id, ErrBadCommand)
	}
	if State(rec) != ready || c.Attempt != rec.Attempt+1 {
		return fmt.Errorf("fsm: grant attempt %d of %s: %w", c.Attempt, rec.Id, ErrStale)
	}
	if a.queue(QueueOf(rec)).Pause != nil {
		return fmt.Errorf("fsm: grant attempt %d of %s: %w", c.Attempt, rec.Id, ErrPaused)
	}
	a.leave(rec)
	now := a.clocks.LeaseMs
	lease := &meshv1.Lease{
		Holder: c.Holder, Variant: c.Variant, Worker: c.Holder.Worker, Started: c.Started,
		GrantedLeaseMs: now, GrantedMs: a.clocks.WallMs,
	}
	if c.Started {
		lease.LimitLeaseMs = now + rec.TimeoutMs + c.TtlMs
	} else {
		lease.StartByLeaseMs = now + max(c.StartWithinMs, c.TtlMs)
		lease.LimitLeaseMs = lease.StartByLeaseMs
	}
	lease.UntilLeaseMs = min(now+c.TtlMs, lease.LimitLeaseMs)
	rec.State, rec.Attempt, rec.Lease = uint32(leased), c.Attempt, lease
	if rec.OrderRelaxed {
		a.pass(rec)
	}
	a.Set(leaseKey(lease.UntilLeaseMs, rec.Id), nil)
	a.queueAdd(QueueOf(rec), func(r *meshv1.QueueRecord) { r.Leased++ })
	if c.Decision != nil {
		rec.Decisions = append(rec.Decisions, c.Decision)
		rec.Decisions = rec.Decisions[max(0, len(rec.Decisions)-keepDecisions):]
	}
	a.result.Verdict = Accepted
	a.store(rec)
	return nil
}

// extend prolongs leases; one item's fate does not touch another's.
func (a *apply) extend(c *meshv1.Extend) error {
	a.result.Items = make([]ExtendVerdict, len(c.Items))
	for i, item := range c.Items {
		a.result.Items[i] = a.extendOne(item)
	}
	return nil
}

func (a *apply) extendOne(c *meshv1.ExtendItem) ExtendVerdict {
	rec, err := a.task(c.TaskId)
	if err != nil {
		return ExtendVerdict{Verdict: Unknown}
	}
	if s := State(rec); Ended(s) {
		return ExtendVerdict{Verdict: endedVerdict(s)}
	}
	if State(rec) != leased || rec.Attempt != c.Attempt || !sameHolder(rec.Lease.Holder, c.Holder) {
		return ExtendVerdict{Verdict: Fenced}
	}
	lease, now := rec.Lease, a.clocks.LeaseMs
	ttl := min(max(c.TtlMs, 0), maxMs)
	if c.Started && !lease.Started {
		if now > lease.StartByLeaseMs {
			return ExtendVerdict{Verdict: Fenced}
		}
		lease.Started = true
		lease.LimitLeaseMs = now + rec.TimeoutMs + ttl
	}
	if c.Worker != "" {
		lease.Worker = c.Worker
	}
	a.Delete(leaseKey(lease.UntilLeaseMs, rec.Id))
	// A lease never shrinks but for its limit.
	lease.UntilLeaseMs = min(max(lease.UntilLeaseMs, now+ttl), lease.LimitLeaseMs)
	a.Set(leaseKey(lease.UntilLeaseMs, rec.Id), nil)
	put(a, taskKey(rec.Id), rec)
	if lease.UntilLeaseMs <= now {
		return ExtendVerdict{Verdict: Fenced}
	}
	return ExtendVerdict{Verdict: Accepted, TTL: lease.UntilLeaseMs - now}
}

func sameHolder(a, b *meshv1.Holder) bool {
	return a.GetCell() == b.GetCell() && (a.GetCell() != "" || a.GetSession() == b.GetSession())
}

func endedVerdict(s isobarv1.TaskState) Verdict {
	switch s {
	case cancelled:
		return Cancelled
	case expired:
		return Expired
	default:
		return Terminal
	}
}

// complete records a result. It counts while its number is the highest granted
// and the task has not ended, lease expired or not.
func (a *apply) complete(c *meshv1.Complete) error {
	if c.Ended == nil {
		return fmt.Errorf("fsm: complete task %s: no outcome: %w", c.TaskId, ErrBadCommand)
	}
	rec, err := a.task(c.TaskId)
	if err != nil {
		return a.verdict(Unknown)
	}
	a.result.Task = rec
	if s := State(rec); Ended(s) {
		switch {
		case s == completed && rec.FinalAttempt == c.Attempt:
			return a.verdict(Accepted)
		case s == completed || rec.Attempt != c.Attempt:
			return a.verdict(Fenced)
		default:
			return a.verdict(endedVerdict(s))
		}
	}
	if c.Attempt != rec.Attempt || c.Attempt == 0 {
		return a.verdict(Fenced)
	}
	ended := c.Ended
	ended.Started = true
	a.reopen(rec)
	if State(rec) == leased {
		a.effect(Effect{Kind: LeaseGone, TaskID: rec.Id, Attempt: rec.Attempt, Queue: QueueOf(rec), Holder: rec.Lease.Holder})
	}
	a.closeAttempt(rec, ended)
	rec.FinalAttempt = c.Attempt
	rec.ResultBytes = uint64(len(ended.Result))
	sum := sha256.Sum256(ended.Result)
	rec.ResultSha256 = sum[:]
	a.Set(resultKey(rec.Id), ended.Result)
	a.end(rec, completed, "")
	a.result.Verdict = Accepted
	a.store(rec)
	return nil
}

// reopen takes back the record of an attempt that was given up as lost and now
// completes after all, so that it is written once, with its real outcome.
func (a *apply) reopen(rec *meshv1.TaskRecord) {
	n := len(rec.Attempts)
	if State(rec) == leased || n == 0 || rec.Attempts[n-1].Number != rec.Attempt {
		return
	}
	if rec.Attempts[n-1].Counted && rec.Attempt > rec.RedrivenAttempt {
		rec.Counted--
	}
}

// fail ends an attempt without a result: another try, or the end.
func (a *apply) fail(c *meshv1.Fail) error {
	if c.Ended == nil {
		return fmt.Errorf("fsm: fail task %s: no outcome: %w", c.TaskId, ErrBadCommand)
	}
	rec, err := a.task(c.TaskId)
	if err != nil {
		return a.verdict(Unknown)
	}
	a.result.Task = rec
	if s := State(rec); Ended(s) {
		if s == dead && rec.Attempt == c.Attempt {
			return a.verdict(Accepted) // a repeat
		}
		return a.verdict(endedVerdict(s))
	}
	if State(rec) != leased || rec.Attempt != c.Attempt {
		return a.verdict(Fenced)
	}
	a.failed(rec, c.Ended)
	a.result.Verdict = Accepted
	a.store(rec)
	return nil
}

func (a *apply) verdict(v Verdict) error {
	a.result.Verdict = v
	return nil
}

// failed moves a leased record on after its attempt ended without a result.
func (a *apply) failed(rec *meshv1.TaskRecord, ended *meshv1.Ended) {
	ended.Started = (ended.Started || rec.Lease.Started) && !neverRan(ended.Status)
	a.effect(Effect{Kind: LeaseGone, TaskID: rec.Id, Attempt: rec.Attempt, Queue: QueueOf(rec), Holder: rec.Lease.Holder})
	counted := a.closeAttempt(rec, ended)
	switch {
	case ended.Status == "failed" || ended.Status == "payload_lost":
		rec.PayloadLost = ended.Status == "payload_lost"
		a.end(rec, dead, cmp.Or(ended.Message, ended.Status))
	case counted && rec.Counted >= rec.MaxAttempts:
		a.end(rec, dead, fmt.Sprintf("%d attempts used up, the last: %s", rec.Counted, cmp.Or(ended.Message, ended.Status)))
	case rec.Attempt-rec.RedrivenAttempt >= uint64(max(rec.MaxAttempts, 1))*grantsPerAttempt:
		a.end(rec, dead, fmt.Sprintf("granted %d times and started %d times, the last: %s", rec.Attempt-rec.RedrivenAttempt, rec.Counted, cmp.Or(ended.Message, ended.Status)))
	case counted:
		a.toDeferred(rec, a.clocks.WallMs+max(backoff(rec), min(ended.RetryAfterMs, maxMs), 1))
	default:
		a.toReady(rec)
	}
}

// neverRan reports whether an outcome says that no code of the function ran: it
// never reached its holder, or a guest that had asked leave to start found no
// worker after all.
func neverRan(status string) bool { return status == "undelivered" || status == "refused" }

// closeAttempt writes the attempt's record and says whether it counts.
func (a *apply) closeAttempt(rec *meshv1.TaskRecord, ended *meshv1.Ended) bool {
	att := &meshv1.AttemptRecord{
		Number: rec.Attempt, Worker: ended.Worker, StartedMs: ended.StartedMs, EndedMs: a.clocks.WallMs,
		Outcome: ended.Status, Counted: ended.Started, ExitCode: ended.ExitCode, Message: ended.Message,
		StderrTail: ended.StderrTail, RunUs: ended.RunUs, Cold: ended.Cold,
	}
	if l := rec.Lease; l != nil {
		att.Cell, att.Variant, att.LeasedMs = l.Holder.Cell, l.Variant, l.GrantedMs
		att.Worker = cmp.Or(att.Worker, l.Worker)
	}
	if n := len(rec.Attempts); n > 0 && rec.Attempts[n-1].Number == att.Number {
		last := rec.Attempts[n-1]
		att.Cell, att.Variant, att.LeasedMs = last.Cell, last.Variant, last.LeasedMs
		att.Worker = cmp.Or(att.Worker, last.Worker)
		rec.Attempts = rec.Attempts[:n-1]
	}
	if att.Counted {
		rec.Counted++
	}
	rec.Attempts = append(rec.Attempts, att)
	rec.Attempts = rec.Attempts[max(0, len(rec.Attempts)-keepAttempts):]
	return att.Counted
}
