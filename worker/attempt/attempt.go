// Package attempt is the worker's seam to the runtimes: what one attempt of a
// task is given, what it may use, and how it ended. The runtimes are its
// subpackages: wasm (WASI modules, in process), process (commands, each in its
// own process group) and endpoint (HTTP).
//
// A runtime runs one attempt and reports; it never decides on a retry, keeps
// no record of tasks and talks to no cell. It guarantees that
//
//   - Run returns soon after its context ends, with nothing of the attempt left
//     running that the runtime's own doc does not name;
//   - memory, time, result and stderr stay within the limits of the Spec;
//   - of the host's environment the function sees only what Environ lists.
//
// A function reads the payload and writes the result. Exit code 0 is done, 75
// asks to be tried again, anything else has failed (docs/functions.md).
package attempt

import (
	"context"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Kind names a runtime as manifests do.
type Kind string

// The runtimes.
const (
	Wasm Kind = "wasm"
	Exec Kind = "exec"
	HTTP Kind = "http"
)

// ExitRetry is the exit code by which a function asks to be tried again
// (EX_TEMPFAIL of sysexits.h).
const ExitRetry = 75

// Runtime runs attempts of one kind. Implementations are safe for concurrent
// use; a worker runs as many attempts at once as its resources admit.
type Runtime interface {
	// Prepare makes the next Run warm: it fetches and compiles what the Spec
	// names, and checks everything that can be checked before a payload comes.
	// Calling it again is cheap.
	Prepare(ctx context.Context, spec Spec) error
	// Run runs one attempt to its end. It never returns an error: whatever
	// happens is an Outcome. The end of ctx kills the attempt at once; cancel
	// with a *Kill as the cause to say why.
	Run(ctx context.Context, spec Spec, in Input) Outcome
	// Close ends what still runs and frees what is kept. Run and Prepare must
	// not be called afterwards.
	Close(ctx context.Context) error
}

// Code gives the runtimes a function's code by its digest.
type Code interface {
	// Open returns the bytes whose SHA-256 is the digest, verified. The caller
	// must not change them. Failures to fetch are worth another try later.
	Open(ctx context.Context, digest string) ([]byte, error)
}

// Spec is what one variant of a function runs as. It is the same for every
// attempt of that variant.
type Spec struct {
	Kind Kind
	// Digest names the module of a wasm variant.
	Digest string
	// Command is the program and arguments of an exec variant. The program is
	// an absolute path, or a bare name that is looked up in Path.
	Command []string
	// URL is the endpoint of an http variant.
	URL string
	// Env is what the manifest names, sorted by name. An http endpoint has its
	// own environment and sees none of it.
	Env    []Var
	Limits Limits
}

// Var is one environment variable.
type Var struct{ Name, Value string }

// Limits bound one attempt. Zero fields take the default named at each.
type Limits struct {
	// Timeout is how long the attempt may run; it must be above zero.
	Timeout time.Duration
	// MemoryMiB is how much memory it may hold. 0: no limit of the runtime's
	// own (a wasm module ends at the 4 GiB of its format).
	MemoryMiB int64
	// ResultBytes is the largest result; 0: mesh.MaxResult.
	ResultBytes int
	// OpenFiles is how many files an exec function may hold open; 0: 1024.
	OpenFiles int
}

// MaxResult is the largest result in bytes, with the default applied.
func (l Limits) MaxResult() int {
	if l.ResultBytes > 0 {
		return l.ResultBytes
	}
	return mesh.MaxResult
}

// MaxOpenFiles is the limit of open files, with the default applied.
func (l Limits) MaxOpenFiles() int {
	if l.OpenFiles > 0 {
		return l.OpenFiles
	}
	return 1024
}

// Input is what is particular to one attempt.
type Input struct {
	TaskID mesh.TaskID
	// Attempt is the fencing token: the number of this attempt.
	Attempt uint64
	// Deadline is when the attempt's work is worthless; zero: only the
	// timeout counts. The function is told the earlier of the two.
	Deadline time.Time
	// Traceparent is the W3C trace context of the attempt; "" for none.
	Traceparent string
	// ContentType of the payload, sent to http endpoints; "" is
	// application/octet-stream.
	ContentType string
	// Payload must not change while Run runs.
	Payload []byte
}

// Status says how an attempt ended, as far as the next step depends on it.
type Status uint8

// The statuses.
const (
	// Done: the Result counts.
	Done Status = iota + 1
	// Retry: the function, or the way to it, asks for another try.
	Retry
	// Failed: the function ended by itself and did not succeed, or can never
	// run as it is. Another try would most likely end the same.
	Failed
	// Killed: the runtime ended it; Reason says why.
	Killed
)

func (s Status) String() string {
	switch s {
	case Done:
		return "done"
	case Retry:
		return "retry"
	case Failed:
		return "failed"
	case Killed:
		return "killed"
	default:
		return "unknown"
	}
}

// Reason is the cause behind a Status, in one word fit for a label. Done has
// none.
type Reason string

// The reasons. Timeout to Lost come with Killed, the others with Failed or
// Retry.
const (
	// Timeout: it ran longer than its timeout or past its deadline.
	Timeout Reason = "timeout"
	// Cancelled: the caller ended it.
	Cancelled Reason = "cancelled"
	// Memory: it needed more memory than its limit.
	Memory Reason = "memory"
	// Lost: the attempt is no longer this worker's, or something outside of
	// the worker (an operator, the kernel short of memory) killed it.
	Lost Reason = "lost"

	// Exit: the function ended with a code other than 0.
	Exit Reason = "exit"
	// Trap: a wasm module did what the format forbids.
	Trap Reason = "trap"
	// Signal: a command died by a signal of its own doing.
	Signal Reason = "signal"
	// TooLarge: the result is above Limits.ResultBytes.
	TooLarge Reason = "result_too_large"
	// BadSpec: the Spec or its module can't run.
	BadSpec Reason = "bad_spec"
	// NoCode: the module could not be fetched just now.
	NoCode Reason = "code_unavailable"
	// NotStarted: the host could not start the attempt just now.
	NotStarted Reason = "not_started"
	// HTTPStatus: an endpoint answered other than 2xx.
	HTTPStatus Reason = "http_status"
	// Unreachable: an endpoint gave no whole answer.
	Unreachable Reason = "unreachable"
)

// Outcome is how one attempt ended.
type Outcome struct {
	Status Status
	Reason Reason
	// Message is one sentence for people, "" when Done.
	Message string
	// Result is what the function wrote; nil unless Done.
	Result []byte
	// StderrTail is the end of standard error, at most mesh.MaxStderrTail
	// bytes; for an http endpoint the end of an answer that was not a result.
	StderrTail []byte
	// ExitCode of the function, or the HTTP status of the endpoint; -1 when
	// there was none.
	ExitCode int
	// RetryAfter is how long the endpoint asked to wait; 0: it did not.
	RetryAfter time.Duration
	// Started and Ended bound the function's own run; the time to fetch and
	// compile lies before Started and is Cold.
	Started, Ended time.Time
	// Cold is how long getting ready took when the attempt found nothing
	// warm; 0 when it did. Commands and endpoints have no such time.
	Cold time.Duration
	// PeakMemory is the most memory seen in use, in bytes; 0: not known.
	PeakMemory int64
}
