package sim

import (
	"strings"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// The guest's side of a hand-off: take the lease, ask its home for leave to
// start, start within a lease confirmed in answer to our own message, give the
// attempt to one worker after that is committed, and report until home
// acknowledges.

// guest is what a leader knows of a guest record besides the record.
type guest struct {
	until    int64 // end of the lease that home confirmed to this leader
	asked    int64 // when to extend again
	starting bool
	heard    int64 // when its worker was last heard to run it, or it was adopted
	mine     bool  // accepted or started under this leader
}

func (l *leader) guestRecord(at numbered) *meshv1.GuestRecord {
	g, ok := fsm.Guest(l.c.reader(), at.task, at.attempt)
	if !ok {
		return nil
	}
	return g
}

// offered takes or refuses a lease; a repeat gets the same answer.
func (l *leader) offered(home *leader, g *meshv1.GuestRecord) {
	at := numbered{g.TaskId, g.Attempt}
	answer := func(accepted bool) {
		l.w.send(l.c, home.c, func() { home.answered(at, accepted) })
	}
	if l.guestRecord(at) != nil {
		answer(true)
		return
	}
	waiting := 0
	for _, other := range sorted(l.guests) {
		if rec := l.guestRecord(other); rec != nil && !rec.Started && rec.Ended == nil {
			waiting++
		}
	}
	if waiting > l.w.cfg.Slots*l.w.cfg.Workers || chance(l.rng, 0.05) {
		answer(false) // full, or out of its residency, or without its code
		return
	}
	// A message is read by each receiver on its own.
	copied := proto.CloneOf(g)
	l.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestAccept{
		GuestAccept: &meshv1.GuestAccept{Guest: copied},
	}}, func(_ *fsm.Result, err error) {
		if err != nil {
			answer(false)
			return
		}
		if l.guests[at] == nil {
			l.guests[at] = &guest{heard: l.w.now, mine: true}
		}
		answer(true)
	})
}

// keepGuests extends what this cell holds, asks leave to start, and gives up
// what its worker no longer runs.
func (l *leader) keepGuests() {
	asks := map[string][]*meshv1.ExtendItem{}
	for _, at := range sorted(l.guests) {
		g, rec := l.guests[at], l.guestRecord(at)
		switch {
		case rec == nil:
			delete(l.guests, at)
			continue
		case rec.Ended != nil:
			if _, ok := l.reports[at]; !ok {
				l.reports[at] = 0
				if !g.mine {
					l.w.saw(SawAdopted)
				}
			}
			continue
		case rec.Started && l.w.now-g.heard > workerLease+renewEvery:
			g.heard = l.w.now
			l.endGuest(at, &meshv1.Ended{Status: "lost"}, nil)
			continue
		case g.asked > l.w.now:
			continue
		}
		g.asked = l.w.now + renewEvery
		asks[rec.Home] = append(asks[rec.Home], &meshv1.ExtendItem{
			TaskId: at.task, Attempt: at.attempt, Holder: &meshv1.Holder{Cell: l.c.id}, TtlMs: cellLease,
			// Leave to start is asked only while a worker is free.
			Started: rec.Started || l.freeSession() != nil, Worker: rec.Worker,
		})
	}
	for _, home := range l.w.cells {
		items := asks[home.id]
		if len(items) == 0 {
			continue
		}
		sent := l.w.now
		l.w.send(l.c, home, func() {
			if home.leader != nil {
				home.leader.guestExtends(l, items, sent)
			}
		})
	}
}

// extended takes home's answer. A lease counts from when we asked.
func (l *leader) extended(items []*meshv1.ExtendItem, verdicts []fsm.ExtendVerdict, sent int64) {
	if !l.leads() {
		return
	}
	for i, item := range items {
		at := numbered{item.TaskId, item.Attempt}
		g, rec := l.guests[at], l.guestRecord(at)
		if g == nil || rec == nil || rec.Ended != nil {
			continue
		}
		if verdicts[i].Verdict != fsm.Accepted {
			l.forget(at) // void at home
			continue
		}
		g.until = max(g.until, sent+verdicts[i].TTL)
		if item.Started && !rec.Started && !g.starting && l.w.now < g.until-guestMargin {
			if s := l.freeSession(); s != nil {
				l.startGuest(at, g, s)
			}
		}
	}
}

// startGuest commits the start to one worker, then hands it over.
func (l *leader) startGuest(at numbered, g *guest, s *session) {
	g.starting, s.busy[at] = true, l.w.now
	if l.w.cfg.Break == BreakStart {
		l.w.near(l.c, func() { s.worker.assigned(s.id, at) })
	}
	l.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestStart{
		GuestStart: &meshv1.GuestStart{TaskId: at.task, Attempt: at.attempt, Worker: s.worker.name, Session: s.id},
	}}, func(_ *fsm.Result, err error) {
		g.starting = false
		if err != nil {
			delete(s.busy, at)
			return
		}
		g.heard, g.mine = l.w.now, true
		if sent := l.w.near(l.c, func() { s.worker.assigned(s.id, at) }); !sent && chance(l.rng, 0.5) {
			delete(s.busy, at)
			l.endGuest(at, &meshv1.Ended{Status: "undelivered"}, nil)
			l.w.saw(SawUndelivered)
		}
	})
}

// endGuest keeps an outcome until it is reported; the first one counts.
func (l *leader) endGuest(at numbered, ended *meshv1.Ended, answer func(fsm.Verdict)) {
	l.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestEnd{
		GuestEnd: &meshv1.GuestEnd{TaskId: at.task, Attempt: at.attempt, Ended: ended},
	}}, func(res *fsm.Result, err error) {
		if answer != nil && err == nil {
			answer(res.Verdict)
		}
	})
}

// sendReports tells homes of outcomes they have not acknowledged.
func (l *leader) sendReports() {
	for _, at := range sorted(l.reports) {
		rec := l.guestRecord(at)
		if rec == nil || rec.Ended == nil {
			delete(l.reports, at)
			continue
		}
		if l.reports[at] > l.w.now {
			continue
		}
		l.reports[at] = l.w.now + renewEvery
		if l.w.cfg.Break == BreakReport {
			l.reports[at] = l.w.now + l.w.cfg.FaultsMs + l.w.cfg.SettleMs
		}
		home, ended := l.w.cell(rec.Home), rec.Ended
		l.w.send(l.c, home, func() {
			if home.leader != nil {
				home.leader.reported(l, at, proto.CloneOf(ended))
			}
		})
	}
}

// acknowledged drops a record that home knows the end of.
func (l *leader) acknowledged(at numbered) {
	if l.leads() {
		l.forget(at)
	}
}

func (l *leader) forget(at numbered) {
	l.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestForget{
		GuestForget: &meshv1.GuestForget{TaskId: at.task, Attempt: at.attempt},
	}}, nil)
}

// own reports whether the cell is the task's home: its id says so.
func (c *cell) own(id string) bool { return strings.HasSuffix(id, "-"+c.id+"-i") }
