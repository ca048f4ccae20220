// Package consensus is the first seam: a cell's replicated log, linearizable.
//
// A log orders groups of bytes and hands each, once and in the same order on
// every server, to a Machine. It owns elections, membership, snapshots and the
// transport between the servers of one cell. It never knows what a task is:
// a group is bytes.
//
// Backends: raftlog (hashicorp/raft, what a cell runs) and locallog (one node
// in memory, with faults by seed, for tests and simulation). Both pass
// consensustest.
package consensus

import (
	"context"
	"errors"
	"fmt"
)

// Position is a place in the log. The zero Position is before the first entry.
type Position struct {
	Index uint64
	Term  uint64
}

// Machine is what the log drives. The log calls its methods from one goroutine
// at a time, in log order.
type Machine interface {
	// Apply applies one entry: groups in order, one result a group. The
	// results go to those who proposed them on this server and are dropped
	// elsewhere. A machine that has applied at.Index already returns without
	// effect: the log may replay entries behind Applied after a restart.
	Apply(at Position, groups [][]byte) []any
	// Applied is the position of the last entry applied and kept; after a
	// crash it may be behind what Apply had returned.
	Applied() Position
	// Checkpoint writes the whole state, as of the last entry applied, into
	// dir, which does not exist yet, and returns that position. It must not
	// block for longer than a flush: hard links, not copies.
	Checkpoint(dir string) (Position, error)
	// Install replaces the state by the checkpoint in dir, atomically: after
	// a crash the machine holds either the old state or the new. It must not
	// keep using dir.
	Install(dir string) error
}

// Log is one server's door to its cell's log. All methods are safe for
// concurrent use.
type Log interface {
	// Propose commits one group and waits until this server's machine has
	// applied it; it returns what Apply returned for it. Many groups proposed
	// at once share entries. Only the leader accepts; the error is one of
	// ErrNotLeader and ErrTooLarge (nothing was or will be committed),
	// ErrOutcomeUnknown (it may commit or have committed), ErrClosed.
	// A cancelled context stops the wait, not the commit: ErrOutcomeUnknown.
	// The caller decides about a repeat; groups are not idempotent by nature.
	Propose(ctx context.Context, group []byte) (any, error)
	// Barrier returns when everything committed before the call is applied
	// here. Leader only; errors as Propose.
	Barrier(ctx context.Context) error
	// Verify returns nil when a majority confirmed, after the call began, that
	// this server leads: what is then read from the machine is not stale.
	Verify(ctx context.Context) error
	// Status is the present role; it may be out of date when it returns.
	Status() Status
	// Changes receives after every change of role, term or leader; it holds
	// one signal, so a slow reader sees the newest Status, not each.
	Changes() <-chan struct{}
	// Close hands leadership over if it can, stops the server, and returns
	// when its goroutines have ended. A second call returns nil.
	Close() error
}

// Members changes who votes. Only the leader's calls succeed.
type Members interface {
	// Join adds a server as non-voter; it is promoted by the leader once it
	// has caught up. Joining again with another address moves it.
	Join(ctx context.Context, s Server) error
	// Leave removes a server, voter or not.
	Leave(ctx context.Context, id string) error
	// Servers lists the members of the newest configuration, by id.
	Servers() ([]Server, error)
	// Transfer hands leadership to the voter of the id, or with "" to the most
	// caught up one. Nil means that this server no longer leads.
	Transfer(ctx context.Context, to string) error
}

// Server is one member of the log.
type Server struct {
	ID      string // UUID kept in the server's data directory
	Address string // host:port of the log's own transport
	Voter   bool
}

// Role says what a server is in its cell.
type Role uint8

// The roles.
const (
	Follower Role = iota
	Candidate
	Leader
	Stopped
)

func (r Role) String() string {
	switch r {
	case Follower:
		return "follower"
	case Candidate:
		return "candidate"
	case Leader:
		return "leader"
	case Stopped:
		return "stopped"
	default:
		return fmt.Sprintf("role(%d)", uint8(r))
	}
}

// Status is a server's view of its cell's log.
type Status struct {
	Role   Role
	Term   uint64
	Leader Server // zero when unknown
}

// MaxGroup is the largest group, in bytes: one payload of 1 MiB and its
// record, with room. hashicorp/raft wants entries under 512 KiB; a group above
// that is committed alone.
const MaxGroup = 1<<20 + 128<<10

// Errors of a Log.
var (
	// ErrNotLeader: this server does not lead; nothing was committed.
	ErrNotLeader = errors.New("not the leader")
	// ErrOutcomeUnknown: the entry was handed to the log and leadership, the
	// context or the server ended before the answer.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrTooLarge: the group is above MaxGroup.
	ErrTooLarge = errors.New("group too large")
	// ErrClosed: the log was closed before the call.
	ErrClosed = errors.New("log is closed")
)
