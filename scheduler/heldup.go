package scheduler

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// Why tasks waited. A queue is served from its head, so what its head finds no room
// for holds up all that are ready behind it. The leader notes when that began and
// ended; a task's decision then says what of it fell into its own wait.

// keepSpans bounds what is noted of a queue; the oldest is forgotten first.
const keepSpans = 64

// span is a time in which one cause held a queue up, by the calendar.
type span struct {
	cause        string // what tells it from others
	why          string // in words, as it was last
	since, until time.Time
	open         bool // it goes on
}

// causeOf tells causes apart by what does not change while they last: the words
// of a pace name a rate that rises, those of a worker's room the head's cost.
func causeOf(why string) string {
	kind, _, _ := strings.Cut(why, ":")
	if kind == "concurrency" {
		return why
	}
	return kind
}

// holdUp notes that the queue's head finds no room, and why.
func (q *queue) holdUp(why string, at time.Time) {
	if n := len(q.spans); n > 0 {
		last := &q.spans[n-1]
		if last.cause == causeOf(why) && (last.open || !last.until.Before(at)) {
			last.why, last.until, last.open = why, at, true
			return
		}
		q.goesOn(at)
		if n == keepSpans {
			q.spans = append(q.spans[:0], q.spans[keepSpans/4:]...)
		}
	}
	q.spans = append(q.spans, span{cause: causeOf(why), why: why, since: at, until: at, open: true})
}

// goesOn notes that the queue's head found its place.
func (q *queue) goesOn(at time.Time) {
	if n := len(q.spans); n > 0 && q.spans[n-1].open {
		q.spans[n-1].until, q.spans[n-1].open = at, false
	}
}

// heldUp is what held up a task that became ready then, each cause once.
func (q *queue) heldUp(ready, now time.Time) []*isobarv1.Held {
	var out []*isobarv1.Held
	at := map[string]*isobarv1.Held{}
	for _, s := range q.spans {
		if s.open {
			s.until = now
		}
		if s.since.Before(ready) {
			s.since = ready
		}
		lasted := s.until.Sub(s.since)
		if lasted < time.Millisecond {
			continue
		}
		h := at[s.cause]
		if h == nil {
			h = heldFor(s.why, s.since, 0)
			at[s.cause] = h
			out = append(out, h)
		}
		h.Why, h.Lasted = s.why, durationpb.New(h.Lasted.AsDuration()+lasted)
	}
	return out
}

func heldFor(why string, since time.Time, lasted time.Duration) *isobarv1.Held {
	kind, _, _ := strings.Cut(why, ":")
	return &isobarv1.Held{Cause: kind, Why: why, Since: timestamppb.New(since), Lasted: durationpb.New(lasted)}
}

// heldUp is what held a ready task up so far: what held its queue up, and the
// constraint that ruled every place out for it alone. The caller holds the lock.
func (l *leader) heldUp(rec *meshv1.TaskRecord, now time.Time) []*isobarv1.Held {
	var out []*isobarv1.Held
	wall := l.clock.wall(now)
	if rec.Blocked != "" && rec.BlockedMs > 0 {
		since := time.UnixMilli(rec.BlockedMs)
		out = append(out, heldFor(rec.Blocked, since, wall.Sub(since)))
	}
	if q := l.waiting.queues[queueKey{Queue: fsm.QueueOf(rec)}]; q != nil {
		out = append(out, q.heldUp(time.UnixMilli(rec.ReadyMs), wall)...)
	}
	return out
}

// HeldUp is what holds a ready task of this cell up; none when another server
// leads.
func (s *Scheduler) HeldUp(rec *meshv1.TaskRecord) []*isobarv1.Held {
	l := s.current()
	if l == nil || fsm.State(rec) != isobarv1.TaskState_TASK_STATE_READY {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heldUp(rec, time.Now())
}

// QueuesHeld counts the queues whose head waits, by cause: function and tenant for
// their bounds on concurrency, else paced, cost, room, paused, broker or leader. It
// is empty when another server leads.
func (s *Scheduler) QueuesHeld() map[string]int {
	l := s.current()
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]int{}
	for _, q := range l.waiting.queues {
		n := len(q.spans)
		if n == 0 || !q.spans[n-1].open {
			continue
		}
		cause := q.spans[n-1].cause
		if of, ok := strings.CutPrefix(cause, "concurrency: "); ok {
			cause, _, _ = strings.Cut(of, " ")
		}
		out[cause]++
	}
	return out
}
