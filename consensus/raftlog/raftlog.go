// Package raftlog is a cell's log by hashicorp/raft: the backend that a cell
// runs.
//
// It owns its data directory: the server's id, the log and votes (raft-wal),
// and the snapshots. It owns the raft port: mutual TLS, who may speak on it,
// and the question "how far are you" that the leader asks a joiner. It packs
// many proposed groups into few entries and keeps several entries in flight,
// takes snapshots by bytes of log, promotes joiners once they have caught up,
// and hands leadership over before it stops.
//
// It never looks into a group, and never changes who votes but by Join, Leave
// and the promotion of who joined.
//
// Guarantees: what consensus.Log says, and that a server whose data does not
// fit its log does not start (ErrDiverged). Why it is built so is in
// consensus/DESIGN.md.
package raftlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/isobar-mesh/isobar/consensus"
)

// Log is one server of a cell's log. See consensus.Log for its methods.
type Log struct {
	opts   Options
	logger *slog.Logger

	raft      *raft.Raft
	asked     atomic.Pointer[raft.Raft] // raft once it runs, for connections that come before
	machine   *machine
	entries   *entryStore
	snapshots *snapshotStore
	stream    *streamLayer
	transport *transport
	batch     *batcher
	changes   chan struct{}

	// calls counts Barrier, Verify and the like, whose futures end only while
	// raft runs; gate keeps new ones out once Close has begun.
	gate   sync.RWMutex
	closed bool
	calls  sync.WaitGroup

	stop       context.CancelFunc // ends the loops
	loops      sync.WaitGroup
	gone       chan struct{} // closed when the server has stopped
	closeOnce  sync.Once
	snapshotMu sync.Mutex
	promotions atomic.Uint64
}

var (
	_ consensus.Log     = (*Log)(nil)
	_ consensus.Members = (*Log)(nil)
)

// Open starts the server kept in opts.Dir, driving m. It returns once the
// server runs, not once it knows a leader. Before raft starts, the machine's
// position is held against the log: see ErrDiverged. m is the log's until
// Close has returned.
func Open(opts Options, m consensus.Machine) (*Log, error) {
	if err := opts.complete(); err != nil {
		return nil, fmt.Errorf("raftlog: open: %w", err)
	}
	l := &Log{
		opts:    opts,
		logger:  opts.Logger.With("server", opts.ServerID),
		changes: make(chan struct{}, 1),
		gone:    make(chan struct{}),
	}
	if err := l.start(m); err != nil {
		l.closeStores()
		return nil, fmt.Errorf("raftlog: open %s: %w", opts.Dir, err)
	}
	return l, nil
}

func (l *Log) start(m consensus.Machine) error {
	if err := l.openStores(); err != nil {
		return err
	}
	if err := l.checkStart(m); err != nil {
		return err
	}
	l.machine = newMachine(m, filepath.Join(l.opts.Dir, tmpDir), l.snapshots)
	var err error
	if l.stream, err = newStreamLayer(l.opts, l.logger, l.progress); err != nil {
		return err
	}
	l.transport = &transport{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  l.stream,
		MaxPool: 3,
		Timeout: l.opts.TransportTimeout,
		Logger:  newHclog(l.logger, "transport"),
	})}
	if err := requirePreVote(l.transport); err != nil {
		return err
	}
	conf := l.raftConfig()
	if l.opts.Bootstrap {
		if err := l.bootstrap(conf); err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
	}
	if l.raft, err = raft.NewRaft(conf, l.machine, l.entries, l.entries, l.snapshots, l.transport); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	l.asked.Store(l.raft)
	l.batch = newBatcher(l.raft, l.opts.InFlight, l.gone)
	l.startLoops()
	return nil
}

// bootstrap makes a cell of this server, unless it has any state: it was then
// bootstrapped before, or has joined.
func (l *Log) bootstrap(conf *raft.Config) error {
	old, err := raft.HasExistingState(l.entries, l.entries, l.snapshots)
	if err != nil || old {
		return err
	}
	if l.opts.MayBootstrap != nil {
		if err := l.opts.MayBootstrap(); err != nil {
			return err
		}
	}
	return raft.BootstrapCluster(conf, l.entries, l.entries, l.snapshots, l.transport, raft.Configuration{
		Servers: []raft.Server{{ID: raft.ServerID(l.opts.ServerID), Address: raft.ServerAddress(l.Address())}},
	})
}

// requirePreVote refuses a transport that hides the pre-vote RPC: raft would
// go on without it, and say so in one line of its log.
func requirePreVote(t raft.Transport) error {
	if _, ok := t.(raft.WithPreVote); !ok {
		return errors.New("transport does not carry pre-vote")
	}
	return nil
}

func (l *Log) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(l.opts.ServerID)
	c.HeartbeatTimeout = l.opts.HeartbeatTimeout
	c.ElectionTimeout = l.opts.ElectionTimeout
	c.LeaderLeaseTimeout = l.opts.LeaderLease
	c.MaxAppendEntries = maxAppendEntries
	c.BatchApplyCh = true
	// A server that was removed stays up as a follower without a vote, so that
	// whoever runs it can tell; it must be closed by its owner.
	c.ShutdownOnRemove = false
	c.NoSnapshotRestoreOnStart = true // checkStart does it, only when needed
	c.TrailingLogs = minTrailing
	// Snapshots go by bytes: see compactLoop.
	c.SnapshotThreshold = 1 << 62
	c.SnapshotInterval = 24 * time.Hour
	c.NoLegacyTelemetry = true
	c.Logger = newHclog(l.logger, "raft")
	return c
}

func (l *Log) openStores() error {
	for _, d := range []string{logDir, snapshotDir} {
		if err := os.MkdirAll(filepath.Join(l.opts.Dir, d), 0o755); err != nil {
			return err
		}
	}
	tmp := filepath.Join(l.opts.Dir, tmpDir)
	if err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o755)); err != nil {
		return err
	}
	w, err := wal.Open(filepath.Join(l.opts.Dir, logDir),
		wal.WithSegmentSize(l.opts.SegmentBytes), wal.WithLogger(newHclog(l.logger, "wal")))
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	l.entries = newEntryStore(w)
	l.snapshots, err = openSnapshotStore(filepath.Join(l.opts.Dir, snapshotDir), l.opts.KeepSnapshots)
	if err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	return nil
}

// closeStores releases what a failed start or a Close leaves open.
func (l *Log) closeStores() {
	if l.transport != nil {
		_ = l.transport.Close() // closes the listener; there is no other error
		l.transport.CloseStreams()
	}
	if l.stream != nil {
		l.stream.shut()
	}
	if l.entries != nil {
		if err := l.entries.Close(); err != nil {
			l.logger.Error("close log", "error", err)
		}
	}
}

func (l *Log) startLoops() {
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	l.loops.Go(func() { l.batch.run() })
	l.loops.Go(func() { l.batch.complete() })
	l.loops.Go(func() { l.observe(ctx) })
	l.loops.Go(func() { l.compactLoop(ctx) })
	l.loops.Go(func() { l.promoteLoop(ctx) })
}

// Status is the present role.
func (l *Log) Status() consensus.Status {
	s := consensus.Status{Term: l.raft.CurrentTerm()}
	switch l.raft.State() {
	case raft.Leader:
		s.Role = consensus.Leader
	case raft.Candidate:
		s.Role = consensus.Candidate
	case raft.Follower:
		s.Role = consensus.Follower
	default:
		s.Role = consensus.Stopped
		return s
	}
	if addr, id := l.raft.LeaderWithID(); id != "" {
		s.Leader = consensus.Server{ID: string(id), Address: string(addr), Voter: true}
	}
	return s
}

// Changes is signalled after every change of Status.
func (l *Log) Changes() <-chan struct{} { return l.changes }

// AppliedIndex is the index of the last entry this server's machine applied.
// It is behind a leader's last index also when nothing is missing, since
// elections and changes of members take entries that no machine sees.
func (l *Log) AppliedIndex() uint64 { return l.machine.applied.Load() }

// observe turns raft's observations into signals. Raft does not tell of a new
// term by itself, so the status is also looked at once in a while.
func (l *Log) observe(ctx context.Context) {
	seen := make(chan raft.Observation, 16)
	o := raft.NewObserver(seen, false, nil)
	l.raft.RegisterObserver(o)
	defer l.raft.DeregisterObserver(o)
	tick := time.NewTicker(l.opts.HeartbeatTimeout / 4)
	defer tick.Stop()
	last := l.Status()
	for {
		select {
		case <-ctx.Done():
			return
		case <-seen:
		case <-tick.C:
		}
		if now := l.Status(); now != last {
			last = now
			l.signal()
		}
	}
}

func (l *Log) signal() {
	select {
	case l.changes <- struct{}{}:
	default:
	}
}

// Close stops taking proposals, waits for those in flight, hands leadership
// over if it leads and another can, and stops.
func (l *Log) Close() error {
	l.closeOnce.Do(func() { l.shutdown(true) })
	<-l.gone
	return nil
}

func (l *Log) shutdown(handOver bool) {
	l.gate.Lock()
	l.closed = true
	l.gate.Unlock()

	l.batch.close()
	if handOver && l.raft.State() == raft.Leader {
		if err := l.raft.LeadershipTransfer().Error(); err != nil {
			l.logger.Debug("leadership not handed over", "error", err)
		}
	}
	// Futures end only while raft runs, and each does within an election
	// timeout or two: it commits, or the leader without a quorum steps down.
	// The bound is for a disk that hangs.
	drained := make(chan struct{})
	go func() {
		l.calls.Wait()
		<-l.batch.drained
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(4*l.opts.ElectionTimeout + 5*time.Second):
		l.logger.Error("closing with proposals in flight: the disk does not answer")
	}
	l.stop()
	stopped := l.raft.Shutdown()
	l.stream.sever() // or raft waits for the answers of peers that are gone
	if err := stopped.Error(); err != nil {
		l.logger.Error("stop raft", "error", err)
	}
	l.closeStores()
	close(l.gone)
	l.signal() // now that Status says Stopped
	select {
	case <-drained:
		l.loops.Wait()
	default: // a hung disk holds its goroutine
	}
}

// enter admits a call that waits for raft, until Close.
func (l *Log) enter() error {
	l.gate.RLock()
	defer l.gate.RUnlock()
	if l.closed {
		return consensus.ErrClosed
	}
	l.calls.Add(1)
	return nil
}

// await waits for a future or the context, whichever comes first.
func (l *Log) await(ctx context.Context, begin func() raft.Future) error {
	if err := l.enter(); err != nil {
		return err
	}
	result := make(chan error, 1)
	go func() {
		defer l.calls.Done()
		result <- begin().Error()
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", consensus.ErrOutcomeUnknown, context.Cause(ctx))
	case <-l.gone:
		return consensus.ErrOutcomeUnknown
	}
}

// outcome maps raft's errors to those of consensus.Log. What is not known to
// have been refused may have been committed.
func outcome(err error) error {
	switch {
	case err == nil,
		errors.Is(err, consensus.ErrNotLeader),
		errors.Is(err, consensus.ErrClosed),
		errors.Is(err, consensus.ErrOutcomeUnknown):
		return err
	case errors.Is(err, raft.ErrNotLeader),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", consensus.ErrNotLeader, err)
	default:
		return fmt.Errorf("%w: %w", consensus.ErrOutcomeUnknown, err)
	}
}

func wrap(action string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("raftlog: %s: %w", action, err)
}
