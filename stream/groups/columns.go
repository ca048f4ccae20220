package groups

import (
	"fmt"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
)

// Read is a message that a leader has read.
type Read struct {
	Position uint64
	Key      string
	Size     uint64 // of the payload, in bytes
}

// Pending is a message a group was told of and has not acknowledged.
type Pending struct {
	Read
	// Delivery is the number of its newest delivery; 0 when there was none.
	Delivery uint64
	Attempts uint32
	// Session it was delivered to last.
	Session string
	// UntilLeaseMs is the end of the visibility timeout; 0 when it is in nobody's
	// hands.
	UntilLeaseMs int64
	// NotBeforeLeaseMs: it waits until then.
	NotBeforeLeaseMs int64
}

// Cursor is how far a group is in one partition. What lies below Next and is not
// pending is acknowledged.
type Cursor struct {
	// Next is the first position the group was not told of.
	Next uint64
	// Pending by position.
	Pending []Pending
	// Deliveries is the last number given to a delivery.
	Deliveries uint64

	dueLeaseMs int64 // where the due index has it
}

// In columns a partition's messages take a handful of allocations, however many
// they are.

// Columns writes what was read as a command has it.
func Columns(reads []Read) *meshv1.StreamReads {
	out := &meshv1.StreamReads{Positions: make([]uint64, len(reads)), Sizes: make([]uint64, len(reads)), KeyLengths: make([]uint32, len(reads))}
	n := 0
	for i := range reads {
		n += len(reads[i].Key)
	}
	keys := make([]byte, 0, n)
	before := uint64(0)
	for i := range reads {
		r := &reads[i]
		out.Positions[i], out.Sizes[i], out.KeyLengths[i] = r.Position-before, r.Size, uint32(len(r.Key))
		before = r.Position
		keys = append(keys, r.Key...)
	}
	out.Keys = string(keys)
	return out
}

// Ascending writes positions, lowest first, as a command has them.
func Ascending(positions []uint64) []uint64 {
	out := make([]uint64, len(positions))
	before := uint64(0)
	for i, at := range positions {
		out[i], before = at-before, at
	}
	return out
}

// ascending is the inverse of Ascending; ok is false for what it has not written.
func ascending(deltas []uint64) (positions []uint64, ok bool) {
	positions = make([]uint64, len(deltas))
	at := uint64(0)
	for i, d := range deltas {
		if i > 0 && (d == 0 || at+d < at) {
			return nil, false
		}
		at += d
		positions[i] = at
	}
	return positions, true
}

// rows is the inverse of Columns; ok is false for what it has not written.
func rows(c *meshv1.StreamReads) (reads []Read, ok bool) {
	n, keys := len(c.GetPositions()), c.GetKeys()
	if len(c.GetSizes()) != n || len(c.GetKeyLengths()) != n {
		return nil, false
	}
	reads = make([]Read, n)
	at := uint64(0)
	for i := range reads {
		length := uint64(c.KeyLengths[i])
		if length > uint64(len(keys)) || i > 0 && (c.Positions[i] == 0 || at+c.Positions[i] < at) {
			return nil, false
		}
		at += c.Positions[i]
		reads[i], keys = Read{Position: at, Key: keys[:length], Size: c.Sizes[i]}, keys[length:]
	}
	return reads, keys == ""
}

// record writes the cursor as it is stored.
func (c *Cursor) record() *meshv1.CursorRecord {
	n := len(c.Pending)
	out := &meshv1.CursorRecord{Next: c.Next, Deliveries: c.Deliveries, DueLeaseMs: c.dueLeaseMs}
	if n == 0 {
		return out
	}
	reads := make([]Read, n)
	out.Delivery, out.Attempts, out.Session = make([]int64, n), make([]uint32, n), make([]uint32, n)
	out.UntilLeaseMs, out.NotBeforeLeaseMs = make([]int64, n), make([]int64, n)
	var before Pending
	for i := range c.Pending {
		p := &c.Pending[i]
		reads[i] = p.Read
		out.Delivery[i], out.Attempts[i] = int64(p.Delivery-before.Delivery), p.Attempts
		out.UntilLeaseMs[i], out.NotBeforeLeaseMs[i] = p.UntilLeaseMs-before.UntilLeaseMs, p.NotBeforeLeaseMs-before.NotBeforeLeaseMs
		if i > 0 && p.Session == before.Session {
			out.Session[i] = out.Session[i-1]
		} else {
			out.Session[i] = nameSession(out, p.Session)
		}
		before = *p
	}
	out.Pending = Columns(reads)
	return out
}

// nameSession is the session's number in the record; 0 for nobody.
func nameSession(rec *meshv1.CursorRecord, session string) uint32 {
	if session == "" {
		return 0
	}
	for i, s := range rec.Sessions {
		if s == session {
			return uint32(i) + 1
		}
	}
	rec.Sessions = append(rec.Sessions, session)
	return uint32(len(rec.Sessions))
}

// cursorOf is the inverse of record; ok is false for what it has not written.
func cursorOf(rec *meshv1.CursorRecord) (c *Cursor, ok bool) {
	c = &Cursor{Next: rec.Next, Deliveries: rec.Deliveries, dueLeaseMs: rec.DueLeaseMs}
	reads, ok := rows(rec.Pending)
	n := len(reads)
	if !ok || len(rec.Delivery) != n || len(rec.Attempts) != n || len(rec.Session) != n || len(rec.UntilLeaseMs) != n || len(rec.NotBeforeLeaseMs) != n {
		return nil, false
	}
	if n == 0 {
		return c, true
	}
	c.Pending = make([]Pending, n)
	var before Pending
	for i := range c.Pending {
		p := &c.Pending[i]
		*p = Pending{
			Read: reads[i], Delivery: before.Delivery + uint64(rec.Delivery[i]), Attempts: rec.Attempts[i],
			UntilLeaseMs: before.UntilLeaseMs + rec.UntilLeaseMs[i], NotBeforeLeaseMs: before.NotBeforeLeaseMs + rec.NotBeforeLeaseMs[i],
		}
		switch s := rec.Session[i]; {
		case s > uint32(len(rec.Sessions)):
			return nil, false
		case s > 0:
			p.Session = rec.Sessions[s-1]
		}
		before = *p
	}
	return c, true
}

// readCursor reads a stored cursor; the zero one where there is none.
func readCursor(r state.Reader, key []byte) *Cursor {
	v, ok := r.Get(key)
	if !ok {
		return &Cursor{}
	}
	return parseCursor(key, v)
}

func parseCursor(key, value []byte) *Cursor {
	var rec meshv1.CursorRecord
	decode(key, value, &rec)
	c, ok := cursorOf(&rec)
	if !ok {
		// As in decode.
		panic(fmt.Sprintf("streams: stored record %q does not parse: its columns differ in length", key))
	}
	return c
}
