package brokertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

func testOrder(s *suite) {
	msgs := numbered(topic("f"), 0, 20)
	refs := s.put(msgs...)
	for i := 1; i < len(refs); i++ {
		if bytes.Compare(refs[i-1], refs[i]) >= 0 {
			s.Errorf("reference %d, %x, is not above the one before it, %x", i, []byte(refs[i]), []byte(refs[i-1]))
		}
	}
	more := numbered(topic("f"), 20, 5)
	refs = append(refs, s.put(more...)...)
	s.wantRead(topic("f"), nil, append(msgs, more...), refs)
}

func testReadFrom(s *suite) {
	msgs := numbered(topic("f"), 0, 10)
	refs := s.put(msgs...)
	for i := range msgs {
		s.wantRead(topic("f"), refs[i], msgs[i:], refs[i:])
	}
}

func testReadStops(s *suite) {
	s.put(numbered(topic("f"), 0, 10)...)
	n := 0
	for _, err := range s.Broker.Read(s.ctx, topic("f"), nil) {
		if err != nil {
			s.Fatalf("Read: %v", err)
		}
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		s.Errorf("read %d messages before the break, want 3", n)
	}
}

func testFetch(s *suite) {
	msgs := numbered(topic("f"), 0, 5)
	refs := s.put(msgs...)
	for i, m := range msgs {
		s.wantFetch(m, refs[i])
	}
	s.wantLost(topic("g"), refs[0])
	s.wantLost(topic("f"), broker.Reference("nowhere"))
	s.wantLost(topic("f"), nil)
}

func testEmptyTopic(s *suite) {
	if got := s.read(topic("never"), nil); len(got) != 0 {
		s.Errorf("a topic without messages yields %s", ids(got))
	}
	refs := s.put(numbered(topic("f"), 0, 1)...)
	if got := s.read(topic("never"), refs[0]); len(got) != 0 {
		s.Errorf("a topic without messages yields %s", ids(got))
	}
	s.trim(topic("never"), refs[0])
	if got := s.read(topic("never"), nil); len(got) != 0 {
		s.Errorf("a topic without messages yields %s after a trim", ids(got))
	}
}

// Topics whose names run into each other are kept apart.
func testTopicsApart(s *suite) {
	topics := []broker.Topic{
		{Tenant: "a", Function: "b", Lane: mesh.Standard},
		{Tenant: "a", Function: "b", Lane: mesh.Batch},
		{Tenant: "a", Function: "bb", Lane: mesh.Standard},
		{Tenant: "ab", Function: "b", Lane: mesh.Standard},
		{Tenant: "ab", Function: "", Lane: mesh.Standard},
		{Tenant: "", Function: "ab", Lane: mesh.Standard},
	}
	var msgs [][]broker.Message
	var refs [][]broker.Reference
	for i, t := range topics {
		m := numbered(t, 100*i, 3)
		msgs = append(msgs, m)
		refs = append(refs, s.put(m...))
	}
	for i, t := range topics {
		s.wantRead(t, nil, msgs[i], refs[i])
	}
	s.trim(topics[0], refs[0][2])
	s.wantRead(topics[0], nil, msgs[0][2:], refs[0][2:])
	for i, t := range topics[1:] {
		s.wantRead(t, nil, msgs[i+1], refs[i+1])
	}
}

// One that is above the limit refuses all of the call.
func testTooLarge(s *suite) {
	big := message(topic("f"), "big", make([]byte, mesh.MaxPayload+1))
	_, err := s.Broker.Prepare(s.ctx, []broker.Message{numbered(topic("f"), 0, 1)[0], big})
	if !errors.Is(err, broker.ErrTooLarge) {
		s.Errorf("Prepare above the limit has error %v, want ErrTooLarge", err)
	}
	if got := s.read(topic("f"), nil); len(got) != 0 {
		s.Errorf("a refused Prepare left %s", ids(got))
	}
}

func testSizes(s *suite) {
	msgs := []broker.Message{
		message(topic("f"), "big", bytes.Repeat([]byte{0xa5}, mesh.MaxPayload)),
		message(topic("f"), "none", nil),
		message(topic("f"), "zeros", make([]byte, 100)),
	}
	refs := s.put(msgs...)
	s.wantRead(topic("f"), nil, msgs, refs)
	for i, m := range msgs {
		s.wantFetch(m, refs[i])
	}
}

// What is read before its record is committed is there once, also after.
func testReadOutruns(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 3)
	var refs []broker.Reference
	for i, m := range msgs {
		p := s.prepare(m)
		early := s.read(t, nil)
		want := i + 1
		if p[0].Command != nil {
			want = i
		}
		if len(early) != want {
			s.Errorf("Read before the commit of message %d yields %d messages, want %d", i, len(early), want)
		}
		s.commit(p...)
		refs = append(refs, p[0].Ref)
		s.wantRead(t, nil, msgs[:i+1], refs)
	}
}

// At the cap an append fails with ErrFull and does not wait; what was stored
// stays, and a trim makes room. A backend may notice both late.
func testFull(s *suite) {
	t := topic("f")
	var msgs []broker.Message
	var refs []broker.Reference
	full := s.within(func() bool {
		m := message(t, fmt.Sprintf("task-%04d", len(msgs)), make([]byte, 400))
		start := time.Now()
		p, err := s.Broker.Prepare(s.ctx, []broker.Message{m})
		if took := time.Since(start); took > promptly {
			s.Errorf("Prepare took %v, at most %v", took, promptly)
		}
		if err == nil {
			err = s.tryCommit(p...)
		}
		if err == nil {
			msgs, refs = append(msgs, m), append(refs, p[0].Ref)
		} else if !errors.Is(err, broker.ErrFull) {
			s.Fatalf("Prepare above the cap has error %v, want ErrFull", err)
		}
		return err != nil
	})
	if !full {
		s.Fatalf("no ErrFull after %d messages of 400 bytes, the cap is 1000", len(msgs))
	}
	// The refused one may have been stored: an orphan, behind all others.
	got := s.read(t, nil)
	if len(got) < len(msgs) || len(got) > len(msgs)+1 {
		s.Fatalf("Read yields %d messages, %d were acknowledged", len(got), len(msgs))
	}
	for i, m := range msgs {
		s.same(got[i], m, refs[i])
	}
	s.trim(t, append(bytes.Clone(got[len(got)-1].Ref), 0))
	room := s.within(func() bool {
		p, err := s.Broker.Prepare(s.ctx, []broker.Message{message(t, "late", make([]byte, 300))})
		return err == nil && s.tryCommit(p...) == nil
	})
	if !room {
		s.Error("no room after a trim of everything")
	}
}

// A message whose bytes are not those of its SHA-256 is reported, and does not
// keep the rest from being read.
func testDamaged(s *suite) {
	msgs := numbered(topic("f"), 0, 3)
	msgs[1].SHA256[0] ^= 1
	refs := s.put(msgs...)
	got := s.read(topic("f"), nil)
	if len(got) != 3 {
		s.Fatalf("Read yields %d messages, want 3", len(got))
	}
	s.same(got[0], msgs[0], refs[0])
	s.same(got[2], msgs[2], refs[2])
	if !errors.Is(got[1].Err, broker.ErrDamaged) || got[1].Payload != nil {
		s.Errorf("damaged message has error %v and %d bytes, want ErrDamaged and none", got[1].Err, len(got[1].Payload))
	}
	if got[1].TaskID != msgs[1].TaskID || !bytes.Equal(got[1].Ref, refs[1]) {
		s.Errorf("damaged message is %s at %x, want %s at %x", got[1].TaskID, []byte(got[1].Ref), msgs[1].TaskID, []byte(refs[1]))
	}
	if m, err := s.Broker.Fetch(s.ctx, topic("f"), refs[1]); !errors.Is(err, broker.ErrDamaged) || m.Payload != nil {
		s.Errorf("Fetch of the damaged message has error %v, want ErrDamaged", err)
	}
}

func testCancelled(s *suite) {
	refs := s.put(numbered(topic("f"), 0, 2)...)
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.Broker.Prepare(ctx, numbered(topic("f"), 2, 1)); err == nil {
		s.Error("Prepare with a cancelled context has no error")
	}
	if _, err := s.Broker.Fetch(ctx, topic("f"), refs[0]); err == nil {
		s.Error("Fetch with a cancelled context has no error")
	}
	var last error
	for _, err := range s.Broker.Read(ctx, topic("f"), nil) {
		last = err
	}
	if last == nil {
		s.Error("Read with a cancelled context ends without an error")
	}
}

func testConcurrent(s *suite) {
	const writers, each = 8, 40
	t := topic("f")
	refs := make([][]broker.Reference, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				m := message(t, fmt.Sprintf("task-%d-%d", w, i), fmt.Appendf(nil, "%d/%d", w, i))
				p, err := s.Broker.Prepare(s.ctx, []broker.Message{m})
				if err == nil {
					err = s.tryCommit(p...)
				}
				if err != nil {
					s.Errorf("put %s: %v", m.TaskID, err)
					return
				}
				refs[w] = append(refs[w], p[0].Ref)
				if got, err := s.Broker.Fetch(s.ctx, t, p[0].Ref); err != nil || got.TaskID != m.TaskID {
					s.Errorf("Fetch of %s gives %s, error %v", m.TaskID, got.TaskID, err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			for m, err := range s.Broker.Read(s.ctx, t, nil) {
				if err != nil || m.Err != nil {
					s.Errorf("Read beside writers: %v, %v", err, m.Err)
				}
			}
		}
	})
	wg.Wait()

	seen := map[string]int{}
	for _, m := range s.read(t, nil) {
		seen[string(m.Ref)]++
	}
	for w := range refs {
		for _, r := range refs[w] {
			if seen[string(r)] != 1 {
				s.Errorf("reference %x is read %d times, want once", []byte(r), seen[string(r)])
			}
		}
	}
	if len(seen) != writers*each {
		s.Errorf("read %d messages, want %d", len(seen), writers*each)
	}
}

func testClose(s *suite) {
	refs := s.put(numbered(topic("f"), 0, 1)...)
	if err := s.Broker.Close(); err != nil {
		s.Fatalf("Close: %v", err)
	}
	if err := s.Broker.Close(); err != nil {
		s.Errorf("second Close: %v", err)
	}
	if _, err := s.Broker.Prepare(s.ctx, numbered(topic("f"), 1, 1)); !errors.Is(err, broker.ErrUnavailable) {
		s.Errorf("Prepare after Close has error %v, want ErrUnavailable", err)
	}
	if _, err := s.Broker.Fetch(s.ctx, topic("f"), refs[0]); !errors.Is(err, broker.ErrUnavailable) {
		s.Errorf("Fetch after Close has error %v, want ErrUnavailable", err)
	}
	if err := s.Broker.Trimmed(s.ctx, topic("f"), refs[0]); !errors.Is(err, broker.ErrUnavailable) {
		s.Errorf("Trimmed after Close has error %v, want ErrUnavailable", err)
	}
	if _, err := s.Broker.Trim(s.ctx, topic("f"), refs[0]); !errors.Is(err, broker.ErrUnavailable) {
		s.Errorf("Trim after Close has error %v, want ErrUnavailable", err)
	}
	var last error
	for _, err := range s.Broker.Read(s.ctx, topic("f"), nil) {
		last = err
	}
	if !errors.Is(last, broker.ErrUnavailable) {
		s.Errorf("Read after Close ends with %v, want ErrUnavailable", last)
	}
}
