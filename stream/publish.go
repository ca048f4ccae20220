package stream

import (
	"context"
	"fmt"
	"hash/fnv"
	"strconv"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// groupBytes is how much is committed at once: hashicorp/raft wants entries
// under 512 KiB. One larger message goes alone.
const groupBytes = 448 << 10

// groupOverhead is what a message costs beside its payload and attributes.
const groupOverhead = 256

// Message is one message to publish.
type Message struct {
	Key        string
	Attributes map[string]string
	Payload    []byte
	// Partition overrides the one that the key gives.
	Partition *uint32
}

// Published is what became of one message.
type Published struct {
	Partition uint32
	Position  uint64
	// Duplicate: it was stored before, by an earlier try of the request.
	Duplicate bool
	// Err is why it was not stored, or may not have been.
	Err error
}

// Publish stores messages in the order they have, each in its partition; the
// result is in that order too. A repeat of a request stores again only what
// was not stored before. After one message has failed, those behind it are not
// tried: they would get in front of it.
func (s *Streams) Publish(ctx context.Context, n groups.Name, request string, msgs []Message) ([]Published, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	// It is looked up before it counts, so that nobody holds up the drop of a stream
	// that is gone, and after: from then on the drop waits for it.
	rec, ok := s.Lookup(n)
	if ok {
		leave := l.publishing.enter(n)
		defer leave()
		rec, ok = s.Lookup(n)
	}
	if !ok {
		return nil, fmt.Errorf("stream: publish to %s: %w", n, groups.ErrUnknownStream)
	}
	if l.mustPlace(rec) {
		if err := l.place(ctx, rec); err != nil {
			return nil, fmt.Errorf("stream: publish to %s: %w", n, err)
		}
	}
	out := make([]Published, len(msgs))
	stored := make([]broker.StreamMessage, len(msgs))
	now := l.clock.Wall(time.Now())
	for i, m := range msgs {
		p := partitionFor(rec.Partitions, m, request, i)
		if p >= rec.Partitions {
			return nil, fmt.Errorf("stream: publish message %d to %s/%d, which has %d partitions: %w", i, n, p, rec.Partitions, groups.ErrUnknownPartition)
		}
		out[i].Partition = p
		stored[i] = broker.StreamMessage{
			Partition: broker.Partition{Tenant: n.Tenant, Stream: n.Stream, Number: p}, ID: request + "/" + strconv.Itoa(i),
			Key: m.Key, Attributes: m.Attributes, Published: now, Payload: m.Payload,
		}
	}
	for from := 0; from < len(stored); {
		to := cut(stored, from)
		if err := l.append(ctx, n, stored[from:to], out[from:to]); err != nil {
			for i := from; i < len(out); i++ {
				out[i].Err = err
			}
			break
		}
		from = to
	}
	return out, nil
}

// cut is the end of the messages from the index on that are committed together.
func cut(msgs []broker.StreamMessage, from int) int {
	size := 0
	for i := from; i < len(msgs); i++ {
		size += groupOverhead + len(msgs[i].Payload) + len(msgs[i].Key) + len(msgs[i].ID)
		for k, v := range msgs[i].Attributes { // any order: a sum
			size += len(k) + len(v)
		}
		if size > groupBytes && i > from {
			return i
		}
	}
	return len(msgs)
}

// append stores some messages, all or none of them.
func (l *leader) append(ctx context.Context, n groups.Name, msgs []broker.StreamMessage, out []Published) error {
	prepared, err := l.Messages.Append(ctx, msgs)
	if err != nil {
		return fmt.Errorf("stream: publish to %s: %w", n, err)
	}
	check := &meshv1.StreamPublish{Name: n.Message()}
	var commands [][]byte
	var at []int // of the message that each command stores
	for i, p := range prepared {
		check.HighestPartition = max(check.HighestPartition, out[i].Partition)
		out[i].Position, out[i].Duplicate = p.Position, p.Duplicate
		if p.Command != nil {
			commands, at = append(commands, p.Command), append(at, i)
		}
	}
	if len(commands) == 0 {
		l.wake(n)
		return nil
	}
	results, err := l.commit(ctx, &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Publish{Publish: check}}, commands...)
	if err != nil {
		return fmt.Errorf("stream: publish to %s: %w", n, err)
	}
	for j, i := range at {
		res, ok := results[j].(broker.StreamAppended)
		if !ok {
			return fmt.Errorf("stream: publish to %s: unexpected result %T", n, results[j])
		}
		out[i].Position, out[i].Duplicate = res.Position, res.Duplicate
	}
	return nil
}

// partitionFor gives one key one partition. Messages without a key are spread,
// and those of a repeated request go where they went before.
func partitionFor(partitions uint32, m Message, request string, i int) uint32 {
	if m.Partition != nil {
		return *m.Partition
	}
	key := m.Key
	if key == "" {
		key = "\x00" + request + "/" + strconv.Itoa(i)
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(key))
	// FNV's high bits move little for keys that differ at the end only.
	x := h.Sum64()
	x ^= x >> 32
	x *= 0x9e3779b97f4a7c15
	return uint32((x >> 33) % uint64(partitions))
}
