package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
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
//
// Two cells, one of them filled once, take turns, so that whatever else the
// machine does hits both alike.
func benchTakeover(ctx context.Context, o options, r *report) (err error) {
	var cells [2]nodes
	for i := range cells {
		if cells[i], err = startNodes(ctx, o, 3, nil); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, cells[i].close()) }()
	}
	if err := submitMany(ctx, o, cells[1], o.backlog); err != nil {
		return err
	}
	times, err := takeovers(ctx, o, cells)
	if err != nil {
		return err
	}
	empty, full := times[0], times[1]
	note := func(all []time.Duration) string {
		return fmt.Sprintf("median of %d, from becoming leader; quartiles %.3g and %.3g ms", len(all), millis(all[len(all)/4]), millis(all[len(all)*3/4]))
	}
	a, b := empty[len(empty)/2], full[len(full)/2]
	r.add("takeover", "first lease, 0 waiting", millis(a), "ms", note(empty))
	r.add("takeover", fmt.Sprintf("first lease, %d waiting", o.backlog), millis(b), "ms", note(full))
	r.aim("takeover", "ratio", float64(b)/float64(a), takeoverAim, "", "aim: within 20 %")
	return nil
}

// takeovers times both cells in turn, now this one first and now that, and
// returns each one's times in order.
func takeovers(ctx context.Context, o options, cells [2]nodes) (times [2][]time.Duration, err error) {
	fmt.Fprintf(o.status, "bench: takeover: %d take-overs of each cell\n", o.rounds)
	for i := range 2 * o.rounds {
		k := (i + i/2) % 2 // 0 1 1 0 0 1 1 0
		if times[k], err = again(ctx, o, cells[k], times[k]); err != nil {
			return times, err
		}
	}
	slices.Sort(times[0])
	slices.Sort(times[1])
	return times, nil
}

// again adds one more take-over. One whose leader was deposed before its first
// lease is not counted: the disk stalled, and leadership moved on by itself.
func again(ctx context.Context, o options, cell nodes, all []time.Duration) ([]time.Duration, error) {
	for lost := 0; ; lost++ {
		d, err := takeover(ctx, cell)
		switch {
		case err == nil:
			return append(all, d), nil
		case !errors.Is(err, scheduler.ErrNotLeader) || lost == o.rounds:
			return nil, err
		}
	}
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
	if err := old.raft.Transfer(ctx, ""); err != nil {
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

// submitMany fills the queue with n tasks and tells how far it is. Where
// leadership moves on meanwhile, a task may be in it twice.
func submitMany(ctx context.Context, o options, cell nodes, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range 512 {
		group.Go(func() error {
			for next.Add(1) <= int64(n) {
				if err := submitOne(ctx, cell); err != nil {
					return err
				}
			}
			return nil
		})
	}
	done := make(chan error, 1)
	go func() { done <- group.Wait() }()
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
			fmt.Fprintf(o.status, "bench: takeover: %d of %d submitted\n", min(next.Load(), int64(n)), n)
		}
	}
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
