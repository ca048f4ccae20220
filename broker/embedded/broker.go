package embedded

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/state"
)

// Options of a Broker. The zero value has no limits.
type Options struct {
	// MaxBytes caps the live payload bytes of all topics; 0 is no cap. Above
	// it Prepare fails with broker.ErrFull, and so does the commit of what
	// was prepared just before.
	MaxBytes uint64
}

// ErrTermWentBack: Lead was called with a term below one whose references the
// state holds; the log broke its promise.
var ErrTermWentBack = errors.New("term is below one already used")

// Broker is one server's door to the payloads in the cell's state. Reads work
// on every server and see what this server has applied; Prepare works on the
// leader only, between Lead and Resign. All methods are safe for concurrent
// use.
type Broker struct {
	reader  state.Reader
	options Options

	mu      sync.Mutex
	closed  bool
	leading bool
	// The next reference is (term, counter); kept over Resign, so that no
	// reference is given out twice.
	term    uint64
	counter uint64
}

var _ broker.Broker = (*Broker)(nil)

// New returns a Broker that reads the Machine's committed state. The reader's
// scans must see the state as of their start, as those of a Replica do.
func New(reader state.Reader, o Options) *Broker {
	return &Broker{reader: reader, options: o}
}

// Lead lets Prepare give out references of the term. Call it when this server
// has become leader in that term and its barrier has passed, so that the state
// holds all that leaders before it have committed. A second call with the same
// term goes on where the first was. The error is ErrTermWentBack.
func (b *Broker) Lead(term uint64) error {
	total, err := loadTotal(b.reader)
	if err != nil {
		return fmt.Errorf("embedded: lead term %d: %w", term, err)
	}
	seenTerm, seenCounter := splitReference(total.last)
	b.mu.Lock()
	defer b.mu.Unlock()
	if term < b.term || term < seenTerm {
		return fmt.Errorf("embedded: lead term %d, seen %d: %w", term, max(b.term, seenTerm), ErrTermWentBack)
	}
	if term > b.term {
		b.term, b.counter = term, 1
	}
	if term == seenTerm {
		b.counter = max(b.counter, seenCounter+1)
	}
	b.leading = true
	return nil
}

// Resign stops Prepare until the next Lead.
func (b *Broker) Resign() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leading = false
}

// Prepare makes the commands that will store the messages; nothing is durable
// until they are committed. It does not compute SHA256 again: it is the
// caller's word, checked by every read. A server that does not lead fails with
// broker.ErrUnavailable.
func (b *Broker) Prepare(ctx context.Context, msgs []broker.Message) ([]broker.Prepared, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("embedded: prepare: %w", err)
	}
	var sum uint64
	for i, m := range msgs {
		if len(m.Payload) > mesh.MaxPayload {
			return nil, fmt.Errorf("embedded: prepare message %d: %d bytes, at most %d: %w",
				i, len(m.Payload), mesh.MaxPayload, broker.ErrTooLarge)
		}
		if err := checkTopic(m.Topic); err != nil {
			return nil, fmt.Errorf("embedded: prepare message %d: %w", i, err)
		}
		if len(m.TaskID) > maxNameLen {
			return nil, fmt.Errorf("embedded: prepare message %d: task id above %d bytes: %w", i, maxNameLen, ErrMalformed)
		}
		sum += uint64(len(m.Payload))
	}
	if err := b.room(sum); err != nil {
		return nil, fmt.Errorf("embedded: prepare: %w", err)
	}
	term, first, err := b.allocate(len(msgs))
	if err != nil {
		return nil, fmt.Errorf("embedded: prepare: %w", err)
	}
	out := make([]broker.Prepared, len(msgs))
	for i, m := range msgs {
		ref := newReference(term, first+uint64(i))
		c := appendCommand{
			topic: m.Topic, ref: ref, limit: b.options.MaxBytes,
			taskID: m.TaskID, sha: m.SHA256, body: m.Payload,
		}
		out[i] = broker.Prepared{Ref: ref, Command: c.encode()}
	}
	return out, nil
}

// room refuses early what the machine would refuse.
func (b *Broker) room(sum uint64) error {
	if b.options.MaxBytes == 0 {
		return nil
	}
	total, err := loadTotal(b.reader)
	if err != nil {
		return err
	}
	if total.Bytes+sum > b.options.MaxBytes {
		return fmt.Errorf("%d bytes live, cap %d: %w", total.Bytes, b.options.MaxBytes, broker.ErrFull)
	}
	return nil
}

func (b *Broker) allocate(n int) (term, first uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, 0, fmt.Errorf("closed: %w", broker.ErrUnavailable)
	}
	if !b.leading {
		return 0, 0, fmt.Errorf("not leading: %w", broker.ErrUnavailable)
	}
	first = b.counter
	b.counter += uint64(n)
	return b.term, first, nil
}

func (b *Broker) open() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return fmt.Errorf("closed: %w", broker.ErrUnavailable)
	}
	return nil
}

// Read yields the topic's committed messages from the position on, in the
// order of their references, as of the time iteration starts. A position is a
// reference or anything that compares with one: a reference with a zero byte
// behind it is the position just after it.
func (b *Broker) Read(ctx context.Context, t broker.Topic, from broker.Reference) iter.Seq2[broker.Stored, error] {
	return func(yield func(broker.Stored, error) bool) {
		fail := func(err error) { yield(broker.Stored{}, fmt.Errorf("embedded: read %s: %w", t, err)) }
		if err := errors.Join(b.open(), checkTopic(t)); err != nil {
			fail(err)
			return
		}
		rec, err := loadTopic(b.reader, t)
		if err != nil {
			fail(err)
			return
		}
		if bytes.Compare(from, rec.trimmed) < 0 {
			from = rec.trimmed
		}
		start := messageKey(keyHeader, t, from)
		front, end := len(start)-len(from), messagesEnd(keyHeader, t)
		if bytes.Compare(start, end) >= 0 {
			return
		}
		for k, v := range b.reader.Scan(start, end) {
			if err := ctx.Err(); err != nil {
				fail(err)
				return
			}
			ref := broker.Reference(k[front:])
			s := b.stored(t, ref, v)
			if errors.Is(s.Err, broker.ErrLost) && !b.has(t, ref) {
				continue // trimmed since the scan began
			}
			if !yield(s, nil) {
				return
			}
		}
	}
}

// Fetch reads one message. ErrLost when it is not there or below the trimmed
// position; ErrDamaged when its bytes do not match, with all but the payload.
func (b *Broker) Fetch(ctx context.Context, t broker.Topic, ref broker.Reference) (broker.Stored, error) {
	fail := func(s broker.Stored, err error) (broker.Stored, error) {
		return s, fmt.Errorf("embedded: fetch %s %x: %w", t, []byte(ref), err)
	}
	if err := errors.Join(ctx.Err(), b.open(), checkTopic(t)); err != nil {
		return fail(broker.Stored{}, err)
	}
	rec, err := loadTopic(b.reader, t)
	if err != nil {
		return fail(broker.Stored{}, err)
	}
	v, ok := b.reader.Get(messageKey(keyHeader, t, ref))
	if !ok || bytes.Compare(ref, rec.trimmed) < 0 {
		return fail(broker.Stored{}, broker.ErrLost)
	}
	s := b.stored(t, ref, v)
	if s.Err != nil {
		return fail(s, s.Err)
	}
	return s, nil
}

// stored joins a header with its payload and checks the two.
func (b *Broker) stored(t broker.Topic, ref broker.Reference, head []byte) broker.Stored {
	s := broker.Stored{Ref: ref, Message: broker.Message{Topic: t}}
	h, err := decodeHeader(head)
	if err != nil {
		s.Err = fmt.Errorf("%w: %w", broker.ErrDamaged, err)
		return s
	}
	s.TaskID, s.SHA256 = h.taskID, h.sha
	body, ok := b.reader.Get(messageKey(keyPayload, t, ref))
	switch {
	case !ok:
		s.Err = broker.ErrLost
	case sha256.Sum256(body) != h.sha:
		s.Err = broker.ErrDamaged
	default:
		s.Payload = body
	}
	return s
}

func (b *Broker) has(t broker.Topic, ref broker.Reference) bool {
	_, ok := b.reader.Get(messageKey(keyHeader, t, ref))
	return ok
}

// Trim makes the command that drops everything of the topic below the
// position: a reference, or one with a zero byte behind it to drop that
// message too. Committing it hides all of it at once and deletes the first
// 4,096 messages; see Trimmed.More.
func (b *Broker) Trim(ctx context.Context, t broker.Topic, ref broker.Reference) ([]byte, error) {
	err := errors.Join(ctx.Err(), b.open(), checkTopic(t))
	if err == nil && (len(ref) == 0 || len(ref) > maxPosition) {
		err = fmt.Errorf("position of %d bytes: %w", len(ref), ErrMalformed)
	}
	if err != nil {
		return nil, fmt.Errorf("embedded: trim %s: %w", t, err)
	}
	return trimCommand{topic: t, position: ref}.encode(), nil
}

// Trimmed has nothing to do: the command of Trim did it.
func (b *Broker) Trimmed(ctx context.Context, _ broker.Topic, _ broker.Reference) error {
	if err := errors.Join(ctx.Err(), b.open()); err != nil {
		return fmt.Errorf("embedded: trimmed: %w", err)
	}
	return nil
}

// Close makes every later call fail with broker.ErrUnavailable. It keeps
// nothing open; a second call returns nil.
func (b *Broker) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

// Bytes counts the live messages of all topics, as applied on this server.
func (b *Broker) Bytes() (Usage, error) {
	total, err := loadTotal(b.reader)
	if err != nil {
		return Usage{}, fmt.Errorf("embedded: count bytes: %w", err)
	}
	return total.Usage, nil
}

// TopicBytes counts the live messages of one topic. It includes those that are
// trimmed and wait for deletion.
func (b *Broker) TopicBytes(t broker.Topic) (Usage, error) {
	rec, err := loadTopic(b.reader, t)
	if err != nil {
		return Usage{}, fmt.Errorf("embedded: count bytes of %s: %w", t, err)
	}
	return rec.Usage, nil
}

// TopicUsage is one topic with its count.
type TopicUsage struct {
	Topic broker.Topic
	Usage
}

// Topics counts every topic that ever held a message, in no useful order.
// Topics stay when they are empty, because their trimmed position must.
func (b *Broker) Topics() ([]TopicUsage, error) {
	var out []TopicUsage
	for k, v := range b.reader.Scan([]byte{keyTopic}, []byte{keyTopic + 1}) {
		r := reader{b: k[1:]}
		t := r.topic()
		rec, err := decodeTopicRecord(v)
		if r.bad {
			err = ErrMalformed
		}
		if err != nil {
			return nil, fmt.Errorf("embedded: list topics: %w", err)
		}
		out = append(out, TopicUsage{Topic: t, Usage: rec.Usage})
	}
	return out, nil
}

func newReference(term, counter uint64) broker.Reference {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, refLen), term)
	return binary.BigEndian.AppendUint64(b, counter)
}

// splitReference is (0, 0) for anything that newReference did not make.
func splitReference(r broker.Reference) (term, counter uint64) {
	if len(r) != refLen {
		return 0, 0
	}
	return binary.BigEndian.Uint64(r), binary.BigEndian.Uint64(r[8:])
}
