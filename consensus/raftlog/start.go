package raftlog

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/isobar-mesh/isobar/consensus"
)

// ErrDiverged: the machine's data cannot have come from this log: the log was
// lost or replaced, or the data is another server's. Such a server must not
// start, since what it holds may contradict its cell.
var ErrDiverged = errors.New("data does not fit the log; empty this server's directories and let it join as a new server")

// DivergedError says how. It unwraps to ErrDiverged.
type DivergedError struct {
	Data   consensus.Position // of the machine
	Log    consensus.Position // of the entry or snapshot it was held against
	Detail string
}

func (e *DivergedError) Error() string {
	return fmt.Sprintf("data at index %d term %d, log at index %d term %d: %s: %v",
		e.Data.Index, e.Data.Term, e.Log.Index, e.Log.Term, e.Detail, ErrDiverged)
}

func (e *DivergedError) Unwrap() error { return ErrDiverged }

// checkStart holds the machine against the newest snapshot and the log before
// raft starts. Data behind the snapshot is replaced by it, since the entries
// between may be gone; data the log does not know is refused.
func (l *Log) checkStart(m consensus.Machine) error {
	snap := l.snapshots.newest()
	if err := l.dropStaleLog(snap); err != nil {
		return err
	}
	if err := l.entries.load(); err != nil {
		return err
	}
	first, last, err := l.entries.bounds()
	if err != nil {
		return err
	}
	var base uint64 // the last index that the log needs not hold
	if snap != nil {
		base = snap.Index
	}
	if last > 0 && first > base+1 {
		return fmt.Errorf("log begins at %d, newest snapshot ends at %d: entries are missing", first, base)
	}
	at := m.Applied()
	if snap != nil {
		switch {
		case at.Index < snap.Machine.Index:
			l.logger.Info("data is behind the newest snapshot, installing it", "data", at.Index, "snapshot", snap.Machine.Index)
			return install(m, snap, l.snapshots)
		case at.Index <= snap.Index && at != snap.Machine:
			return &DivergedError{Data: at, Log: snap.Machine, Detail: "the snapshot tells another history"}
		case at.Index <= snap.Index:
			return nil
		}
	}
	if at.Index == 0 {
		return nil
	}
	return l.checkEntry(at, last)
}

// checkEntry wants the entry the data ends with to be in the log.
func (l *Log) checkEntry(at consensus.Position, last uint64) error {
	if at.Index > last {
		var end raft.Log
		if last > 0 {
			if err := l.entries.GetLog(last, &end); err != nil {
				return fmt.Errorf("read entry %d: %w", last, err)
			}
		}
		return &DivergedError{Data: at, Log: consensus.Position{Index: last, Term: end.Term}, Detail: "data is ahead of the log's end"}
	}
	var e raft.Log
	if err := l.entries.GetLog(at.Index, &e); err != nil {
		return fmt.Errorf("read entry %d: %w", at.Index, err)
	}
	if e.Term != at.Term || e.Type != raft.LogCommand {
		return &DivergedError{Data: at, Log: consensus.Position{Index: e.Index, Term: e.Term}, Detail: "the log holds another entry there"}
	}
	return nil
}

// dropStaleLog removes a log that ends before the newest snapshot: a crash
// came between the snapshot's arrival and raft's own removal. The store would
// refuse the gap with every append.
func (l *Log) dropStaleLog(snap *snapshot) error {
	first, last, err := l.entries.bounds()
	if err != nil || snap == nil || last == 0 || last >= snap.Index {
		return err
	}
	return l.entries.DeleteRange(first, last)
}
