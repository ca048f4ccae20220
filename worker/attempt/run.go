package attempt

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Kill is the cause of a killed attempt. A caller that cancels a Run's context
// may pass one as the cause; the Outcome repeats it.
type Kill struct {
	Reason  Reason
	Message string
}

func (k *Kill) Error() string { return k.Message }

// Window bounds one attempt in time. It returns the context to run under,
// which ends with ctx, and the moment the attempt must be over: the earlier of
// now + limits.Timeout and deadline, when that is set. cancel must be called
// when the attempt is over; before that it kills the attempt for the given
// cause.
func Window(ctx context.Context, limits Limits, deadline, now time.Time) (_ context.Context, until time.Time, cancel context.CancelCauseFunc) {
	until = now.Add(limits.Timeout)
	kill := &Kill{Timeout, fmt.Sprintf("ran longer than its timeout of %s", limits.Timeout)}
	if !deadline.IsZero() && deadline.Before(until) {
		until = deadline
		kill = &Kill{Timeout, fmt.Sprintf("ran past its deadline %s", deadline.UTC().Format(time.RFC3339Nano))}
	}
	ctx, end := context.WithCancelCause(ctx)
	ctx, stop := context.WithDeadlineCause(ctx, until, kill)
	return ctx, until, func(cause error) {
		end(cause)
		stop()
	}
}

// KillOf reads why an ended context killed the attempt. ctx must have ended.
func KillOf(ctx context.Context) *Kill {
	cause := context.Cause(ctx)
	if k, ok := errors.AsType[*Kill](cause); ok {
		return k
	}
	if errors.Is(cause, context.DeadlineExceeded) {
		return &Kill{Timeout, "ran past its time"}
	}
	if cause == nil || cause.Error() == context.Canceled.Error() { // A wrapped one says more.
		return &Kill{Cancelled, "was cancelled"}
	}
	return &Kill{Cancelled, "was cancelled: " + cause.Error()}
}

// Settle fills in what an exit code means. It leaves the rest of o alone.
func (o *Outcome) Settle(exitCode int) {
	o.ExitCode = exitCode
	switch exitCode {
	case 0:
		o.Status, o.Reason, o.Message = Done, "", ""
	case ExitRetry:
		o.Status, o.Reason, o.Message = Retry, Exit, fmt.Sprintf("exit code %d: asks to be tried again", ExitRetry)
	default:
		o.Status, o.Reason, o.Message = Failed, Exit, fmt.Sprintf("exit code %d", exitCode)
	}
}

// Kill fills in an attempt that was killed, or in the case of TooLarge failed:
// the same input would give the same result again.
func (o *Outcome) Kill(k *Kill) {
	o.Status, o.Reason, o.Message = Killed, k.Reason, k.Message
	if k.Reason == TooLarge {
		o.Status = Failed
	}
	o.Result, o.ExitCode = nil, -1
}

// Unable is the outcome of an attempt whose function was never run. Retry is
// for what may be better soon, Failed for what will not.
func Unable(status Status, reason Reason, err error, now time.Time) Outcome {
	return Outcome{Status: status, Reason: reason, Message: err.Error(), ExitCode: -1, Started: now, Ended: now}
}

// Environ is the whole environment of a function, but for the PATH of a
// command: what the contract names, then what the manifest does. until is the
// end of the attempt's Window.
func Environ(spec Spec, in Input, until time.Time) []Var {
	env := []Var{
		{"ISOBAR_TASK_ID", string(in.TaskID)},
		{"ISOBAR_ATTEMPT", strconv.FormatUint(in.Attempt, 10)},
		{"ISOBAR_DEADLINE", until.UTC().Format(time.RFC3339Nano)},
	}
	if in.Traceparent != "" {
		env = append(env, Var{"TRACEPARENT", in.Traceparent})
	}
	return append(env, spec.Env...)
}
