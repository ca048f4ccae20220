package embedded

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/isobar-mesh/isobar/broker"
)

// Kinds of commands about streams.
const (
	kindStreamAppend = 3
	kindStreamTrim   = 4
	kindStreamDrop   = 5
)

// streamAppendCommand stores one message.
type streamAppendCommand struct {
	limit   uint64 // cap on live bytes; 0 is none
	message broker.StreamMessage
	ms      int64 // published
}

// streamTrimCommand drops what lies below a position, or all of the partition.
type streamTrimCommand struct {
	partition broker.Partition
	below     broker.Position
	drop      bool
}

func appendPartition(b []byte, p broker.Partition) []byte {
	b = appendName(b, p.Tenant)
	b = appendName(b, p.Stream)
	return binary.BigEndian.AppendUint32(b, p.Number)
}

func (r *reader) partition() broker.Partition {
	p := broker.Partition{Tenant: r.name(), Stream: r.name()}
	if n := r.take(4); n != nil {
		p.Number = binary.BigEndian.Uint32(n)
	}
	return p
}

func appendBytes(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func (r *reader) bytes() string {
	n := r.uvarint()
	if n > math.MaxInt32 {
		r.bad = true
	}
	return string(r.take(int(n)))
}

func (r *reader) moment() int64 {
	n := r.uvarint()
	if n > math.MaxInt64/2 {
		r.bad = true
	}
	return int64(n)
}

func (c streamAppendCommand) encode() []byte {
	b := make([]byte, 0, 64+len(c.message.ID)+len(c.message.Key)+len(c.message.Payload))
	b = append(b, encodingV1, kindStreamAppend)
	b = appendPartition(b, c.message.Partition)
	b = binary.AppendUvarint(b, c.limit)
	b = appendEnvelope(b, c.message, c.ms)
	return append(b, c.message.Payload...)
}

// appendEnvelope writes all of a message but its place and payload.
func appendEnvelope(b []byte, m broker.StreamMessage, ms int64) []byte {
	b = appendBytes(b, m.ID)
	b = appendBytes(b, m.Key)
	b = binary.AppendUvarint(b, uint64(max(ms, 0)))
	b = binary.AppendUvarint(b, uint64(len(m.Attributes)))
	for _, k := range slices.Sorted(maps.Keys(m.Attributes)) {
		b = appendBytes(appendBytes(b, k), m.Attributes[k])
	}
	return b
}

func (r *reader) envelope() (m broker.StreamMessage, ms int64) {
	m.ID, m.Key, ms = r.bytes(), r.bytes(), r.moment()
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad = true
	}
	for i := uint64(0); i < n && !r.bad; i++ {
		if m.Attributes == nil {
			m.Attributes = map[string]string{}
		}
		k := r.bytes()
		m.Attributes[k] = r.bytes()
	}
	return m, ms
}

func (c streamTrimCommand) encode() []byte {
	kind := byte(kindStreamTrim)
	if c.drop {
		kind = kindStreamDrop
	}
	b := appendPartition([]byte{encodingV1, kind}, c.partition)
	return binary.BigEndian.AppendUint64(b, c.below)
}

// decodeStreamCommand reads what is behind the kind.
func decodeStreamCommand(kind byte, r *reader) (any, error) {
	p := r.partition()
	if kind == kindStreamAppend {
		c := streamAppendCommand{limit: r.uvarint()}
		c.message, c.ms = r.envelope()
		c.message.Partition, c.message.Payload = p, r.rest()
		if r.bad {
			return nil, fmt.Errorf("append to a stream: %w", ErrMalformed)
		}
		return c, nil
	}
	c := streamTrimCommand{partition: p, drop: kind == kindStreamDrop}
	if n := r.take(8); n != nil {
		c.below = binary.BigEndian.Uint64(n)
	}
	if r.bad || len(r.b) != 0 {
		return nil, fmt.Errorf("trim of a stream: %w", ErrMalformed)
	}
	return c, nil
}

// partitionRecord is what is known of one partition. Its positions are dense:
// end - first messages are kept, and those from dropped to first wait for
// deletion.
type partitionRecord struct {
	end     uint64
	first   uint64
	dropped uint64
	// window: the IDs of the messages from here on are known.
	window uint64
	// lastMs is the newest message's time; bytes are all ever appended, so that
	// two messages' differ by what lies between them.
	lastMs int64
	bytes  uint64
	// trimmedBytes is bytes at first.
	trimmedBytes uint64
	dropping     bool
}

func (p partitionRecord) encode() []byte {
	b := []byte{encodingV1}
	for _, v := range []uint64{p.end, p.first, p.dropped, p.window, uint64(p.lastMs), p.bytes, p.trimmedBytes} {
		b = binary.AppendUvarint(b, v)
	}
	if p.dropping {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodePartitionRecord(b []byte) (partitionRecord, error) {
	r := reader{b: b}
	version := r.byte()
	p := partitionRecord{
		end: r.uvarint(), first: r.uvarint(), dropped: r.uvarint(), window: r.uvarint(), lastMs: r.moment(), bytes: r.uvarint(), trimmedBytes: r.uvarint(),
	}
	p.dropping = r.byte() == 1
	if r.bad || version != encodingV1 || len(r.b) != 0 {
		return partitionRecord{}, fmt.Errorf("partition record: %w", ErrMalformed)
	}
	return p, nil
}

// mark is a message's small part, which searches read: when it was published,
// and how many bytes of payload were appended before it.
type mark struct {
	ms     int64
	before uint64
	size   uint64
}

func (m mark) encode() []byte {
	b := binary.AppendUvarint([]byte{encodingV1}, uint64(m.ms))
	return binary.AppendUvarint(binary.AppendUvarint(b, m.before), m.size)
}

func decodeMark(b []byte) (mark, error) {
	r := reader{b: b}
	version := r.byte()
	m := mark{ms: r.moment(), before: r.uvarint(), size: r.uvarint()}
	if r.bad || version != encodingV1 || len(r.b) != 0 {
		return mark{}, fmt.Errorf("message mark: %w", ErrMalformed)
	}
	return m, nil
}
