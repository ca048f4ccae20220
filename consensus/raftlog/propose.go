package raftlog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/isobar-mesh/isobar/consensus"
)

// Propose commits one group; see consensus.Log. The group is the caller's
// again when it returns, unless the outcome is unknown.
func (l *Log) Propose(ctx context.Context, group []byte) (any, error) {
	if len(group) > consensus.MaxGroup {
		return nil, fmt.Errorf("raftlog: propose %d bytes: %w", len(group), consensus.ErrTooLarge)
	}
	p := &proposal{group: group, done: make(chan struct{})}
	if err := l.commit(ctx, p); err != nil {
		return nil, wrap("propose", err)
	}
	return p.result, nil
}

// commit gives the proposal to the batcher and waits. p.result may be read
// when it returns nil.
func (l *Log) commit(ctx context.Context, p *proposal) error {
	if l.raft.State() != raft.Leader && !l.batch.isClosed() {
		return consensus.ErrNotLeader
	}
	if err := l.batch.add(p); err != nil {
		return err
	}
	select {
	case <-p.done:
		return outcome(p.err)
	case <-ctx.Done():
		p.abandoned.Store(true)
		return fmt.Errorf("%w: %w", consensus.ErrOutcomeUnknown, context.Cause(ctx))
	case <-l.gone:
		return consensus.ErrOutcomeUnknown
	}
}

// Barrier returns when everything committed before the call is applied here.
// It rides on an entry of the proposals, or on one of its own without groups.
func (l *Log) Barrier(ctx context.Context) error {
	return wrap("barrier", l.commit(ctx, newMark()))
}

// Verify returns nil when a majority confirmed, after the call began, that
// this server leads, by taking an entry. Raft's own VerifyLeader also counts
// answers to what was sent before the call: a leader that was paused could
// take one for a confirmation.
func (l *Log) Verify(ctx context.Context) error {
	err := l.commit(ctx, newMark())
	if errors.Is(err, raft.ErrLeadershipLost) {
		err = fmt.Errorf("%w: %w", consensus.ErrNotLeader, raft.ErrLeadershipLost) // nothing was proposed
	}
	return wrap("verify", err)
}

// proposal is one group on its way, or a mark, which has no group and waits
// for an entry to be applied. result and err are set before done closes.
type proposal struct {
	group     []byte
	mark      bool
	done      chan struct{}
	result    any
	err       error
	abandoned atomic.Bool // nobody waits; drop it if it has not left yet
}

func newMark() *proposal { return &proposal{mark: true, done: make(chan struct{})} }

func (p *proposal) finish(result any, err error) {
	p.result, p.err = result, err
	close(p.done)
}

// inflight is one entry handed to raft.
type inflight struct {
	future    raft.ApplyFuture
	proposals []*proposal
}

// applier is what the batcher needs of raft. The timeout is always zero: a
// call may wait for raft's main loop, and ends with it.
type applier interface {
	ApplyLog(log raft.Log, timeout time.Duration) raft.ApplyFuture
}

// batcher packs proposals into entries. Groups gather while InFlight entries
// are on their way, so load makes entries larger and not more; an idle log
// sends a lone group at once.
type batcher struct {
	raft    applier
	slots   chan struct{} // one token an entry in flight
	flying  chan inflight // in the order handed to raft
	wake    chan struct{} // holds one signal: queue or closing changed
	gone    <-chan struct{}
	drained chan struct{} // closed when nothing is left after close

	mu      sync.Mutex
	queue   []*proposal
	closing bool

	entries, groups, bytes, largest atomic.Uint64
}

func newBatcher(r applier, inFlight int, gone <-chan struct{}) *batcher {
	return &batcher{
		raft:    r,
		slots:   make(chan struct{}, inFlight),
		flying:  make(chan inflight, inFlight),
		wake:    make(chan struct{}, 1),
		gone:    gone,
		drained: make(chan struct{}),
	}
}

func (b *batcher) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closing
}

func (b *batcher) add(p *proposal) error {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		return consensus.ErrClosed
	}
	b.queue = append(b.queue, p)
	b.mu.Unlock()
	b.signal()
	return nil
}

func (b *batcher) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// close refuses what has not been handed to raft yet, and lets run end.
func (b *batcher) close() {
	b.mu.Lock()
	b.closing = true
	left := b.queue
	b.queue = nil
	b.mu.Unlock()
	for _, p := range left {
		p.finish(nil, consensus.ErrClosed)
	}
	b.signal()
}

// run hands entries to raft until close. It is the only sender of flying.
func (b *batcher) run() {
	defer close(b.flying)
	for range b.wake {
		for {
			b.slots <- struct{}{}
			batch, ended := b.take()
			if ended {
				return
			}
			if len(batch) == 0 {
				<-b.slots
				break
			}
			b.send(batch)
		}
	}
}

// take removes one entry's worth of proposals from the queue.
func (b *batcher) take() (batch []*proposal, ended bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	size, packed, n := 1, 0, 0
	for _, p := range b.queue {
		if p.abandoned.Load() {
			n++
			continue
		}
		if !p.mark {
			if size += entrySize(p.group); size > packBytes && packed > 0 {
				break
			}
			packed++
		}
		batch = append(batch, p)
		n++
	}
	clear(b.queue[:n])
	if b.queue = b.queue[n:]; len(b.queue) == 0 {
		b.queue = nil
	}
	return batch, b.closing && len(batch) == 0
}

func (b *batcher) send(batch []*proposal) {
	groups := make([][]byte, 0, len(batch))
	for _, p := range batch {
		if !p.mark {
			groups = append(groups, p.group)
		}
	}
	data := encodeEntry(groups)
	b.entries.Add(1)
	b.groups.Add(uint64(len(groups)))
	b.bytes.Add(uint64(len(data)))
	b.largest.Store(max(b.largest.Load(), uint64(len(groups))))
	// flying has room: its size is that of slots.
	b.flying <- inflight{future: b.raft.ApplyLog(raft.Log{Data: data}, 0), proposals: batch}
}

// complete hands results to the proposers. Raft answers in log order, so one
// goroutine does. A future ends only while raft runs: see Log.shutdown.
func (b *batcher) complete() {
	defer close(b.drained)
	for f := range b.flying {
		err := f.future.Error()
		var results []any
		if err == nil {
			results, _ = f.future.Response().([]any)
		}
		for _, p := range f.proposals {
			switch {
			case err != nil || p.mark:
				p.finish(nil, err)
			case len(results) == 0:
				p.finish(nil, errNoResults)
			default:
				p.finish(results[0], nil)
				results = results[1:]
			}
		}
		<-b.slots
	}
}

// errNoResults is what a machine's breach of its contract looks like: the
// entry is committed, but there is no result for each group.
var errNoResults = errors.New("machine returned no results")
