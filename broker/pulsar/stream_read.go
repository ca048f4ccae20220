package pulsar

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"

	"github.com/isobar-mesh/isobar/broker"
)

const (
	// streamReadAhead is how many messages Pulsar sends before they are asked for.
	streamReadAhead = 1000
	// parkedMost is how many walks of a partition wait to be gone on with.
	parkedMost = 4
)

// Read yields what the partition holds from the position on: from memory where
// that reaches back so far, else through a reader that is kept for the next Read
// from where this one stopped.
func (s *Streams) Read(ctx context.Context, p broker.Partition, from broker.Position) iter.Seq2[*broker.StreamStored, error] {
	return func(yield func(*broker.StreamStored, error) bool) {
		fail := func(err error) {
			yield(nil, fmt.Errorf("pulsar: read stream %s: %w", p, s.b.cause(err)))
		}
		t, err := s.tail(ctx, p)
		if t == nil && err == nil {
			return
		}
		if err == nil {
			wait, cancel := s.b.call(ctx)
			err = t.caughtUp(wait)
			cancel()
		}
		if err != nil {
			fail(err)
			return
		}
		_, _, state := t.shown()
		for msg, err := range t.messages(ctx, max(from, state.trimmed)) {
			if err != nil {
				fail(err)
				return
			}
			if !yield(msg, nil) {
				return
			}
		}
	}
}

// messages yields what was read of the partition when it began, from the position
// on, trimmed or not.
func (t *tail) messages(ctx context.Context, from broker.Position) iter.Seq2[*broker.StreamStored, error] {
	return func(yield func(*broker.StreamStored, error) bool) {
		recent, start, complete := t.snapshot(from)
		if !complete {
			next, stopped, err := t.walk(ctx, from, start, yield)
			if err != nil {
				yield(nil, err)
			}
			if err != nil || stopped {
				return
			}
			from = next
		}
		for _, block := range recent {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			for i := range block {
				if block[i].Position >= from && !yield(&block[i], nil) {
					return
				}
			}
		}
	}
}

// walk is a reader that stands somewhere in a partition. It is for one goroutine.
type walk struct {
	reader pulsar.Reader
	before broker.Position      // of the message before msg
	msg    *broker.StreamStored // was read, and may not have been taken; nil before the first
	used   time.Time
}

// close lets the reader go; that waits for the cluster.
func (w *walk) close() { go w.reader.Close() }

// fits reports whether the next message at the position or behind it is msg, or
// the next to be read.
func (w *walk) fits(from broker.Position) bool {
	return w.msg != nil && from > w.before && from <= w.msg.Position+1
}

// walk yields the messages in [from, end) by a reader. next is where to go on.
func (t *tail) walk(ctx context.Context, from, end broker.Position, yield func(*broker.StreamStored, error) bool) (next broker.Position, stopped bool, err error) {
	w, err := t.pick(ctx, from)
	if err != nil {
		return from, false, err
	}
	for {
		if w.msg == nil || w.msg.Position < from {
			if err := t.step(ctx, w); err != nil {
				w.close()
				return from, false, err
			}
			continue
		}
		if w.msg.Position >= end {
			w.close() // memory has the rest
			return from, false, nil
		}
		from = w.msg.Position + 1
		if !yield(w.msg, nil) {
			t.park(w)
			return from, true, nil
		}
	}
}

// step reads the next message.
func (t *tail) step(ctx context.Context, w *walk) error {
	ctx, cancel := t.s.b.call(ctx)
	defer cancel()
	m, err := w.reader.Next(ctx)
	if err != nil {
		return fmt.Errorf("read %s: %w", t.topic, err)
	}
	msg, err := t.message(m)
	if err != nil {
		return err
	}
	if w.msg != nil {
		if msg.Position <= w.msg.Position {
			return nil // sent again after a reconnect
		}
		w.before = w.msg.Position
		if msg.Published.Before(w.msg.Published) {
			msg.Published = w.msg.Published
		}
	}
	w.msg = &msg
	return nil
}

// pick is a walk that stands at the position: a parked one, or a new one.
func (t *tail) pick(ctx context.Context, from broker.Position) (*walk, error) {
	t.mu.Lock()
	for i, w := range t.parked {
		if w.fits(from) {
			t.parked = append(t.parked[:i:i], t.parked[i+1:]...)
			t.mu.Unlock()
			return w, nil
		}
	}
	t.mu.Unlock()
	ctx, cancel := t.s.b.call(ctx)
	defer cancel()
	r, err := t.open(ctx, from)
	if err != nil {
		return nil, err
	}
	return &walk{reader: r}, nil
}

// park keeps the walk for the next Read.
func (t *tail) park(w *walk) {
	w.used = time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		w.close()
		return
	}
	t.parked = append(t.parked, w)
	if len(t.parked) > parkedMost {
		t.parked[0].close()
		t.parked = t.parked[1:]
	}
}

// closeIdle closes the readers that nobody goes on with.
func (t *tail) closeIdle(after time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.parked[:0]
	for _, w := range t.parked {
		if time.Since(w.used) > after {
			w.close()
		} else {
			kept = append(kept, w)
		}
	}
	t.parked = kept
}
