package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

// Worker runs attempts for one cell. Make it with New.
type Worker struct {
	opts      Options
	session   string
	pid       int64
	log       *slog.Logger
	tracer    trace.Tracer
	closeIdle func()

	ran    atomic.Bool
	events chan event
	done   chan struct{}
	counts counters

	// Below belongs to the loop.
	table    *table
	warm     warmSet
	link     *link
	draining bool
	// killBy ends the patience with running attempts while draining, leaveBy
	// that with everything.
	killBy, leaveBy time.Time
	closing         bool
}

// ErrRan is returned by the second call of Run.
var ErrRan = errors.New("worker: run: was run before")

// ErrStuck is returned by Run when an attempt did not end although it was
// killed; it is left behind in the process.
var ErrStuck = errors.New("attempt did not end when killed")

// Run connects to the cell and works until ctx ends. Then it takes nothing
// new, lets the running attempts go on for DrainTimeout, kills the rest, hands
// over every result it can and returns. A worker without a cell keeps trying;
// Run returns no error for that. It may be called once.
func (w *Worker) Run(ctx context.Context) error {
	if !w.ran.CompareAndSwap(false, true) {
		return ErrRan
	}
	links, stop := context.WithCancel(context.WithoutCancel(ctx))
	var connector sync.WaitGroup
	connector.Go(func() { w.connect(links) })
	w.log.Info("worker starts", "session", w.session, "addresses", w.opts.Addresses, "runtimes", w.opts.runtimes())
	err := w.loop(ctx)
	close(w.done)
	stop()
	connector.Wait()
	if w.closeIdle != nil {
		w.closeIdle()
	}
	w.log.Info("worker left", "error", err)
	return err
}

// Session is the id of this worker's session.
func (w *Worker) Session() string { return w.session }

// loop owns all state. It ends when the worker has drained.
func (w *Worker) loop(ctx context.Context) error {
	stop := ctx.Done()
	for {
		now := time.Now()
		w.tick(now)
		if w.left(now) {
			return w.leave()
		}
		timer := time.NewTimer(w.next(now).Sub(now))
		select {
		case <-stop:
			stop = nil
			w.drain(time.Now())
		case e := <-w.events:
			w.handle(e, time.Now())
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (w *Worker) handle(e event, now time.Time) {
	switch {
	case e.job != nil:
		w.ended(e.job, e.outcome, e.warm, now)
	case e.attached:
		w.attach(e.link, now)
	case e.link != w.link:
		// An event of a stream that was given up.
	case e.detached:
		w.detach()
	default:
		w.receive(e.msg, now)
	}
}

// tick does everything that is due.
func (w *Worker) tick(now time.Time) {
	if w.draining && !w.killBy.After(now) {
		for _, j := range w.table.running() {
			w.kill(j, attempt.Lost, "the worker is stopping", now)
		}
	}
	for _, j := range w.table.order {
		switch {
		case !j.running():
		case !j.killed.IsZero():
			if !j.stuck && now.Sub(j.killed) >= w.opts.KillGrace {
				j.stuck = true
				w.jobLog(j).Error("attempt did not end when killed", "grace", w.opts.KillGrace)
			}
		case !j.killAt.IsZero() && !j.killAt.After(now):
			w.counts.leasesLost.Add(1)
			w.kill(j, attempt.Lost, "its lease was not confirmed in time", now)
		}
	}
	if w.link != nil {
		w.tend(w.link, now)
	}
}

// tend does what is due on the stream.
func (w *Worker) tend(l *link, now time.Time) {
	if at := l.silentAt(); !at.IsZero() && !at.After(now) {
		l.cancel(fmt.Errorf("worker: no answer from %s", l.address))
		w.detach()
		return
	}
	if !l.up {
		return
	}
	if l.pendingAt.IsZero() && !l.nextExtend.After(now) {
		w.extend(l, now)
	}
	for _, j := range w.table.order {
		if j.outcome != nil && !j.invoke && (j.sentOn != l || now.Sub(j.sentAt) >= l.patience()) {
			w.sendResult(j, l, now)
		}
	}
}

// idle is how long the loop sleeps when nothing at all is due.
const idle = time.Minute

// next is when something becomes due; never before now.
func (w *Worker) next(now time.Time) time.Time {
	at := now.Add(idle)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	if w.draining {
		earlier(w.leaveBy)
		if w.killBy.After(now) {
			earlier(w.killBy)
		}
	}
	for _, j := range w.table.order {
		switch {
		case j.outcome != nil:
			if l := w.link; l != nil && l.up && !j.invoke {
				earlier(j.sentAt.Add(l.patience()))
			}
		case j.killed.IsZero():
			earlier(j.killAt)
		case !j.stuck:
			earlier(j.killed.Add(w.opts.KillGrace))
		}
	}
	if l := w.link; l != nil {
		earlier(l.silentAt())
		if l.up && l.pendingAt.IsZero() {
			earlier(l.nextExtend)
		}
	}
	if at.Before(now) {
		return now
	}
	return at
}

// drain begins the end: nothing new is taken from here on.
func (w *Worker) drain(now time.Time) {
	w.draining = true
	w.killBy = now.Add(max(w.opts.DrainTimeout, 0))
	// One grace for what is killed to end, one to hand the results over.
	w.leaveBy = w.killBy.Add(2 * w.opts.KillGrace)
	w.log.Info("worker drains", "running", len(w.table.running()), "timeout", w.opts.DrainTimeout)
	if w.link != nil && len(w.table.running()) > 0 {
		// A hello with an empty offer keeps the cell from choosing this worker
		// again and again while the last attempts run.
		w.link.cancel(errAnnounce)
		w.detach()
	}
}

// left reports whether the loop may end. When the work is over it first ends
// the stream in order, so that the cell sees the worker leave.
func (w *Worker) left(now time.Time) bool {
	if !w.draining {
		return false
	}
	if !w.leaveBy.After(now) {
		return true
	}
	if len(w.table.order) > 0 {
		return false
	}
	if w.link == nil || !w.link.up {
		return true
	}
	if !w.closing {
		w.closing = true
		w.leaveBy = now.Add(min(w.leaveBy.Sub(now), w.opts.KillGrace))
		w.link.close()
	}
	return false
}

func (w *Worker) leave() error {
	if n := len(w.table.running()); n > 0 {
		return fmt.Errorf("worker: leave: %d running: %w", n, ErrStuck)
	}
	if n := len(w.table.order); n > 0 {
		w.log.Warn("results were not handed over", "count", n)
	}
	return nil
}

// attach makes a fresh stream the worker's and says hello on it.
func (w *Worker) attach(l *link, now time.Time) {
	if w.link != nil {
		w.link.cancel(nil)
		w.detach()
	}
	w.link = l
	l.opened = now
	l.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Hello{Hello: &isobarv1.Hello{
		Worker:  w.opts.Name,
		Session: w.session,
		Offer:   w.offer(),
		Held:    w.table.leases(false),
		Pid:     w.pid,
	}}})
}

// detach forgets the stream. Leases go on until they run out, invokes until
// another server says welcome.
func (w *Worker) detach() { w.link = nil }
