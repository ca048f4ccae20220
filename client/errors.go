package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// ErrUnreachable is wrapped by the error of a call when no server could be
// reached at any address: nothing was sent.
var ErrUnreachable = errors.New("no server can be reached")

// What the error of a Submit says about the task.
const (
	// NotAccepted: there is no such task; it may be submitted elsewhere.
	NotAccepted = "not_accepted"
	// OutcomeUnknown: the task may exist. Only a repeat with the same request
	// id, at the same cell, is safe.
	OutcomeUnknown = "outcome_unknown"
)

// Error is the error of every call. errors.Is with an *Error as the target
// compares the fields that the target sets among Code, Reason and Outcome:
//
//	errors.Is(err, &client.Error{Reason: "unknown_function"})
type Error struct {
	// Op is the call: "submit". Address is who was asked last.
	Op, Address string
	// Code is the Connect code.
	Code connect.Code
	// Reason is the stable name of what is wrong, "" when the answer did not
	// come from a cell.
	Reason string
	// Message says what is wrong, Hint what to do.
	Message, Hint string
	// Outcome is NotAccepted or OutcomeUnknown for a Submit, "" else.
	Outcome string
	// Cell and CellAddress are where to ask instead, when another cell must be.
	Cell, CellAddress string
	// RetryAfter is how long to wait before a repeat; 0: not said.
	RetryAfter time.Duration
	// TaskID is the task that is meant: the first one with this key, say.
	TaskID string
	// Field is the field of the request that is wrong: "tasks[0].lane".
	Field string
	// RequestID is what a Submit of unknown outcome is to be repeated with.
	RequestID string

	cause error
	// unsent: nobody listened, so the call has had no effect.
	unsent bool
}

// Error reads "client: submit: message". The hint is left to the caller to
// show.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("client: " + e.Op + ": ")
	b.WriteString(cmp.Or(e.Message, e.Code.String()))
	if errors.Is(e.cause, ErrUnreachable) {
		fmt.Fprintf(&b, ": %s", ErrUnreachable)
	}
	return b.String()
}

// Unwrap returns what led to the error: ErrUnreachable, a context's end, or
// the *connect.Error.
func (e *Error) Unwrap() error { return e.cause }

// Is compares with another *Error as the type's doc says.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	if !ok || (t.Code == 0 && t.Reason == "" && t.Outcome == "") {
		return false
	}
	return (t.Code == 0 || t.Code == e.Code) &&
		(t.Reason == "" || t.Reason == e.Reason) &&
		(t.Outcome == "" || t.Outcome == e.Outcome)
}

// newError reads a call's error.
func newError(op, address string, err error) *Error {
	e := &Error{Op: op, Address: address, Code: connect.CodeOf(err), Message: err.Error(), cause: err}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		e.Code = connect.CodeDeadlineExceeded
	case errors.Is(err, context.Canceled):
		e.Code = connect.CodeCanceled
	}
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
		e.unsent = true
	}
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return e
	}
	e.Message = cmp.Or(ce.Message(), e.Code.String())
	for _, d := range ce.Details() {
		msg, err := connectproto.UnmarshalErrorDetail(d)
		if err != nil {
			continue
		}
		if te, ok := msg.(*isobarv1.TaskError); ok {
			e.fill(te)
			break
		}
	}
	return e
}

// errorOf is the error of one task of several.
func errorOf(op, address string, te *isobarv1.TaskError) *Error {
	e := &Error{Op: op, Address: address, Code: connect.CodeUnknown}
	if te.GetCode() != "" {
		// An unknown name leaves the code at unknown.
		_ = e.Code.UnmarshalText([]byte(te.GetCode()))
	}
	e.fill(te)
	return e
}

func (e *Error) fill(te *isobarv1.TaskError) {
	e.Reason, e.Hint, e.Outcome = te.GetReason(), te.GetHint(), te.GetOutcome()
	e.Message = cmp.Or(te.GetMessage(), e.Message)
	e.Cell, e.TaskID, e.Field = te.GetCell(), te.GetTaskId(), te.GetField()
	e.RetryAfter = max(te.GetRetryAfter().AsDuration(), 0)
	if te.GetAddress() != "" {
		// A pointer that can't be followed is none.
		e.CellAddress, _ = baseURL(te.GetAddress())
	}
}

// notLeader is the reason of a server that does not lead its cell, and could
// not pass the call on to the one that does: it will be able to in a moment.
const notLeader = "not_leader"

// unavailable: the same call may succeed in a moment.
func (e *Error) unavailable() bool {
	return e.Code == connect.CodeUnavailable || e.Reason == notLeader
}

// broken: the connection failed at some moment after the dial, or the server
// gave no answer of its own.
func (e *Error) broken() bool {
	if e.Reason != "" || e.unsent {
		return false
	}
	switch e.Code {
	case connect.CodeUnavailable, connect.CodeUnknown, connect.CodeDeadlineExceeded, connect.CodeCanceled, connect.CodeAborted:
		return true
	default:
		return errors.Is(e.cause, io.EOF) || errors.Is(e.cause, io.ErrUnexpectedEOF)
	}
}

// unsure: a Submit may have been accepted, and the server can be asked again.
func (e *Error) unsure() bool { return e.Outcome == OutcomeUnknown || e.Outcome == "" && e.broken() }

// pointer is where the call must go instead; "" when the error is another.
func (e *Error) pointer() string {
	if e.Code != connect.CodeFailedPrecondition || e.Reason == notLeader || e.CellAddress == e.Address {
		return ""
	}
	return e.CellAddress
}

// unreachable marks the error as one of no server at all.
func (e *Error) unreachable() *Error {
	e.cause = fmt.Errorf("%w: %w", ErrUnreachable, e.cause)
	e.Code = connect.CodeUnavailable
	return e
}
