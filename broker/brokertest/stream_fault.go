package brokertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

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
	if _, err := s.Streams.Extent(ctx, p, 0); err == nil {
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
	s.again("append before", func() error { _, err := s.tryPut(msgs[:20]...); return err })
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
			got = append(got, *m)
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
			s.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
