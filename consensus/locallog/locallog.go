// Package locallog is a cell's log of one server, in memory and in the
// caller's goroutine: the backend for tests and simulation.
//
// It is deterministic: no goroutine, no clock, and faults drawn from a seed in
// the order of the calls, so the same calls meet the same faults. It fails in
// the ways a real log does: proposals whose outcome is not told, committed or
// not or later; leadership lost and regained; a crash that throws the machine
// back behind the log.
//
// It never loses what it committed, and replicates nothing.
package locallog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"github.com/isobar-mesh/isobar/consensus"
)

// serverID is the one server's.
const serverID = "local"

// Faults are how often things go wrong, each a probability from 0 to 1, drawn
// once a Propose in this order. The zero value is a log without faults.
type Faults struct {
	// Depose: leadership is lost before the proposal (ErrNotLeader) and comes
	// back, in a new term, after one to eight refused calls.
	Depose float64
	// LostBefore: ErrOutcomeUnknown, and never committed.
	LostBefore float64
	// LostAfter: ErrOutcomeUnknown, though it is committed and applied.
	LostAfter float64
	// Late: ErrOutcomeUnknown, and committed before the next call that gets
	// through, or at the next Elect or Crash.
	Late float64
}

// Options of a Log. The zero value is valid.
type Options struct {
	Seed   uint64
	Faults Faults
}

// Disk is what outlives a Log: its entries, its term, and the last checkpoint.
// The zero value is an empty disk. One Log at a time may use it.
type Disk struct {
	term    uint64
	last    uint64
	entries []entry // in order, to last; those before base may be gone
	base    consensus.Position
	dir     string // of the checkpoint at base, "" for none
}

type entry struct {
	at    consensus.Position
	group []byte
}

// ErrDiverged: the machine is ahead of the disk's log, or was applied from
// another.
var ErrDiverged = errors.New("data does not fit the log")

// Log is the one server. It implements consensus.Log. A machine must not call
// its log from Apply.
type Log struct {
	changes chan struct{}

	mu      sync.Mutex
	disk    *Disk
	machine consensus.Machine
	faults  Faults
	rng     *rand.Rand
	role    consensus.Role
	absent  int // refused calls until leadership is regained; 0: Elect only
	late    [][]byte
}

var _ consensus.Log = (*Log)(nil)

// Open starts the log kept on disk, driving m. It leads at once, in a new
// term. The machine's position is held against the log as a real one does:
// behind the checkpoint it is installed, and entries behind Applied are
// applied again.
func Open(disk *Disk, m consensus.Machine, o Options) (*Log, error) {
	l := &Log{
		changes: make(chan struct{}, 1),
		disk:    disk,
		faults:  o.Faults,
		rng:     rand.New(rand.NewPCG(o.Seed, 0x150ba7)),
	}
	if err := l.restore(m); err != nil {
		return nil, fmt.Errorf("locallog: open: %w", err)
	}
	l.lead()
	return l, nil
}

// restore brings m to the end of the log. Callers hold mu or own l.
func (l *Log) restore(m consensus.Machine) error {
	d := l.disk
	at := m.Applied()
	if at.Index < d.base.Index {
		if err := m.Install(d.dir); err != nil {
			return fmt.Errorf("install checkpoint: %w", err)
		}
		at = m.Applied()
	}
	known := at.Index == 0 || at == d.base
	for _, e := range d.entries {
		known = known || e.at == at
	}
	if !known || at.Index > d.last {
		return fmt.Errorf("machine is at %v, log ends at index %d: %w", at, d.last, ErrDiverged)
	}
	l.machine = m
	for _, e := range d.entries {
		if e.at.Index > at.Index {
			m.Apply(e.at, [][]byte{e.group})
		}
	}
	return nil
}

func (l *Log) lead() {
	l.disk.term++
	l.role = consensus.Leader
	l.absent = 0
	l.signal()
}

func (l *Log) signal() {
	select {
	case l.changes <- struct{}{}:
	default:
	}
}

// commit appends one group and applies it.
func (l *Log) commit(group []byte) any {
	d := l.disk
	d.last++
	e := entry{at: consensus.Position{Index: d.last, Term: d.term}, group: group}
	d.entries = append(d.entries, e)
	results := l.machine.Apply(e.at, [][]byte{group})
	if len(results) != 1 {
		panic(fmt.Sprintf("locallog: machine returned %d results for 1 group", len(results)))
	}
	return results[0]
}

// settle commits what was left to commit late.
func (l *Log) settle() {
	late := l.late
	l.late = nil
	for _, g := range late {
		l.commit(g)
	}
}

// admit says whether a call gets through to a leader.
func (l *Log) admit() error {
	switch {
	case l.role == consensus.Stopped:
		return consensus.ErrClosed
	case l.role == consensus.Leader:
		return nil
	case l.absent == 1:
		l.settle()
		l.lead() // from the next call on
	case l.absent > 1:
		l.absent--
	}
	return consensus.ErrNotLeader
}

// Propose commits one group in the caller's goroutine. A context that is
// cancelled already ends the wait for the result and not the commit.
func (l *Log) Propose(ctx context.Context, group []byte) (any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(group) > consensus.MaxGroup {
		return nil, fmt.Errorf("locallog: propose %d bytes: %w", len(group), consensus.ErrTooLarge)
	}
	if err := l.admit(); err != nil {
		return nil, fmt.Errorf("locallog: propose: %w", err)
	}
	own := append([]byte(nil), group...)
	// Every call draws the same number of times, so that changing one
	// probability does not shift what the seed means for the others.
	depose, before, after, late := l.rng.Float64(), l.rng.Float64(), l.rng.Float64(), l.rng.Float64()
	away := 1 + l.rng.IntN(8)
	switch {
	case depose < l.faults.Depose:
		l.depose(away)
		return nil, fmt.Errorf("locallog: propose: %w", consensus.ErrNotLeader)
	case before < l.faults.LostBefore:
		return nil, fmt.Errorf("locallog: propose: %w", consensus.ErrOutcomeUnknown)
	case late < l.faults.Late:
		l.late = append(l.late, own)
		return nil, fmt.Errorf("locallog: propose: %w", consensus.ErrOutcomeUnknown)
	}
	l.settle()
	result := l.commit(own)
	if after < l.faults.LostAfter {
		return nil, fmt.Errorf("locallog: propose: %w", consensus.ErrOutcomeUnknown)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("locallog: propose: %w: %w", consensus.ErrOutcomeUnknown, context.Cause(ctx))
	}
	return result, nil
}

// Barrier returns once late commits are applied.
func (l *Log) Barrier(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.admit(); err != nil {
		return fmt.Errorf("locallog: barrier: %w", err)
	}
	l.settle()
	return nil
}

// Verify returns nil while the server leads.
func (l *Log) Verify(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.admit(); err != nil {
		return fmt.Errorf("locallog: verify: %w", err)
	}
	return nil
}

// Status is the present role.
func (l *Log) Status() consensus.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := consensus.Status{Role: l.role, Term: l.disk.term}
	if l.role == consensus.Leader {
		s.Leader = consensus.Server{ID: serverID, Voter: true}
	}
	return s
}

// Changes is signalled after every change of Status.
func (l *Log) Changes() <-chan struct{} { return l.changes }

// Close stops the server. A second call returns nil.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.role != consensus.Stopped {
		l.role = consensus.Stopped
		l.signal()
	}
	return nil
}

func (l *Log) depose(refused int) {
	l.role, l.absent = consensus.Follower, refused
	l.signal()
}

// Depose takes leadership away until Elect.
func (l *Log) Depose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.role == consensus.Leader {
		l.depose(0)
	}
}

// Elect gives leadership back, in a new term, with late commits applied. A
// leader stays as it is.
func (l *Log) Elect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.role == consensus.Follower {
		l.settle()
		l.lead()
	}
}

// Crash restarts the server with m, the machine as it is after the crash: what
// it had not kept is applied again. It leads at once, in a new term.
func (l *Log) Crash(m consensus.Machine) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle() // they were in the log; only the machine forgets
	if err := l.restore(m); err != nil {
		return fmt.Errorf("locallog: crash: %w", err)
	}
	l.lead()
	return nil
}

// Checkpoint makes the machine write a checkpoint below parent, an existing
// directory that must outlive the Disk, and forgets the entries before it.
func (l *Log) Checkpoint(parent string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.disk
	dir := filepath.Join(parent, fmt.Sprintf("checkpoint-%d", d.last))
	if dir == d.dir {
		return nil // nothing new
	}
	at, err := l.machine.Checkpoint(dir)
	if err != nil {
		return fmt.Errorf("locallog: checkpoint: %w", err)
	}
	old := d.dir
	kept := d.entries[:0:0]
	for _, e := range d.entries {
		if e.at.Index > at.Index {
			kept = append(kept, e)
		}
	}
	d.entries, d.base, d.dir = kept, at, dir
	if old != "" {
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("locallog: checkpoint: remove the old one: %w", err)
		}
	}
	return nil
}
