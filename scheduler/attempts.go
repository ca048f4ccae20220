package scheduler

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// The messages of a worker about its attempts, by stream or by unary call.

// Lease waits for attempts for a polling worker. Repeated with the same session
// and request id it returns the same leases, as long as none of them is
// confirmed.
func (s *Scheduler) Lease(ctx context.Context, r *isobarv1.LeaseRequest) (*isobarv1.LeaseResponse, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	if r.Worker == "" || r.Session == "" || r.RequestId == "" || r.Offer == nil {
		return nil, &Refusal{Reason: BadRequest, Message: "a lease needs worker, session, requestId and offer", Hint: "docs/api.md shows one"}
	}
	if err := checkOffer(r.Offer); err != nil {
		return nil, err
	}
	if err := CheckCost("batch", r.Batch); err != nil {
		return nil, err
	}
	wait := 10 * time.Second
	if r.Wait != nil {
		wait = min(max(r.Wait.AsDuration(), 0), 30*time.Second)
	}
	p := &poll{request: r.RequestId, want: int(min(max(r.Max, 1), maxLeases)), ready: make(chan struct{}), batch: CostOf(r.Batch)}
	found := l.leasedPayloads(ctx, r)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, fmt.Errorf("scheduler: lease for %s: %w", r.Worker, ErrNotLeader)
	}
	known := l.sessions[r.Session] != nil
	ses := l.session(r.Session, r.Worker, r.Offer)
	ses.polls, ses.batch = true, p.batch
	if again := l.leasedBefore(ses, r.RequestId, known, found); len(again) > 0 {
		l.mu.Unlock()
		return &isobarv1.LeaseResponse{Assignments: again}, nil
	}
	if ses.poll != nil {
		ses.poll.finish()
	}
	ses.poll = p
	l.asked = append(l.asked, p)
	if !known {
		l.unparkAll()
	}
	l.mu.Unlock()
	l.kick()
	if err := l.awaitAnswer(ctx, p, wait); err != nil {
		return nil, fmt.Errorf("scheduler: lease for %s: %w", r.Worker, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p.finish()
	if ses.poll == p {
		ses.poll = nil
	}
	ses.seen = time.Now()
	return &isobarv1.LeaseResponse{Assignments: p.got}, nil
}

// awaitAnswer waits until a Lease call has its answer or its time is over. Then
// nothing more is granted to it, but what was is waited for, and so is a first
// round of dispatch: a wait shorter than a commit would get nothing, ever, and use
// up the grants of the tasks meanwhile.
func (l *leader) awaitAnswer(ctx context.Context, p *poll, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-p.ready:
			return nil
		case <-timer.C:
		case <-ctx.Done():
			return nil
		case <-l.ctx.Done():
			return ErrNotLeader
		}
		l.mu.Lock()
		late := p.late
		p.late = true
		p.answer()
		l.mu.Unlock()
		if late {
			return nil
		}
		timer.Reset(l.WorkerLease / 2)
	}
}

// maxLeases bounds one answer to Lease: each brings a payload.
const maxLeases = 64

// leasedPayloads reads, for a session that this leader does not know yet, the
// payloads of what an earlier leader may have answered this request with: a
// broker may be slow, so this is done without the lock and within a bound. What
// was not read is not told again, and returns to ready when its lease ends.
func (l *leader) leasedPayloads(ctx context.Context, r *isobarv1.LeaseRequest) map[ref][]byte {
	l.mu.Lock()
	known := l.sessions[r.Session] != nil
	l.mu.Unlock()
	if known {
		return nil
	}
	var told []*meshv1.TaskRecord
	for rec := range fsm.Leases(l.State) {
		if answered(rec, r.Session, r.RequestId) {
			told = append(told, rec)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, l.WorkerLease/2)
	defer cancel()
	found := map[ref][]byte{}
	for _, rec := range told {
		if payload, err := l.payload(ctx, rec); err == nil {
			found[ref{rec.Id, rec.Attempt}] = payload
		}
	}
	return found
}

// answered reports whether the record's lease is of an earlier answer to the
// request, and not confirmed.
func answered(rec *meshv1.TaskRecord, session, request string) bool {
	h := rec.Lease.Holder
	return h.Session == session && h.RequestId == request && !rec.Lease.Started
}

// leasedBefore finds the unconfirmed leases of an earlier answer to this
// request. After a change of leader they are found in the state, and their
// payloads in found.
func (l *leader) leasedBefore(ses *session, request string, known bool, found map[ref][]byte) []*isobarv1.Assignment {
	var again []*isobarv1.Assignment
	for _, run := range l.running {
		if run.session != ses || run.request != request || run.assigned == nil {
			continue
		}
		if rec, ok := fsm.Task(l.State, run.task); ok {
			again = l.tellAgain(again, rec, run.assigned)
		}
	}
	if known || len(again) > 0 {
		return again
	}
	for rec := range fsm.Leases(l.State) {
		payload, ok := found[ref{rec.Id, rec.Attempt}]
		if !ok || !answered(rec, ses.id, request) {
			continue
		}
		fn, err := l.Registry.Version(rec.Version)
		v := variantOf(fn, rec.Lease.Variant)
		if err != nil || v == nil {
			continue
		}
		run := l.occupyDemand(ses, ref{rec.Id, rec.Attempt}, rec.Function, v.Name, demandFor(v, rec))
		run.request, run.handed = request, true
		run.assigned = &isobarv1.Assignment{
			TaskId: rec.Id, Attempt: rec.Attempt, Tenant: rec.Tenant, Function: rec.Function, Version: rec.Version, Variant: v,
			Env: fn.Spec.Env, Timeout: fn.Spec.Timeout, Deadline: timestampMs(rec.DeadlineMs), Payload: payload,
			ContentType: rec.ContentType, Traceparent: rec.Traceparent, Cost: rec.Cost,
		}
		again = l.tellAgain(again, rec, run.assigned)
	}
	return again
}

// tellAgain adds an assignment with what is left of its lease, if anything is:
// the poller counts from when it hears of it.
func (l *leader) tellAgain(list []*isobarv1.Assignment, rec *meshv1.TaskRecord, a *isobarv1.Assignment) []*isobarv1.Assignment {
	left := l.leaseLeft(rec)
	if left <= 0 {
		return list
	}
	a = proto.CloneOf(a) // the first answer may still be on its way out
	a.Lease = durationpb.New(left)
	return append(list, a)
}

// Extend prolongs leases and confirms their start.
func (s *Scheduler) Extend(ctx context.Context, r *isobarv1.ExtendRequest) (*isobarv1.ExtendResponse, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	return l.extend(ctx, r)
}

func (l *leader) extend(ctx context.Context, r *isobarv1.ExtendRequest) (*isobarv1.ExtendResponse, error) {
	out := &isobarv1.ExtendResponse{Results: make([]*isobarv1.ExtendResult, len(r.Leases))}
	cmd := &meshv1.Extend{}
	var index []int
	l.mu.Lock()
	if ses := l.sessions[r.Session]; ses != nil {
		ses.seen = time.Now()
	}
	for i, lease := range r.Leases {
		at := ref{lease.GetTaskId(), lease.GetAttempt()}
		out.Results[i] = &isobarv1.ExtendResult{Lease: lease}
		if l.isHome(at.task) {
			cmd.Items = append(cmd.Items, &meshv1.ExtendItem{
				TaskId: at.task, Attempt: at.attempt, Holder: &meshv1.Holder{Worker: r.Worker, Session: r.Session},
				TtlMs: l.WorkerLease.Milliseconds(), Started: true, Worker: r.Worker,
			})
			index = append(index, i)
			continue
		}
		left, reason := l.guestLeft(at, r.Session)
		out.Results[i].Confirmed, out.Results[i].Reason = reason == "", reason
		out.Results[i].Duration = durationpb.New(min(left, l.WorkerLease))
	}
	l.mu.Unlock()
	if len(index) == 0 {
		return out, nil
	}
	res, err := l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Extend{Extend: cmd}})
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for j, i := range index {
		v := res.Items[j]
		if v.Verdict != fsm.Accepted {
			out.Results[i].Reason = string(v.Verdict)
			continue
		}
		out.Results[i].Confirmed = true
		out.Results[i].Duration = durationpb.New(time.Duration(v.TTL) * time.Millisecond)
		l.confirmed(ref{cmd.Items[j].TaskId, cmd.Items[j].Attempt}, r)
	}
	return out, nil
}

// confirmed notes that a lease's start was confirmed to its worker.
func (l *leader) confirmed(r ref, req *isobarv1.ExtendRequest) {
	if run := l.running[r]; run != nil {
		run.assigned = nil
		return
	}
	if ses := l.sessions[req.Session]; ses != nil {
		l.adoptOne(ses, r)
	}
}

// isHome reports whether this cell owns the task.
func (l *leader) isHome(task string) bool {
	home, _, err := mesh.TaskID(task).Home()
	return err == nil && home == l.Cell.ID
}

// Complete records a result.
func (s *Scheduler) Complete(ctx context.Context, r *isobarv1.CompleteRequest) (*isobarv1.CompleteResponse, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	if n := len(r.GetOutcome().GetResult()); n > mesh.MaxResult {
		return nil, &Refusal{
			Reason: ResultTooLarge, Field: "outcome.result", Message: fmt.Sprintf("a result of %d bytes is above %d", n, mesh.MaxResult),
			Hint: "write large results to storage of your own and return where they are", TaskID: r.GetLease().GetTaskId(),
		}
	}
	at := ref{r.GetLease().GetTaskId(), r.GetLease().GetAttempt()}
	l.ending(at)
	ended := endedOf(r.Outcome, r.Worker)
	ended.Status = "done"
	var verdict fsm.Verdict
	if l.isHome(at.task) {
		verdict, err = l.completeHome(ctx, at, ended)
	} else {
		verdict, err = l.completeGuest(ctx, at, ended)
	}
	if err != nil {
		return nil, err
	}
	l.finished(at)
	return &isobarv1.CompleteResponse{Lease: r.Lease, Verdict: verdictWord(verdict)}, nil
}

func (l *leader) completeHome(ctx context.Context, at ref, ended *meshv1.Ended) (fsm.Verdict, error) {
	res, err := l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Complete{
		Complete: &meshv1.Complete{TaskId: at.task, Attempt: at.attempt, Ended: ended},
	}})
	if err != nil {
		return "", err
	}
	if res.Verdict == fsm.Accepted && res.Task != nil {
		l.learned.observe(res.Task, ended)
		l.ended(res.Task.Tenant, res.Task.Function, ended.Status)
	} else {
		l.Logger.Info("completion fenced", "task", at.task, "attempt", at.attempt, "verdict", res.Verdict, "worker", ended.Worker, "trace_id", traceID(res.Task.GetTraceparent()))
	}
	return res.Verdict, nil
}

// Fail ends an attempt without a result.
func (s *Scheduler) Fail(ctx context.Context, r *isobarv1.FailRequest) (*isobarv1.FailResponse, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	at := ref{r.GetLease().GetTaskId(), r.GetLease().GetAttempt()}
	l.ending(at)
	ended := endedOf(r.Outcome, r.Worker)
	if ended.Status == "done" || ended.Status == "" {
		ended.Status = "failed"
	}
	var verdict fsm.Verdict
	if l.isHome(at.task) {
		res, err := l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Fail{
			Fail: &meshv1.Fail{TaskId: at.task, Attempt: at.attempt, Ended: ended},
		}})
		if err != nil {
			return nil, err
		}
		if verdict = res.Verdict; verdict == fsm.Accepted && res.Task != nil {
			l.ended(res.Task.Tenant, res.Task.Function, ended.Status)
		}
	} else if verdict, err = l.completeGuest(ctx, at, ended); err != nil {
		return nil, err
	}
	l.finished(at)
	return &isobarv1.FailResponse{Lease: r.Lease, Verdict: verdictWord(verdict)}, nil
}

// ending notes that the attempt's worker has ended it: the verdict tells it what
// became of the lease, so it is not to be stopped as well.
func (l *leader) ending(at ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if run := l.running[at]; run != nil {
		run.ending = true
	}
}

// finished frees the worker's room once the outcome is committed.
func (l *leader) finished(at ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if run := l.running[at]; run != nil {
		run.session.seen = time.Now()
		l.release(run)
	}
}

// verdictWord is what a worker is told: whatever is not accepted is fenced.
func verdictWord(v fsm.Verdict) string {
	if v == fsm.Accepted {
		return "accepted"
	}
	return "fenced"
}

func endedOf(o *isobarv1.Outcome, worker string) *meshv1.Ended {
	e := &meshv1.Ended{
		Status: o.GetStatus(), Result: o.GetResult(), ContentType: o.GetContentType(), ExitCode: o.GetExitCode(),
		Message: o.GetMessage(), StderrTail: tail(o.GetStderrTail(), mesh.MaxStderrTail), RunUs: o.GetRunTime().AsDuration().Microseconds(),
		Cold: o.GetCold(), ColdUs: o.GetColdStart().AsDuration().Microseconds(), RetryAfterMs: o.GetRetryAfter().AsDuration().Milliseconds(),
		Worker: worker, Started: true,
	}
	if o.GetStarted() != nil {
		e.StartedMs = o.Started.AsTime().UnixMilli()
	}
	if e.Status == "refused" {
		e.Started = false
	}
	// Cut anywhere it might not be text any more, and could not be stored.
	e.Message = strings.ToValidUTF8(string(tail([]byte(e.Message), maxMessage)), "")
	return e
}

// maxMessage bounds what is kept of an attempt's message, in bytes.
const maxMessage = 1024

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }
