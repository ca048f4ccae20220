package pulsar

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"

	"github.com/apache/pulsar-client-go/pulsar"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// readAhead is how many messages Pulsar sends before they are asked for.
const readAhead = 256

// errNoTopic: the cluster, which is ours, has no such topic, by two witnesses.
var errNoTopic = errors.New("no such topic")

// Read yields the topic's messages from the position on, up to what was its end
// when the iteration began. Each step waits at most Options.Timeout. Messages of
// others are counted and left out.
func (b *Broker) Read(ctx context.Context, t broker.Topic, from broker.Reference) iter.Seq2[broker.Stored, error] {
	return func(yield func(broker.Stored, error) bool) {
		fail := func(err error) { yield(broker.Stored{}, fmt.Errorf("pulsar: read %s: %w", t, b.cause(err))) }
		if err := checkTopic(t); err != nil {
			fail(err)
			return
		}
		names, err := b.names(ctx, t, from)
		if err != nil {
			fail(err)
			return
		}
		for _, n := range names {
			stopped := false
			err := b.scan(ctx, t, n, from, func(s broker.Stored) bool {
				stopped = !yield(s, nil)
				return !stopped
			})
			if stopped {
				return
			}
			if err != nil {
				fail(err)
				return
			}
		}
	}
}

// named is a topic of one epoch.
type named struct {
	topicName
	epoch uint64
}

// names are the topics that hold messages from the position on: the present
// epoch's, and before it the position's own, if the cluster still has that.
func (b *Broker) names(ctx context.Context, t broker.Topic, from broker.Reference) ([]named, error) {
	ctx, cancel := b.call(ctx)
	defer cancel()
	var out []named
	p, hasPlace := parse(from)
	if hasPlace {
		out = append(out, named{topicOf(b.options.Cell, p.epoch, t), p.epoch})
	}
	now, err := b.epoch(ctx, false)
	if errors.Is(err, errNoEpoch) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	if !hasPlace || now > p.epoch {
		out = append(out, named{topicOf(b.options.Cell, now, t), now})
	}
	return out, nil
}

// scan reads one topic from the position to its end.
func (b *Broker) scan(ctx context.Context, t broker.Topic, n named, from broker.Reference, yield func(broker.Stored) bool) error {
	r, err := b.reader(ctx, n, from)
	if errors.Is(err, errNoTopic) {
		return nil
	}
	if err != nil {
		return err
	}
	defer r.close()
	for !r.atEnd() {
		m, err := r.next(ctx)
		if err != nil {
			return err
		}
		s, ok := b.stored(t, n, m)
		if ok && bytes.Compare(s.Ref, from) >= 0 && bytes.Compare(s.Ref, r.trimmed) >= 0 && !yield(s) {
			return nil
		}
	}
	return nil
}

// Fetch reads one message through a reader of its own.
func (b *Broker) Fetch(ctx context.Context, t broker.Topic, ref broker.Reference) (broker.Stored, error) {
	fail := func(s broker.Stored, err error) (broker.Stored, error) {
		return s, fmt.Errorf("pulsar: fetch %s %x: %w", t, []byte(ref), b.cause(err))
	}
	if err := checkTopic(t); err != nil {
		return fail(broker.Stored{}, err)
	}
	ctx, cancel := b.call(ctx)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return fail(broker.Stored{}, err)
	}
	p, ok := parse(ref)
	if !ok || len(ref) != refLen {
		return fail(broker.Stored{}, broker.ErrLost)
	}
	n := named{topicOf(b.options.Cell, p.epoch, t), p.epoch}
	r, err := b.reader(ctx, n, ref)
	if errors.Is(err, errNoTopic) {
		return fail(broker.Stored{}, broker.ErrLost)
	}
	if err != nil {
		return fail(broker.Stored{}, err)
	}
	defer r.close()
	if bytes.Compare(ref, r.trimmed) < 0 {
		return fail(broker.Stored{}, broker.ErrLost)
	}
	for !r.atEnd() {
		m, err := r.next(ctx)
		if err != nil {
			return fail(broker.Stored{}, err)
		}
		if at := placeOf(p.epoch, m.ID()); at != p {
			if p.less(at) {
				break
			}
			continue
		}
		s, ok := b.stored(t, n, m)
		if !ok {
			break
		}
		if s.Err != nil {
			return fail(s, s.Err)
		}
		return s, nil
	}
	return fail(broker.Stored{}, broker.ErrLost)
}

// cursor is a reader of one topic up to the end it had at first.
type cursor struct {
	b       *Broker
	reader  pulsar.Reader
	trimmed broker.Reference
	last    pulsar.MessageID // nil: nothing to read
	done    bool
}

// reader opens a non-durable reader at the position, or at the trim position if
// that is above.
func (b *Broker) reader(ctx context.Context, n named, from broker.Reference) (*cursor, error) {
	ctx, cancel := b.call(ctx)
	defer cancel()
	trimmed, err := b.trimmed(ctx, n.topicName)
	if err != nil {
		return nil, err
	}
	start := pulsar.EarliestMessageID()
	if bytes.Compare(from, trimmed) < 0 {
		from = trimmed
	}
	if p, ok := parse(from); ok && p.epoch == n.epoch {
		start = p.id()
	}
	r, err := await(ctx, func() (pulsar.Reader, error) {
		return b.client.CreateReader(pulsar.ReaderOptions{
			Topic: n.String(), StartMessageID: start, StartMessageIDInclusive: true, ReceiverQueueSize: readAhead,
			SubscriptionRolePrefix: "isobar-reader", BackoffPolicyFunc: policy(),
		})
	}, func(r pulsar.Reader) { r.Close() })
	if err != nil {
		return nil, b.missing(ctx, n.topicName, err)
	}
	c := &cursor{b: b, reader: r, trimmed: trimmed}
	last, err := await(ctx, r.GetLastMessageID, nil)
	if err != nil {
		c.close()
		return nil, b.missing(ctx, n.topicName, err)
	}
	if last.EntryID() >= 0 {
		c.last = last
		// Nothing is sent from a start behind the end.
		if p, ok := parse(from); ok && p.epoch == n.epoch && behind(p, last) {
			c.last = nil
		}
	}
	return c, nil
}

// behind reports whether the place lies behind the last message. The last
// message's id may lack the index in its batch.
func behind(p place, last pulsar.MessageID) bool {
	if p.ledger == last.LedgerID() && p.entry == last.EntryID() {
		return last.BatchIdx() >= 0 && p.batch > last.BatchIdx()
	}
	return !p.less(placeOf(p.epoch, last))
}

// missing asks the admin API whether the topic is there, when the client says it
// is not: one witness is not enough to call payloads lost.
func (b *Broker) missing(ctx context.Context, t topicName, err error) error {
	if !strings.Contains(strings.ToLower(strings.ReplaceAll(err.Error(), " ", "")), "notfound") {
		return err
	}
	if _, asked := b.admin.subscriptionProperties(ctx, t); !hasStatus(asked, http.StatusNotFound) {
		return err
	}
	b.mu.Lock()
	delete(b.trims, t)
	b.mu.Unlock()
	return b.noTopic(ctx)
}

func (c *cursor) atEnd() bool { return c.last == nil || c.done }

// next waits for the next message, at most the timeout.
func (c *cursor) next(ctx context.Context) (pulsar.Message, error) {
	ctx, cancel := c.b.call(ctx)
	defer cancel()
	m, err := c.reader.Next(ctx)
	if err != nil {
		return nil, err
	}
	id := m.ID()
	end := placeOf(0, c.last)
	if c.last.BatchIdx() < 0 && id.BatchSize() > 0 {
		end.batch = id.BatchSize() - 1 // the last entry's last message
	}
	c.done = !placeOf(0, id).less(end)
	return m, nil
}

// close lets the reader go; that waits for the cluster.
func (c *cursor) close() { go c.reader.Close() }

// stored makes a message of the seam; ok is false for one that is not ours.
func (b *Broker) stored(t broker.Topic, n named, m pulsar.Message) (broker.Stored, bool) {
	ref := placeOf(n.epoch, m.ID()).reference()
	properties := m.Properties()
	task, ours := properties[taskProperty]
	sum, err := hex.DecodeString(properties[hashProperty])
	if !ours || err != nil || len(sum) != sha256.Size || properties[cellProperty] != b.options.Cell {
		b.noteForeign(n.topicName, ref)
		return broker.Stored{}, false
	}
	s := broker.Stored{Ref: ref, Message: broker.Message{Topic: t, TaskID: mesh.TaskID(task), SHA256: [32]byte(sum)}}
	if sha256.Sum256(m.Payload()) != s.SHA256 {
		s.Err = broker.ErrDamaged
	} else {
		s.Payload = m.Payload()
	}
	return s, true
}

// foreign counts messages of others in our topics, each once as long as it is
// met in order.
type foreign struct {
	count uint64
	seen  map[topicName]broker.Reference
}

func (b *Broker) noteForeign(t topicName, ref broker.Reference) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if bytes.Compare(ref, b.foreign.seen[t]) <= 0 {
		return
	}
	b.foreign.seen[t] = ref
	b.foreign.count++
	b.options.Logger.Warn("a message that is not ours lies in a topic of ours; it is never run", "topic", t.String(), "reference", hex.EncodeToString(ref))
}
