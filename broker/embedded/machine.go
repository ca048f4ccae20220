package embedded

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/state"
)

// Errors of Machine.Apply, beside broker.ErrFull and broker.ErrTooLarge. Each
// rejects the group.
var (
	// ErrTrimmed: the reference lies at or below the topic's trimmed position.
	// The message was not stored; prepare it again for a new reference.
	ErrTrimmed = errors.New("reference is trimmed away")
	// ErrConflict: another message has this reference already.
	ErrConflict = errors.New("reference is taken by another message")
)

// trimBatch is how many messages one trim command deletes at most, so that
// applying it takes milliseconds whatever the backlog was.
const trimBatch = 4096

// Usage counts live messages and the bytes of their payloads.
type Usage struct {
	Messages uint64
	Bytes    uint64
}

// Appended is the result of a command made by Prepare.
type Appended struct {
	// Duplicate: the same message was there already, under this reference.
	Duplicate bool
}

// Trimmed is the result of a command made by Trim.
type Trimmed struct {
	// Dropped is what this command deleted.
	Dropped Usage
	// More is set when messages below the position remain to be deleted. They
	// are hidden already; the next trim of the topic, at the same position or
	// above, goes on with them.
	More bool
}

var _ broker.Unfinished = Trimmed{}

// Unfinished reports More.
func (t Trimmed) Unfinished() bool { return t.More }

// Machine is the broker's part of the cell's state. It is pure, has no state
// of its own, and its zero value is ready.
//
// Its keys:
//
//	a                     counters of all topics, highest reference
//	t topic               counters of the topic, trimmed position
//	h topic reference     header of a message: task id, SHA-256, size
//	p topic reference     its payload
type Machine struct{}

var _ state.Machine = Machine{}

// Apply applies one command made by a Broker. The result is an Appended or a
// Trimmed, for an append to a stream a broker.StreamAppended. It panics when its own records in tx cannot be read: to go on would
// let this server's state part from the others'.
func (Machine) Apply(tx state.Tx, command []byte) (any, error) {
	c, err := decodeCommand(command)
	if err != nil {
		return nil, fmt.Errorf("embedded: apply: %w", err)
	}
	switch c := c.(type) {
	case appendCommand:
		res, err := applyAppend(tx, c)
		if err != nil {
			return nil, fmt.Errorf("embedded: append %s %x: %w", c.topic, []byte(c.ref), err)
		}
		return res, nil
	case trimCommand:
		return applyTrim(tx, c), nil
	case streamAppendCommand:
		res, err := applyStreamAppend(tx, c)
		if err != nil {
			return nil, fmt.Errorf("embedded: append to stream %s: %w", c.message.Partition, err)
		}
		return res, nil
	case streamTrimCommand:
		return applyStreamTrim(tx, c), nil
	default:
		panic(fmt.Sprintf("embedded: decoded command %T has no apply", c))
	}
}

func applyAppend(tx state.Tx, c appendCommand) (Appended, error) {
	if len(c.body) > mesh.MaxPayload {
		return Appended{}, broker.ErrTooLarge
	}
	hkey := messageKey(keyHeader, c.topic, c.ref)
	h := header{taskID: c.taskID, sha: c.sha, size: uint64(len(c.body))}
	topic := must(loadTopic(tx, c.topic))
	// The message at the position itself is kept; one below may be there still
	// but is hidden.
	at := bytes.Compare(c.ref, topic.trimmed)
	if old, ok := tx.Get(hkey); ok && at >= 0 {
		if !bytes.Equal(old, h.encode()) {
			return Appended{}, ErrConflict
		}
		return Appended{Duplicate: true}, nil
	}
	if at <= 0 {
		return Appended{}, ErrTrimmed
	}
	total := must(loadTotal(tx))
	if c.limit > 0 && (total.Bytes > c.limit || h.size > c.limit-total.Bytes) {
		return Appended{}, broker.ErrFull
	}

	topic.Messages++
	topic.Bytes += h.size
	total.Messages++
	total.Bytes += h.size
	if bytes.Compare(c.ref, total.last) > 0 {
		total.last = c.ref
	}
	tx.Set(hkey, h.encode())
	tx.Set(messageKey(keyPayload, c.topic, c.ref), c.body)
	tx.Set(topicKey(c.topic), topic.encode())
	tx.Set(totalKey(), total.encode())
	return Appended{}, nil
}

func applyTrim(tx state.Tx, c trimCommand) Trimmed {
	topic := must(loadTopic(tx, c.topic))
	if bytes.Compare(c.position, topic.trimmed) > 0 {
		topic.trimmed = c.position
	}
	if bytes.Equal(topic.dropped, topic.trimmed) {
		return Trimmed{}
	}

	var res Trimmed
	var refs []broker.Reference
	from := messageKey(keyHeader, c.topic, topic.dropped)
	front := len(from) - len(topic.dropped)
	for k, v := range tx.Scan(from, messageKey(keyHeader, c.topic, topic.trimmed)) {
		if len(refs) == trimBatch {
			res.More = true
			break
		}
		h := must(decodeHeader(v))
		refs = append(refs, k[front:])
		res.Dropped.Messages++
		res.Dropped.Bytes += h.size
	}
	for _, ref := range refs {
		tx.Delete(messageKey(keyHeader, c.topic, ref))
		tx.Delete(messageKey(keyPayload, c.topic, ref))
	}
	topic.dropped = topic.trimmed
	if res.More {
		topic.dropped = refs[len(refs)-1]
	}

	total := must(loadTotal(tx))
	topic.Messages -= res.Dropped.Messages
	topic.Bytes -= res.Dropped.Bytes
	total.Messages -= res.Dropped.Messages
	total.Bytes -= res.Dropped.Bytes
	tx.Set(topicKey(c.topic), topic.encode())
	tx.Set(totalKey(), total.encode())
	return res
}

// The first byte of a key says what lies there.
const (
	keyTotal   = 'a'
	keyHeader  = 'h'
	keyPayload = 'p'
	keyTopic   = 't'
)

func totalKey() []byte { return []byte{keyTotal} }

func topicKey(t broker.Topic) []byte { return appendTopic([]byte{keyTopic}, t) }

func messageKey(kind byte, t broker.Topic, ref broker.Reference) []byte {
	b := make([]byte, 0, 1+2+len(t.Tenant)+len(t.Function)+1+len(ref))
	b = appendTopic(append(b, kind), t)
	return append(b, ref...)
}

// messagesEnd is the key behind the topic's last message: references are
// refLen bytes, so nothing of the topic lies above this.
func messagesEnd(kind byte, t broker.Topic) []byte {
	return messageKey(kind, t, bytes.Repeat([]byte{0xff}, refLen+1))
}

func loadTopic(r state.Reader, t broker.Topic) (topicRecord, error) {
	v, ok := r.Get(topicKey(t))
	if !ok {
		return topicRecord{}, nil
	}
	return decodeTopicRecord(v)
}

func loadTotal(r state.Reader) (totalRecord, error) {
	v, ok := r.Get(totalKey())
	if !ok {
		return totalRecord{}, nil
	}
	return decodeTotalRecord(v)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic("embedded: own record in the state: " + err.Error())
	}
	return v
}
