package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect/v2"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/internal/devmesh"
)

// The exit codes, part of the contract with scripts.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitRunning     = 4
)

// failure is an error with its exit code and hint.
type failure struct {
	code int
	err  error
	hint string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func usage(what, hint string) error {
	return &failure{code: exitUsage, err: errors.New(what), hint: hint}
}

func failed(hint, format string, args ...any) error {
	return &failure{code: exitFailed, err: fmt.Errorf(format, args...), hint: hint}
}

func hinted(code int, err error, hint string) error {
	if err == nil {
		return nil
	}
	return &failure{code: code, err: err, hint: hint}
}

// report prints an error with its hint and returns the exit code.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitDone
	}
	code, hint := classify(err)
	fmt.Fprintf(stderr, "isobar: %s\nhint: %s\n", strings.TrimRight(err.Error(), "\n"), hint)
	return code
}

// classify finds the exit code and the hint of an error.
func classify(err error) (code int, hint string) {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code, f.hint
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		return classifyAnswer(e)
	}
	switch {
	case errors.Is(err, devmesh.ErrPort):
		return exitFailed, "stop what uses the port, or take free ones with --ports auto"
	case errors.Is(err, devmesh.ErrOptions):
		return exitUsage, "see `isobar dev --help`"
	case errors.Is(err, devmesh.ErrChild), errors.Is(err, devmesh.ErrNotReady):
		return exitFailed, "the logs are in the data directory; keep it with --data DIR"
	default:
		return exitFailed, "see `isobar --help`"
	}
}

func classifyAnswer(e *client.Error) (code int, hint string) {
	code, hint = exitFailed, e.Hint
	otherwise := "see docs/errors.md"
	switch {
	case errors.Is(e, client.ErrUnreachable):
		code, otherwise = exitUnreachable, "no server listens at "+e.Address+"; start a mesh with `isobar dev`, or name a server with --server"
	case e.Outcome == client.OutcomeUnknown && e.RequestID != "":
		code = exitUnreachable
		otherwise = "the task may have been accepted; repeat with --request-id " + e.RequestID + ", which makes no second one"
	case e.Code == connect.CodeDeadlineExceeded && errors.Is(e, context.DeadlineExceeded):
		code, otherwise = exitUnreachable, "no answer in time; try again with a longer --timeout"
	case e.Code == connect.CodeUnavailable:
		code, otherwise = exitUnreachable, "the cell cannot answer now; try again, or ask another with --server"
	case e.Code == connect.CodeInvalidArgument:
		code, otherwise = exitUsage, "see `isobar --help`"
	case e.CellAddress != "":
		otherwise = "ask cell " + e.Cell + ": --server " + e.CellAddress
	}
	if hint == "" {
		hint = otherwise
	}
	return code, hint
}
