package raftlog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/isobar-mesh/isobar/consensus"
)

// machine shows a consensus.Machine to raft. Raft calls all of it from its one
// FSM goroutine, but for Persist and Release of a snapshot.
type machine struct {
	inner     consensus.Machine
	tmp       string
	snapshots *snapshotStore
	made      uint64 // checkpoints, for their names
	// seen is the last index that raft handed over. While a restarted server
	// replays entries the machine already holds, it is behind applied.
	seen    uint64
	applied atomic.Uint64
}

var (
	_ raft.FSM                = (*machine)(nil)
	_ raft.ConfigurationStore = (*machine)(nil)
)

func newMachine(inner consensus.Machine, tmp string, s *snapshotStore) *machine {
	f := &machine{inner: inner, tmp: tmp, snapshots: s}
	f.applied.Store(inner.Applied().Index)
	if snap := s.newest(); snap != nil {
		f.seen = snap.Index // raft begins behind it
	}
	return f
}

// Apply returns the results as []any, or nil for an entry applied before. It
// panics on an entry it cannot read: to skip what the others apply would make
// this server another state.
func (f *machine) Apply(log *raft.Log) any {
	f.seen = log.Index
	if log.Index <= f.applied.Load() {
		return []any(nil)
	}
	groups, err := decodeEntry(log.Data)
	if err != nil {
		panic(fmt.Sprintf("raftlog: apply entry %d: %v", log.Index, err))
	}
	if len(groups) == 0 { // of a Barrier or a Verify
		return []any(nil)
	}
	results := f.inner.Apply(consensus.Position{Index: log.Index, Term: log.Term}, groups)
	f.applied.Store(log.Index)
	return results
}

// StoreConfiguration keeps raft's idea of what the machine holds in step with
// changes of members; without it a snapshot after one would fail until the
// next command.
func (f *machine) StoreConfiguration(index uint64, _ raft.Configuration) { f.seen = index }

var errReplaying = errors.New("entries are still replayed")

// Snapshot makes a checkpoint. Raft labels it with the last index it handed
// over, so there is none while the machine is ahead of that.
func (f *machine) Snapshot() (raft.FSMSnapshot, error) {
	if f.inner.Applied().Index > f.seen {
		return nil, errReplaying
	}
	f.made++
	dir := filepath.Join(f.tmp, fmt.Sprintf("checkpoint-%d", f.made))
	at, err := f.inner.Checkpoint(dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("checkpoint: %w", err), os.RemoveAll(dir))
	}
	return &checkpoint{dir: dir, at: at}, nil
}

// Restore installs a snapshot received from the leader. The reader is the
// store's own, which knows the directory: nothing is streamed. It installs
// also what is behind the machine, since raft drops its log with it and sends
// the entries again.
func (f *machine) Restore(rc io.ReadCloser) error {
	for {
		w, ok := rc.(raft.ReadCloserWrapper)
		if !ok {
			break
		}
		rc = w.WrappedReadCloser()
	}
	r, ok := rc.(*snapshotReader)
	if !ok {
		return fmt.Errorf("raftlog: restore: %T is not of this snapshot store", rc)
	}
	if err := install(f.inner, r.snap, f.snapshots); err != nil {
		return err
	}
	f.seen = r.snap.Index
	f.applied.Store(r.snap.Machine.Index)
	return nil
}

// install replaces the machine's state and makes sure it took.
func install(m consensus.Machine, s *snapshot, store *snapshotStore) error {
	if err := m.Install(store.data(s.ID)); err != nil {
		return fmt.Errorf("raftlog: install snapshot %s: %w", s.ID, err)
	}
	if at := m.Applied(); at != s.Machine {
		return fmt.Errorf("raftlog: install snapshot %s: machine is at %v, snapshot at %v", s.ID, at, s.Machine)
	}
	return nil
}

// checkpoint is a machine's state in a directory, not yet in the store.
type checkpoint struct {
	dir string
	at  consensus.Position
}

// Persist moves the directory into the store; it copies nothing.
func (c *checkpoint) Persist(sink raft.SnapshotSink) error {
	s, ok := sink.(*snapshotSink)
	if !ok {
		return fmt.Errorf("raftlog: persist: %T is not of this snapshot store", sink)
	}
	return s.adopt(c.dir, c.at)
}

// Release removes what was not persisted.
func (c *checkpoint) Release() { _ = os.RemoveAll(c.dir) } // start removes it otherwise
