package stream

import (
	"sync"
	"sync/atomic"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// cursors keeps the groups' cursors as the last command left them: everyone who
// waits for a stream looks at all of them whenever anything moves. It is safe for
// concurrent use.
type cursors struct {
	mu     sync.Mutex
	serial uint64
	known  map[groups.CursorName]*knownCursor
}

type knownCursor struct {
	serial uint64         // another after each change
	cursor *groups.Cursor // nil: to be read
	view   *view          // of it; nil until somebody looks
}

// view is a cursor as it was at one moment. Nobody changes it, but to note that a
// search in it was in vain.
type view struct {
	*groups.Cursor
	inHand  map[string]int      // messages in each session's hands
	ahead   map[string]struct{} // the keys of pending messages
	blocked int                 // pending messages behind another of their key
	stuck   atomic.Bool         // what comes next was read, and is all behind others
}

func newView(cur *groups.Cursor) *view {
	v := &view{Cursor: cur, inHand: map[string]int{}, ahead: make(map[string]struct{}, len(cur.Pending))}
	for i := range cur.Pending {
		p := &cur.Pending[i]
		if p.UntilLeaseMs > 0 {
			v.inHand[p.Session]++
		}
		v.ahead[p.Key] = struct{}{}
	}
	v.blocked = len(cur.Pending) - len(v.ahead)
	return v
}

// ready are the pending messages that may be delivered now, the first of them that
// fit; all is false when there are more. One always fits.
func (v *view) ready(relaxed bool, leaseMs int64, room int, bytes uint64) (positions []broker.Position, size uint64, all bool) {
	for i := range groups.Deliverable(v.Cursor, relaxed, leaseMs) {
		p := &v.Pending[i]
		if len(positions) == room || len(positions) > 0 && size+p.Size > bytes {
			return positions, size, false
		}
		positions, size = append(positions, p.Position), size+p.Size
	}
	return positions, size, true
}

// draining: another session has some of the partition in hand.
func (v *view) draining(session string) bool {
	_, own := v.inHand[session]
	return len(v.inHand) > 1 || len(v.inHand) == 1 && !own
}

// renew is a cursor of which nothing is known yet. c.mu is held.
func (c *cursors) renew(n groups.CursorName) *knownCursor {
	c.serial++
	k := &knownCursor{serial: c.serial}
	c.known[n] = k
	return k
}

// read returns the cursor as the replica has it, or newer than it was when the
// call began.
func (c *cursors) read(r state.Reader, n groups.CursorName) *view {
	c.mu.Lock()
	k := c.known[n]
	if k == nil {
		k = c.renew(n)
	}
	cur, v, serial := k.cursor, k.view, k.serial
	c.mu.Unlock()
	if v != nil {
		return v
	}
	if cur == nil {
		cur = groups.ReadCursor(r, n.Group, n.Partition)
	}
	v = newView(cur)
	c.mu.Lock()
	defer c.mu.Unlock()
	// One that changed meanwhile may have been read before the change.
	if k := c.known[n]; k != nil && k.serial == serial {
		k.cursor, k.view = cur, v
	}
	return v
}

// changed takes in what a command that was applied has changed.
func (c *cursors) changed(moved []groups.Move) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range moved {
		if c.known[m.CursorName] != nil {
			c.renew(m.CursorName).cursor = m.Cursor
		}
	}
}

// keep forgets the cursors of groups that nobody reads.
func (c *cursors) keep(read map[groups.Group]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.known {
		if !read[n.Group] {
			delete(c.known, n)
		}
	}
}
