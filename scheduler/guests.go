package scheduler

import (
	"bytes"
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// The guest's side of a hand-off: accept a record without the payload, start
// only within a lease that home confirmed in answer to our own message, give
// the attempt to one worker, report until home acknowledges.

// guest is what the leader remembers of one guest record.
type guest struct {
	ref
	home    mesh.CellID
	queue   fsm.Queue
	demand  mesh.Demand
	payload []byte // nil: fetched again from home
	until   time.Time
	kept    bool          // its record is committed
	settled chan struct{} // closed when it is known what became of the commit
	queued  bool          // in the dispatcher's window
	started bool
	ended   bool
	worker  string
	adopted time.Time // when this leader found it already started
}

// guestMargin is how long before the cell's lease a worker's must end.
const guestMargin = 500 * time.Millisecond

// AcceptOffers takes leases from a home cell, each on its own.
func (s *Scheduler) AcceptOffers(ctx context.Context, from mesh.CellID, r *meshv1.OfferRequest) (*meshv1.OfferResponse, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	out := &meshv1.OfferResponse{Results: make([]*meshv1.OfferResult, len(r.Items))}
	var wait sync.WaitGroup
	for i, item := range r.Items {
		wait.Go(func() { out.Results[i] = l.acceptOffer(ctx, from, r, item) })
	}
	wait.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.guests {
		if g.home == from && !g.ended {
			out.Held++
		}
	}
	out.Digest = l.digestLocked(time.Now())
	return out, nil
}

func refuse(reason, message string) *meshv1.OfferResult {
	return &meshv1.OfferResult{Reason: reason, Message: message}
}

func (l *leader) acceptOffer(ctx context.Context, from mesh.CellID, r *meshv1.OfferRequest, item *meshv1.OfferItem) *meshv1.OfferResult {
	g := item.GetGuest()
	// The id says whose task it is: were it another cell's, or ours, its result
	// would be written there.
	home, incarnation, err := mesh.TaskID(g.GetTaskId()).Home()
	if err != nil || home != from || mesh.CellID(g.Home) != from || incarnation != g.Incarnation || incarnation != r.Incarnation || g.Attempt == 0 {
		return refuse("bad_offer", "the offer is not from the task's home")
	}
	if r.GuestIncarnation != "" && r.GuestIncarnation != l.incarnation {
		return refuse("incarnation", "this cell is "+l.incarnation)
	}
	if !l.Cell.Within(mesh.Residency{Allowed: g.Allowed, Denied: g.Denied}) {
		return refuse("residency", "this cell lies outside the task's residency")
	}
	if sum := sha256.Sum256(item.Payload); !bytes.Equal(sum[:], g.PayloadSha256) {
		return refuse("bad_offer", "the payload does not match its hash")
	}
	fn, err := l.Registry.Version(g.Version)
	if err != nil {
		return refuse("unknown_version", g.Function+" has not arrived here yet")
	}
	v := variantOf(fn, g.Variant)
	if v == nil {
		return refuse("unknown_version", "no variant "+g.Variant)
	}
	return l.acceptGuest(ctx, from, item, v)
}

// acceptGuest commits the guest of an offer that is in order. A repeat waits for
// what becomes of the first: accepted is what is committed.
func (l *leader) acceptGuest(ctx context.Context, from mesh.CellID, item *meshv1.OfferItem, v *isobarv1.Variant) *meshv1.OfferResult {
	g := item.Guest
	takes, at := demandFor(v, g), ref{g.TaskId, g.Attempt}
	l.mu.Lock()
	for mem := l.guests[at]; mem != nil; mem = l.guests[at] {
		kept := mem.kept
		l.mu.Unlock()
		if kept {
			return &meshv1.OfferResult{Accepted: true}
		}
		select {
		case <-mem.settled: // if it failed, this one may do better
		case <-ctx.Done():
			return refuse("unavailable", "not committed yet")
		}
		l.mu.Lock()
	}
	if !l.roomForGuest(g.Function, v, takes) {
		l.mu.Unlock()
		return refuse("full", "no room for "+g.Function+"/"+g.Variant)
	}
	// Taken before the commit, so that offers that arrive together don't all
	// see the same room.
	mem := &guest{ref: at, home: from, queue: fsm.GuestQueue(g), demand: takes, payload: item.Payload, settled: make(chan struct{})}
	l.guests[at] = mem
	l.mu.Unlock()
	defer close(mem.settled)
	res, err := l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestAccept{GuestAccept: &meshv1.GuestAccept{Guest: g}}})
	l.mu.Lock()
	defer l.mu.Unlock()
	var rec *meshv1.GuestRecord
	if err == nil {
		rec = res.Guest
	} else if found, ok := fsm.Guest(l.State, at.task, at.attempt); ok {
		rec = found // committed all the same; one committed later is found by knowGuest
	} else {
		delete(l.guests, at)
		return refuse("unavailable", "not committed")
	}
	mem.kept, mem.started, mem.ended = true, rec.GetStarted(), rec.GetEnded() != nil
	l.linkTo(from).kick()
	return &meshv1.OfferResult{Accepted: true}
}

// roomForGuest reports whether the workers that may run the variant have room
// for one more attempt now, with the guests that already wait taken into
// account. Guests go to streaming workers only.
func (l *leader) roomForGuest(function string, v *isobarv1.Variant, d mesh.Demand) bool {
	var free mesh.Capacity
	fits := false
	for _, s := range l.sessions {
		if s.out == nil || !l.takes(s) || !s.offers(function, v) {
			continue
		}
		free = free.Plus(s.free)
		fits = fits || s.total.Fits(&d)
	}
	for _, g := range l.guests {
		if !g.started && !g.ended {
			free, _ = free.Take(g.demand)
		}
	}
	return fits && free.Fits(&d)
}

// adoptGuest remembers a guest found in the state by a new leader.
func (l *leader) adoptGuest(g *meshv1.GuestRecord) {
	at := ref{g.TaskId, g.Attempt}
	l.guests[at] = &guest{
		ref: at, home: mesh.CellID(g.Home), queue: fsm.GuestQueue(g), demand: l.demandOf(g.Version, g.Variant, g),
		kept: true, started: g.Started, ended: g.Ended != nil, worker: g.Worker, adopted: time.Now(),
	}
	if g.Started && g.Ended == nil {
		l.hold(at, g.Tenant, g.Function, l.guests[at].demand, false)
	}
	link := l.linkTo(mesh.CellID(g.Home))
	if g.Ended != nil {
		link.report(at)
	}
	link.kick()
}

// knowGuest returns what is remembered of a guest, from its record if need be;
// nil when there is none.
func (l *leader) knowGuest(at ref) *guest {
	if l.guests[at] == nil {
		if rec, ok := fsm.Guest(l.State, at.task, at.attempt); ok {
			l.adoptGuest(rec)
		}
	}
	return l.guests[at]
}

// placeGuest gives a confirmed guest to a worker of this cell.
func (l *leader) placeGuest(at ref, now time.Time) outcome {
	mem := l.guests[at]
	if mem == nil {
		return gone
	}
	mem.queued = false
	rec, ok := fsm.Guest(l.State, at.task, at.attempt)
	if !ok || rec.Started || rec.Ended != nil {
		return gone
	}
	if !now.Before(mem.until.Add(-guestMargin)) {
		return gone // not confirmed any more: the next extend queues it again
	}
	fn, err := l.Registry.Version(rec.Version)
	v := variantOf(fn, rec.Variant)
	if err != nil || v == nil {
		go l.endGuest(at, &meshv1.Ended{Status: "refused", Message: "its version is not here"})
		return gone
	}
	takes := demandFor(v, rec)
	s := l.pickSession(rec.Function, v, takes, true)
	if s == nil {
		mem.queued = true
		return noRoom
	}
	run := l.occupy(s, at, rec.Function, v, takes)
	run.guest = true
	mem.started, mem.worker = true, s.worker
	l.hold(at, rec.Tenant, rec.Function, run.demand, false)
	go l.startGuest(run, mem, rec, fn, v)
	return taken
}

// startGuest commits the start, then hands the attempt over: a number starts
// at most once, whoever leads.
func (l *leader) startGuest(run *running, mem *guest, rec *meshv1.GuestRecord, fn *isobarv1.Function, v *isobarv1.Variant) {
	payload, err := l.guestPayload(l.ctx, mem, rec)
	if err == nil {
		_, err = l.command(l.ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestStart{
			GuestStart: &meshv1.GuestStart{TaskId: run.task, Attempt: run.attempt, Worker: run.session.worker, Session: run.session.id},
		}})
	}
	if err != nil {
		l.mu.Lock()
		l.release(run)
		l.mu.Unlock()
		l.Logger.Warn("guest not started", "task", run.task, "attempt", run.attempt, "error", err)
		l.endGuest(run.ref, &meshv1.Ended{Status: "refused", Message: "not started: " + err.Error()})
		return
	}
	l.mu.Lock()
	left := min(time.Until(mem.until)-guestMargin, l.WorkerLease)
	l.mu.Unlock()
	if left <= 0 {
		// The bytes or the commit took longer than the lease.
		l.mu.Lock()
		l.release(run)
		l.mu.Unlock()
		l.endGuest(run.ref, &meshv1.Ended{Status: "refused", Message: "not started: its lease ran out before it could be"})
		return
	}
	trace := l.openSpan(run.ref, LeaseInfo{Name: "isobar.guest", Guest: rec, Attempt: run.attempt, Cell: l.Cell.ID, Worker: run.session.worker, Variant: v.Name},
		func() bool { return l.guests[run.ref] == mem && !mem.ended })
	l.deliver(run, &isobarv1.Assignment{
		TaskId: run.task, Attempt: run.attempt, Tenant: rec.Tenant, Function: rec.Function, Version: rec.Version,
		Variant: v, Env: fn.Spec.Env, Timeout: fn.Spec.Timeout, Deadline: timestampMs(rec.DeadlineMs),
		Payload: payload, ContentType: rec.ContentType, Traceparent: trace, Lease: durationpb.New(left), Cost: rec.Cost,
	})
	l.mu.Lock()
	mem.payload = nil // the worker has it
	l.mu.Unlock()
}

func (l *leader) guestPayload(ctx context.Context, mem *guest, rec *meshv1.GuestRecord) ([]byte, error) {
	if mem.payload != nil || rec.PayloadBytes == 0 {
		return mem.payload, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	res, err := l.Peers.Payload(ctx, mem.home, &meshv1.PayloadRequest{Guest: string(l.Cell.ID), TaskId: rec.TaskId, Attempt: rec.Attempt})
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(res.Payload); !bytes.Equal(sum[:], rec.PayloadSha256) {
		return nil, errDamagedPayload
	}
	return res.Payload, nil
}

// completeGuest keeps a worker's outcome until home has acknowledged it.
func (l *leader) completeGuest(ctx context.Context, at ref, ended *meshv1.Ended) (fsm.Verdict, error) {
	res, err := l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestEnd{
		GuestEnd: &meshv1.GuestEnd{TaskId: at.task, Attempt: at.attempt, Ended: ended},
	}})
	if err != nil {
		return "", err
	}
	return res.Verdict, nil
}

// endGuest is completeGuest for what this cell itself finds out.
func (l *leader) endGuest(at ref, ended *meshv1.Ended) {
	if _, err := l.completeGuest(l.ctx, at, ended); err != nil && l.ctx.Err() == nil {
		l.Logger.Warn("guest not ended", "task", at.task, "attempt", at.attempt, "error", err)
	}
}

// guestLeft is how long the worker of a guest may go on: until shortly before
// the lease that home confirmed ends.
func (l *leader) guestLeft(at ref, session string) (left time.Duration, reason string) {
	mem, run := l.guests[at], l.running[at]
	switch {
	case mem == nil:
		return 0, string(fsm.Unknown)
	case run == nil || run.session.id != session || mem.ended:
		return 0, string(fsm.Fenced)
	}
	left = time.Until(mem.until) - guestMargin
	if left <= 0 {
		return 0, string(fsm.Fenced)
	}
	return left, ""
}

// forgetGuest drops the memory of a guest whose record is gone.
func (l *leader) forgetGuest(at ref) {
	g := l.guests[at]
	if g == nil {
		return
	}
	delete(l.guests, at)
	if g.queued {
		l.waiting.queue(queueKey{Queue: g.queue, guest: true}).remove(at)
	}
	if end, ok := l.spans[at]; ok {
		end("acknowledged")
		delete(l.spans, at)
	}
	if run := l.running[at]; run != nil {
		l.release(run)
		if !run.ending {
			run.session.send(stopMessage(at))
		}
	}
	l.kick()
}
