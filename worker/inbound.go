package worker

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

const (
	// Used when a Welcome names none.
	defaultLease = 15 * time.Second
	// A lease longer than this is taken as this.
	maxLease = time.Hour
	// welcomeWithin is how long a new stream may stay without a Welcome.
	welcomeWithin = 5 * time.Second
	minPatience   = time.Second
)

// patience is how long an answer may take before the question is repeated, or
// the stream given up: two extends, and never more than half a lease, so that
// another server can still be asked in time.
func (l *link) patience() time.Duration {
	return max(min(2*l.every, l.lease/2), min(minPatience, l.lease/2))
}

// silentAt is when the stream is to be given up for want of an answer; zero
// when nothing is asked.
func (l *link) silentAt() time.Time {
	switch {
	case !l.up:
		return l.opened.Add(welcomeWithin)
	case !l.pendingAt.IsZero():
		return l.pendingAt.Add(l.patience())
	default:
		return time.Time{}
	}
}

// receive acts on one message of the cell.
func (w *Worker) receive(m *isobarv1.WorkResponse, now time.Time) {
	l := w.link
	if welcome := m.GetWelcome(); welcome != nil {
		w.welcome(l, welcome, now)
		return
	}
	if !l.up {
		w.garbage("message before the welcome", "message", fmt.Sprintf("%T", m.GetMessage()))
		return
	}
	switch m := m.GetMessage().(type) {
	case *isobarv1.WorkResponse_Assign:
		w.assign(l, m.Assign, now)
	case *isobarv1.WorkResponse_Extended:
		w.extended(l, m.Extended, now)
	case *isobarv1.WorkResponse_Completed:
		w.acknowledged(m.Completed.GetLease(), m.Completed.GetVerdict())
	case *isobarv1.WorkResponse_Failed:
		w.acknowledged(m.Failed.GetLease(), m.Failed.GetVerdict())
	case *isobarv1.WorkResponse_Stop:
		w.stop(m.Stop, now)
	default:
		w.garbage("unknown message")
	}
}

// garbage notes what no cell should send. It is dropped.
func (w *Worker) garbage(what string, args ...any) {
	w.counts.garbage.Add(1)
	w.log.Warn("dropped from the cell: "+what, args...)
}

func (w *Worker) welcome(l *link, m *isobarv1.Welcome, now time.Time) {
	if l.up {
		w.garbage("second welcome")
		return
	}
	w.counts.streams.Add(1)
	l.up = true
	l.answered = l.opened
	l.lease = leaseOf(m.GetLease().AsDuration(), defaultLease)
	l.every = m.GetExtendEvery().AsDuration()
	if l.every <= 0 || l.every > l.lease/3 {
		// Slower would let leases run out after one lost answer.
		l.every = l.lease / 3
	}
	w.log.Info("cell welcomes", "cell", m.GetCell(), "region", m.GetRegion(), "address", l.address,
		"lease", l.lease, "extend_every", l.every)
	for _, ref := range m.GetStop() {
		w.stop(ref, now)
	}
	w.settleInvokes(l, now)
	w.sendWarm(l)
	// What is held was announced; the extend says at once that it goes on.
	w.extend(l, now)
}

// settleInvokes goes on with the invokes of the server that is back, and ends
// those of another: nobody waits for them any more.
func (w *Worker) settleInvokes(l *link, now time.Time) {
	for _, j := range slices.Clone(w.table.order) {
		switch {
		case !j.invoke:
		case j.from != l.address && j.running():
			w.kill(j, attempt.Cancelled, "the server of its caller is gone", now)
		case !j.running():
			w.deliver(j, now)
		}
	}
}

// leaseOf bounds a lease that a cell names.
func leaseOf(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return min(d, maxLease)
}

// assign starts an attempt, or refuses it. A number that was seen is left
// alone, whatever became of it.
func (w *Worker) assign(l *link, a *isobarv1.Assignment, now time.Time) {
	k := key{a.GetTaskId(), a.GetAttempt()}
	if k.task == "" || k.attempt == 0 {
		w.garbage("assignment without a task and attempt")
		return
	}
	w.counts.assigned.Add(1)
	if !w.table.admit(k) {
		w.counts.duplicates.Add(1)
		w.log.Debug("assignment seen before", "task", k.task, "attempt", k.attempt)
		return
	}
	j := &job{key: k, traceID: traceID(a.GetTraceparent()), invoke: a.GetInvoke(), from: l.address}
	if !j.invoke {
		j.hold(l.answered, leaseOf(a.GetLease().AsDuration(), l.lease), w.opts.KillGrace)
	}
	w.table.add(j)
	if why := w.unfit(j, a, now); why != "" {
		w.refuse(j, why, now)
		return
	}
	w.start(j, a)
}

// unfit says why an assignment can't be taken; "" reserves its demand.
func (w *Worker) unfit(j *job, a *isobarv1.Assignment, now time.Time) string {
	kind := attempt.Kind(a.GetVariant().GetRuntime())
	switch {
	case w.draining:
		return "the worker is stopping"
	case a.GetVariant() == nil:
		return "the assignment names no variant"
	case w.opts.Runtimes[kind] == nil:
		return fmt.Sprintf("the worker has no %q runtime", string(kind))
	case !j.invoke && !j.killAt.After(now):
		return "its lease had run out when it arrived"
	case !w.table.take(j, demandOf(a)):
		return "it needs more than the worker has free"
	default:
		return ""
	}
}

// refuse answers an assignment without having started it.
func (w *Worker) refuse(j *job, why string, now time.Time) {
	w.counts.refused.Add(1)
	w.jobLog(j).Warn("refused", "reason", why)
	j.outcome = &isobarv1.Outcome{Status: statusRefused, Message: why}
	w.deliver(j, now)
}

// extend asks for all running leases in one batch. Without any it is still
// sent: its answer is what the next assignment's lease counts from.
func (w *Worker) extend(l *link, now time.Time) {
	l.pending = w.table.leases(true)
	l.pendingAt = now
	l.nextExtend = now.Add(l.every)
	l.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Extend{Extend: &isobarv1.ExtendRequest{
		Worker: w.opts.Name, Session: w.session, Leases: l.pending,
	}}})
}

// extended takes the answer to the extend in flight. A lease that it does not
// speak of stays as it was, and runs out.
func (w *Worker) extended(l *link, m *isobarv1.ExtendResponse, now time.Time) {
	if l.pendingAt.IsZero() {
		w.garbage("extend answer without a question")
		return
	}
	sent, asked := l.pendingAt, l.pending
	l.pendingAt, l.pending = time.Time{}, nil
	l.answered = sent
	inBatch := make(map[key]bool, len(asked))
	for _, ref := range asked {
		inBatch[keyOf(ref)] = true
	}
	for _, r := range m.GetResults() {
		j := w.table.jobs[keyOf(r.GetLease())]
		switch {
		case !inBatch[keyOf(r.GetLease())]:
			w.garbage("answer for a lease that was not asked for")
		case j == nil || !j.running():
			// It ended while the question was under way.
		case r.GetConfirmed():
			j.hold(sent, leaseOf(r.GetDuration().AsDuration(), l.lease), w.opts.KillGrace)
		default:
			w.unconfirmed(j, r.GetReason(), now)
		}
	}
}

func (w *Worker) unconfirmed(j *job, reason string, now time.Time) {
	if reason == "cancelled" {
		w.kill(j, attempt.Cancelled, "the task was cancelled", now)
		return
	}
	w.counts.leasesLost.Add(1)
	w.kill(j, attempt.Lost, fmt.Sprintf("the cell did not confirm its lease: %.64q", reason), now)
}

// stop kills what the cell says is over. A result that waits is still handed
// over: the cell's verdict on it is what ends it.
func (w *Worker) stop(ref *isobarv1.LeaseRef, now time.Time) {
	if j := w.table.jobs[keyOf(ref)]; j != nil && j.running() {
		w.kill(j, attempt.Cancelled, "the cell stopped it", now)
	}
}

// acknowledged ends the wait of a result.
func (w *Worker) acknowledged(ref *isobarv1.LeaseRef, verdict string) {
	j := w.table.jobs[keyOf(ref)]
	if j == nil {
		// A repeat of the result crossed the first answer.
		return
	}
	if j.outcome == nil || j.sentOn == nil || j.invoke {
		w.garbage("verdict on what was not reported", slog.String("task", j.task))
		return
	}
	switch verdict {
	case "accepted":
	case "fenced":
		w.counts.fenced.Add(1)
		w.jobLog(j).Warn("result fenced: another attempt or a terminal state had won", "status", j.outcome.GetStatus())
	default:
		w.garbage("unknown verdict", "verdict", fmt.Sprintf("%.64q", verdict))
	}
	w.table.remove(j)
}
