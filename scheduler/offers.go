package scheduler

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// The home's side of a hand-off: the lease to another cell is committed first,
// then offered until the other cell has answered or the lease has run out.

// Bounds of one Offer message.
const (
	offerItems = 64
	offerBytes = 2 << 20
)

// placed is an attempt leased to another cell.
type placed struct {
	cell   mesh.CellID
	demand mesh.Demand
}

// grantCell commits the lease to another cell and leaves the offer to its outbox.
func (l *leader) grantCell(r ref, rec *meshv1.TaskRecord, d *placement.Decision, held []*isobarv1.Held) {
	p := &placed{cell: d.Chosen.Cell, demand: l.demandOf(rec.Version, d.Chosen.Variant, rec)}
	l.placed[r] = p
	l.granting[r.task] = true
	l.withheld.try(fsm.QueueOf(rec), r.task)
	l.hold(r, rec.Tenant, rec.Function, p.demand, true)
	l.view.took(p.cell, r, p.demand, time.Now())
	go l.commitCell(r, p, rec, l.grantCommand(r, &meshv1.Holder{Cell: string(p.cell)}, l.CellLease, d, held), d, held)
}

// commitCell reads the bytes first, as commitLocal does.
func (l *leader) commitCell(r ref, p *placed, rec *meshv1.TaskRecord, grant *meshv1.Grant, d *placement.Decision, held []*isobarv1.Held) {
	payload, ok, _ := l.payloadToGrant(rec, func() {
		l.unplace(r, p)
		l.letGoOf(r)
	})
	if !ok {
		return
	}
	res, err := l.command(l.ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Grant{Grant: grant}})
	l.mu.Lock()
	delete(l.granting, r.task)
	if err != nil {
		l.unplace(r, p)
		l.mu.Unlock()
		l.grantFailed(r, err)
		return
	}
	l.mu.Unlock()
	trace := l.openSpan(r, LeaseInfo{
		Name: "isobar.lease", Record: res.Task, Attempt: r.attempt, Cell: p.cell, Variant: d.Chosen.Variant, Decision: d, Held: held,
	}, func() bool { return l.placed[r] == p })
	l.mu.Lock()
	defer l.mu.Unlock()
	box := l.outboxTo(p.cell)
	box.hold(r, trace, payload)
	box.add(r)
}

// unplace forgets a lease that was not committed; the caller holds the lock.
func (l *leader) unplace(r ref, p *placed) {
	if l.placed[r] == p {
		delete(l.placed, r)
		l.view.freed(p.cell, r)
	}
}

// outbox sends offers to one cell, several in one message.
type outbox struct {
	l      *leader
	cell   mesh.CellID
	mu     sync.Mutex
	refs   []ref
	drafts map[ref]draft // of offers made here; those of an earlier leader have none
	wake   chan struct{}
}

// draft is what is not in the record: the trace context of the lease's span, and
// the bytes as long as they wait for their first message.
type draft struct {
	trace   string
	payload []byte
}

// outboxTo returns the cell's outbox, started on first use.
func (l *leader) outboxTo(cell mesh.CellID) *outbox {
	b := l.outboxes[cell]
	if b == nil {
		b = &outbox{l: l, cell: cell, drafts: map[ref]draft{}, wake: make(chan struct{}, 1)}
		l.outboxes[cell] = b
		go b.run(l.ctx)
	}
	return b
}

func (b *outbox) add(r ref) {
	b.mu.Lock()
	b.refs = append(b.refs, r)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// hold keeps what the offer of an attempt needs, until it is answered.
func (b *outbox) hold(r ref, traceparent string, payload []byte) {
	b.mu.Lock()
	b.drafts[r] = draft{traceparent, payload}
	b.mu.Unlock()
}

// run sends while there is something to send. Several messages may be under
// way at once: a round trip must not bound the rate.
func (b *outbox) run(ctx context.Context) {
	slots := make(chan struct{}, 8)
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		}
		for {
			items, refs := b.take(ctx)
			if len(items) == 0 {
				break
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			go func() {
				defer func() { <-slots }()
				b.send(ctx, items, refs)
			}()
		}
	}
}

// take makes the next message out of what is still leased to the cell and not
// started.
func (b *outbox) take(ctx context.Context) (items []*meshv1.OfferItem, refs []ref) {
	size := 0
	for len(items) < offerItems && size < offerBytes {
		b.mu.Lock()
		if len(b.refs) == 0 {
			b.mu.Unlock()
			break
		}
		r := b.refs[0]
		b.refs = b.refs[1:]
		b.mu.Unlock()
		item := b.item(ctx, r)
		if item == nil {
			b.forget(r)
			continue
		}
		items, refs = append(items, item), append(refs, r)
		size += len(item.Payload)
	}
	return items, refs
}

func (b *outbox) forget(r ref) {
	b.mu.Lock()
	delete(b.drafts, r)
	b.mu.Unlock()
}

func (b *outbox) item(ctx context.Context, r ref) *meshv1.OfferItem {
	l := b.l
	rec, ok := fsm.Task(l.State, r.task)
	if !ok || rec.Lease == nil || rec.Attempt != r.attempt || rec.Lease.Started || mesh.CellID(rec.Lease.Holder.Cell) != b.cell {
		return nil
	}
	b.mu.Lock()
	d := b.drafts[r]
	b.drafts[r] = draft{trace: d.trace} // the message has the bytes now
	b.mu.Unlock()
	payload, trace := d.payload, cmp.Or(d.trace, rec.Traceparent)
	if payload == nil && rec.PayloadBytes > 0 {
		var err error
		if payload, err = l.payload(ctx, rec); err != nil {
			go l.payloadFailed(r, rec, err)
			return nil
		}
	}
	leaseMs := l.clock.read(time.Now()).LeaseMs
	return &meshv1.OfferItem{
		Payload: payload,
		Lease:   durationpb.New(time.Duration(max(0, rec.Lease.UntilLeaseMs-leaseMs)) * time.Millisecond),
		Guest: &meshv1.GuestRecord{
			TaskId: rec.Id, Attempt: rec.Attempt, Home: string(l.Cell.ID), Incarnation: l.incarnation, Tenant: rec.Tenant,
			Function: rec.Function, Version: rec.Version, Lane: rec.Lane, Variant: rec.Lease.Variant, ContentType: rec.ContentType,
			PayloadBytes: rec.PayloadBytes, PayloadSha256: rec.PayloadSha256, DeadlineMs: rec.DeadlineMs, TimeoutMs: rec.TimeoutMs,
			Traceparent: trace, Allowed: rec.Allowed, Denied: rec.Denied, Cost: rec.Cost,
			StartWithinMs: max(0, rec.Lease.StartByLeaseMs-leaseMs),
		},
	}
}

// send offers until the cell answers or the leases have run out; an offer is
// idempotent by (task, attempt), so a lost answer only costs a repeat.
func (b *outbox) send(ctx context.Context, items []*meshv1.OfferItem, refs []ref) {
	l := b.l
	ctx, cancel := context.WithTimeout(ctx, l.CellLease)
	defer cancel()
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, 2*time.Second
	l.mu.Lock()
	known := l.view.incarnation(b.cell)
	l.mu.Unlock()
	req := &meshv1.OfferRequest{Home: string(l.Cell.ID), Incarnation: l.incarnation, GuestIncarnation: known, Items: items}
	res, err := backoff.Retry(ctx, func() (*meshv1.OfferResponse, error) {
		return l.Peers.Offer(ctx, b.cell, req)
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(l.CellLease))
	if err != nil || len(res.GetResults()) != len(refs) {
		l.Logger.Warn("offer not answered", "cell", b.cell, "tasks", len(refs), "error", err)
		l.mu.Lock()
		for _, r := range refs {
			l.addAvoid(r.task, b.cell)
			b.forget(r)
		}
		l.mu.Unlock()
		return // the leases run out, and the tasks are placed again
	}
	l.mu.Lock()
	l.view.hear(b.cell, res.Digest)
	l.mu.Unlock()
	for i, r := range refs {
		b.forget(r)
		b.answered(r, res.Results[i], res.Digest)
	}
}

func (b *outbox) answered(r ref, res *meshv1.OfferResult, digest *meshv1.Digest) {
	l := b.l
	l.mu.Lock()
	if res.Accepted {
		l.view.acknowledged(b.cell, r, digest)
	} else {
		l.addAvoid(r.task, b.cell)
	}
	l.mu.Unlock()
	if res.Accepted {
		return
	}
	l.Logger.Info("offer refused", "task", r.task, "attempt", r.attempt, "cell", b.cell, "reason", res.Reason)
	go l.endAttempt(r, &meshv1.Ended{Status: "refused", Message: string(b.cell) + " refused: " + res.Reason + " " + res.Message})
}

// GuestExtend answers a cell that holds leases of this one.
func (s *Scheduler) GuestExtend(ctx context.Context, from mesh.CellID, r *meshv1.GuestExtendRequest) (*meshv1.GuestExtendResponse, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	cmd := &meshv1.Extend{}
	for _, it := range r.Items {
		cmd.Items = append(cmd.Items, &meshv1.ExtendItem{
			TaskId: it.TaskId, Attempt: it.Attempt, Holder: &meshv1.Holder{Cell: string(from)},
			TtlMs: l.CellLease.Milliseconds(), Started: it.Started, Worker: it.Worker,
		})
	}
	out := &meshv1.GuestExtendResponse{}
	if len(cmd.Items) > 0 {
		res, err := l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Extend{Extend: cmd}})
		if err != nil {
			return nil, err
		}
		for _, v := range res.Items {
			g := &meshv1.GuestExtendResult{Confirmed: v.Verdict == fsm.Accepted}
			if g.Confirmed {
				g.Lease = durationpb.New(time.Duration(v.TTL) * time.Millisecond)
			} else {
				g.Reason = string(v.Verdict)
			}
			out.Results = append(out.Results, g)
		}
	}
	l.mu.Lock()
	l.view.hear(from, r.Digest)
	l.mu.Unlock()
	return out, nil
}

// GuestReport takes the outcomes a cell reports; every verdict but "retry"
// acknowledges.
func (s *Scheduler) GuestReport(ctx context.Context, from mesh.CellID, r *meshv1.ReportRequest) (*meshv1.ReportResponse, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.view.hear(from, r.Digest)
	l.mu.Unlock()
	out := &meshv1.ReportResponse{Verdicts: make([]string, len(r.Items))}
	var wait sync.WaitGroup
	for i, it := range r.Items {
		wait.Go(func() {
			out.Verdicts[i] = l.reported(ctx, from, it)
		})
	}
	wait.Wait()
	return out, nil
}

func (l *leader) reported(ctx context.Context, from mesh.CellID, it *meshv1.ReportItem) string {
	at := ref{it.TaskId, it.Attempt}
	ended := it.Ended
	if ended == nil {
		return string(fsm.Unknown)
	}
	if rec, ok := fsm.Task(l.State, at.task); ok {
		if cell, had := cellOf(rec, at.attempt); had && cell != from {
			return string(fsm.Fenced)
		}
	}
	var verdict fsm.Verdict
	var err error
	if ended.Status == "done" {
		verdict, err = l.completeHome(ctx, at, ended)
	} else {
		if ended.Status == "refused" || ended.Status == "lost" {
			l.mu.Lock()
			l.addAvoid(at.task, from)
			l.mu.Unlock()
		}
		verdict = l.endAttempt(at, ended)
	}
	if err != nil || verdict == "" {
		return "retry"
	}
	return string(verdict)
}

// cellOf is the cell that was given the attempt, "" for one of a worker here,
// also when its lease is over; false when nothing is known of it any more.
func cellOf(rec *meshv1.TaskRecord, attempt uint64) (mesh.CellID, bool) {
	if rec.Lease != nil && rec.Attempt == attempt {
		return mesh.CellID(rec.Lease.Holder.GetCell()), true
	}
	for _, a := range rec.Attempts {
		if a.Number == attempt {
			return mesh.CellID(a.Cell), true
		}
	}
	return "", false
}

// GuestPayload hands out a leased task's bytes again, to the cell that holds the
// lease and may hold the bytes.
func (s *Scheduler) GuestPayload(ctx context.Context, from mesh.Cell, r *meshv1.PayloadRequest) (*meshv1.PayloadResponse, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	rec, ok := fsm.Task(l.State, r.TaskId)
	if !ok || rec.Lease == nil || rec.Attempt != r.Attempt || mesh.CellID(rec.Lease.Holder.Cell) != from.ID {
		return nil, &Refusal{Reason: NotHolder, TaskID: r.TaskId, Message: "the lease of this attempt is not held by " + string(from.ID)}
	}
	if !from.Within(mesh.Residency{Allowed: rec.Allowed, Denied: rec.Denied}) {
		return nil, &Refusal{Reason: ResidencyForbids, TaskID: r.TaskId, Message: string(from.ID) + " lies outside the task's residency"}
	}
	payload, err := l.payload(ctx, rec)
	if err != nil {
		return nil, err
	}
	return &meshv1.PayloadResponse{Payload: payload}, nil
}
