package brokertest

import (
	"bytes"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

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

func streamExtent(s *streamSuite) {
	p := part("f", 0)
	at := s.put(sequence(p, 0, 6)...)
	s.trim(p, at[2])
	ext := s.extent(p)
	if ext.First != at[2] || ext.End <= at[5] || ext.Messages != 4 || ext.Bytes != 40 {
		s.Errorf("after a trim it has %+v", ext)
	}
	for i, want := range []uint64{4, 4, 4, 3, 2, 1} {
		got, err := s.Streams.Extent(s.ctx, p, at[i])
		if err != nil || got.Messages != want || got.Bytes != 10*want || got.First != max(at[i], at[2]) || got.End != ext.End {
			s.Errorf("from message %d on it has %+v, error %v, want %d messages", i, got, err, want)
		}
	}
	for _, from := range []broker.Position{ext.End, ext.End + 1<<40} {
		if got, err := s.Streams.Extent(s.ctx, p, from); err != nil || got.Messages != 0 || got.Bytes != 0 || got.First != ext.End || got.End != ext.End {
			s.Errorf("from %d, behind the end, it has %+v, error %v", from, got, err)
		}
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
