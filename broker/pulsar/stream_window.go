package pulsar

import (
	"hash/maphash"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// windowBytes is what the messages that repeats are known by take at most.
const windowBytes = broker.DedupWindow * mesh.MaxPayload

// id is a message's ID, hashed twice. The seeds are this process's own, so nobody
// can choose IDs that are taken for each other.
type id [2]uint64

type hasher [2]maphash.Seed

func newHasher() hasher { return hasher{maphash.MakeSeed(), maphash.MakeSeed()} }

func (h hasher) id(s string) id { return id{maphash.String(h[0], s), maphash.String(h[1], s)} }

// known is a message that a repeat is recognised by.
type known struct {
	// of is what it was sent with; at or err is set when that is settled. nil for
	// a message read.
	of  *sending
	at  broker.Position
	err error
	// sent: it was sent from here and not read back yet; size is its payload's.
	sent bool
	size uint64
}

// window holds the newest messages' IDs. It is not safe for concurrent use.
type window struct {
	hash  hasher
	ids   map[id]*known
	order []seen // read, oldest first
}

func newWindow() window { return window{hash: newHasher(), ids: map[id]*known{}} }

// seen is a message as it was read; one of others has no ID.
type seen struct {
	id  id
	at  broker.Position
	has bool
}

// read takes in the next message of the partition and forgets the oldest when
// there are too many. It returns what was sent for it and not read before, if
// anything.
func (w *window) read(at broker.Position, name string) *known {
	s := seen{at: at}
	var sent *known
	if name != "" {
		s.id, s.has = w.hash.id(name), true
		if k := w.ids[s.id]; k == nil {
			w.ids[s.id] = &known{at: at}
		} else if k.sent {
			sent, k.at = k, at
		}
	}
	w.push(s)
	return sent
}

// push takes in the newest message, whose ID is known, and forgets the oldest.
func (w *window) push(s seen) {
	w.order = append(w.order, s)
	for len(w.order) > broker.DedupWindow {
		old := w.order[0]
		w.order = w.order[1:]
		if k := w.ids[old.id]; old.has && k != nil && k.at == old.at {
			delete(w.ids, old.id)
		}
	}
}

// from is the oldest message that repeats are known by; at is the end for none.
func (w *window) from(end broker.Position) broker.Position {
	if len(w.order) == 0 {
		return end
	}
	return w.order[0].at
}
