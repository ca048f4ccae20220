package brokertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
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
		out = append(out, m)
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
	ext, err := s.Streams.Extent(s.ctx, p)
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

func streamOrder(s *streamSuite) {
	p := part("f", 0)
	msgs := sequence(p, 0, 20)
	at := s.put(msgs[:15]...)
	for _, m := range msgs[15:] {
		at = append(at, s.put(m)...)
	}
	s.wantRead(p, 0, msgs, at)
}

func streamContent(s *streamSuite) {
	p := part("f", 7)
	msgs := []broker.StreamMessage{
		{Partition: p, ID: "none", Published: published(1)},
		{Partition: p, ID: "some", Key: "k\x00\xc3\xa9", Attributes: map[string]string{"b": "2", "a": "", "\x00": "c"}, Published: published(1), Payload: []byte{0, 0xff}},
		{Partition: p, ID: "most", Published: published(2), Payload: bytes.Repeat([]byte{0xa5}, mesh.MaxPayload)},
	}
	var at []broker.Position
	for _, m := range msgs {
		at = append(at, s.put(m)...)
	}
	s.wantRead(p, 0, msgs, at)
	// A clock that went back does not show.
	s.put(broker.StreamMessage{Partition: p, ID: "late", Published: published(0)})
	if got := s.read(p, at[2]+1); len(got) != 1 || got[0].Published.Before(published(2)) {
		s.Errorf("a message behind one of %v is of %v", published(2), got)
	}
}

func streamReadFrom(s *streamSuite) {
	p := part("f", 0)
	msgs := sequence(p, 0, 8)
	at := s.put(msgs...)
	for i := range msgs {
		s.wantRead(p, at[i], msgs[i:], at[i:])
		s.wantRead(p, at[i]+1, msgs[i+1:], at[i+1:])
	}
	n := 0
	for range s.Streams.Read(s.ctx, p, 0) {
		if n++; n == 3 {
			break
		}
	}
}

func streamsApart(s *streamSuite) {
	parts := []broker.Partition{part("f", 0), part("f", 1), part("ff", 0), {Tenant: "other", Stream: "f"}}
	at := map[broker.Partition][]broker.Position{}
	for _, p := range parts {
		at[p] = s.put(sequence(p, 0, 3)...)
	}
	for _, p := range parts {
		s.wantRead(p, 0, sequence(p, 0, 3), at[p])
	}
	s.trim(parts[0], at[parts[0]][2])
	s.wantRead(parts[0], 0, sequence(parts[0], 2, 1), at[parts[0]][2:])
	for _, p := range parts[1:] {
		s.wantRead(p, 0, sequence(p, 0, 3), at[p])
	}
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

func streamEmpty(s *streamSuite) {
	p := part("never", 0)
	if got := s.read(p, 0); len(got) != 0 {
		s.Errorf("an empty partition yields %d messages", len(got))
	}
	if ext := s.extent(p); ext.First != ext.End || ext.Messages != 0 || ext.Bytes != 0 {
		s.Errorf("an empty partition has %+v", ext)
	}
	if at := s.find(p, broker.Search{Since: published(0), Bytes: 1}); at != s.extent(p).End {
		s.Errorf("found position %d in an empty partition", at)
	}
	s.trim(p, 5)
	if got := s.put(sequence(p, 0, 1)...); len(s.read(p, 0)) != 1 {
		s.Errorf("a trim of an empty partition hides position %d, stored after it", got[0])
	}
}

// A stream that was opened is empty, and takes messages; opening it again
// changes nothing.
func streamOpened(s *streamSuite) {
	open := func() {
		s.Helper()
		if err := s.Streams.Open(s.ctx, "default", "f", 3); err != nil {
			s.Fatalf("Open: %v", err)
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

func streamExtent(s *streamSuite) {
	p := part("f", 0)
	at := s.put(sequence(p, 0, 6)...)
	s.trim(p, at[2])
	ext := s.extent(p)
	if ext.First != at[2] || ext.End <= at[5] || ext.Messages != 4 || ext.Bytes != 40 {
		s.Errorf("after a trim it has %+v", ext)
	}
	for i, want := range []uint64{4, 4, 4, 3, 2, 1} {
		if n, err := s.Streams.Count(s.ctx, p, at[i]); err != nil || n != want {
			s.Errorf("from message %d on there are %d, error %v, want %d", i, n, err, want)
		}
	}
	if n, err := s.Streams.Count(s.ctx, p, ext.End); err != nil || n != 0 {
		s.Errorf("behind the end there are %d, error %v", n, err)
	}
	s.trim(p, ext.End)
	if got := s.extent(p); got.First != got.End || got.End != ext.End || got.Messages != 0 || got.Bytes != 0 {
		s.Errorf("after a trim of all it has %+v", got)
	}
}

func streamFindTime(s *streamSuite) {
	p := part("f", 0)
	at := s.put(sequence(p, 0, 10)...)
	for i := range at {
		if got := s.find(p, broker.Search{Since: published(i)}); got != at[i] {
			s.Errorf("from second %d on it is %d, want %d", i, got, at[i])
		}
		if got := s.find(p, broker.Search{Since: published(i).Add(-time.Millisecond)}); got != at[i] {
			s.Errorf("from just before second %d on it is %d, want %d", i, got, at[i])
		}
	}
	if got := s.find(p, broker.Search{Since: published(10)}); got != s.extent(p).End {
		s.Errorf("after the last it is %d, want the end", got)
	}
	s.trim(p, at[4])
	if got := s.find(p, broker.Search{Since: published(1)}); got != at[4] {
		s.Errorf("before retention it is %d, want the first kept, %d", got, at[4])
	}
	if got := s.find(p, broker.Search{}); got != at[4] {
		s.Errorf("a search that binds nothing gives %d, want %d", got, at[4])
	}
}

func streamFindBytes(s *streamSuite) {
	p := part("f", 0)
	at := append(s.put(sequence(p, 0, 10)...), s.extent(p).End)
	for bytes, want := range map[uint64]broker.Position{1000: at[0], 100: at[0], 99: at[1], 30: at[7], 10: at[9], 9: at[10]} {
		if got := s.find(p, broker.Search{Bytes: bytes}); got != want {
			s.Errorf("the last %d bytes begin at %d, want %d", bytes, got, want)
		}
	}
	if got := s.find(p, broker.Search{Bytes: 30, Since: published(3)}); got != at[7] {
		s.Errorf("with both it is %d, want %d", got, at[7])
	}
	if got := s.find(p, broker.Search{Bytes: 30, Since: published(8)}); got != at[8] {
		s.Errorf("with both it is %d, want %d", got, at[8])
	}
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

func streamCrash(s *streamSuite) {
	p := part("f", 0)
	msgs := sequence(p, 0, 6)
	at := s.put(msgs[:3]...)
	// Prepared and not committed: gone, or there when the backend says so.
	lost, err := s.Streams.Append(s.ctx, msgs[3:4])
	if err != nil {
		s.Fatal(err)
	}
	s.Streams = s.Crash()
	if lost[0].Command != nil {
		s.wantRead(p, 0, msgs[:3], at)
	}
	res, err := s.tryPut(msgs[3:]...)
	if err != nil {
		s.Fatal(err)
	}
	for i, r := range res {
		if r.Duplicate != (i == 0 && lost[0].Command == nil) {
			s.Errorf("message %d after the crash is %+v", i, r)
		}
		at = append(at, r.Position)
	}
	s.Streams = s.Crash()
	s.wantRead(p, 0, msgs, at)
}

func streamTooLarge(s *streamSuite) {
	p := part("f", 0)
	big := broker.StreamMessage{Partition: p, ID: "big", Payload: make([]byte, mesh.MaxPayload+1), Published: published(1)}
	if _, err := s.Streams.Append(s.ctx, append(sequence(p, 0, 1), big)); !errors.Is(err, broker.ErrTooLarge) {
		s.Errorf("Append above the limit has error %v, want ErrTooLarge", err)
	}
	if got := s.read(p, 0); len(got) != 0 {
		s.Errorf("a refused Append left %d messages", len(got))
	}
}

func streamFull(s *streamSuite) {
	p := part("f", 0)
	sized := func(id string, n int) broker.StreamMessage {
		return broker.StreamMessage{Partition: p, ID: id, Payload: make([]byte, n), Published: published(1)}
	}
	at := s.put(sized("a", 400), sized("b", 400))
	if _, err := s.tryPut(sized("c", 150), sized("d", 150)); !errors.Is(err, broker.ErrFull) {
		s.Fatalf("an append above the cap has error %v, want ErrFull", err)
	}
	if got := s.read(p, 0); len(got) != 2 {
		s.Errorf("a refused append left %d messages, want 2", len(got))
	}
	s.trim(p, at[1])
	s.put(sized("e", 300))
}

func streamCancelled(s *streamSuite) {
	p := part("f", 0)
	s.put(sequence(p, 0, 2)...)
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.Streams.Append(ctx, sequence(p, 2, 1)); err == nil {
		s.Error("Append with a cancelled context has no error")
	}
	if _, err := s.Streams.Extent(ctx, p); err == nil {
		s.Error("Extent with a cancelled context has no error")
	}
	if _, err := s.Streams.Find(ctx, p, broker.Search{}); err == nil {
		s.Error("Find with a cancelled context has no error")
	}
	var last error
	for _, err := range s.Streams.Read(ctx, p, 0) {
		last = err
	}
	if last == nil {
		s.Error("Read with a cancelled context ends without an error")
	}
}

// A reader that follows the end, beside writers, sees every message once and in
// order: nothing appears behind it.
func streamConcurrent(s *streamSuite) {
	const writers, each = 6, 40
	p := part("f", 0)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				m := broker.StreamMessage{Partition: p, ID: fmt.Sprintf("%d/%d", w, i), Key: fmt.Sprint(w), Payload: []byte{byte(i)}, Published: published(1)}
				if _, err := s.tryPut(m); err != nil {
					s.Errorf("append: %v", err)
					return
				}
			}
		})
	}
	next, seen := broker.Position(0), map[string]int{}
	deadline := time.Now().Add(time.Minute)
	for total := 0; total < writers*each && time.Now().Before(deadline); {
		for m, err := range s.Streams.Read(s.ctx, p, next) {
			if err != nil {
				s.Fatal(err)
			}
			if int(m.Payload[0]) != seen[m.Key] {
				s.Fatalf("writer %s: message %d comes after %d", m.Key, m.Payload[0], seen[m.Key]-1)
			}
			seen[m.Key]++
			total++
			next = m.Position + 1
		}
	}
	wg.Wait()
	for w := range writers {
		if seen[fmt.Sprint(w)] != each {
			s.Errorf("%d messages of writer %d were seen, want %d", seen[fmt.Sprint(w)], w, each)
		}
	}
}

// fault has a fault befall messages on their way. Those are repeated until they are
// acknowledged, and all are there once and in order then.
func (s *streamSuite) fault(f Fault) {
	p := part("f", 0)
	msgs := sequence(p, 0, 60)
	s.put(msgs[:20]...)
	flying := make(chan error, 1)
	go func() {
		_, err := s.tryPut(msgs[20:40]...)
		flying <- err
	}()
	end := s.Fault(f)
	s.Logf("what was on its way has error %v", <-flying)
	s.Streams = end()
	for _, some := range [][]broker.StreamMessage{msgs[20:40], msgs[40:]} {
		s.again("append", func() error { _, err := s.tryPut(some...); return err })
	}
	var got []broker.StreamStored
	s.again("read", func() error {
		got = nil
		for m, err := range s.Streams.Read(s.ctx, p, 0) {
			if err != nil {
				return err
			}
			got = append(got, m)
		}
		return nil
	})
	for i := range max(len(got), len(msgs)) {
		if i >= len(got) || i >= len(msgs) || got[i].ID != msgs[i].ID {
			s.Fatalf("message %d of %d is not as sent; %d were read", i, len(msgs), len(got))
		}
	}
}

// again repeats a call until it succeeds. Until then it may only say that the
// backend is away.
func (s *streamSuite) again(what string, call func() error) {
	s.Helper()
	for end := time.Now().Add(patience); ; {
		err := call()
		if err == nil {
			return
		}
		if !errors.Is(err, broker.ErrUnavailable) || time.Now().After(end) {
			s.Fatalf("%s after the fault: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
