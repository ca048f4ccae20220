package state

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/isobar-mesh/isobar/consensus"
)

// replicaID prefixes the Replica's own keys.
const replicaID MachineID = 0

// positionName is the Replica's key of the position of the last entry in the
// store: index and term, big endian.
const positionName = "position"

// Errors of a group, in GroupResult.Err.
var (
	// ErrUnknownMachine: a command is for a machine that is not mounted.
	ErrUnknownMachine = errors.New("unknown machine")
	// ErrEmptyGroup: a group has no command.
	ErrEmptyGroup = errors.New("empty group")
)

// ErrBadMount is returned by NewReplica.
var ErrBadMount = errors.New("bad mount")

// Options of a Replica. The zero value is valid.
type Options struct {
	// OnApply is called after each entry that took effect, in log order, from
	// the log's goroutine, once the entry is in the store: readers see what
	// the results tell. It holds up the log and must not wait. Entries that
	// were in the store already, after a restart, are not told again, nor is
	// what an installed checkpoint holds. The results are shared with the
	// proposers; nobody may change them.
	OnApply func(at consensus.Position, results []GroupResult)
}

// Replica is a cell's state as the log drives it: the mounted machines over
// one Store. One entry is one batch of the store, which also holds the entry's
// position. It implements consensus.Machine; the result of each group is a
// GroupResult.
//
// Apply, Checkpoint and Install are the log's, one at a time; the rest is safe
// for concurrent use.
type Replica struct {
	store    Store
	machines map[MachineID]Machine
	onApply  func(consensus.Position, []GroupResult)
	applied  atomic.Pointer[consensus.Position]

	over   *overlay
	writes []Write // kept for its memory
}

var _ consensus.Machine = (*Replica)(nil)

// NewReplica mounts the machines on the store and reads the store's position.
// The store stays the caller's to close, after the log. Errors wrap
// ErrBadMount, or say that the position in the store is damaged.
func NewReplica(store Store, mounts map[MachineID]Machine, opts Options) (*Replica, error) {
	r := &Replica{
		store:    store,
		machines: make(map[MachineID]Machine, len(mounts)),
		onApply:  opts.OnApply,
		over:     newOverlay(store),
	}
	for id, m := range mounts {
		if id == replicaID || m == nil {
			return nil, fmt.Errorf("state: mount machine %d: %w", id, ErrBadMount)
		}
		r.machines[id] = m
	}
	if err := r.loadPosition(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Replica) loadPosition() error {
	var at consensus.Position
	if v, ok := (section{r.store, replicaID}).Get([]byte(positionName)); ok {
		if len(v) != 16 {
			return fmt.Errorf("state: read position: %d bytes, want 16", len(v))
		}
		at.Index = binary.BigEndian.Uint64(v)
		at.Term = binary.BigEndian.Uint64(v[8:])
	}
	r.applied.Store(&at)
	return nil
}

// Applied is the position of the last entry in the store.
func (r *Replica) Applied() consensus.Position { return *r.applied.Load() }

// Apply applies one entry. Groups that are damaged or name a machine that is
// not mounted are rejected, equally on every server. It returns nil for an
// entry that is in the store already. It panics when the store fails: see
// Store.
func (r *Replica) Apply(at consensus.Position, groups [][]byte) []any {
	if at.Index <= r.Applied().Index {
		return nil
	}
	results := make([]GroupResult, len(groups))
	for i, g := range groups {
		results[i] = r.applyGroup(g)
	}

	var position [16]byte
	binary.BigEndian.PutUint64(position[:], at.Index)
	binary.BigEndian.PutUint64(position[8:], at.Term)
	r.over.put(Write{Key: (section{id: replicaID}).key([]byte(positionName)), Value: position[:]})
	r.writes = r.over.drain(r.writes[:0])
	err := r.store.Commit(r.writes)
	clear(r.writes)
	if err != nil {
		panic(fmt.Sprintf("state: commit entry %d: %v", at.Index, err))
	}
	r.applied.Store(&at)

	if r.onApply != nil {
		r.onApply(at, results)
	}
	out := make([]any, len(results))
	for i := range results {
		out[i] = results[i]
	}
	return out
}

func (r *Replica) applyGroup(group []byte) GroupResult {
	commands, err := DecodeGroup(group)
	if err == nil && len(commands) == 0 {
		err = fmt.Errorf("state: apply group: %w", ErrEmptyGroup)
	}
	if err != nil {
		return GroupResult{Err: err}
	}
	for i, c := range commands {
		if r.machines[c.Machine] == nil {
			return GroupResult{Err: fmt.Errorf("state: apply group: command %d: machine %d: %w", i, c.Machine, ErrUnknownMachine)}
		}
	}
	results := make([]any, len(commands))
	for i, c := range commands {
		tx := machineTx{section{r.over, c.Machine}, r.over}
		results[i], err = r.machines[c.Machine].Apply(tx, c.Body)
		if err != nil {
			r.over.rollback()
			return GroupResult{Err: err}
		}
	}
	r.over.keep()
	return GroupResult{Results: results}
}

// Checkpoint writes the state into dir; see consensus.Machine.
func (r *Replica) Checkpoint(dir string) (consensus.Position, error) {
	if err := r.store.Checkpoint(dir); err != nil {
		return consensus.Position{}, fmt.Errorf("state: write checkpoint: %w", err)
	}
	return r.Applied(), nil
}

// Install replaces the state by the checkpoint in dir; see consensus.Machine.
func (r *Replica) Install(dir string) error {
	if err := r.store.Install(dir); err != nil {
		return fmt.Errorf("state: install checkpoint: %w", err)
	}
	return r.loadPosition()
}

// Reader reads one machine's committed state. Each call sees the newest; two
// calls may see two states, for which there is View.
func (r *Replica) Reader(id MachineID) Reader { return section{r.store, id} }

// View calls fn with one machine's state as of the call: all reads of fn see
// the same entry applied. The Reader is valid until fn returns.
func (r *Replica) View(id MachineID, fn func(Reader)) {
	r.store.View(func(all Reader) { fn(section{all, id}) })
}

// Hash is a SHA-256 over every key and value of every machine, for tests:
// replicas that applied the same entries have equal hashes. The position is
// left out, so logs that cut the same groups into other entries compare equal.
func (r *Replica) Hash() [32]byte {
	h := sha256.New()
	var length [8]byte
	put := func(b []byte) {
		binary.BigEndian.PutUint64(length[:], uint64(len(b)))
		h.Write(length[:])
		h.Write(b)
	}
	for k, v := range r.store.Scan([]byte{byte(replicaID) + 1}, nil) {
		put(k)
		put(v)
	}
	return [32]byte(h.Sum(nil))
}
