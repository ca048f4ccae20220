package broker

import (
	"context"
	"fmt"
	"iter"
	"time"
)

// Partition is one ordered log of a stream.
type Partition struct {
	Tenant string
	Stream string
	Number uint32
}

func (p Partition) String() string { return fmt.Sprintf("%s/%s/%d", p.Tenant, p.Stream, p.Number) }

// Position is the place of a message in its partition. Positions grow in the
// order of reading, and a later append never gets a lower one than what can be
// read; that is all: not every number is a message.
type Position = uint64

// StreamMessage is one message of a stream.
type StreamMessage struct {
	Partition Partition
	// ID names the publish that brought it. An append with an ID that one of the
	// partition's newest DedupWindow messages has is not stored again.
	ID         string
	Key        string
	Attributes map[string]string
	// Published is to the millisecond, and never before the message in front of
	// it: a backend raises it to that.
	Published time.Time
	Payload   []byte
}

// DedupWindow is how many messages back an append is recognised as a repeat.
const DedupWindow = 10_000

// StreamAppended says where a message lies.
type StreamAppended struct {
	Position Position
	// Duplicate: an earlier append of the same ID put it there.
	Duplicate bool
}

// PreparedAppend is the outcome of Append for one message.
type PreparedAppend struct {
	// Command, when not nil, must be committed; the message is durable then, and
	// the command's result is a StreamAppended. It may be refused with ErrFull.
	Command []byte
	// StreamAppended is set when Command is nil: the message is durable.
	StreamAppended
}

// StreamStored is a message as read back.
type StreamStored struct {
	StreamMessage
	Position Position
}

// Extent is what a partition holds from a position on.
type Extent struct {
	// First is the position of the oldest message, or End.
	First Position
	// End lies behind the newest message, and never goes back.
	End Position
	// Messages, and the bytes of their payloads.
	Messages uint64
	Bytes    uint64
	// Topic is what the backend's own users know the partition by; empty where it
	// has none, or does not lie anywhere yet.
	Topic string
}

// Mark says which of several backends of a kind a stream's messages lie in. It is
// opaque to all but the backend that made it, and kept in the stream's record.
type Mark []byte

// Search names a place in a partition. A field that is zero binds nothing; with
// both, both must hold.
type Search struct {
	// Since: not published before this moment.
	Since time.Time
	// Bytes: of payload at most, from there to the end.
	Bytes uint64
}

// Streams is the seam for the messages of streams: partitions that are
// appended to, read in order from any position, and trimmed from below. It
// knows no groups. Calls are safe for concurrent use, return within their
// context's deadline, and are not repeated. A partition that was never appended
// to is empty, not an error. Errors wrap those of this package.
type Streams interface {
	// Open makes ready for a stream of so many partitions, and may be called
	// again. An append to a stream that was not opened does so as far as it must.
	// A mark that is not empty must be in the stream's record before the first
	// append: from then on the backend refuses with ErrReplaced where it is another
	// than that.
	Open(ctx context.Context, tenant, stream string, partitions uint32) (Mark, error)
	// Append stores messages, in order, or makes the commands that will.
	// Results are in the order of the messages, whose payloads and attributes
	// must not be changed from then on. Errors: ErrTooLarge and ErrFull
	// with nothing stored, ErrUnavailable with some of it perhaps.
	Append(ctx context.Context, msgs []StreamMessage) ([]PreparedAppend, error)
	// Read yields the messages at the position and behind it, in order, and ends
	// at the present end. Messages are others' too, and must not be changed.
	Read(ctx context.Context, p Partition, from Position) iter.Seq2[*StreamStored, error]
	// Extent says what the partition holds at the position and behind it; 0 is for
	// all that is kept.
	Extent(ctx context.Context, p Partition, from Position) (Extent, error)
	// Find returns the first position kept from which on the search holds; the
	// end when it holds for no message.
	Find(ctx context.Context, p Partition, s Search) (Position, error)
	// Trim drops the messages below the position, which stays. It is cumulative
	// and idempotent. Command, when not nil, must be committed, again while its
	// result is Unfinished; what lies below is hidden from the first time on.
	Trim(ctx context.Context, p Partition, below Position) (command []byte, err error)
	// Drop forgets the partition, with its repeats: what is appended after that
	// begins anew. Command as that of Trim.
	Drop(ctx context.Context, p Partition) (command []byte, err error)
}
