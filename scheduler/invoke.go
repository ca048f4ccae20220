package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// Invoke is the other path: synchronous, not durable, for latency. It goes
// through the same placement straight to a worker and touches neither the log
// nor the disk.

// invokePrefix begins the name of each call, so that none is a task's.
const invokePrefix = "invoke-"

// invocation is one Invoke on a worker of this cell.
type invocation struct {
	done chan *isobarv1.Outcome
}

func (i *invocation) end(o *isobarv1.Outcome) {
	select {
	case i.done <- o:
	default:
	}
}

// Invocation is what Invoke is asked.
type Invocation struct {
	Function    *isobarv1.Function
	Payload     []byte
	ContentType string
	Residency   mesh.Residency
	MinQuality  float64
	Timeout     time.Duration
	Traceparent string
	Cost        *isobarv1.Cost
}

// Invoked is its answer.
type Invoked struct {
	Outcome *isobarv1.Outcome
	Cell    mesh.CellID
	Worker  string
	Variant string
	Why     string
}

// Invoke places and runs one call. When the place refuses, the next candidate
// is tried, once; what may have begun to run is never run again.
func (s *Scheduler) Invoke(ctx context.Context, in Invocation) (*Invoked, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	if err := l.callPaced(in.Function.Spec); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, in.Timeout)
	defer cancel()
	var avoid []mesh.CellID
	for try := 0; ; try++ {
		l.mu.Lock()
		d := l.decideInvoke(in, avoid)
		l.mu.Unlock()
		if d.Chosen == nil {
			return nil, infeasible(&d)
		}
		out, err := l.invokeAt(ctx, in, &d)
		if err == nil {
			l.ended(in.Function.Spec.Tenant, in.Function.Spec.Name, out.Outcome.GetStatus())
			out.Why = d.Summary()
			return out, nil
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, &Refusal{
				Reason: TimedOut, Message: fmt.Sprintf("%s did not answer within %s", in.Function.Spec.Name, in.Timeout), Unknown: true, Err: err,
				Hint: "allow more time, at most the function's own timeout of " + in.Function.Spec.Timeout.AsDuration().String(),
			}
		}
		if try == 1 || ctx.Err() != nil || !notTaken(err) {
			return nil, err
		}
		avoid = append(avoid, d.Chosen.Cell)
	}
}

// callPaced counts a call of a function that has a pace, or refuses it: nobody
// waits in a line of calls.
func (l *leader) callPaced(spec *isobarv1.FunctionSpec) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	why, wait := l.paced(spec.Tenant, spec.Name, time.Now())
	if why != "" {
		return &Refusal{Reason: Paced, Message: why, RetryAfter: wait, Hint: "wait and try again, or submit it as a task, which waits"}
	}
	l.started(spec.Tenant, spec.Name)
	return nil
}

// notTaken reports whether the call certainly did not begin to run.
func notTaken(err error) bool {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Reason == NoRoom
	}
	return errors.Is(err, ErrNotTaken)
}

func (l *leader) decideInvoke(in Invocation, avoid []mesh.CellID) placement.Decision {
	now := time.Now()
	l.view.refresh(now, l)
	l.view.own(l)
	t := placement.Task{
		Function: in.Function.Spec.Name, Lane: mesh.Interactive, Home: l.Cell.ID, Variants: l.learned.variants(in.Function),
		InputBytes: int64(len(in.Payload)), OutputBytes: l.learned.output(in.Function.Version), Residency: in.Residency,
		MinQuality: in.MinQuality, Avoid: avoid, Cost: fsm.CostOf(in.Cost, uint64(len(in.Payload))),
	}
	return l.view.decider.Decide(t, l.view.priced(t.Lane), l.Policy, l.clock.wall(now), placement.Options{})
}

func (l *leader) invokeAt(ctx context.Context, in Invocation, d *placement.Decision) (*Invoked, error) {
	a := &isobarv1.Assignment{
		TaskId: invokePrefix + newULID(), Attempt: 1, Tenant: in.Function.Spec.Tenant, Function: in.Function.Spec.Name,
		Version: in.Function.Version, Variant: variantOf(in.Function, d.Chosen.Variant), Env: in.Function.Spec.Env,
		Timeout: durationpb.New(in.Timeout), Payload: in.Payload, ContentType: in.ContentType, Traceparent: in.Traceparent, Invoke: true, Cost: in.Cost,
	}
	if dl, ok := ctx.Deadline(); ok {
		a.Deadline = timestamppb.New(dl)
	}
	out := &Invoked{Cell: d.Chosen.Cell, Variant: d.Chosen.Variant}
	if d.Chosen.Cell == l.Cell.ID {
		var err error
		out.Outcome, out.Worker, err = l.invokeLocal(ctx, a)
		return out, err
	}
	res, err := l.Peers.Invoke(ctx, d.Chosen.Cell, &meshv1.CellInvokeRequest{
		Home: string(l.Cell.ID), Assignment: a, Allowed: in.Residency.Allowed, Denied: in.Residency.Denied,
	})
	if err != nil {
		return nil, err
	}
	out.Outcome, out.Worker = res.Outcome, res.Worker
	return out, nil
}

// invokeLocal runs one call on a worker of this cell.
func (l *leader) invokeLocal(ctx context.Context, a *isobarv1.Assignment) (*isobarv1.Outcome, string, error) {
	takes := demand(a.Variant)
	takes.Cost = fsm.CostOf(a.Cost, uint64(len(a.Payload)))
	l.mu.Lock()
	s := l.pickSession(a.Function, a.Variant, takes, true)
	if s == nil || l.closed {
		l.mu.Unlock()
		return nil, "", l.noRoomFor(a.Function)
	}
	inv := &invocation{done: make(chan *isobarv1.Outcome, 1)}
	l.invokes[a.TaskId] = inv
	run := l.occupy(s, ref{a.TaskId, a.Attempt}, a.Function, a.Variant, takes)
	run.invoke = true
	l.hold(run.ref, a.Tenant, a.Function, run.demand, false)
	worker := s.worker
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.invokes, a.TaskId)
		l.release(run)
		l.letGoOf(run.ref)
		l.mu.Unlock()
	}()
	if !l.deliver(run, a) {
		return nil, worker, l.noRoomFor(a.Function) // its worker went away: nothing ran
	}
	select {
	case o := <-inv.done:
		switch {
		case o == nil:
			return nil, worker, &Refusal{
				Reason: OutcomeUnknown, Message: "this server leads its cell no longer; " + a.Function + " may have run", Unknown: true,
				Hint: "call it again if it may run twice",
			}
		case o.GetStatus() == "undelivered" || o.GetStatus() == "refused":
			return nil, worker, l.noRoomFor(a.Function)
		}
		l.learned.add(a.Version, a.Variant.Name, o.GetRunTime().AsDuration(), o.GetColdStart().AsDuration(), len(o.GetResult()), o.GetStatus() == "done")
		return o, worker, nil
	case <-ctx.Done():
		l.mu.Lock()
		run.session.send(stopMessage(run.ref))
		l.mu.Unlock()
		return nil, worker, fmt.Errorf("scheduler: invoke %s: %w", a.Function, ctx.Err())
	}
}

func (l *leader) noRoomFor(function string) *Refusal {
	return &Refusal{
		Reason: NoRoom, Message: "no worker of " + string(l.Cell.ID) + " is free for " + function,
		Hint: "submit it as a task, which waits, or add workers", RetryAfter: 200 * time.Millisecond,
	}
}

func (l *leader) endInvoke(id string, o *isobarv1.Outcome) {
	if inv := l.invokes[id]; inv != nil {
		inv.end(o)
	}
}

// GuestInvoke runs another cell's synchronous call here.
func (s *Scheduler) GuestInvoke(ctx context.Context, r *meshv1.CellInvokeRequest) (*meshv1.CellInvokeResponse, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	if !l.Cell.Within(mesh.Residency{Allowed: r.Allowed, Denied: r.Denied}) {
		return nil, &Refusal{Reason: ResidencyForbids, Message: string(l.Cell.ID) + " lies outside the call's residency"}
	}
	a := r.GetAssignment()
	if a.GetVariant() == nil || !a.Invoke || !strings.HasPrefix(a.TaskId, invokePrefix) {
		return nil, &Refusal{Reason: BadRequest, Message: "not an invocation"}
	}
	o, worker, err := l.invokeLocal(ctx, a)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return &meshv1.CellInvokeResponse{Outcome: o, Worker: worker, Digest: l.digestLocked(time.Now())}, nil
}

// Invocation validates a call that is to be run now.
func (s *Scheduler) Invocation(sub Submission) (*Invocation, error) {
	if n := len(sub.Payload); n > mesh.MaxPayload {
		return nil, &Refusal{
			Reason: PayloadTooLarge, Field: "payload", Message: fmt.Sprintf("a payload of %d bytes is above %d", n, mesh.MaxPayload),
			Hint: "put large inputs where the function can read them and pass the place",
		}
	}
	res, err := s.Residency(sub.Spec)
	if err != nil {
		return nil, err
	}
	fn, err := s.Registry.Function(sub.Spec.Tenant, sub.Spec.Function)
	if err != nil {
		return nil, err
	}
	if !s.Cell.Within(res) {
		return nil, s.elsewhere(res)
	}
	return &Invocation{
		Function: fn, Payload: sub.Payload, ContentType: sub.ContentType, Residency: res, MinQuality: sub.Spec.MinQuality,
		Timeout: fn.Spec.Timeout.AsDuration(), Traceparent: sub.Traceparent, Cost: sub.Spec.Cost,
	}, nil
}
