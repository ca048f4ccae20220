package pulsar

import (
	"slices"
	"sort"

	"github.com/isobar-mesh/isobar/broker"
)

// How many bytes of the newest messages are kept in memory: of a partition at
// most and at least, and of all partitions together.
const (
	recentMost  = 16 << 20
	recentLeast = 256 << 10
	recentOfAll = 128 << 20
)

// A block that single messages fill has room for so many, twice as many as the one
// before.
const (
	firstBlock = 8
	blockMost  = 256
)

// recent are the newest messages of a partition, in blocks: those of an entry that
// was sent from here, or some that were read one by one. What is in a block stays
// as it is, so readers go on with it while more is added behind and dropped in
// front. It is not safe for concurrent use.
type recent struct {
	blocks   []block
	messages uint64
	size     int // in memory
}

type block struct {
	messages []broker.StreamStored
	size     int
}

// add keeps messages behind all that are there, and returns their size. More than
// one become a block of their own, which the caller doesn't change any more.
func (r *recent) add(msgs []broker.StreamStored) (size int) {
	for i := range msgs {
		size += sizeOf(&msgs[i])
	}
	r.size += size
	r.messages += uint64(len(msgs))
	if len(msgs) > 1 {
		r.blocks = append(r.blocks, block{msgs, size})
		return size
	}
	room := firstBlock
	if n := len(r.blocks); n > 0 {
		last := &r.blocks[n-1]
		if len(last.messages) < cap(last.messages) {
			last.messages = append(last.messages, msgs...)
			last.size += size
			return size
		}
		room = min(max(2*cap(last.messages), firstBlock), blockMost)
	}
	r.blocks = append(r.blocks, block{append(make([]broker.StreamStored, 0, room), msgs...), size})
	return size
}

// drop forgets the oldest block and returns its size.
func (r *recent) drop() int {
	old := r.blocks[0]
	r.blocks[0] = block{}
	r.blocks = r.blocks[1:]
	r.messages -= uint64(len(old.messages))
	r.size -= old.size
	return old.size
}

// since are the messages at the position and behind it, and the position of the
// oldest of all. There is at least one message.
func (r *recent) since(from broker.Position) (messages [][]broker.StreamStored, start broker.Position) {
	n := sort.Search(len(r.blocks), func(i int) bool {
		in := r.blocks[i].messages
		return in[len(in)-1].Position >= from
	})
	for i, b := range r.blocks[n:] {
		in := slices.Clip(b.messages)
		if i == 0 {
			in = in[sort.Search(len(in), func(i int) bool { return in[i].Position >= from }):]
		}
		messages = append(messages, in)
	}
	return messages, r.blocks[0].messages[0].Position
}

func sizeOf(m *broker.StreamStored) int {
	n := 256 + len(m.Payload) + len(m.Key) + len(m.ID)
	for k, v := range m.Attributes { // any order: a sum
		n += len(k) + len(v)
	}
	return n
}
