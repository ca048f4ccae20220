package sim

import (
	"fmt"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// worker runs attempts of its cell. One that streams starts what it is
// assigned; one that polls asks for leases and starts only what a further
// extend confirmed.
type worker struct {
	c       *cell
	name    string
	polls   bool
	lives   int // processes so far: one session each
	session string
	up      bool

	runs    map[numbered]*run
	begun   map[numbered]bool // by this session
	waiting map[numbered]bool // leased to a poller, not confirmed yet
	call    string            // request id of a poll under way
	calls   int
}

// run is one attempt this process has: running, or ended and not yet
// acknowledged by the leader.
type run struct {
	until int64 // end of the lease as the worker knows it
	ended *meshv1.Ended
}

func (c *cell) startWorkers() {
	for i := range c.w.cfg.Workers {
		w := &worker{c: c, name: fmt.Sprintf("%s.w%d", c.id, i), polls: i == c.w.cfg.Workers-1}
		c.workers = append(c.workers, w)
		w.restart()
		c.w.after(between(c.rng, 0, renewEvery), func() {
			c.w.every(renewEvery/2, func() bool { w.talk(); return true })
		})
	}
}

// restart is a new process: it knows nothing of what the last one ran.
func (w *worker) restart() {
	w.lives++
	w.session = fmt.Sprintf("%s.%d", w.name, w.lives)
	w.up, w.call = true, ""
	w.runs, w.begun, w.waiting = map[numbered]*run{}, map[numbered]bool{}, map[numbered]bool{}
}

func (w *worker) crash() {
	w.c.w.note("%s crashes with %d attempts", w.name, len(w.runs))
	w.up = false
	w.runs = map[numbered]*run{}
}

// assigned begins an attempt, once in this process's life.
func (w *worker) assigned(session string, at numbered) {
	if !w.up || session != w.session || w.begun[at] {
		return
	}
	w.begun[at] = true
	delete(w.waiting, at)
	w.c.w.starts(at, w.session)
	r := &run{until: w.c.w.now + workerLease}
	w.runs[at] = r
	rng := w.c.rng
	length := between(rng, 10, 2_500)
	if chance(rng, 0.15) {
		length = between(rng, 2_500, runTimeout)
	}
	ended := &meshv1.Ended{Worker: w.name, Started: true}
	if w.c.w.cfg.Poison {
		if w.c.w.truth.poison[at.task] {
			// Never acknowledged: it hangs until its lease can't be extended, or
			// takes its worker with it.
			if chance(rng, 0.5) {
				w.c.w.after(length, func() { w.crashBy(session) })
			}
			return
		}
		ended.Status, ended.Result = "done", []byte(at.String())
		w.c.w.after(length, func() { w.endRun(session, at, r, ended) })
		return
	}
	switch p := rng.Float64(); {
	case p < 0.80:
		ended.Status, ended.Result = "done", []byte(at.String())
	case p < 0.88:
		ended.Status = "retry"
	case p < 0.90:
		ended.Status = "failed"
	case p < 0.95:
		ended.Status, length = "timeout", runTimeout
	default:
		w.c.w.after(length, func() { w.crashBy(session) })
		return
	}
	w.c.w.after(length, func() { w.endRun(session, at, r, ended) })
}

// endRun ends an attempt that this process still runs.
func (w *worker) endRun(session string, at numbered, r *run, ended *meshv1.Ended) {
	if w.up && w.session == session && w.runs[at] == r && r.ended == nil {
		w.finish(at, r, ended)
	}
}

// crashBy is an attempt that takes its worker with it.
func (w *worker) crashBy(session string) {
	if w.up && w.session == session && !w.c.w.healed {
		w.crash()
		w.c.w.after(between(w.c.rng, 200, 2_000), func() {
			if !w.up && w.c.up {
				w.restart()
			}
		})
	}
}

func (w *worker) finish(at numbered, r *run, ended *meshv1.Ended) {
	r.ended = ended
	if ended.Status == "done" {
		w.c.w.truth.finished[at] = true
	}
	w.c.w.note("%s ends %s: %s", w.session, at, ended.Status)
	w.tellEnd(at, r)
}

// tellEnd reports until the leader answers.
func (w *worker) tellEnd(at numbered, r *run) {
	session, ended := w.session, r.ended
	w.c.w.near(w.c, func() {
		if w.c.leader == nil {
			return
		}
		w.c.leader.workerEnded(at, ended, func() {
			w.c.w.near(w.c, func() {
				if w.session == session {
					delete(w.runs, at)
				}
			})
		})
	})
}

// talk is the worker's renewal: it announces what it holds, extends it, repeats
// what was not answered and, when it polls, asks for more.
func (w *worker) talk() {
	if !w.up || !w.c.up {
		return
	}
	now := w.c.w.now
	var held []numbered
	for _, at := range sorted(w.runs) {
		switch r := w.runs[at]; {
		case r.ended != nil:
			w.tellEnd(at, r)
		case r.until < now && !chance(w.c.rng, w.c.w.cfg.Stubborn):
			w.c.w.note("%s kills %s: its lease is over", w.session, at)
			delete(w.runs, at)
			continue
		}
		held = append(held, at)
	}
	held = append(held, sorted(w.waiting)...)
	session := w.session
	w.c.w.near(w.c, func() {
		if w.c.leader != nil {
			w.c.leader.workerExtends(w, session, held, now)
		}
	})
	if w.polls && len(w.runs)+len(w.waiting) < w.c.w.cfg.Slots {
		w.poll()
	}
}

// poll asks for a lease; the same request is repeated until it is answered.
func (w *worker) poll() {
	if w.call != "" {
		w.c.w.saw(SawRepeatLease)
	} else {
		w.calls++
		w.call = fmt.Sprintf("q%d", w.calls)
	}
	session, call := w.session, w.call
	w.c.w.near(w.c, func() {
		if w.c.leader == nil {
			return
		}
		w.c.leader.leaseCall(w, session, call, func(leases []numbered) {
			w.c.w.near(w.c, func() {
				if w.session != session || w.call != call {
					return
				}
				w.call = ""
				for _, at := range leases {
					if !w.begun[at] {
						w.waiting[at] = true
					}
				}
			})
		})
	})
}

// leaseCall answers a poll. A repeat, also one that comes to a later leader,
// finds its leases in the state.
func (l *leader) leaseCall(w *worker, session, call string, answer func([]numbered)) {
	holder := &meshv1.Holder{Worker: w.name, Session: session, RequestId: call}
	for rec := range fsm.Leases(l.c.reader()) {
		if h := rec.Lease.Holder; h.Session == session && h.RequestId == call {
			answer([]numbered{{rec.Id, rec.Attempt}})
			return
		}
	}
	for q := range fsm.Queues(l.c.reader()) {
		for id := range fsm.Ready(l.c.reader(), q, "") {
			rec, ok := fsm.Task(l.c.reader(), id)
			if !ok || l.granting[id] {
				continue
			}
			at := numbered{id, rec.Attempt + 1}
			l.grant(&meshv1.Grant{
				TaskId: id, Attempt: at.attempt, Holder: holder, TtlMs: workerLease, StartWithinMs: workerLease,
			}, func(err error) {
				if err == nil {
					answer([]numbered{at})
				}
			})
			return
		}
	}
	answer(nil)
}

// workerExtends renews a session, and commits its extends in one command.
func (l *leader) workerExtends(w *worker, id string, held []numbered, sent int64) {
	s := l.sessions[id]
	if s == nil {
		s = &session{worker: w, id: id, busy: map[numbered]int64{}}
		l.sessions[id] = s
	}
	s.heard = l.w.now
	s.busy = keep(s.busy, held, sent)
	var items []*meshv1.ExtendItem
	var refs []numbered
	for _, at := range held {
		if l.c.own(at.task) {
			refs = append(refs, at)
			items = append(items, &meshv1.ExtendItem{
				TaskId: at.task, Attempt: at.attempt, Holder: &meshv1.Holder{Worker: w.name, Session: id},
				TtlMs: workerLease, Started: true,
			})
			continue
		}
		l.extendGuestRun(w, id, at, sent)
	}
	if len(items) == 0 {
		return
	}
	l.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Extend{Extend: &meshv1.Extend{Items: items}}},
		func(res *fsm.Result, err error) {
			if err != nil {
				return
			}
			l.w.near(l.c, func() {
				for i, at := range refs {
					w.extended(id, at, res.Items[i].Verdict == fsm.Accepted, sent+res.Items[i].TTL)
				}
			})
		})
}

// extendGuestRun answers for a guest: a worker's lease ends before the cell's.
func (l *leader) extendGuestRun(w *worker, session string, at numbered, sent int64) {
	g, rec := l.guests[at], l.guestRecord(at)
	ok := g != nil && rec != nil && rec.Ended == nil && rec.Session == session
	until := int64(0)
	if ok {
		g.heard = l.w.now
		if g.until == 0 {
			return // a new leader that home has not answered yet: no word
		}
		until = min(sent+workerLease, g.until-guestMargin)
	}
	l.w.near(l.c, func() { w.extended(session, at, ok, until) })
}

// extended is the answer to one extend.
func (w *worker) extended(session string, at numbered, confirmed bool, until int64) {
	if !w.up || session != w.session {
		return
	}
	if w.waiting[at] {
		if confirmed && w.c.w.now < until {
			w.assigned(session, at)
		} else {
			delete(w.waiting, at)
		}
		return
	}
	r := w.runs[at]
	switch {
	case r == nil || r.ended != nil:
	case confirmed:
		r.until = max(r.until, until)
	case !chance(w.c.rng, w.c.w.cfg.Stubborn):
		w.c.w.note("%s kills %s: told to stop", w.session, at)
		delete(w.runs, at)
	}
}

// workerEnded commits an outcome, then lets the worker forget it.
func (l *leader) workerEnded(at numbered, ended *meshv1.Ended, answer func()) {
	done := func(fsm.Verdict) { answer() }
	if l.c.own(at.task) {
		l.endHome(at, ended, done)
		return
	}
	l.endGuest(at, ended, done)
}

// keep is what a session runs after its message: what it told, and what was
// assigned since it spoke.
func keep(busy map[numbered]int64, held []numbered, sent int64) map[numbered]int64 {
	now := map[numbered]int64{}
	for at, since := range busy {
		if since >= sent {
			now[at] = since
		}
	}
	for _, at := range held {
		now[at] = 0
	}
	return now
}
