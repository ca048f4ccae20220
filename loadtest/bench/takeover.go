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

	"github.com/isobar-mesh/isobar/consensus"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
)

// takeoverAim is how much longer a take-over with a backlog may last.
const takeoverAim = 1.2

// benchTakeover measures the time from becoming leader to the first lease, in
// the hands of a worker, without and with a backlog. A worker waits at each
// server's door, so that no reconnect counts. Leadership moves by transfer.
func benchTakeover(ctx context.Context, o options, r *report) error {
	cell, err := startNodes(ctx, o, 3, nil)
	if err != nil {
		return err
	}
	err = takeovers(ctx, o, r, cell)
	return errors.Join(err, cell.close())
}

func takeovers(ctx context.Context, o options, r *report, cell nodes) error {
	empty, err := medianTakeover(ctx, o, cell)
	if err != nil {
		return err
	}
	fmt.Fprintf(o.status, "bench: takeover: submitting %d tasks\n", o.backlog)
	if err := submitMany(ctx, cell, o.backlog); err != nil {
		return err
	}
	full, err := medianTakeover(ctx, o, cell)
	if err != nil {
		return err
	}
	note := fmt.Sprintf("median of %d, from becoming leader", o.rounds)
	r.add("takeover", "first lease, 0 waiting", millis(empty), "ms", note)
	r.add("takeover", fmt.Sprintf("first lease, %d waiting", o.backlog), millis(full), "ms", note)
	r.aim("takeover", "ratio", float64(full)/float64(empty), takeoverAim, "", "aim: within 20 %")
	return nil
}

func medianTakeover(ctx context.Context, o options, cell nodes) (time.Duration, error) {
	var all []time.Duration
	for lost := 0; len(all) < o.rounds; {
		d, err := takeover(ctx, cell)
		switch {
		case err == nil:
			all = append(all, d)
		case errors.Is(err, scheduler.ErrNotLeader) && lost < o.rounds:
			lost++ // the disk stalled and leadership moved on by itself
		default:
			return 0, err
		}
	}
	slices.Sort(all)
	return all[len(all)/2], nil
}

// leader is the node that leads and has taken the lead up.
func (c nodes) leader(ctx context.Context) (*node, error) {
	for {
		for _, x := range c {
			if x.sched.Leading() {
				return x, nil
			}
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return nil, fmt.Errorf("wait for a leader: %w", err)
		}
	}
}

// takeover lets one task wait, moves leadership, and times the new leader.
func takeover(ctx context.Context, cell nodes) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := submitOne(ctx, cell); err != nil {
		return 0, err
	}
	old, err := cell.leader(ctx)
	if err != nil {
		return 0, err
	}
	done := make(chan time.Duration, len(cell))
	failed := make(chan error, len(cell))
	var watching sync.WaitGroup
	for _, x := range cell {
		if x == old {
			continue
		}
		watching.Go(func() {
			d, err := x.firstLease(ctx)
			switch {
			case err == nil:
				done <- d
			case ctx.Err() == nil:
				failed <- err
			}
		})
	}
	defer watching.Wait()
	defer cancel()
	if err := old.raft.Transfer(ctx); err != nil {
		return 0, err
	}
	select {
	case d := <-done:
		return d, nil
	case err := <-failed:
		return 0, err
	case <-ctx.Done():
		return 0, fmt.Errorf("no lease after a change of leader: %w", context.Cause(ctx))
	}
}

// firstLease waits until the node leads, opens a session as soon as it lets it,
// and returns when an attempt has arrived; it is completed, so that the backlog
// stays as it is.
func (x *node) firstLease(ctx context.Context) (time.Duration, error) {
	for x.raft.Status().Role != consensus.Leader {
		if err := pause(ctx, 200*time.Microsecond); err != nil {
			return 0, err
		}
	}
	start := time.Now()
	var session *scheduler.Session
	for {
		var err error
		session, err = x.sched.Open(&isobarv1.Hello{
			Worker: "w", Session: fmt.Sprintf("w-%d", start.UnixNano()),
			Offer: &isobarv1.Offer{Cpu: 0.01, MemoryMib: 1, Runtimes: []string{"wasm"}},
		})
		if err == nil {
			break
		}
		if !errors.Is(err, scheduler.ErrNotLeader) {
			return 0, err
		}
		if err := pause(ctx, 200*time.Microsecond); err != nil {
			return 0, err
		}
	}
	defer session.Close()
	for {
		m, err := session.Next(ctx)
		if err != nil {
			return 0, err
		}
		a := m.GetAssign()
		if a == nil {
			continue
		}
		took := time.Since(start)
		_, err = x.sched.Complete(ctx, &isobarv1.CompleteRequest{
			Worker: "w", Lease: &isobarv1.LeaseRef{TaskId: a.TaskId, Attempt: a.Attempt},
			Outcome: &isobarv1.Outcome{Status: "done", RunTime: durationpb.New(time.Microsecond)},
		})
		return took, err
	}
}

func submission() scheduler.Submission {
	return scheduler.Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: function}, Payload: make([]byte, payloadBytes)}
}

// submitMany fills the queue with n tasks. Where leadership moves on meanwhile,
// a task may be in it twice.
func submitMany(ctx context.Context, cell nodes, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wait sync.WaitGroup
	for range 512 {
		wait.Go(func() {
			for next.Add(1) <= int64(n) && failed.Load() == nil {
				if err := submitOne(ctx, cell); err != nil {
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

// submitOne submits until it is accepted.
func submitOne(ctx context.Context, cell nodes) error {
	for {
		x, err := cell.leader(ctx)
		if err != nil {
			return err
		}
		if _, err = x.sched.Submit(ctx, submission()); err == nil {
			return nil
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return err
		}
	}
}
