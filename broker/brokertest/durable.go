package brokertest

import (
	"bytes"

	"github.com/isobar-mesh/isobar/broker"
)

// What was prepared and not committed is gone, or an orphan if the backend is
// durable at Prepare; prepared again, it is there under a reference of its own.
func testCrashBeforeCommit(s *suite) {
	t := topic("f")
	kept := numbered(t, 0, 3)
	keptRefs := s.put(kept...)
	msgs := numbered(t, 3, 3)
	lost := s.prepare(msgs...)
	s.crash()

	for i, p := range lost {
		if p.Command != nil {
			s.wantLost(t, p.Ref)
		} else {
			s.wantFetch(msgs[i], p.Ref)
		}
	}
	again := s.put(msgs...)
	seen := map[string]bool{}
	for _, r := range keptRefs {
		seen[string(r)] = true
	}
	for _, p := range lost {
		seen[string(p.Ref)] = true
	}
	for i, r := range again {
		if seen[string(r)] {
			s.Errorf("reference %x was given out before the crash", []byte(r))
		}
		if bytes.Compare(r, keptRefs[len(keptRefs)-1]) <= 0 {
			s.Errorf("reference %x after the crash is not above those before", []byte(r))
		}
		s.wantFetch(msgs[i], r)
	}
	if lost[0].Command != nil {
		s.wantRead(t, nil, append(kept, msgs...), append(keptRefs, again...))
	}
}

func testCrashAfterCommit(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 10)
	refs := s.put(msgs[:5]...)
	group := s.prepare(msgs[5:]...)
	s.commit(group...)
	for _, p := range group {
		refs = append(refs, p.Ref)
	}
	for range 3 {
		s.crash()
		s.wantRead(t, nil, msgs, refs)
	}
	for i, m := range msgs {
		s.wantFetch(m, refs[i])
	}
}

// A group of the old leader commits after the next leader has stored its own:
// both are there, once, and the old one's reference is the lower.
func testLateCommit(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 4)
	old := s.prepare(msgs[:2]...)
	s.crash()
	refs := s.put(msgs[2:]...)
	s.commit(old...)
	s.wantRead(t, nil, msgs, append([]broker.Reference{old[0].Ref, old[1].Ref}, refs...))
	s.crash()
	s.wantRead(t, nil, msgs, append([]broker.Reference{old[0].Ref, old[1].Ref}, refs...))
}

func testCommitTwice(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 2)
	group := s.prepare(msgs...)
	s.commit(group...)
	s.commit(group...)
	refs := []broker.Reference{group[0].Ref, group[1].Ref}
	s.wantRead(t, nil, msgs, refs)
	s.crash()
	s.commit(group...)
	s.wantRead(t, nil, msgs, refs)
}

func testOutOfOrder(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 6)
	group := s.prepare(msgs...)
	refs := make([]broker.Reference, len(group))
	for i := len(group) - 1; i >= 0; i-- {
		s.commit(group[i])
		refs[i] = group[i].Ref
		s.wantFetch(msgs[i], refs[i])
	}
	s.wantRead(t, nil, msgs, refs)
}

// What others wrote is never yielded, or was refused whole with what stood beside
// it; our own messages around it are.
func testForeign(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 4)
	refs := s.put(msgs[:2]...)
	if err := s.Foreign(t); err != nil {
		s.Logf("refused: %v", err)
	}
	refs = append(refs, s.put(msgs[2:]...)...)
	if err := s.Foreign(t); err != nil {
		s.Logf("refused: %v", err)
	}
	s.wantRead(t, nil, msgs, refs)
	s.wantRead(t, refs[1], msgs[1:], refs[1:])
	for i, m := range msgs {
		s.wantFetch(m, refs[i])
	}
}

func testTrim(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 10)
	refs := s.put(msgs...)
	s.trim(t, refs[4])
	s.wantRead(t, nil, msgs[4:], refs[4:])
	s.wantRead(t, refs[0], msgs[4:], refs[4:]) // trimmed away: the first kept one
	s.wantRead(t, refs[6], msgs[6:], refs[6:])
	for _, r := range refs[:4] {
		s.wantLost(t, r)
	}
	for i := 4; i < len(refs); i++ {
		s.wantFetch(msgs[i], refs[i])
	}
	more := numbered(t, 10, 2)
	moreRefs := s.put(more...)
	s.wantRead(t, nil, append(msgs[4:], more...), append(refs[4:], moreRefs...))
}

func testTrimCumulative(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 10)
	refs := s.put(msgs...)
	s.trim(t, refs[0]) // nothing lies below
	s.wantRead(t, nil, msgs, refs)
	for range 2 {
		s.trim(t, refs[6])
		s.wantRead(t, nil, msgs[6:], refs[6:])
	}
	s.trim(t, refs[2]) // below what is trimmed: nothing comes back or goes
	s.wantRead(t, nil, msgs[6:], refs[6:])
	s.trim(t, refs[9])
	s.wantRead(t, nil, msgs[9:], refs[9:])
}

func testTrimCrash(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 6)
	refs := s.put(msgs...)
	s.trim(t, refs[3])
	s.crash()
	s.wantRead(t, nil, msgs[3:], refs[3:])
	s.wantLost(t, refs[0])

	// A trim that was made and not committed has no effect, if it needs to be.
	command, err := s.Broker.Trim(s.ctx, t, refs[5])
	if err != nil {
		s.Fatalf("Trim: %v", err)
	}
	s.crash()
	if command != nil {
		s.wantRead(t, nil, msgs[3:], refs[3:])
	}
}

// What was prepared before a trim passed it by is refused at commit, whole, or
// was stored before and is trimmed: never readable below the position.
func testAppendBehindTrim(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 3)
	early := s.prepare(msgs[0])
	refs := s.put(msgs[1:]...)
	s.trim(t, refs[1])
	if err := s.tryCommit(early...); err == nil && early[0].Command != nil {
		s.Error("an append below the trimmed position was committed")
	}
	s.wantLost(t, early[0].Ref)
	s.wantRead(t, nil, msgs[2:], refs[1:])
	again := s.put(msgs[0])
	s.wantFetch(msgs[0], again[0])
}

// A payload that is needed for long is appended again, so that what lies between
// can go.
func testMoved(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 5)
	refs := s.put(msgs...)
	again := s.put(msgs[0])[0]
	if bytes.Compare(again, refs[4]) <= 0 {
		s.Errorf("reference %x of the message appended again is not above %x", []byte(again), []byte(refs[4]))
	}
	s.trim(t, again)
	s.wantRead(t, nil, msgs[:1], []broker.Reference{again})
	s.wantFetch(msgs[0], again)
	for _, r := range refs {
		s.wantLost(t, r)
	}
	s.crash()
	s.wantRead(t, nil, msgs[:1], []broker.Reference{again})
}
