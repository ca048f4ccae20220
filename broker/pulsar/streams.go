package pulsar

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/isobar-mesh/isobar/broker"
)

// Streams keeps the messages of streams in the region's Pulsar, a partitioned
// topic a stream, which Pulsar's own producers and consumers may share. A message
// is durable when Append returns; there is nothing for the cell's log.
//
// Append, and all that reads a partition, works between Lead and Resign of its
// Broker. What a partition holds is read once in a term, and followed from then
// on. Its methods are safe for concurrent use.
type Streams struct {
	b       *Broker
	opening singleflight.Group // tails and writers, by partition
	recent  atomic.Int64       // bytes of messages in memory

	mu      sync.Mutex
	leading bool
	term    uint64
	tails   map[broker.Partition]*tail
	writers map[broker.Partition]*streamWriter
	gates   map[broker.Partition]*gate // of partitions that could not be appended to
}

var _ broker.Streams = (*Streams)(nil)

func newStreams(b *Broker) *Streams {
	s := &Streams{b: b, tails: map[broker.Partition]*tail{}, writers: map[broker.Partition]*streamWriter{}, gates: map[broker.Partition]*gate{}}
	b.running.Go(s.watch)
	return s
}

func (s *Streams) lead(term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leading, s.term = true, term
}

// resign lets everything go: another server appends from now on.
func (s *Streams) resign() {
	s.mu.Lock()
	s.leading = false
	for _, w := range s.writers {
		s.letGo(w)
	}
	clear(s.gates)
	tails := s.tails
	s.tails = map[broker.Partition]*tail{}
	s.mu.Unlock()
	for _, t := range tails {
		t.close(errResigned)
	}
}

// errResigned: another server leads.
var errResigned = errors.New("not leading any more")

// watch closes what has nothing to do and looks at the policies of the namespaces
// in use.
func (s *Streams) watch() {
	idle, check := time.NewTicker(s.b.options.IdleAfter/4), time.NewTicker(s.b.options.CheckEvery)
	defer idle.Stop()
	defer check.Stop()
	for {
		select {
		case <-s.b.ctx.Done():
			return
		case <-idle.C:
			s.closeIdle()
		case <-check.C:
			s.checkPolicies()
			s.checkCursors()
		}
	}
}

func (s *Streams) closeIdle() {
	s.mu.Lock()
	var tails []*tail
	for _, t := range s.tails {
		tails = append(tails, t)
	}
	for _, w := range s.writers {
		if time.Since(w.used) > s.b.options.IdleAfter {
			s.letGo(w)
		}
	}
	for p, g := range s.gates {
		if time.Since(g.until) > s.b.options.IdleAfter {
			delete(s.gates, p)
		}
	}
	s.mu.Unlock()
	for _, t := range tails {
		t.closeIdle(s.b.options.IdleAfter)
	}
}

func (s *Streams) checkPolicies() {
	s.mu.Lock()
	namespaces := map[namespace]bool{}
	for _, t := range s.tails {
		namespaces[t.topic.namespace] = true
	}
	s.mu.Unlock()
	for n := range namespaces {
		ctx, cancel := s.b.call(s.b.ctx)
		have, err := s.b.admin.policies(ctx, n)
		cancel()
		if err == nil {
			s.b.judge(n, have)
		}
	}
}

func checkStream(p broker.Partition) error {
	return checkTopic(broker.Topic{Tenant: p.Tenant, Function: p.Stream})
}

// tail is the partition's tail, which is opened if it is not; nil for a partition
// that was never appended to.
func (s *Streams) tail(ctx context.Context, p broker.Partition) (*tail, error) {
	if err := errors.Join(ctx.Err(), s.b.ctx.Err(), checkStream(p)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	t, leading, term := s.tails[p], s.leading, s.term
	s.mu.Unlock()
	if !leading {
		return nil, errResigned
	}
	if t != nil && !t.ended() {
		return t, nil
	}
	opened := s.opening.DoChan(fmt.Sprintf("read %s in term %d", p, term), func() (any, error) {
		// It is read to its end, which may take longer than a call.
		ctx, cancel := context.WithTimeout(s.b.ctx, openWithin)
		defer cancel()
		t, err := s.openTail(ctx, p)
		if err == nil && !s.follow(t, term) {
			t.close(errResigned)
			err = errResigned
		}
		return t, err
	})
	ctx, cancel := s.b.call(ctx)
	defer cancel()
	select {
	case res := <-opened:
		if errors.Is(res.Err, errNoTopic) {
			return nil, nil
		}
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.(*tail), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// follow takes a tail in that was opened in the term, unless that has ended: what
// it read then, another leader may have trimmed since.
func (s *Streams) follow(t *tail, term uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.leading || s.term != term {
		return false
	}
	s.tails[t.of] = t
	return true
}

// openWithin bounds reading what a partition holds.
const openWithin = 10 * time.Minute

// forget takes a tail out that ended.
func (s *Streams) forget(t *tail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tails[t.of] == t {
		delete(s.tails, t.of)
	}
}

// present is the tail with all that the cluster has now.
func (s *Streams) present(ctx context.Context, p broker.Partition) (*tail, error) {
	t, err := s.tail(ctx, p)
	if err != nil || t == nil {
		return nil, err
	}
	return t, t.sync(ctx)
}

// make makes the stream's topic with at least so many partitions and returns the
// cluster's epoch.
func (s *Streams) make(ctx context.Context, tenant, stream string, partitions uint32) (uint64, error) {
	epoch, err := s.b.epoch(ctx, true)
	if err != nil {
		return 0, err
	}
	topic := streamTopic(s.b.options.Cell, epoch, tenant, stream)
	have, err := s.b.admin.ensureNamespace(ctx, topic.namespace, s.b.options.Cluster, wantedOfStreams(s.b.options.Quota))
	if err != nil {
		return 0, err
	}
	s.b.judge(topic.namespace, have)
	_, err = s.b.admin.ensureStream(ctx, topic, partitions)
	return epoch, err
}

// Open makes the stream's topic and the subscriptions that keep its messages. The
// mark is the cluster's epoch, as a reference begins with it.
func (s *Streams) Open(ctx context.Context, tenant, stream string, partitions uint32) (broker.Mark, error) {
	ctx, cancel := s.b.call(ctx)
	defer cancel()
	err := errors.Join(ctx.Err(), s.b.ctx.Err(), checkStream(broker.Partition{Tenant: tenant, Stream: stream}))
	var epoch uint64
	if err == nil {
		epoch, err = s.make(ctx, tenant, stream, partitions)
	}
	if err != nil {
		return nil, fmt.Errorf("pulsar: open stream %s/%s: %w", tenant, stream, s.b.cause(err))
	}
	mark, _ := ofEpoch(epoch)
	return broker.Mark(mark), nil
}

// Extent counts between marks by reading.
func (s *Streams) Extent(ctx context.Context, p broker.Partition, from broker.Position) (broker.Extent, error) {
	ctx, cancel := s.b.call(ctx)
	defer cancel()
	t, err := s.present(ctx, p)
	if err == nil && t == nil {
		return broker.Extent{}, nil
	}
	var out broker.Extent
	if err == nil {
		out, err = t.extent(ctx, from)
	}
	if err != nil {
		return broker.Extent{}, fmt.Errorf("pulsar: measure stream %s: %w", p, s.b.cause(err))
	}
	return out, nil
}

func (t *tail) extent(ctx context.Context, from broker.Position) (broker.Extent, error) {
	first, end, _ := t.shown()
	if from > first.at {
		hit, err := t.locate(ctx, func(m mark) bool { return m.at >= from })
		if err != nil {
			return broker.Extent{}, err
		}
		// What came meanwhile is not counted.
		if first = hit; first.messages >= end.messages {
			first = end
		}
	}
	return broker.Extent{First: first.at, End: end.at, Messages: end.messages - first.messages, Bytes: end.bytes - first.bytes, Topic: t.topic.String()}, nil
}

// Find looks among the marks, then reads between two of them.
func (s *Streams) Find(ctx context.Context, p broker.Partition, q broker.Search) (broker.Position, error) {
	ctx, cancel := s.b.call(ctx)
	defer cancel()
	t, err := s.present(ctx, p)
	var hit mark
	if err == nil && t != nil {
		first, end, _ := t.shown()
		since := q.Since.UnixMilli()
		if hit = first; first.messages < end.messages {
			hit, err = t.locate(ctx, func(m mark) bool {
				return m.at >= first.at && (q.Since.IsZero() || m.ms >= since) && (q.Bytes == 0 || end.bytes-min(m.bytes, end.bytes) <= q.Bytes)
			})
		}
		hit.at = max(hit.at, first.at)
	}
	if err != nil {
		return 0, fmt.Errorf("pulsar: search stream %s: %w", p, s.b.cause(err))
	}
	return hit.at, nil
}

// Trim takes effect at once, so it makes no command. Pulsar keeps more: what
// repeats are known by, and the rest of a ledger.
func (s *Streams) Trim(ctx context.Context, p broker.Partition, below broker.Position) ([]byte, error) {
	ctx, cancel := s.b.call(ctx)
	defer cancel()
	t, err := s.tail(ctx, p)
	if err == nil && t != nil {
		err = t.trim(ctx, below)
	}
	if err != nil {
		return nil, fmt.Errorf("pulsar: trim stream %s: %w", p, s.b.cause(err))
	}
	return nil, nil
}

func (t *tail) trim(ctx context.Context, below broker.Position) error {
	if err := t.caughtUp(ctx); err != nil {
		return err
	}
	_, end, state := t.shown()
	first, err := t.locate(ctx, func(m mark) bool { return m.at >= below })
	if err != nil {
		return err
	}
	if below = min(below, end.at); below <= state.trimmed {
		return nil
	}
	t.mu.Lock()
	state.trimmed = below
	state.from = max(state.from, min(below, t.window.from(below)))
	t.mu.Unlock()
	if err := t.s.b.admin.saveStream(ctx, t.topic, state); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if below > t.state.trimmed {
		t.state, t.first = state, first
		t.index.forget(below)
	}
	return nil
}

// Drop deletes the partition, and the stream's topic with the last one.
func (s *Streams) Drop(ctx context.Context, p broker.Partition) ([]byte, error) {
	ctx, cancel := s.b.call(ctx)
	defer cancel()
	if err := s.drop(ctx, p); err != nil {
		return nil, fmt.Errorf("pulsar: drop stream %s: %w", p, s.b.cause(err))
	}
	return nil, nil
}

func (s *Streams) drop(ctx context.Context, p broker.Partition) error {
	if err := errors.Join(ctx.Err(), s.b.ctx.Err(), checkStream(p)); err != nil {
		return err
	}
	epoch, err := s.b.epoch(ctx, false)
	if errors.Is(err, errNoEpoch) {
		return nil
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.letGo(s.writers[p])
	t := s.tails[p]
	s.mu.Unlock()
	if t != nil {
		t.close(errors.New("dropped"))
	}
	return s.b.admin.dropPartition(ctx, streamTopic(s.b.options.Cell, epoch, p.Tenant, p.Stream), p.Number)
}

// TopicName is the name that Pulsar's own clients know the stream by. An error
// with broker.ErrLost says that the cell has never written to this cluster.
func (s *Streams) TopicName(ctx context.Context, tenant, stream string) (string, error) {
	ctx, cancel := s.b.call(ctx)
	defer cancel()
	epoch, err := s.b.epoch(ctx, false)
	if errors.Is(err, errNoEpoch) {
		err = fmt.Errorf("%w: %w", broker.ErrLost, err)
	}
	if err != nil {
		return "", fmt.Errorf("pulsar: name stream %s/%s: %w", tenant, stream, s.b.cause(err))
	}
	return streamTopic(s.b.options.Cell, epoch, tenant, stream).String(), nil
}
