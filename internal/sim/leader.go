package sim

import (
	"maps"
	"math/rand/v2"
	"slices"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// leader is what one leader of a cell knows besides the state, all of it lost
// with it: clocks, sessions of workers, and what is under way.
type leader struct {
	c   *cell
	w   *world
	rng *rand.Rand

	elected      int64
	lease, wall  int64 // at the election
	granting     map[string]bool
	sessions     map[string]*session
	offers       map[numbered]*offer
	guests       map[numbered]*guest
	reports      map[numbered]int64 // when to report again
	tickUnderWay bool
}

// session is a worker as its leader knows it.
type session struct {
	worker *worker
	id     string
	heard  int64
	// What it is thought to run: told of by its last message, or assigned
	// since.
	busy map[numbered]int64
}

func newLeader(c *cell) *leader {
	l := &leader{
		c: c, w: c.w, rng: c.rng, elected: c.w.now, granting: map[string]bool{}, sessions: map[string]*session{},
		offers: map[numbered]*offer{}, guests: map[numbered]*guest{}, reports: map[numbered]int64{},
	}
	// Lease time goes on from the last committed value; calendar time is this
	// server's own wall clock, and the machine lets neither go back.
	l.lease, _ = fsm.ReadClocks(c.reader())
	l.wall = wallBase + c.w.now + between(c.rng, -c.w.cfg.SkewMs, c.w.cfg.SkewMs)
	return l
}

func (l *leader) clocks() *meshv1.Clocks {
	since := l.w.now - l.elected
	return &meshv1.Clocks{LeaseMs: l.lease + since, WallMs: l.wall + since}
}

// leads reports whether the leader still is one.
func (l *leader) leads() bool { return l.c.leader == l }

// begin rebuilds what must happen outside from the state, and starts the loop.
func (l *leader) begin() {
	for rec := range fsm.Leases(l.c.reader()) {
		if rec.Lease.Holder.Cell != "" && !rec.Lease.Started {
			l.offers[numbered{rec.Id, rec.Attempt}] = &offer{}
		}
	}
	for g := range fsm.Guests(l.c.reader()) {
		if l.w.cfg.Break == BreakRebuild {
			break
		}
		l.guests[numbered{g.TaskId, g.Attempt}] = &guest{heard: l.w.now}
	}
	l.w.every(loopEvery, func() bool {
		if !l.leads() {
			return false
		}
		l.tick()
		l.dispatch()
		l.sendOffers()
		l.keepGuests()
		l.sendReports()
		return true
	})
}

// tick lets what is due happen. For one renewal interval after the election no
// lease ends: holders first announce what they hold.
func (l *leader) tick() {
	expire := l.w.now >= l.elected+2*renewEvery
	clocks := l.clocks()
	if l.tickUnderWay || !fsm.Due(l.c.reader(), clocks.LeaseMs, clocks.WallMs, expire) {
		return
	}
	l.tickUnderWay = true
	l.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Tick{
		Tick: &meshv1.Tick{Limit: uint32(between(l.rng, 1, 20)), ExpireLeases: expire},
	}}, func(res *fsm.Result, _ error) {
		l.tickUnderWay = false
		for _, e := range res.Effects {
			if e.Kind == fsm.GuestEnded {
				l.w.saw(SawRefused)
			}
		}
	})
}

func (l *leader) propose(cmd *meshv1.SchedulerCommand, done func(*fsm.Result, error)) {
	l.c.propose(l, cmd, done)
}

// dispatch places ready tasks: on a worker that is free, or at another cell.
func (l *leader) dispatch() {
	r := l.c.reader()
	for q := range fsm.Queues(r) {
		for id := range fsm.Ready(r, q, "") {
			if l.granting[id] {
				continue
			}
			rec, ok := fsm.Task(r, id)
			if !ok {
				continue
			}
			if chance(l.rng, l.w.cfg.Abroad) {
				if to := l.otherCell(); to != nil {
					l.grantCell(rec, to)
				}
			} else if s := l.freeSession(); s != nil {
				l.grantWorker(rec, s)
			}
		}
	}
}

func (l *leader) otherCell() *cell {
	if len(l.w.cells) < 2 {
		return nil
	}
	for {
		if to := l.w.cells[l.rng.IntN(len(l.w.cells))]; to != l.c {
			return to
		}
	}
}

// freeSession is a streaming worker with room that was heard of lately.
func (l *leader) freeSession() *session {
	var free []*session
	for _, id := range slices.Sorted(maps.Keys(l.sessions)) {
		s := l.sessions[id]
		if !s.worker.polls && l.w.now-s.heard < workerLease && len(s.busy) < l.w.cfg.Slots {
			free = append(free, s)
		}
	}
	if len(free) == 0 {
		return nil
	}
	return free[l.rng.IntN(len(free))]
}

// grantWorker leases to a worker's stream: the grant is the start.
func (l *leader) grantWorker(rec *meshv1.TaskRecord, s *session) {
	at := numbered{rec.Id, rec.Attempt + 1}
	s.busy[at] = l.w.now
	if l.w.cfg.Break == BreakNumber {
		l.w.near(l.c, func() { s.worker.assigned(s.id, at) })
	}
	l.grant(&meshv1.Grant{
		TaskId: at.task, Attempt: at.attempt, Holder: &meshv1.Holder{Worker: s.worker.name, Session: s.id},
		TtlMs: workerLease, Started: true,
	}, func(err error) {
		if err != nil {
			delete(s.busy, at)
			return
		}
		if sent := l.w.near(l.c, func() { s.worker.assigned(s.id, at) }); !sent && chance(l.rng, 0.5) {
			// The stream broke before the assignment left.
			delete(s.busy, at)
			l.endHome(at, &meshv1.Ended{Status: "undelivered"}, nil)
			l.w.saw(SawUndelivered)
		}
	})
}

// grant commits a lease; nothing leaves the server before.
func (l *leader) grant(g *meshv1.Grant, done func(error)) {
	l.granting[g.TaskId] = true
	l.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Grant{Grant: g}}, func(_ *fsm.Result, err error) {
		delete(l.granting, g.TaskId)
		done(err)
	})
}

// endHome commits the outcome of an attempt of this cell's own task; answer,
// which may be nil, is called once it is applied.
func (l *leader) endHome(at numbered, ended *meshv1.Ended, answer func(fsm.Verdict)) {
	cmd := &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Fail{
		Fail: &meshv1.Fail{TaskId: at.task, Attempt: at.attempt, Ended: ended},
	}}
	if ended.Status == "done" {
		cmd.Command = &meshv1.SchedulerCommand_Complete{
			Complete: &meshv1.Complete{TaskId: at.task, Attempt: at.attempt, Ended: ended},
		}
	}
	l.propose(cmd, func(res *fsm.Result, err error) {
		if answer != nil && err == nil {
			answer(res.Verdict)
		}
	})
}

// submit makes a task of a client's request. The client's request id makes a
// repeat the same task.
func (l *leader) submit(rec *meshv1.TaskRecord, answer func(id string, err error)) {
	if l.w.cfg.Break == BreakAccept {
		answer(rec.Id, nil)
		answer = func(string, error) {}
	}
	l.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Accept{
		Accept: &meshv1.Accept{Task: rec, Cap: queueCap()},
	}}, func(_ *fsm.Result, err error) { answer(rec.Id, err) })
}

func (l *leader) cancel(id string, answer func(isobarv1.TaskState)) {
	l.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Cancel{Cancel: &meshv1.Cancel{TaskId: id}}},
		func(res *fsm.Result, err error) {
			if err == nil {
				answer(fsm.State(res.Task))
			}
		})
}
