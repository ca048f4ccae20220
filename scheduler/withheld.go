package scheduler

import (
	"time"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// Pauses after a broker did not hand out a payload: of a queue, and of the cell.
// What fails again doubles them, up to what a broker that is back may wait for.
const (
	withholdFirst = 500 * time.Millisecond
	withholdMost  = 4 * time.Second
)

// brokerDown is how many queues in a row have an unreadable payload when it is no
// longer the topic that is taken to fail, but the broker.
const brokerDown = 3

// withheld is what waits because payloads can't be read. A topic that fails holds
// up its own queue and no other; one task of it is tried at a time, each time the
// next one: a payload that fails alone must not hold up those behind it.
type withheld struct {
	cell   *holdOff // nil while the broker answers
	queues map[fsm.Queue]*holdOff
	failed map[fsm.Queue]struct{}   // since a payload was read last
	tasks  map[string]time.Duration // pauses of tasks whose payload failed
}

// holdOff is a pause, and after it the one task that is tried.
type holdOff struct {
	until time.Time
	pause time.Duration
	tried string // "" while none is
}

func newWithheld() withheld {
	return withheld{queues: map[fsm.Queue]*holdOff{}, failed: map[fsm.Queue]struct{}{}, tasks: map[string]time.Duration{}}
}

func (h *holdOff) holds(now time.Time) bool {
	return h != nil && (h.tried != "" || now.Before(h.until))
}

func (h *holdOff) try(task string) {
	if h != nil {
		h.tried = task
	}
}

// again begins the next pause, or the first. What was under way when a pause
// began belongs to the failure that began it.
func (h *holdOff) again(task string, now time.Time) *holdOff {
	if h == nil {
		return &holdOff{until: now.Add(withholdFirst), pause: withholdFirst}
	}
	if h.tried == task {
		h.tried, h.pause = "", min(2*h.pause, withholdMost)
		h.until = now.Add(h.pause)
	}
	return h
}

// why says why nothing of a queue is dispatched now; "" when it may be.
func (w *withheld) why(q fsm.Queue, now time.Time) string {
	switch {
	case w.cell.holds(now):
		return "broker: no payloads can be read now"
	case w.queues[q].holds(now):
		return "broker: the payloads of this queue can't be read now"
	}
	return ""
}

// try notes that a task of the queue is granted: until it is known whether its
// payload can be read, no other is where payloads could not be.
func (w *withheld) try(q fsm.Queue, task string) {
	w.cell.try(task)
	w.queues[q].try(task)
}

// tried notes that the task that was tried told nothing: it has ended meanwhile.
func (w *withheld) tried(q fsm.Queue, task string) {
	for _, h := range []*holdOff{w.cell, w.queues[q]} {
		if h != nil && h.tried == task {
			h.tried = ""
		}
	}
}

// unreadable begins the pauses after a task's payload could not be read, and tells
// the task's own. One that fails again where others were read meanwhile fails by
// itself.
func (w *withheld) unreadable(q fsm.Queue, task string, now time.Time) time.Duration {
	if before := w.tasks[task]; before > 0 && w.queues[q] == nil {
		w.tried(q, task)
		w.tasks[task] = min(2*before, parkMost)
		return w.tasks[task]
	}
	w.failed[q] = struct{}{}
	w.queues[q] = w.queues[q].again(task, now)
	if w.cell != nil || len(w.failed) >= brokerDown {
		w.cell = w.cell.again(task, now)
	}
	w.tasks[task] = 2 * w.queues[q].pause // another is tried before it
	return w.tasks[task]
}

// readable ends the pauses: the task's payload was read, or is lost, which the
// broker must be there to say. It reports whether anything had waited for that.
func (w *withheld) readable(q fsm.Queue, task string) (back bool) {
	back = w.cell != nil || w.queues[q] != nil
	w.cell = nil
	delete(w.queues, q)
	delete(w.tasks, task)
	clear(w.failed)
	return back
}

// payloadToGrant reads the bytes of a task that is being granted. With ok false they
// can't be read now: undo takes the grant back, with the lock held, and the task
// waits.
func (l *leader) payloadToGrant(rec *meshv1.TaskRecord, undo func()) (payload []byte, ok bool, lost error) {
	payload, err := l.payload(l.ctx, rec)
	q, now := fsm.QueueOf(rec), time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil || isLost(err) {
		if l.withheld.cell != nil { // the broker is back, for all
			for id, p := range l.parked {
				if l.withheld.tasks[id] != 0 {
					p.until = now
				}
			}
		}
		if l.withheld.readable(q, rec.Id) {
			l.kick()
		}
		return payload, true, err
	}
	undo()
	l.withhold(rec, err, now)
	return nil, false, nil
}

// withhold puts a task aside whose bytes can't be read now.
func (l *leader) withhold(rec *meshv1.TaskRecord, err error, now time.Time) {
	q := fsm.QueueOf(rec)
	delete(l.granting, rec.Id)
	if is, ok := fsm.Task(l.State, rec.Id); !ok || is.State != uint32(isobarv1.TaskState_TASK_STATE_READY) {
		l.withheld.tried(q, rec.Id)
		return // nobody would forget it
	}
	pause := l.withheld.unreadable(q, rec.Id, now)
	l.Logger.Warn("payload not read", "task", rec.Id, "queue", q.String(), "again", pause, "cell_waits", l.withheld.cell != nil, "error", err)
	key := queueKey{Queue: q}
	if l.park(key, ref{task: rec.Id}, now, "") == noRoom {
		l.waiting.queue(key).add(ref{task: rec.Id})
		return
	}
	why := "broker: its payload can't be read now"
	p := l.parked[rec.Id]
	p.until, p.pause, p.why = now.Add(pause), pause, why
	l.noteBlocked(rec, why)
}
