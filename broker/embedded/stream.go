package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"sort"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/state"
)

// Streams keeps the messages of streams in the cell's state: a publish costs
// one commit. Positions are given when the command is applied, so they are
// dense, and a message never appears behind a reader. It keeps nothing itself;
// its methods are safe for concurrent use, and read what this server has
// applied.
type Streams struct {
	reader  state.Reader
	options Options
}

var _ broker.Streams = (*Streams)(nil)

// NewStreams returns the door to the streams in the Machine's committed state;
// the reader is as for New. MaxBytes caps payloads of tasks and streams alike.
func NewStreams(reader state.Reader, o Options) *Streams { return &Streams{reader: reader, options: o} }

func checkPartition(p broker.Partition) error {
	if len(p.Tenant) > maxNameLen || len(p.Stream) > maxNameLen {
		return fmt.Errorf("stream name above %d bytes: %w", maxNameLen, ErrMalformed)
	}
	return nil
}

// Open has nothing to do: a partition is there with its first message, in the log
// that has the stream's record, and so needs no mark.
func (s *Streams) Open(ctx context.Context, tenant, stream string, _ uint32) (broker.Mark, error) {
	if err := errors.Join(ctx.Err(), checkPartition(broker.Partition{Tenant: tenant, Stream: stream})); err != nil {
		return nil, fmt.Errorf("embedded: open stream %s/%s: %w", tenant, stream, err)
	}
	return nil, nil
}

// Append makes the commands that will store the messages.
func (s *Streams) Append(ctx context.Context, msgs []broker.StreamMessage) ([]broker.PreparedAppend, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("embedded: append to a stream: %w", err)
	}
	var sum uint64
	for i, m := range msgs {
		err := checkPartition(m.Partition)
		if n := len(m.Payload); n > mesh.MaxPayload {
			err = fmt.Errorf("%d bytes, at most %d: %w", n, mesh.MaxPayload, broker.ErrTooLarge)
		}
		if err != nil {
			return nil, fmt.Errorf("embedded: append message %d to a stream: %w", i, err)
		}
		sum += uint64(len(m.Payload))
	}
	if limit := s.options.MaxBytes; limit > 0 {
		total, err := loadTotal(s.reader)
		if err == nil && total.Bytes+sum > limit {
			err = fmt.Errorf("%d bytes live, cap %d: %w", total.Bytes, limit, broker.ErrFull)
		}
		if err != nil {
			return nil, fmt.Errorf("embedded: append to a stream: %w", err)
		}
	}
	out := make([]broker.PreparedAppend, len(msgs))
	for i, m := range msgs {
		out[i].Command = streamAppendCommand{limit: s.options.MaxBytes, message: m, ms: m.Published.UnixMilli()}.encode()
	}
	return out, nil
}

// Read yields the messages from the position on, as of the time iteration
// starts.
func (s *Streams) Read(ctx context.Context, p broker.Partition, from broker.Position) iter.Seq2[*broker.StreamStored, error] {
	return func(yield func(*broker.StreamStored, error) bool) {
		fail := func(err error) { yield(nil, fmt.Errorf("embedded: read stream %s: %w", p, err)) }
		rec, err := s.load(ctx, p)
		if err != nil {
			fail(err)
			return
		}
		start, end := positionKey(keyValue, p, max(from, rec.first)), positionKey(keyValue, p, rec.end)
		if bytes.Compare(start, end) >= 0 {
			return
		}
		at := max(from, rec.first)
		for _, v := range s.reader.Scan(start, end) {
			if err := ctx.Err(); err != nil {
				fail(err)
				return
			}
			r := reader{b: v}
			m, ms := r.envelope()
			m.Partition, m.Payload, m.Published = p, r.rest(), time.UnixMilli(ms)
			if r.bad {
				fail(fmt.Errorf("message %d: %w", at, broker.ErrDamaged))
				return
			}
			if !yield(&broker.StreamStored{StreamMessage: m, Position: at}, nil) {
				return
			}
			at++
		}
	}
}

func (s *Streams) load(ctx context.Context, p broker.Partition) (partitionRecord, error) {
	if err := errors.Join(ctx.Err(), checkPartition(p)); err != nil {
		return partitionRecord{}, err
	}
	rec, err := loadPartition(s.reader, p)
	if rec.dropping {
		return partitionRecord{}, err
	}
	return rec, err
}

// Extent is exact: positions are dense.
func (s *Streams) Extent(ctx context.Context, p broker.Partition, from broker.Position) (broker.Extent, error) {
	for {
		rec, err := s.load(ctx, p)
		if err != nil {
			return broker.Extent{}, fmt.Errorf("embedded: measure stream %s: %w", p, err)
		}
		first := min(max(from, rec.first), rec.end)
		ext := broker.Extent{First: first, End: rec.end, Messages: rec.end - first}
		switch first {
		case rec.end:
			return ext, nil
		case rec.first:
			ext.Bytes = rec.bytes - rec.trimmedBytes
			return ext, nil
		}
		m, err := loadMark(s.reader, p, first)
		if err == nil {
			ext.Bytes = rec.bytes - m.before
			return ext, nil
		}
		if now, lerr := s.load(ctx, p); lerr != nil || now.first == rec.first {
			return broker.Extent{}, fmt.Errorf("embedded: measure stream %s: %w", p, errors.Join(err, lerr))
		}
		// Trimmed since.
	}
}

// Find looks by halves: times and sums of bytes both grow with positions.
func (s *Streams) Find(ctx context.Context, p broker.Partition, q broker.Search) (broker.Position, error) {
	rec, err := s.load(ctx, p)
	if err != nil {
		return 0, fmt.Errorf("embedded: search stream %s: %w", p, err)
	}
	since := q.Since.UnixMilli()
	n := sort.Search(int(rec.end-rec.first), func(i int) bool {
		m, merr := loadMark(s.reader, p, rec.first+uint64(i))
		if merr != nil {
			// Trimmed since: what is kept lies behind it.
			return false
		}
		return (q.Since.IsZero() || m.ms >= since) && (q.Bytes == 0 || rec.bytes-m.before <= q.Bytes)
	})
	return rec.first + uint64(n), nil
}

// Trim makes the command that drops what lies below the position.
func (s *Streams) Trim(ctx context.Context, p broker.Partition, below broker.Position) ([]byte, error) {
	if err := errors.Join(ctx.Err(), checkPartition(p)); err != nil {
		return nil, fmt.Errorf("embedded: trim stream %s: %w", p, err)
	}
	return streamTrimCommand{partition: p, below: below}.encode(), nil
}

// Drop makes the command that forgets the partition.
func (s *Streams) Drop(ctx context.Context, p broker.Partition) ([]byte, error) {
	if err := errors.Join(ctx.Err(), checkPartition(p)); err != nil {
		return nil, fmt.Errorf("embedded: drop stream %s: %w", p, err)
	}
	return streamTrimCommand{partition: p, drop: true}.encode(), nil
}
