package pulsar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/backoff"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// streamWriter is the one producer of this cell on a partition: Pulsar lets none
// in of the same name as long as this one is there. It never connects again, so
// nothing that it sent comes later than its end; another takes its place, and
// reads what there is before it sends.
type streamWriter struct {
	t        *tail
	producer *sender
	used     time.Time // under Streams.mu
	order    sync.Mutex
}

// Append sends the messages and waits until Pulsar has acknowledged them.
func (s *Streams) Append(ctx context.Context, msgs []broker.StreamMessage) ([]broker.PreparedAppend, error) {
	for i := range msgs {
		if n := len(msgs[i].Payload); n > mesh.MaxPayload {
			return nil, fmt.Errorf("pulsar: append message %d to a stream: %d bytes, at most %d: %w", i, n, mesh.MaxPayload, broker.ErrTooLarge)
		}
	}
	began := time.Now() // before its deadline is set
	ctx, cancel := s.b.call(ctx)
	defer cancel()
	out, err := s.append(ctx, began, msgs)
	if err != nil {
		return nil, fmt.Errorf("pulsar: append to a stream: %w", s.b.cause(err))
	}
	return out, nil
}

func (s *Streams) append(ctx context.Context, began time.Time, msgs []broker.StreamMessage) ([]broker.PreparedAppend, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	shares, err := s.shares(ctx, msgs)
	if err != nil {
		return nil, err
	}
	for _, sh := range shares {
		if err := sh.admit(ctx, msgs, s.b.options.Quota); err != nil {
			return nil, err
		}
	}
	sent := make([]*known, len(msgs))
	out := make([]broker.PreparedAppend, len(msgs))
	for _, sh := range shares {
		sh.send(ctx, msgs, sent, out)
	}
	for i, k := range sent {
		err := k.wait(ctx)
		if err != nil {
			// That the caller has gone, or would not wait, says nothing of the producer.
			if ctx.Err() == nil || time.Since(began) >= s.b.options.Timeout {
				s.lose(k.of.w, err)
			}
			return nil, err
		}
		out[i].Position = k.at
	}
	return out, nil
}

// share is one partition's share of the messages of an Append.
type share struct {
	w   *streamWriter
	at  []int // their places
	ids []id
}

// shares sorts the messages by partition, with a producer for each.
func (s *Streams) shares(ctx context.Context, msgs []broker.StreamMessage) ([]*share, error) {
	var out []*share
	for i := range msgs {
		m := &msgs[i]
		n := slices.IndexFunc(out, func(sh *share) bool { return sh.w.t.of.Number == m.Partition.Number && sh.w.t.of == m.Partition })
		if n < 0 {
			if err := checkStream(m.Partition); err != nil {
				return nil, fmt.Errorf("message %d: %w", i, err)
			}
			w, err := s.writer(ctx, m.Partition)
			if err != nil {
				return nil, err
			}
			n, out = len(out), append(out, &share{w: w})
		}
		out[n].at = append(out[n].at, i)
		out[n].ids = append(out[n].ids, out[n].w.t.window.hash.id(m.ID))
	}
	return out, nil
}

// claim is a message on its way.
type claim struct {
	broker.StreamMessage
	name id
	*known
}

// sending are the messages that one Append sent to one partition.
type sending struct {
	w       *streamWriter
	left    int           // not settled; under the tail's mu
	settled chan struct{} // closed when none is left
}

// wait waits until it is known what became of the message.
func (k *known) wait(ctx context.Context) error {
	if k.of == nil {
		return nil
	}
	select {
	case <-k.of.settled:
		return k.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// admit checks that the partition has room for its share of the messages, and
// waits until it is sure which of them are repeats.
func (sh *share) admit(ctx context.Context, msgs []broker.StreamMessage, quota int64) error {
	t := sh.w.t
	var size uint64
	repeat := false
	t.mu.Lock()
	for j, i := range sh.at {
		if t.window.ids[sh.ids[j]] != nil {
			repeat = true
		} else {
			size += uint64(len(msgs[i].Payload))
		}
	}
	kept := t.index.end.bytes - t.first.bytes + t.unread
	t.mu.Unlock()
	if kept+size > uint64(quota) {
		return fmt.Errorf("%s keeps %d bytes, its quota is %d: %w", t.of, kept, quota, broker.ErrFull)
	}
	if repeat {
		return t.caughtUp(ctx)
	}
	return nil
}

// send sends the share, in its order.
func (sh *share) send(ctx context.Context, msgs []broker.StreamMessage, sent []*known, out []broker.PreparedAppend) {
	w, t := sh.w, sh.w.t
	w.order.Lock()
	defer w.order.Unlock()
	together := &sending{w: w, settled: make(chan struct{})}
	claimed, wire := make([]claim, len(sh.at)), make([]pulsar.ProducerMessage, len(sh.at))
	t.mu.Lock()
	for j, i := range sh.at {
		c := &claimed[j]
		c.StreamMessage, c.name = msgs[i], sh.ids[j]
		out[i].Duplicate = !t.claim(c, together)
		sent[i] = c.known
	}
	if together.left == 0 {
		close(together.settled)
	}
	t.mu.Unlock()
	for j, i := range sh.at {
		if out[i].Duplicate {
			continue
		}
		c := &claimed[j]
		if c.Payload == nil {
			c.Payload = []byte{} // nil is a message without a value
		}
		wire[j] = pulsar.ProducerMessage{Payload: c.Payload, Key: c.Key, Properties: properties(c.StreamMessage), EventTime: c.Published}
		w.producer.send(ctx, &wire[j], func(receipt pulsar.MessageID, err error) { t.settle(c, receipt, err) })
	}
}

// writer returns the partition's producer and opens it if it is not. Callers that
// come together share one opening, which outlives each of them.
func (s *Streams) writer(ctx context.Context, p broker.Partition) (*streamWriter, error) {
	s.mu.Lock()
	w, err := s.ready(p)
	term := s.term
	s.mu.Unlock()
	if w != nil || err != nil {
		return w, err
	}
	opened := s.opening.DoChan("append to "+p.String(), func() (any, error) {
		ctx, cancel := s.b.call(context.Background())
		defer cancel()
		w, err := s.openWriter(ctx, p, term)
		if err != nil {
			err = s.b.cause(err)
			s.shut(p, err)
		}
		return w, err
	})
	select {
	case res := <-opened:
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.(*streamWriter), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ready is the partition's producer if it is open, and an error if it may not be
// opened now. s.mu is held.
func (s *Streams) ready(p broker.Partition) (*streamWriter, error) {
	switch w := s.writers[p]; {
	case s.b.ctx.Err() != nil:
		return nil, fmt.Errorf("closed: %w", broker.ErrUnavailable)
	case !s.leading:
		return nil, fmt.Errorf("not leading: %w", broker.ErrUnavailable)
	case w != nil && !w.t.ended():
		w.used = time.Now()
		return w, nil
	case w != nil:
		s.letGo(w)
	}
	if g := s.gates[p]; g != nil {
		return nil, g.check()
	}
	return nil, nil
}

func (s *Streams) shut(p broker.Partition, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gates[p] == nil {
		s.gates[p] = &gate{}
	}
	s.gates[p].shut(err)
}

// openWriter makes what the partition needs, then its producer, and reads the
// partition to its end before anything is sent.
func (s *Streams) openWriter(ctx context.Context, p broker.Partition, term uint64) (*streamWriter, error) {
	t, err := s.tail(ctx, p)
	if err == nil && t == nil {
		if _, err = s.make(ctx, p.Tenant, p.Stream, p.Number+1); err == nil {
			t, err = s.tail(ctx, p)
		}
		if err == nil && t == nil {
			err = fmt.Errorf("%s was deleted: %w", p, broker.ErrUnavailable)
		}
	}
	if err != nil {
		return nil, err
	}
	w := &streamWriter{t: t, used: time.Now()}
	producer, err := s.produce(ctx, w)
	if err != nil {
		return nil, err
	}
	w.producer = &sender{producer: producer}
	if err := t.sync(ctx); err != nil {
		w.producer.end()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.b.ctx.Err() != nil || !s.leading || s.term != term {
		w.producer.end()
		return nil, fmt.Errorf("not leading any more: %w", broker.ErrUnavailable)
	}
	s.writers[p] = w
	delete(s.gates, p)
	return w, nil
}

// produce makes the producer. While one of the same name is there, a former
// leader's or one of ours that is on its way out, it tries again.
func (s *Streams) produce(ctx context.Context, w *streamWriter) (pulsar.Producer, error) {
	o := s.b.options
	for {
		p, err := await(ctx, func() (pulsar.Producer, error) {
			return s.b.client.CreateProducer(pulsar.ProducerOptions{
				Topic: w.t.topic.String(), Name: "isobar/" + o.Cell, SendTimeout: o.Timeout, MaxPendingMessages: pendingMost,
				BatchingMaxPublishDelay: batchDelay, BatchingMaxMessages: batchMessages, BatchingMaxSize: batchBytes,
				MaxReconnectToBroker: new(uint(0)), BackOffPolicyFunc: func() backoff.Policy {
					// The client asks for this when the connection is lost.
					go s.lose(w, errLost)
					return &pause{}
				},
				Properties: map[string]string{"isobar-cell": o.Cell, "isobar-server": o.Server},
			})
		}, func(p pulsar.Producer) { p.Close() })
		if err == nil {
			return p, nil
		}
		if !strings.Contains(err.Error(), "ProducerBusy") {
			return nil, fmt.Errorf("make a producer of %s: %w", w.t.topic, err)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// errLost: the connection of a producer was lost.
var errLost = errors.New("connection lost")

// lose ends a producer that failed, once, and keeps calls away from its partition
// for a pause. What it sent and was not told of fails.
func (s *Streams) lose(w *streamWriter, err error) {
	s.mu.Lock()
	lost := s.letGo(w)
	s.mu.Unlock()
	if lost && !errors.Is(err, errLost) && !errors.Is(err, errUnnamed) {
		s.shut(w.t.of, s.b.cause(err))
	}
}

// letGo forgets the producer and closes it beside: that waits for the cluster.
// s.mu is held.
func (s *Streams) letGo(w *streamWriter) bool {
	if w == nil || s.writers[w.t.of] != w {
		return false
	}
	delete(s.writers, w.t.of)
	w.producer.end()
	return true
}
