package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// The first byte of every command and of every stored value is its version.
const encodingV1 = 1

// Kinds of commands. The numbers are stored in the log; do not reuse one.
const (
	kindAppend = 1
	kindTrim   = 2
)

const (
	refLen      = 16
	shaLen      = 32
	maxNameLen  = 255
	maxPosition = 32
)

// ErrMalformed: a command or a stored value is not what this package writes.
var ErrMalformed = errors.New("malformed")

// appendCommand stores one payload.
type appendCommand struct {
	topic  broker.Topic
	ref    broker.Reference
	limit  uint64 // cap on live bytes; 0 is none
	taskID mesh.TaskID
	sha    [shaLen]byte
	body   []byte
}

// trimCommand drops what lies below a position.
type trimCommand struct {
	topic    broker.Topic
	position broker.Reference
}

func checkTopic(t broker.Topic) error {
	if len(t.Tenant) > maxNameLen || len(t.Function) > maxNameLen {
		return fmt.Errorf("topic name above %d bytes: %w", maxNameLen, ErrMalformed)
	}
	return nil
}

func (c appendCommand) encode() []byte {
	b := make([]byte, 0, 2+2+len(c.topic.Tenant)+len(c.topic.Function)+1+refLen+
		binary.MaxVarintLen64+1+len(c.taskID)+shaLen+len(c.body))
	b = append(b, encodingV1, kindAppend)
	b = appendTopic(b, c.topic)
	b = append(b, c.ref...)
	b = binary.AppendUvarint(b, c.limit)
	b = appendName(b, string(c.taskID))
	b = append(b, c.sha[:]...)
	return append(b, c.body...)
}

func (c trimCommand) encode() []byte {
	b := []byte{encodingV1, kindTrim}
	b = appendTopic(b, c.topic)
	return append(b, c.position...)
}

// decodeCommand returns a command of one of the types above, or about a stream.
// Their byte slices are parts of b.
func decodeCommand(b []byte) (any, error) {
	r := reader{b: b}
	if v := r.byte(); !r.bad && v != encodingV1 {
		return nil, fmt.Errorf("command version %d: %w", v, ErrMalformed)
	}
	kind := r.byte()
	switch {
	case r.bad:
	case kind == kindAppend:
		c := appendCommand{topic: r.topic(), ref: r.take(refLen), limit: r.uvarint()}
		c.taskID = mesh.TaskID(r.name())
		copy(c.sha[:], r.take(shaLen))
		c.body = r.rest()
		if !r.bad {
			return c, nil
		}
	case kind == kindTrim:
		c := trimCommand{topic: r.topic(), position: r.rest()}
		if !r.bad && len(c.position) > 0 && len(c.position) <= maxPosition {
			return c, nil
		}
	case kind == kindStreamAppend, kind == kindStreamTrim, kind == kindStreamDrop:
		return decodeStreamCommand(kind, &r)
	default:
		return nil, fmt.Errorf("command kind %d: %w", kind, ErrMalformed)
	}
	return nil, fmt.Errorf("command of %d bytes: %w", len(b), ErrMalformed)
}

// header is what is stored of a message beside its payload, so that a trim
// can count what it drops without reading it.
type header struct {
	taskID mesh.TaskID
	sha    [shaLen]byte
	size   uint64 // of the payload
}

func (h header) encode() []byte {
	b := make([]byte, 0, 1+1+len(h.taskID)+shaLen+binary.MaxVarintLen64)
	b = append(b, encodingV1)
	b = appendName(b, string(h.taskID))
	b = append(b, h.sha[:]...)
	return binary.AppendUvarint(b, h.size)
}

func decodeHeader(b []byte) (header, error) {
	r := reader{b: b}
	version := r.byte()
	var h header
	h.taskID = mesh.TaskID(r.name())
	copy(h.sha[:], r.take(shaLen))
	h.size = r.uvarint()
	if r.bad || version != encodingV1 || len(r.b) != 0 {
		return header{}, fmt.Errorf("message header: %w", ErrMalformed)
	}
	return h, nil
}

// topicRecord counts one topic.
type topicRecord struct {
	Usage
	// trimmed: what lies below is hidden, and nothing is accepted at or below.
	trimmed broker.Reference
	// dropped: everything below is deleted. It follows trimmed, and is where
	// the next trim starts, so that it steps over no deleted keys.
	dropped broker.Reference
}

func (t topicRecord) encode() []byte {
	b := []byte{encodingV1}
	b = binary.AppendUvarint(b, t.Messages)
	b = binary.AppendUvarint(b, t.Bytes)
	b = appendName(b, string(t.trimmed))
	return appendName(b, string(t.dropped))
}

func decodeTopicRecord(b []byte) (topicRecord, error) {
	r := reader{b: b}
	version := r.byte()
	t := topicRecord{Usage: Usage{Messages: r.uvarint(), Bytes: r.uvarint()}}
	t.trimmed = broker.Reference(r.name())
	t.dropped = broker.Reference(r.name())
	if r.bad || version != encodingV1 || len(r.b) != 0 {
		return topicRecord{}, fmt.Errorf("topic record: %w", ErrMalformed)
	}
	return t, nil
}

// totalRecord counts all topics.
type totalRecord struct {
	Usage
	// last is the highest reference ever appended, to any topic; nil at first.
	last broker.Reference
}

func (t totalRecord) encode() []byte {
	b := []byte{encodingV1}
	b = binary.AppendUvarint(b, t.Messages)
	b = binary.AppendUvarint(b, t.Bytes)
	return appendName(b, string(t.last))
}

func decodeTotalRecord(b []byte) (totalRecord, error) {
	r := reader{b: b}
	version := r.byte()
	t := totalRecord{Usage: Usage{Messages: r.uvarint(), Bytes: r.uvarint()}}
	t.last = broker.Reference(r.name())
	if r.bad || version != encodingV1 || len(r.b) != 0 {
		return totalRecord{}, fmt.Errorf("total record: %w", ErrMalformed)
	}
	return t, nil
}

// appendTopic writes a topic so that no topic's bytes begin another's: it is
// also the front of the topic's keys.
func appendTopic(b []byte, t broker.Topic) []byte {
	b = appendName(b, t.Tenant)
	b = appendName(b, t.Function)
	return append(b, byte(t.Lane))
}

// appendName writes up to maxNameLen bytes behind their length.
func appendName(b []byte, s string) []byte {
	b = append(b, byte(len(s)))
	return append(b, s...)
}

// reader takes fields off b; bad is set at the first that is not there, and
// stays.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) rest() []byte { return r.take(len(r.b)) }

func (r *reader) byte() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) name() string { return string(r.take(int(r.byte()))) }

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	// The shortest form only, so that one value has one encoding.
	if r.bad || n <= 0 || (n > 1 && r.b[n-1] == 0) {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) topic() broker.Topic {
	return broker.Topic{Tenant: r.name(), Function: r.name(), Lane: mesh.Lane(r.byte())}
}
