package sim

import (
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// The home's side of a hand-off: the lease is committed, then offered until the
// other cell answered or the lease is over.

// offer is a lease to another cell that was not answered yet.
type offer struct{ next int64 }

func (l *leader) grantCell(rec *meshv1.TaskRecord, to *cell) {
	at := numbered{rec.Id, rec.Attempt + 1}
	l.grant(&meshv1.Grant{
		TaskId: at.task, Attempt: at.attempt, Holder: &meshv1.Holder{Cell: to.id}, TtlMs: cellLease, StartWithinMs: startWithin,
	}, func(err error) {
		if err == nil {
			l.offers[at] = &offer{}
			l.sendOffers()
		}
	})
}

// sendOffers repeats what was not answered; offers are idempotent by attempt.
func (l *leader) sendOffers() {
	for _, at := range sorted(l.offers) {
		o := l.offers[at]
		rec, ok := fsm.Task(l.c.reader(), at.task)
		if !ok || rec.Lease == nil || rec.Attempt != at.attempt || rec.Lease.Started {
			delete(l.offers, at)
			continue
		}
		if o.next > l.w.now {
			continue
		}
		if o.next > 0 {
			l.w.saw(SawRepeatOffer)
		}
		o.next = l.w.now + 2*l.w.cfg.LatencyMs + 200
		to := l.w.cell(rec.Lease.Holder.Cell)
		guest := &meshv1.GuestRecord{
			TaskId: at.task, Attempt: at.attempt, Home: l.c.id, Incarnation: "i", Tenant: rec.Tenant, Function: rec.Function,
			Lane: rec.Lane, TimeoutMs: rec.TimeoutMs, StartWithinMs: max(0, rec.Lease.StartByLeaseMs-l.clocks().LeaseMs),
		}
		l.w.send(l.c, to, func() {
			if to.leader != nil {
				to.leader.offered(l, guest)
			}
		})
	}
}

func (w *world) cell(id string) *cell {
	for _, c := range w.cells {
		if c.id == id {
			return c
		}
	}
	return nil
}

// answered takes the other cell's answer to an offer.
func (l *leader) answered(at numbered, accepted bool) {
	if !l.leads() {
		return
	}
	delete(l.offers, at)
	if !accepted {
		l.w.saw(SawRefused)
		l.endHome(at, &meshv1.Ended{Status: "refused"}, nil)
	}
}

// guestExtends confirms leases of this home to the cell that holds them: the
// answer leaves after the commit.
func (l *leader) guestExtends(from *leader, items []*meshv1.ExtendItem, sent int64) {
	l.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Extend{Extend: &meshv1.Extend{Items: items}}},
		func(res *fsm.Result, err error) {
			if err != nil {
				return
			}
			l.w.send(l.c, from.c, func() { from.extended(items, res.Items, sent) })
		})
}

// reported takes the outcome of a guest attempt; whatever the verdict, it
// acknowledges.
func (l *leader) reported(from *leader, at numbered, ended *meshv1.Ended) {
	l.endHome(at, ended, func(fsm.Verdict) {
		l.w.send(l.c, from.c, func() { from.acknowledged(at) })
	})
}
