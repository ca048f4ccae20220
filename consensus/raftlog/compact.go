package raftlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/isobar-mesh/isobar/consensus"
)

// compactInterval is how often the log's size is looked at.
const compactInterval = 250 * time.Millisecond

// compactLoop takes a snapshot whenever the log since the last one has grown
// by SnapshotBytes. A failure is tried again, ever more slowly up to a minute:
// right after a start it only means that entries are still replayed.
func (l *Log) compactLoop(ctx context.Context) {
	tick := time.NewTicker(compactInterval)
	defer tick.Stop()
	var wait time.Duration
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if now.Before(next) {
				continue
			}
		}
		var index uint64
		if s := l.snapshots.newest(); s != nil {
			index = s.Index
		}
		if l.entries.since(index) < l.opts.SnapshotBytes {
			continue
		}
		if err := l.Snapshot(); err != nil {
			wait = min(max(2*wait, compactInterval), time.Minute)
			next = time.Now().Add(wait)
			if ctx.Err() == nil {
				l.logger.Warn("snapshot failed", "error", err, "again_in", wait)
			}
			continue
		}
		wait, next = 0, time.Time{}
	}
}

// Snapshot takes a snapshot now and trims the log to TrailingBytes before it.
// Nothing new since the last one is no error.
func (l *Log) Snapshot() error {
	if err := l.enter(); err != nil {
		return wrap("snapshot", err)
	}
	defer l.calls.Done()
	l.snapshotMu.Lock()
	defer l.snapshotMu.Unlock()
	// Raft keeps a number of entries; what number the bytes come to changes.
	conf := l.raft.ReloadableConfig()
	conf.TrailingLogs = l.entries.trailing(l.opts.TrailingBytes)
	if err := l.raft.ReloadConfig(conf); err != nil {
		return fmt.Errorf("raftlog: snapshot: %w", err)
	}
	err := l.raft.Snapshot().Error()
	for range snapshotRetries {
		if err == nil || errors.Is(err, raft.ErrNothingNewToSnapshot) || errors.Is(err, raft.ErrRaftShutdown) {
			break
		}
		// Raft takes none between the commit and the apply of a change of
		// members, and has no name for that error.
		select {
		case <-time.After(20 * time.Millisecond):
			err = l.raft.Snapshot().Error()
		case <-l.gone:
		}
	}
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("raftlog: snapshot: %w", err)
	}
	return nil
}

const snapshotRetries = 5

// Stats are a server's numbers for metrics. The counts are since Open.
type Stats struct {
	// FirstIndex and LastIndex bound the log on disk; LogBytes is its data.
	FirstIndex, LastIndex uint64
	LogBytes              int64
	// Applied is AppliedIndex.
	Applied uint64
	// Snapshot is the newest snapshot; zero when there is none. SnapshotBytes
	// counts shared files too.
	Snapshot      consensus.Position
	SnapshotBytes int64
	SnapshotAt    time.Time
	// Entries were proposed here, with Groups in them, in EntryBytes in all;
	// LargestBatch is the most groups of one entry.
	Entries, Groups, EntryBytes, LargestBatch uint64
	// RejectedConnections on the raft port were closed: not of the cell, or
	// not speaking raft.
	RejectedConnections uint64
	// Promotions of non-voters by this server as leader.
	Promotions uint64
}

// Stats returns the present numbers; those that cannot be read are zero.
func (l *Log) Stats() Stats {
	s := Stats{
		LogBytes:            l.entries.bytes(),
		Applied:             l.AppliedIndex(),
		Entries:             l.batch.entries.Load(),
		Groups:              l.batch.groups.Load(),
		EntryBytes:          l.batch.bytes.Load(),
		LargestBatch:        l.batch.largest.Load(),
		RejectedConnections: l.stream.rejected.Load(),
		Promotions:          l.promotions.Load(),
	}
	if first, last, err := l.entries.bounds(); err == nil {
		s.FirstIndex, s.LastIndex = first, last
	}
	if snap := l.snapshots.newest(); snap != nil {
		s.Snapshot = consensus.Position{Index: snap.Index, Term: snap.Term}
		s.SnapshotBytes = snap.Size
		s.SnapshotAt = snap.TakenAt
	}
	return s
}
