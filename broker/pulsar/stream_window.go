package pulsar

import (
	"crypto/sha256"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// windowBytes is what the messages that repeats are known by take at most.
const windowBytes = broker.DedupWindow * mesh.MaxPayload

// id is the beginning of the SHA-256 of a message's ID.
type id [16]byte

func idOf(s string) id {
	sum := sha256.Sum256([]byte(s))
	return id(sum[:16])
}

// known is a message that a repeat is recognised by.
type known struct {
	// settled is closed when at or err is set; nil for a message read.
	settled chan struct{}
	at      broker.Position
	err     error
	// sent: it was sent from here and not read back yet; size is its payload's.
	sent bool
	size uint64
}

// window holds the newest messages' IDs. It is not safe for concurrent use.
type window struct {
	ids   map[id]*known
	order []seen // read, oldest first
}

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
		s.id, s.has = idOf(name), true
		if k := w.ids[s.id]; k == nil {
			w.ids[s.id] = &known{at: at}
		} else if k.sent {
			sent = k
		}
	}
	w.order = append(w.order, s)
	for len(w.order) > broker.DedupWindow {
		old := w.order[0]
		w.order = w.order[1:]
		if k := w.ids[old.id]; old.has && k != nil && k.at == old.at {
			delete(w.ids, old.id)
		}
	}
	return sent
}

// from is the oldest message that repeats are known by; at is the end for none.
func (w *window) from(end broker.Position) broker.Position {
	if len(w.order) == 0 {
		return end
	}
	return w.order[0].at
}
