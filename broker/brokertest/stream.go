package brokertest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker"
)

// StreamHarness is one fresh, empty backend of broker.Streams under test. The
// functions are safe for concurrent use, but for Crash.
type StreamHarness struct {
	Streams broker.Streams
	// Commit commits the commands as one group, all or nothing, and returns
	// their results. A backend without commands leaves it nil.
	Commit func(commands ...[]byte) ([]any, error)
	// Crash ends the leader without a goodbye: what is not durable is lost. It
	// returns the backend of the next one.
	Crash func() broker.Streams
	// Fault begins a fault; end ends it and returns the backend to go on with. An
	// Unload is of partition 0 of the stream f of the tenant default.
	Fault func(f Fault) (end func() broker.Streams)
}

// StreamFactory makes a StreamHarness and registers its clean-up with t.
type StreamFactory func(t *testing.T, c Config) *StreamHarness

// RunStreams runs every test of the suite for streams on harnesses of the
// factory.
func RunStreams(t *testing.T, f StreamFactory) {
	tests := []struct {
		name   string
		config Config
		run    func(*streamSuite)
	}{
		{"order per partition", Config{}, streamOrder},
		{"all of a message comes back", Config{}, streamContent},
		{"read from a position", Config{}, streamReadFrom},
		{"partitions do not mix", Config{}, streamsApart},
		{"a repeat is stored once", Config{}, streamRepeat},
		{"the window of repeats is bounded", Config{}, streamWindow},
		{"empty partition", Config{}, streamEmpty},
		{"opened", Config{}, streamOpened},
		{"extent and count", Config{}, streamExtent},
		{"find by time", Config{}, streamFindTime},
		{"find by bytes", Config{}, streamFindBytes},
		{"trim", Config{}, streamTrim},
		{"drop", Config{}, streamDrop},
		{"crash after commit", Config{}, streamCrash},
		{"too large", Config{}, streamTooLarge},
		{"full", Config{MaxBytes: 1000}, streamFull},
		{"cancelled context", Config{}, streamCancelled},
		{"concurrent", Config{}, streamConcurrent},
		{"partition unloaded", Config{}, func(s *streamSuite) { s.fault(Unload) }},
		{"broker killed", Config{Breaks: true}, func(s *streamSuite) { s.fault(Kill) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.config.Breaks {
				t.Parallel()
			}
			tt.run(&streamSuite{TB: t, ctx: t.Context(), StreamHarness: f(t, tt.config)})
		})
	}
}

type streamSuite struct {
	testing.TB
	*StreamHarness
	ctx context.Context
}

func part(stream string, n uint32) broker.Partition {
	return broker.Partition{Tenant: "default", Stream: stream, Number: n}
}

// published is a moment that every backend can keep: whole milliseconds.
func published(second int) time.Time {
	return time.Date(2026, 1, 2, 3, 4, second, 0, time.UTC)
}

// sequence makes n messages of 10 bytes, a second apart.
func sequence(p broker.Partition, first, n int) []broker.StreamMessage {
	out := make([]broker.StreamMessage, n)
	for i := range out {
		out[i] = broker.StreamMessage{
			Partition: p, ID: fmt.Sprintf("%s/%d", p, first+i), Key: fmt.Sprintf("key-%d", (first+i)%3),
			Published: published(first + i), Payload: fmt.Appendf(nil, "message %02d", first+i),
		}
	}
	return out
}

// tryPut stores the messages, in one group where the backend has commands.
func (s *streamSuite) tryPut(msgs ...broker.StreamMessage) ([]broker.StreamAppended, error) {
	prepared, err := s.Streams.Append(s.ctx, msgs)
	if err != nil {
		return nil, err
	}
	if len(prepared) != len(msgs) {
		return nil, fmt.Errorf("%d results for %d messages", len(prepared), len(msgs))
	}
	out := make([]broker.StreamAppended, len(msgs))
	var commands [][]byte
	var at []int
	for i, p := range prepared {
		out[i] = p.StreamAppended
		if p.Command != nil {
			commands, at = append(commands, p.Command), append(at, i)
		}
	}
	if len(commands) == 0 {
		return out, nil
	}
	results, err := s.Commit(commands...)
	if err != nil {
		return nil, err
	}
	for j, i := range at {
		res, ok := results[j].(broker.StreamAppended)
		if !ok {
			return nil, fmt.Errorf("the result of an append is %T", results[j])
		}
		out[i] = res
	}
	return out, nil
}

func (s *streamSuite) put(msgs ...broker.StreamMessage) []broker.Position {
	s.Helper()
	res, err := s.tryPut(msgs...)
	if err != nil {
		s.Fatalf("append of %d messages: %v", len(msgs), err)
	}
	out := make([]broker.Position, len(res))
	for i, r := range res {
		if r.Duplicate {
			s.Errorf("message %s is a duplicate", msgs[i].ID)
		}
		out[i] = r.Position
	}
	return out
}

// finish commits the command of a Trim or Drop until nothing is left.
func (s *streamSuite) finish(prepare func() ([]byte, error)) {
	s.Helper()
	for {
		command, err := prepare()
		if err != nil {
			s.Fatalf("trim: %v", err)
		}
		if command == nil {
			return
		}
		results, err := s.Commit(command)
		if err != nil {
			s.Fatalf("commit of a trim: %v", err)
		}
		if u, ok := results[0].(broker.Unfinished); !ok || !u.Unfinished() {
			return
		}
	}
}

func (s *streamSuite) trim(p broker.Partition, below broker.Position) {
	s.Helper()
	s.finish(func() ([]byte, error) { return s.Streams.Trim(s.ctx, p, below) })
}

func (s *streamSuite) read(p broker.Partition, from broker.Position) []broker.StreamStored {
	s.Helper()
	var out []broker.StreamStored
	for m, err := range s.Streams.Read(s.ctx, p, from) {
		if err != nil {
			s.Fatalf("Read of %s: %v", p, err)
		}
		if n := len(out); n > 0 && out[n-1].Position >= m.Position {
			s.Errorf("position %d comes after %d", m.Position, out[n-1].Position)
		}
		out = append(out, *m)
	}
	return out
}

func (s *streamSuite) wantRead(p broker.Partition, from broker.Position, msgs []broker.StreamMessage, at []broker.Position) {
	s.Helper()
	got := s.read(p, from)
	if len(got) != len(msgs) {
		s.Fatalf("Read of %s from %d yields %d messages, want %d", p, from, len(got), len(msgs))
	}
	for i, m := range msgs {
		g := got[i]
		if g.Position != at[i] || g.ID != m.ID || g.Key != m.Key || g.Partition != p || !bytes.Equal(g.Payload, m.Payload) ||
			!g.Published.Equal(m.Published) || !maps.Equal(g.Attributes, m.Attributes) {
			s.Errorf("message %d of %s is %+v, want %+v at %d", i, p, g, m, at[i])
		}
	}
}

func (s *streamSuite) extent(p broker.Partition) broker.Extent {
	s.Helper()
	ext, err := s.Streams.Extent(s.ctx, p, 0)
	if err != nil {
		s.Fatalf("Extent of %s: %v", p, err)
	}
	return ext
}

func (s *streamSuite) find(p broker.Partition, q broker.Search) broker.Position {
	s.Helper()
	at, err := s.Streams.Find(s.ctx, p, q)
	if err != nil {
		s.Fatalf("Find in %s: %v", p, err)
	}
	return at
}

func streamRepeat(s *streamSuite) {
	p := part("f", 0)
	msgs := sequence(p, 0, 4)
	at := s.put(msgs...)
	for _, crash := range []bool{false, true} {
		if crash {
			s.Streams = s.Crash()
		}
		again, err := s.tryPut(msgs[1], msgs[3])
		if err != nil {
			s.Fatal(err)
		}
		for i, of := range []int{1, 3} {
			if !again[i].Duplicate || again[i].Position != at[of] {
				s.Errorf("a repeat of message %d is %+v, want a duplicate at %d", of, again[i], at[of])
			}
		}
	}
	s.wantRead(p, 0, msgs, at)
}

// A repeat is known among the newest DedupWindow messages, trimmed or not.
func streamWindow(s *streamSuite) {
	p := part("f", 0)
	first := sequence(p, 0, 1)[0]
	s.put(first)
	const batch = 500
	for n := 1; n < broker.DedupWindow; n += batch {
		msgs := make([]broker.StreamMessage, min(batch, broker.DedupWindow-n))
		for i := range msgs {
			msgs[i] = broker.StreamMessage{Partition: p, ID: fmt.Sprint("filler ", n+i), Published: published(1)}
		}
		s.put(msgs...)
	}
	s.trim(p, s.extent(p).End)
	again, err := s.tryPut(first)
	if err != nil || !again[0].Duplicate {
		s.Errorf("a repeat %d messages later is %+v, error %v", broker.DedupWindow, again, err)
	}
	s.put(broker.StreamMessage{Partition: p, ID: "one more", Published: published(1)})
	s.put(first)
}

// A stream that was opened is empty, and takes messages; opening it again
// changes nothing.
func streamOpened(s *streamSuite) {
	open := func() {
		s.Helper()
		m, err := s.Streams.Open(s.ctx, "default", "f", 3)
		if err != nil {
			s.Fatalf("Open: %v", err)
		}
		if again, err := s.Streams.Open(s.ctx, "default", "other", 1); err != nil || !bytes.Equal(m, again) {
			s.Errorf("two streams of one broker have the marks %x and %x, error %v", m, again, err)
		}
	}
	open()
	for n := range uint32(3) {
		if ext := s.extent(part("f", n)); ext.First != ext.End || ext.Messages != 0 {
			s.Errorf("partition %d of a stream just opened has %+v", n, ext)
		}
	}
	p := part("f", 2)
	at := s.put(sequence(p, 0, 3)...)
	open()
	s.wantRead(p, 0, sequence(p, 0, 3), at)
	s.Streams = s.Crash()
	open()
	s.wantRead(p, 0, sequence(p, 0, 3), at)
}

func streamTrim(s *streamSuite) {
	p := part("f", 0)
	msgs := sequence(p, 0, 10)
	at := s.put(msgs...)
	for range 2 {
		s.trim(p, at[6])
		s.wantRead(p, 0, msgs[6:], at[6:])
	}
	s.trim(p, at[2])
	s.wantRead(p, at[1], msgs[6:], at[6:])
	s.Streams = s.Crash()
	s.wantRead(p, 0, msgs[6:], at[6:])
	more := sequence(p, 10, 2)
	moreAt := s.put(more...)
	s.wantRead(p, 0, append(msgs[6:], more...), append(at[6:], moreAt...))
}

func streamDrop(s *streamSuite) {
	p, other := part("f", 0), part("g", 0)
	msgs := sequence(p, 0, 5)
	s.put(msgs...)
	otherAt := s.put(sequence(other, 0, 2)...)
	for range 2 {
		s.finish(func() ([]byte, error) { return s.Streams.Drop(s.ctx, p) })
	}
	if ext := s.extent(p); ext.Messages != 0 || len(s.read(p, 0)) != 0 {
		s.Errorf("a dropped partition has %+v", ext)
	}
	s.wantRead(other, 0, sequence(other, 0, 2), otherAt)
	s.wantRead(p, 0, msgs, s.put(msgs...))
}
