// Package broker is the second seam: the durable, ordered, partitioned log of
// payloads, at least once.
//
// A broker stores bytes under a topic and gives back a position. It never
// knows placement, leases, attempts or retries: those are the scheduler's, so
// they mean the same on every backend. Dispatch is driven by records in the
// cell's log, never by a message merely read here.
//
// Backends: embedded (payload and record are one group of the cell's log) and
// pulsar (payloads in an Apache Pulsar cluster, the log carries records only).
// Every backend passes brokertest.
package broker

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Topic is where the payloads of one tenant, function and lane go.
type Topic struct {
	Tenant   string
	Function string
	Lane     mesh.Lane
}

func (t Topic) String() string { return t.Tenant + "/" + t.Function + "/" + t.Lane.String() }

// Reference says where a payload lies. It is stored in the task's record and
// opaque to all but the backend that made it. References of one topic compare
// bytewise in append order.
type Reference []byte

// Message is one payload to store.
type Message struct {
	Topic   Topic
	TaskID  mesh.TaskID
	SHA256  [32]byte
	Payload []byte
	// Properties go with the payload where the backend can show them to others,
	// such as a W3C trace context. They are not read back.
	Properties map[string]string
}

// Unfinished is what the result of a Trim's command may be asked.
type Unfinished interface {
	// Unfinished reports whether messages below the position are left to delete:
	// committing the same command again goes on with them.
	Unfinished() bool
}

// Stored is a payload as read back. Err is set when this one message is
// damaged (its bytes do not match SHA256); reading goes on.
type Stored struct {
	Message
	Ref Reference
	Err error
}

// Prepared is the outcome of Prepare for one message.
type Prepared struct {
	Ref Reference
	// Command, when not nil, must be committed in the same group as the
	// record that names Ref; it is what makes the payload durable on a backend
	// that lives in the cell's log.
	Command []byte
}

// Broker is the seam. Calls are safe for concurrent use. Each returns within
// its context's deadline, and none retries: the caller does.
type Broker interface {
	// Prepare stores the messages, or makes the commands that will. When it
	// returns, a payload without Command is durable. Errors: ErrTooLarge,
	// ErrFull and ErrUnavailable (either perhaps stored: an orphan falls under a
	// later Trim). Results are in the order of the messages.
	Prepare(ctx context.Context, msgs []Message) ([]Prepared, error)
	// Read yields the topic's messages from the position on, in order, and
	// ends at the present end. A nil position is the beginning. A position
	// trimmed away yields from the first kept message.
	Read(ctx context.Context, t Topic, from Reference) iter.Seq2[Stored, error]
	// Fetch reads one message, the slow path. ErrLost when it is not there.
	Fetch(ctx context.Context, t Topic, ref Reference) (Stored, error)
	// Trim begins to drop everything of the topic below ref, which stays. It is
	// cumulative and idempotent. Command, when not nil, must be committed to take
	// effect, as in Prepared; when nil, Trimmed takes the effect.
	Trim(ctx context.Context, t Topic, ref Reference) (command []byte, err error)
	// Trimmed tells a backend outside the cell's log that a trim was committed: it
	// may forget what lies below ref. It is cumulative, idempotent and never goes
	// back; until it has answered nil it must be called again, by the next leader
	// too. A backend whose Trim makes commands answers nil.
	Trimmed(ctx context.Context, t Topic, ref Reference) error
	// Close releases what the backend holds.
	Close() error
}

// Errors of a Broker.
var (
	// ErrTooLarge: a payload is above the backend's limit.
	ErrTooLarge = errors.New("payload too large")
	// ErrFull: no room; try later.
	ErrFull = errors.New("broker is full")
	// ErrUnavailable: the backend did not answer; the outcome is unknown.
	ErrUnavailable = errors.New("broker is unavailable")
	// ErrReplaced: the backend that answers is not the one that holds payloads
	// still needed, as far as it can tell; nothing is done in it. It comes with
	// ErrUnavailable.
	ErrReplaced = errors.New("another broker than the one that holds the payloads")
	// ErrDenied: the backend, or whoever vouches for us to it, refuses our
	// credentials, or they lack a right. It comes with ErrUnavailable.
	ErrDenied = errors.New("access to the broker is denied")
	// ErrNoToken: nobody refuses us, but there is nothing to show: whoever gives out
	// tokens does not answer, or not with one. It comes with ErrUnavailable.
	ErrNoToken = errors.New("no token for the broker")
	// ErrLost: no message at that reference.
	ErrLost = errors.New("payload lost")
	// ErrDamaged: the bytes do not match their SHA-256.
	ErrDamaged = errors.New("payload damaged")
	// ErrUnassigned: no broker is configured.
	ErrUnassigned = errors.New("no broker is configured")
)

// Unassigned is the broker of a server that was given none: every call fails
// with ErrUnassigned, so a missing setting is an error and not a crash.
func Unassigned() Broker { return unassigned{} }

type unassigned struct{}

func (unassigned) Prepare(context.Context, []Message) ([]Prepared, error) {
	return nil, fmt.Errorf("broker: prepare: %w", ErrUnassigned)
}

func (unassigned) Read(context.Context, Topic, Reference) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		yield(Stored{}, fmt.Errorf("broker: read: %w", ErrUnassigned))
	}
}

func (unassigned) Fetch(context.Context, Topic, Reference) (Stored, error) {
	return Stored{}, fmt.Errorf("broker: fetch: %w", ErrUnassigned)
}

func (unassigned) Trim(context.Context, Topic, Reference) ([]byte, error) {
	return nil, fmt.Errorf("broker: trim: %w", ErrUnassigned)
}

func (unassigned) Trimmed(context.Context, Topic, Reference) error {
	return fmt.Errorf("broker: trim: %w", ErrUnassigned)
}

func (unassigned) Close() error { return nil }
