package pulsar

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"

	"github.com/isobar-mesh/isobar/broker"
)

// tail follows one partition from the oldest message that matters to its end,
// as long as the server leads: so it knows what repeats, what lies where, and
// the newest messages themselves. It reads them, or hears of them from the
// producer here.
type tail struct {
	s     *Streams
	of    broker.Partition
	topic topicName // of the partition
	base  base
	end   context.CancelFunc

	mu     sync.Mutex
	reader pulsar.Reader
	moved  chan struct{} // closed at the next change; nil while nobody waits
	err    error         // why it follows no more
	last   place         // of the newest message taken in
	whole  bool          // that was the last of its entry
	echoes echoes        // what the producer here was told of, and not taken in
	gap    chan struct{} // told when something lies before them
	acked  broker.Position
	state  streamState
	first  mark // of the oldest message shown
	index  index
	window window
	sentMs int64  // the highest time sent
	unread uint64 // bytes of payload sent and not taken in
	recent recent
	parked []*walk
}

// Names of the properties that come with a message of a stream. An attribute
// whose name begins as ours do is sent with another beginning.
const (
	idProperty      = "isobar-id"
	ownPrefix       = "isobar-"
	attributePrefix = "isobar-attribute:"
)

func properties(m broker.StreamMessage) map[string]string {
	out := make(map[string]string, len(m.Attributes)+1)
	for k, v := range m.Attributes {
		if strings.HasPrefix(k, ownPrefix) {
			k = attributePrefix + k
		}
		out[k] = v
	}
	out[idProperty] = m.ID
	return out
}

func attributes(properties map[string]string) map[string]string {
	if _, ours := properties[idProperty]; len(properties) == 0 || ours && len(properties) == 1 {
		return nil
	}
	out := make(map[string]string, len(properties))
	for k, v := range properties {
		if rest, ours := strings.CutPrefix(k, attributePrefix); ours {
			out[rest] = v
		} else if k != idProperty {
			out[k] = v
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// message makes one of the seam of one that was read, ours or another's.
func (t *tail) message(m pulsar.Message) (broker.StreamStored, error) {
	at, err := t.base.position(placeOf(0, m.ID()))
	if err != nil {
		return broker.StreamStored{}, fmt.Errorf("read %s: %w", t.topic, err)
	}
	published := m.PublishTime()
	id, ours := m.Properties()[idProperty]
	if ours {
		published = m.EventTime()
	}
	return broker.StreamStored{Position: at, StreamMessage: broker.StreamMessage{
		Partition: t.of, ID: id, Key: m.Key(), Attributes: attributes(m.Properties()), Published: published, Payload: m.Payload(),
	}}, nil
}

// openTail begins to follow the partition and returns when it knows what there
// was. errNoTopic when the partition was never appended to.
func (s *Streams) openTail(ctx context.Context, p broker.Partition) (*tail, error) {
	epoch, err := s.b.epoch(ctx, false)
	if errors.Is(err, errNoEpoch) {
		return nil, errNoTopic
	}
	if err != nil {
		return nil, err
	}
	topic := streamTopic(s.b.options.Cell, epoch, p.Tenant, p.Stream)
	t := &tail{s: s, of: p, topic: topic.partition(p.Number), window: newWindow(), gap: make(chan struct{}, 1)}
	first, err := s.b.admin.streamState(ctx, topic.partition(0))
	if err == nil {
		t.state, err = s.b.admin.streamState(ctx, t.topic)
	}
	if hasStatus(err, http.StatusNotFound) {
		return nil, errNoTopic
	}
	if err != nil {
		return nil, err
	}
	t.base, t.state.base = first.base, first.base
	if t.reader, err = t.open(ctx, t.state.from); err != nil {
		return nil, s.b.missing(ctx, t.topic, err)
	}
	if err := t.giveUp(ctx); err != nil {
		go t.reader.Close() // that waits for the cluster
		return nil, s.b.missing(ctx, t.topic, err)
	}
	follow, end := context.WithCancel(s.b.ctx)
	t.end = end
	s.b.running.Go(func() { t.follow(follow) })
	if err := t.sync(ctx); err != nil {
		t.close(err)
		return nil, err
	}
	return t, nil
}

// open makes a reader that begins at the position or, where it is not there any
// more, behind it.
func (t *tail) open(ctx context.Context, from broker.Position) (pulsar.Reader, error) {
	start := pulsar.EarliestMessageID()
	if p := t.base.place(from); p.ledger >= 0 {
		start = pulsar.NewMessageID(p.ledger, p.entry, 0, -1)
	}
	return await(ctx, func() (pulsar.Reader, error) {
		return t.s.b.client.CreateReader(pulsar.ReaderOptions{
			Topic: t.topic.String(), StartMessageID: start, StartMessageIDInclusive: true, ReceiverQueueSize: streamReadAhead,
			SubscriptionRolePrefix: "isobar-reader", BackoffPolicyFunc: policy(),
		})
	}, func(r pulsar.Reader) { r.Close() })
}

// follow takes in message after message.
func (t *tail) follow(ctx context.Context) {
	own, after := 0, restAfter // messages in a row that were sent from here
	for {
		m, err := t.current().Next(ctx)
		var ours bool
		if err == nil {
			ours, err = t.take(m)
		}
		if own++; !ours {
			own = 0
		}
		if err == nil && own >= after && t.hears() {
			var alone bool
			alone, err = t.rest(ctx)
			if own, after = 0, min(4*after, restAfterMost); alone {
				after = restAfter
			}
		}
		if err != nil {
			t.close(err)
			return
		}
	}
}

// current is the reader that follows.
func (t *tail) current() pulsar.Reader {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reader
}

// take takes in a message that was read. It is ours when it was sent from here, and
// the reading told nothing that a receipt had not, or would not.
func (t *tail) take(m pulsar.Message) (ours bool, err error) {
	msg, err := t.message(m)
	if err != nil {
		return false, err
	}
	id := m.ID()
	t.mu.Lock()
	defer t.mu.Unlock()
	if msg.Position < t.index.end.at {
		return true, nil // heard of, or sent again after a reconnect
	}
	sent := t.window.read(msg.Position, msg.ID)
	t.admit(&msg, sent)
	t.keep(msg)
	t.last, t.whole = placeOf(0, id), id.BatchIdx() < 0 || id.BatchSize() == 0 || id.BatchIdx() == id.BatchSize()-1
	if t.whole { // nobody waits for a place within an entry
		t.drain()
		t.changed()
	}
	return sent != nil, nil
}

// admit counts the next message of the partition, and gives it the time it counts
// as published at. sent is not nil when it is on its way from here. t.mu is held.
func (t *tail) admit(msg *broker.StreamStored, sent *known) {
	k := t.index.add(msg.Position, msg.Published.UnixMilli(), len(msg.Payload))
	if msg.Published.UnixMilli() < k.ms {
		msg.Published = time.UnixMilli(k.ms)
	}
	if k.at < t.state.trimmed {
		t.first = t.index.end
	} else if t.first.messages == k.messages {
		t.first = k
	}
	if sent != nil {
		sent.sent = false
		t.unread -= sent.size
	}
}

// keep puts messages among the recent ones. t.mu is held.
func (t *tail) keep(msgs ...broker.StreamStored) {
	size := t.recent.add(msgs)
	total := int(t.s.recent.Add(int64(size)))
	for len(t.recent.blocks) > 1 && (t.recent.size > recentMost || total > recentOfAll && t.recent.size > recentLeast) {
		total = int(t.s.recent.Add(-int64(t.recent.drop())))
	}
}

// changed wakes those who wait. t.mu is held.
func (t *tail) changed() {
	if t.moved != nil {
		close(t.moved)
		t.moved = nil
	}
}

// until waits until done is true, which is called with t.mu held.
func (t *tail) until(ctx context.Context, done func() bool) error {
	for {
		t.mu.Lock()
		if t.err != nil || done() {
			defer t.mu.Unlock()
			return t.err
		}
		if t.moved == nil {
			t.moved = make(chan struct{})
		}
		moved := t.moved
		t.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("the end of %s is not reached: %w", t.topic, ctx.Err())
		}
	}
}

// caughtUp waits until all that was appended here has been read.
func (t *tail) caughtUp(ctx context.Context) error {
	t.mu.Lock()
	acked := t.acked
	t.mu.Unlock()
	return t.until(ctx, func() bool { return t.index.end.at > acked || acked == 0 })
}

// sync asks the cluster for the end and waits until it has been read. A reader
// that does not get there in the time of a call is of no use any more.
func (t *tail) sync(ctx context.Context) error {
	begun := time.Now()
	last, err := await(ctx, t.current().GetLastMessageID, nil)
	if err == nil && last.EntryID() >= 0 {
		err = t.until(ctx, func() bool { return t.reached(last) })
	}
	if err == nil {
		err = t.caughtUp(ctx)
	}
	if err != nil && (ctx.Err() == nil || time.Since(begun) > t.s.b.options.Timeout*9/10) {
		t.close(err)
	}
	return err
}

// reached reports whether the message, which may lack its index in the batch,
// has been read, or was trimmed away. t.mu is held.
func (t *tail) reached(last pulsar.MessageID) bool {
	end := placeOf(0, last)
	if trimmed := t.base.place(t.state.from); trimmed.ledger > end.ledger || trimmed.ledger == end.ledger && trimmed.entry > end.entry {
		return true
	}
	switch {
	case t.index.end.messages == 0:
		return false
	case t.last.ledger == end.ledger && t.last.entry == end.entry:
		return t.whole || last.BatchIdx() >= 0 && t.last.batch >= end.batch
	default:
		return !t.last.less(end)
	}
}

// close stops following; whoever waits gets the error.
func (t *tail) close(err error) {
	t.mu.Lock()
	first := t.err == nil
	if first {
		t.err = fmt.Errorf("follow %s: %w", t.topic, err)
	}
	parked := t.parked
	t.parked = nil
	t.s.recent.Add(-int64(t.recent.size))
	t.recent, t.echoes = recent{}, echoes{}
	t.changed()
	t.mu.Unlock()
	for _, w := range parked {
		w.close()
	}
	if first {
		t.s.forget(t)
		t.end()
		go t.current().Close() // that waits for the cluster
	}
}

// ended reports whether it follows no more.
func (t *tail) ended() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err != nil
}

// locate finds the first message for which holds is true; the end for none.
func (t *tail) locate(ctx context.Context, holds func(mark) bool) (mark, error) {
	t.mu.Lock()
	before, hit, sure := t.index.around(holds)
	end := t.index.end
	t.mu.Unlock()
	if sure {
		return hit, nil
	}
	at := before
	for msg, err := range t.messages(ctx, before.at) {
		if err != nil {
			return mark{}, err
		}
		at.at, at.ms = msg.Position, max(at.ms, msg.Published.UnixMilli())
		if holds(at) {
			return at, nil
		}
		at.messages++
		at.bytes += uint64(len(msg.Payload))
	}
	return end, nil
}

// shown is a copy of what the partition holds.
func (t *tail) shown() (first, end mark, state streamState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first, end = t.first, t.index.end
	end.at = max(end.at, t.state.trimmed)
	if first.messages == end.messages {
		first = end
	}
	return first, end, t.state
}

// claim notes that a message is about to be sent, and gives it the time that it
// counts as published at. It is false for a repeat. t.mu is held.
func (t *tail) claim(c *claim, with *sending) bool {
	if k := t.window.ids[c.name]; k != nil {
		c.known = k
		return false
	}
	c.known = &known{of: with, sent: true, size: uint64(len(c.Payload))}
	with.left++
	t.window.ids[c.name] = c.known
	t.unread += c.size
	t.sentMs = max(t.sentMs, c.Published.UnixMilli(), t.index.end.ms)
	c.Published = time.UnixMilli(t.sentMs)
	return true
}

// settle notes what became of a message that was sent.
func (t *tail) settle(c *claim, receipt pulsar.MessageID, err error) {
	var at broker.Position
	if err == nil {
		at, err = t.base.position(placeOf(0, receipt))
	}
	k := c.known
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.acked = max(t.acked, at)
	}
	switch {
	case err != nil && !k.sent:
		err = nil // it was read before its receipt was lost; k.at is known
	case err != nil:
		if t.window.ids[c.name] == k {
			// It may be stored all the same, and is known again when it is read.
			delete(t.window.ids, c.name)
		}
		k.sent = false
		t.unread -= k.size
	default:
		k.at = at
		if t.err == nil && t.echoes.add(receipt, c) {
			t.drain()
			t.changed()
			if t.echoes.waits() {
				select {
				case t.gap <- struct{}{}:
				default:
				}
			}
		}
	}
	k.err = err
	if k.of.left--; k.of.left == 0 {
		close(k.of.settled)
	}
}

// snapshot is what memory holds of the messages at the position and behind it;
// all of them if complete, else those from start on.
func (t *tail) snapshot(from broker.Position) (messages [][]broker.StreamStored, start broker.Position, complete bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.recent.messages == 0 {
		return nil, t.index.end.at, from >= t.index.end.at || t.index.end.messages == 0
	}
	messages, start = t.recent.since(from)
	return messages, start, from >= start || t.index.end.messages == t.recent.messages
}
