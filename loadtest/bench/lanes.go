package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/fairness"
)

// Of the lanes' measurement: places of the worker, and how long each attempt
// stays on one.
const (
	laneSlots = 8
	laneTask  = 20 * time.Millisecond
)

// benchLanes measures what a backlog and a flood do to those who are promised
// that they do nothing, in the state machine, log and store of one server:
//
//   - the wait of critical tasks, with no and with a whole backlog of batch work;
//   - what batch gets while critical work never ends;
//   - the wait of a quiet tenant, with no and with a flooding tenant in its lane;
//   - a step of the order, over one and over ten thousand queues.
func benchLanes(ctx context.Context, o options, r *report) (err error) {
	for _, n := range []int{1, 10_000} {
		r.add("lanes", fmt.Sprintf("next of %d queues", n), float64(timeOrder(o.span/10, n))/float64(time.Nanosecond), "ns", "pick, charge and give back; 1,000 tenants at most")
	}
	cell, err := startNodes(ctx, o, 1, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cell.close()) }()
	w, err := openSlots(ctx, cell[0])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	critical := lanedTask{tenant: "default", lane: mesh.Critical}
	quiet := lanedTask{tenant: "quiet", lane: mesh.Standard}
	before, err := w.waits(ctx, critical, o.span)
	if err != nil {
		return err
	}
	alone, err := w.waits(ctx, quiet, o.span)
	if err != nil {
		return err
	}
	for _, x := range []lanedTask{{"default", mesh.Batch}, {"flood", mesh.Standard}} {
		fmt.Fprintf(o.status, "bench: lanes: submitting %d tasks (%s)\n", o.backlog, x.lane)
		if err := w.submitMany(ctx, x, o.backlog); err != nil {
			return err
		}
	}
	behind, err := w.waits(ctx, critical, o.span)
	if err != nil {
		return err
	}
	flooded, err := w.waits(ctx, quiet, o.span)
	if err != nil {
		return err
	}
	note := fmt.Sprintf("submit to lease, p99; %d places, %s a task", laneSlots, laneTask)
	r.add("lanes", "critical, 0 waiting", millis(before), "ms", note)
	r.aim("lanes", fmt.Sprintf("critical, %d batch waiting", o.backlog), millis(behind), millis(before+laneTask), "ms", note+"; aim: at most one task's time more")
	r.add("lanes", "quiet tenant alone", millis(alone), "ms", note)
	r.aim("lanes", fmt.Sprintf("quiet tenant, %d of another waiting", o.backlog), millis(flooded), millis(alone+laneTask), "ms", note+"; aim: at most one task's time more")
	share, err := w.saturate(ctx, critical, mesh.Batch, o.span)
	if err != nil {
		return err
	}
	// Critical, standard (the flood) and batch have work: one of 69.
	r.aim("lanes", "turns of 69 for each of batch", 1/(69*share), 1.1, "", "while critical and standard work never ends; aim: 1")
	return nil
}

// timeOrder is how long one step of the order takes over n queues with work.
func timeOrder(span time.Duration, n int) time.Duration {
	o := fairness.New[int](func(string) float64 { return 1 })
	o.Capacity(mesh.Capacity{CPUMilli: 64_000, MemoryMiB: 1 << 18})
	now := time.Now()
	owners := make([]string, n)
	for i := range n {
		owners[i] = fmt.Sprint("t", i%1000)
		o.Want(i, owners[i], mesh.Lane(i%4), now)
	}
	d := mesh.Demand{CPUMilli: 1000, MemoryMiB: 256}
	steps, start := 0, time.Now()
	for end := start.Add(span); now.Before(end); steps++ {
		now = time.Now()
		q, _ := o.Next(now)
		o.Served(now)
		o.Take(owners[q], d, now)
		o.Give(owners[q], d, now)
	}
	return time.Since(start) / time.Duration(max(steps, 1))
}

type lanedTask struct {
	tenant string
	lane   mesh.Lane
}

// slots is a worker with a few places, whose attempts take their time.
type slots struct {
	x       *node
	session *scheduler.Session
	stop    context.CancelFunc
	ended   chan error
	mu      sync.Mutex
	leased  map[string]time.Time // of tasks that are waited for
	waiting map[string]chan struct{}
	byLane  [4]atomic.Int64
}

func openSlots(ctx context.Context, x *node) (*slots, error) {
	for !x.sched.Leading() {
		if err := pause(ctx, time.Millisecond); err != nil {
			return nil, err
		}
	}
	each := noopFunction().Spec.Variants[0].Resources.Cpu
	session, err := x.sched.Open(&isobarv1.Hello{
		Worker: "w", Session: "w-slots", Offer: &isobarv1.Offer{Cpu: laneSlots * each, MemoryMib: 1 << 20, Runtimes: []string{"wasm"}},
	})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	w := &slots{x: x, session: session, stop: stop, ended: make(chan error, 1), leased: map[string]time.Time{}, waiting: map[string]chan struct{}{}}
	go func() { w.ended <- w.serve(ctx) }()
	return w, nil
}

func (w *slots) close() error {
	w.stop()
	err := <-w.ended
	w.session.Close()
	return err
}

// serve takes assignments and completes each after its time.
func (w *slots) serve(ctx context.Context) error {
	for {
		m, err := w.session.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was told to stop
		case err != nil:
			return err
		}
		a := m.GetAssign()
		if a == nil {
			continue
		}
		w.mu.Lock()
		if ch := w.waiting[a.TaskId]; ch != nil {
			close(ch)
			delete(w.waiting, a.TaskId)
		} else {
			w.leased[a.TaskId] = time.Now()
		}
		w.mu.Unlock()
		lane := a.Payload[0]
		time.AfterFunc(laneTask, func() {
			_, err := w.x.sched.Complete(ctx, &isobarv1.CompleteRequest{
				Worker: "w", Lease: &isobarv1.LeaseRef{TaskId: a.TaskId, Attempt: a.Attempt},
				Outcome: &isobarv1.Outcome{Status: "done", RunTime: durationpb.New(laneTask)},
			})
			if err == nil {
				w.byLane[lane].Add(1)
			}
		})
	}
}

func (w *slots) submit(ctx context.Context, t lanedTask) (string, error) {
	payload := make([]byte, payloadBytes)
	payload[0] = byte(t.lane)
	got, err := w.x.sched.Submit(ctx, scheduler.Submission{
		Spec: &isobarv1.TaskSpec{Tenant: t.tenant, Function: function, Lane: t.lane.String()}, Payload: payload,
	})
	if err != nil {
		return "", err
	}
	return got.TaskID, nil
}

// waits submits tasks one after the other for the span, and tells the 99th
// percentile of the time from Submit's answer to the lease.
func (w *slots) waits(ctx context.Context, t lanedTask, span time.Duration) (time.Duration, error) {
	var all []time.Duration
	for end := time.Now().Add(span); time.Now().Before(end); {
		id, err := w.submit(ctx, t)
		if err != nil {
			return 0, err
		}
		start := time.Now()
		w.mu.Lock()
		_, here := w.leased[id]
		clear(w.leased) // of tasks nobody waits for
		ch := make(chan struct{})
		if !here {
			w.waiting[id] = ch
		}
		w.mu.Unlock()
		if here {
			all = append(all, 0)
			continue
		}
		select {
		case <-ch:
			all = append(all, time.Since(start))
		case <-time.After(time.Minute):
			return 0, fmt.Errorf("task %s: %w: not leased in a minute", id, errNotDone)
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	slices.Sort(all)
	return all[len(all)*99/100], nil
}

func (w *slots) submitMany(ctx context.Context, t lanedTask, n int) error {
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wait sync.WaitGroup
	for range 256 {
		wait.Go(func() {
			for next.Add(1) <= int64(n) && failed.Load() == nil {
				if _, err := w.submit(ctx, t); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wait.Wait()
	if p := failed.Load(); p != nil {
		return *p
	}
	return nil
}

// saturate keeps a lane full for the span, and tells what part of what ended was
// of another lane.
func (w *slots) saturate(ctx context.Context, t lanedTask, other mesh.Lane, span time.Duration) (float64, error) {
	if err := w.submitMany(ctx, t, 2*int(span/laneTask)*laneSlots); err != nil {
		return 0, err
	}
	count := func() (all, of int64) {
		for lane := range w.byLane {
			all += w.byLane[lane].Load()
		}
		return all, w.byLane[other].Load()
	}
	all, of := count()
	if err := pause(ctx, span); err != nil {
		return 0, err
	}
	allAfter, ofAfter := count()
	if allAfter == all {
		return 0, errNotDone
	}
	return float64(ofAfter-of) / float64(allAfter-all), nil
}
