package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/consensus"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/peers"
)

// codeOf is the table from reasons to codes. docs/errors.md is written from it.
func codeOf(r scheduler.Reason) connect.Code {
	switch r {
	case scheduler.BadRequest, scheduler.UnknownLane, scheduler.UnknownRegion, scheduler.PayloadTooLarge, scheduler.ResultTooLarge,
		scheduler.DeadlinePast, scheduler.BadFunction, scheduler.BadModule, scheduler.UnknownPartition:
		return connect.CodeInvalidArgument
	case scheduler.UnknownFunction, scheduler.UnknownTenant, scheduler.UnknownTask, scheduler.UnknownModule, scheduler.UnknownQueue,
		scheduler.UnknownStream, scheduler.UnknownGroup:
		return connect.CodeNotFound
	case scheduler.Infeasible, scheduler.ResidencyForbids, scheduler.BrokerShared, scheduler.WrongCell, scheduler.NotHolder, scheduler.HomesDiffer, scheduler.NotLeader,
		scheduler.DeliveryMoved, scheduler.NotDead, scheduler.PayloadLost:
		return connect.CodeFailedPrecondition
	case scheduler.BeforeRetention, scheduler.BehindEnd:
		return connect.CodeOutOfRange
	case scheduler.KeyConflict, scheduler.StreamExists:
		return connect.CodeAlreadyExists
	case scheduler.QueueFull, scheduler.DiskFull, scheduler.NoRoom, scheduler.TooMany, scheduler.Paced:
		return connect.CodeResourceExhausted
	case scheduler.HomeUnavailable, scheduler.Unavailable, scheduler.OutcomeUnknown:
		return connect.CodeUnavailable
	case scheduler.TimedOut:
		return connect.CodeDeadlineExceeded
	case scheduler.FunctionFailed:
		return connect.CodeAborted
	default:
		return connect.CodeInternal
	}
}

// Outcomes of a refused request.
const (
	notAccepted    = "not_accepted"
	outcomeUnknown = "outcome_unknown"
)

// Errors turns every error of a handler into a Connect error with a TaskError
// detail. leader names the address of the cell's leader, as the callers of this
// listener would dial it; "" when it is not known.
func Errors(leader func() string) connect.ServerInterceptor {
	return func(next connect.ServerFunc) connect.ServerFunc {
		return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
			err := next(ctx, spec, stream)
			if err == nil {
				return nil
			}
			return wire(err, leader)
		}
	}
}

func wire(err error, leader func() string) error {
	var ce *connect.Error
	if !ours(err) && errors.As(err, &ce) {
		if !ce.IsRemote() {
			return explained(ce)
		}
		// The answer of the server this request was forwarded to.
		out := connect.NewError(ce.Code(), ce.Message())
		for _, d := range ce.Details() {
			out = out.WithDetail(d)
		}
		return out
	}
	d := Describe(err, leader)
	var code connect.Code
	if uerr := code.UnmarshalText([]byte(d.Code)); uerr != nil {
		code = connect.CodeInternal
	}
	out := connect.NewError(code, d.Message).WithCause(err)
	if detail, derr := connectproto.NewErrorDetail(d); derr == nil {
		out = out.WithDetail(detail)
	}
	return out
}

// explained gives an error that Connect made itself the code and detail of its
// reason: a message that does not parse, is too large, or took too long.
func explained(e *connect.Error) error {
	if len(e.Details()) > 0 {
		return e
	}
	d := &isobarv1.TaskError{Message: e.Message(), Outcome: notAccepted}
	var r scheduler.Reason
	switch e.Code() {
	case connect.CodeInvalidArgument:
		r, d.Hint = scheduler.BadRequest, "docs/api.md shows the calls: names are lowerCamelCase, bytes are base64"
	case connect.CodeResourceExhausted:
		r, d.Hint = scheduler.PayloadTooLarge, "send less in one call"
	case connect.CodeDeadlineExceeded:
		r, d.Hint, d.Outcome = scheduler.TimedOut, "allow more time", outcomeUnknown
	default:
		return e
	}
	code := codeOf(r)
	d.Code, d.Reason = code.String(), string(r)
	detail, err := connectproto.NewErrorDetail(d)
	if err != nil {
		return e
	}
	return connect.NewError(code, d.Message).WithCause(e).WithDetail(detail)
}

// ours reports whether this server has judged itself what went wrong. What
// another one answered on the way there may be wrapped within, and is not the
// answer: a cell that lost a Submit half way and then said not_leader has not
// refused it.
func ours(err error) bool {
	var r *scheduler.Refusal
	return errors.As(err, &r) || errors.Is(err, scheduler.ErrPeerUnavailable)
}

// Describe writes an error as the typed detail.
func Describe(err error, leader func() string) *isobarv1.TaskError {
	if d := peers.Detail(err); d != nil && !ours(err) {
		return d
	}
	r := refusal(err, leader)
	code := codeOf(r.Reason)
	d := &isobarv1.TaskError{
		Code: code.String(), Reason: string(r.Reason), Message: r.Message, Hint: r.Hint, Outcome: notAccepted,
		Cell: string(r.Cell), Address: r.Address, TaskId: r.TaskID, Field: r.Field,
	}
	if r.Unknown {
		d.Outcome = outcomeUnknown
	}
	if r.RetryAfter > 0 {
		d.RetryAfter = durationpb.New(r.RetryAfter)
	}
	return d
}

// refusal finds what an error means to whoever asked.
func refusal(err error, leader func() string) *scheduler.Refusal {
	var r *scheduler.Refusal
	var fn *registry.UnknownFunctionError
	var tenant *registry.UnknownTenantError
	var invalid *registry.InvalidError
	switch {
	case errors.As(err, &r):
		return r
	case errors.As(err, &fn):
		return &scheduler.Refusal{Reason: scheduler.UnknownFunction, Field: "function", Message: fmt.Sprintf("tenant %s has no function %.80q", fn.Tenant, fn.Name), Hint: suggest(fn.Suggestion, "deploy it first: isobar deploy")}
	case errors.As(err, &tenant):
		return &scheduler.Refusal{Reason: scheduler.UnknownTenant, Field: "tenant", Message: fmt.Sprintf("there is no tenant %.80q", tenant.Name), Hint: suggest(tenant.Suggestion, "leave it out for the tenant default")}
	case errors.As(err, &invalid):
		return invalidFunction(invalid)
	case ofStreams(err) != nil:
		return ofStreams(err)
	case errors.Is(err, registry.ErrUnknownVersion):
		return &scheduler.Refusal{Reason: scheduler.Unavailable, Message: "the function's version has not arrived here yet", RetryAfter: time.Second, Hint: "try again"}
	case errors.Is(err, scheduler.ErrNotLeader), errors.Is(err, consensus.ErrNotLeader):
		return &scheduler.Refusal{Reason: scheduler.NotLeader, Message: "this server does not lead its cell", Address: leader(), RetryAfter: 200 * time.Millisecond, Hint: "ask the leader; while one is elected, try again"}
	case errors.Is(err, consensus.ErrTooLarge):
		return &scheduler.Refusal{Reason: scheduler.BadRequest, Message: "the request is too large to be stored at once", Hint: "send it in parts"}
	case errors.Is(err, consensus.ErrOutcomeUnknown):
		return &scheduler.Refusal{Reason: scheduler.OutcomeUnknown, Message: "the answer was lost", Unknown: true, RetryAfter: 200 * time.Millisecond, Hint: "repeat it with the same ids"}
	case errors.Is(err, scheduler.ErrPeerUnavailable), errors.Is(err, consensus.ErrClosed):
		return &scheduler.Refusal{Reason: scheduler.Unavailable, Message: err.Error(), Unknown: true, RetryAfter: time.Second, Hint: "try again"}
	case errors.Is(err, context.DeadlineExceeded):
		return &scheduler.Refusal{Reason: scheduler.TimedOut, Message: "the time for it passed", Unknown: true, Hint: "allow more time"}
	case errors.Is(err, context.Canceled):
		return &scheduler.Refusal{Reason: scheduler.TimedOut, Message: "the caller went away", Unknown: true}
	default:
		return &scheduler.Refusal{Reason: scheduler.Internal, Message: err.Error(), Unknown: true, Hint: "this is a fault of Isobar: the server's log has more"}
	}
}

func suggest(name, otherwise string) string {
	if name != "" {
		return "did you mean " + name + "?"
	}
	return otherwise
}

func invalidFunction(e *registry.InvalidError) *scheduler.Refusal {
	r := &scheduler.Refusal{Reason: scheduler.BadFunction, Message: e.Error(), Hint: "docs/functions.md describes a manifest"}
	if len(e.Fields) > 0 {
		r.Field, r.Message = e.Fields[0].Field, e.Fields[0].Field+": "+e.Fields[0].Message
	}
	return r
}
