package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// homeLink keeps this cell's word to one home: it extends the leases taken from
// it and reports how they ended.
type homeLink struct {
	l       *leader
	home    mesh.CellID
	reports map[ref]bool // under l.mu
	wake    chan struct{}
	tell    chan struct{}
}

// linkTo returns the link to a home, started on first use; the caller holds
// the lock.
func (l *leader) linkTo(home mesh.CellID) *homeLink {
	h := l.links[home]
	if h == nil {
		h = &homeLink{l: l, home: home, reports: map[ref]bool{}, wake: make(chan struct{}, 1), tell: make(chan struct{}, 1)}
		l.links[home] = h
		go h.extendLoop(l.ctx)
		go h.reportLoop(l.ctx)
	}
	return h
}

// kick extends at once: a guest waits for its lease to be confirmed.
func (h *homeLink) kick() { signal(h.wake) }

func (h *homeLink) report(r ref) {
	h.reports[r] = true
	signal(h.tell)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// extendItems bounds one Extend, which is one command of the log, whose groups
// have a largest size.
const extendItems = 1000

// extendLoop extends every Renew, and at once when kicked. New guests do not
// wait for an extend that is under way: the link is as wide as it is long.
func (h *homeLink) extendLoop(ctx context.Context) {
	ticker := time.NewTicker(h.l.Renew)
	defer ticker.Stop()
	slots := make(chan struct{}, 8)
	for {
		fresh := true
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-ticker.C:
			fresh = false
		}
		items, refs := h.due(fresh)
		if len(items) == 0 {
			continue
		}
		for ; len(items) > 0; items, refs = items[min(extendItems, len(items)):], refs[min(extendItems, len(refs)):] {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			items, refs := items[:min(extendItems, len(items))], refs[:min(extendItems, len(refs))]
			go func() {
				defer func() { <-slots }()
				h.extend(ctx, items, refs)
			}()
		}
	}
}

// due lists the guests of this home to extend: all, or only those not yet
// confirmed or told of.
func (h *homeLink) due(fresh bool) (items []*meshv1.GuestExtendItem, refs []ref) {
	l := h.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for at, g := range l.guests {
		if g.home != h.home || !g.kept || g.ended || fresh && !g.until.IsZero() {
			continue
		}
		if g.started && l.running[at] == nil && time.Since(g.adopted) > l.WorkerLease+l.Renew {
			// Started under an earlier leader, and its worker never came back.
			go l.endGuest(at, &meshv1.Ended{Status: "lost", Message: "its worker was not heard of after a change of leader", Worker: g.worker, Started: true})
			continue
		}
		// A guest asks for leave to start with its first message: it was accepted
		// because it can start now, and home must know of a start before it
		// happens. One that finds no worker after all is refused, uncounted.
		items = append(items, &meshv1.GuestExtendItem{TaskId: at.task, Attempt: at.attempt, Started: true, Worker: g.worker})
		refs = append(refs, at)
	}
	return items, refs
}

func (h *homeLink) extend(ctx context.Context, items []*meshv1.GuestExtendItem, refs []ref) {
	l := h.l
	sent := time.Now()
	ctx, cancel := context.WithTimeout(ctx, l.Renew+2*time.Second)
	defer cancel()
	l.mu.Lock()
	digest := l.digestLocked(sent)
	l.mu.Unlock()
	res, err := l.Peers.Extend(ctx, h.home, &meshv1.GuestExtendRequest{
		Guest: string(l.Cell.ID), Incarnation: l.incarnation, Items: items, Digest: digest,
	})
	if err != nil || len(res.GetResults()) != len(refs) {
		if err != nil && !errors.Is(err, context.Canceled) {
			l.Logger.Debug("extend not answered", "home", h.home, "tasks", len(refs), "error", err)
		}
		return
	}
	l.mu.Lock()
	for i, at := range refs {
		h.extended(at, res.Results[i], sent)
	}
	l.mu.Unlock()
	l.kick()
}

// extended notes one answer. A confirmed lease counts from when we sent.
func (h *homeLink) extended(at ref, res *meshv1.GuestExtendResult, sent time.Time) {
	l := h.l
	g := l.guests[at]
	if g == nil || g.ended {
		return
	}
	if !res.Confirmed {
		// Cancelled, fenced, ended or unknown at home: the record is void.
		go l.forgetAtHome(at)
		return
	}
	if until := sent.Add(res.Lease.AsDuration()); until.After(g.until) {
		g.until = until
	}
	if !g.started && !g.queued {
		g.queued = true
		l.waiting.queue(queueKey{Queue: g.queue, guest: true}).add(at)
	}
}

func (l *leader) forgetAtHome(at ref) {
	_, _ = l.command(l.ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestForget{
		GuestForget: &meshv1.GuestForget{TaskId: at.task, Attempt: at.attempt},
	}}) // not committed: the next extend or report brings it up again
}

// reportLoop reports outcomes until each is acknowledged.
func (h *homeLink) reportLoop(ctx context.Context) {
	retry := time.NewTicker(h.l.Renew)
	defer retry.Stop()
	slots := make(chan struct{}, 8)
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.tell:
		case <-retry.C:
		}
		for {
			items := h.takeReports()
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
				h.send(ctx, items)
			}()
		}
	}
}

// takeReports takes up to one message of outcomes that are not under way.
func (h *homeLink) takeReports() []*meshv1.ReportItem {
	l := h.l
	l.mu.Lock()
	defer l.mu.Unlock()
	var items []*meshv1.ReportItem
	size := 0
	for at, due := range h.reports {
		if !due || len(items) == offerItems || size > offerBytes {
			continue
		}
		rec, ok := fsm.Guest(l.State, at.task, at.attempt)
		if !ok || rec.Ended == nil {
			delete(h.reports, at)
			continue
		}
		h.reports[at] = false // under way
		items = append(items, &meshv1.ReportItem{TaskId: at.task, Attempt: at.attempt, Ended: rec.Ended})
		size += len(rec.Ended.Result)
	}
	return items
}

func (h *homeLink) send(ctx context.Context, items []*meshv1.ReportItem) {
	l := h.l
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	l.mu.Lock()
	digest := l.digestLocked(time.Now())
	l.mu.Unlock()
	res, err := l.Peers.Report(ctx, h.home, &meshv1.ReportRequest{Guest: string(l.Cell.ID), Incarnation: l.incarnation, Items: items, Digest: digest})
	if err != nil {
		// Those who try again must not spin while home is away.
		select {
		case <-l.ctx.Done():
			return
		case <-time.After(l.Renew / 4):
		}
	}
	for i, it := range items {
		at := ref{it.TaskId, it.Attempt}
		acknowledged := err == nil && i < len(res.Verdicts) && res.Verdicts[i] != "retry"
		l.mu.Lock()
		if acknowledged {
			delete(h.reports, at)
		} else {
			h.reports[at] = true // the ticker tries again
		}
		l.mu.Unlock()
		if acknowledged {
			go l.forgetAtHome(at)
		}
	}
}
