package stream

import (
	"sync"
	"sync/atomic"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// cursors keeps what was decoded of the groups' cursors until a command changes
// them: everyone who waits for a stream looks at all of them whenever anything
// moves. It is safe for concurrent use.
type cursors struct {
	mu     sync.Mutex
	serial uint64
	known  map[groups.CursorName]*knownCursor
}

type knownCursor struct {
	serial uint64 // another after each change
	view   *view  // nil: to be read
}

// view is a cursor as it was at one moment. Nobody changes it, but to note that a
// search in it was in vain.
type view struct {
	*meshv1.CursorRecord
	inHand  map[string]int      // messages in each session's hands
	ahead   map[string]struct{} // the keys of pending messages
	blocked int                 // pending messages behind another of their key
	stuck   atomic.Bool         // what comes next was read, and is all behind others
}

func newView(cur *meshv1.CursorRecord) *view {
	v := &view{CursorRecord: cur, inHand: map[string]int{}, ahead: make(map[string]struct{}, len(cur.Pending))}
	for _, p := range cur.Pending {
		if p.UntilLeaseMs > 0 {
			v.inHand[p.Session]++
		}
		if _, behind := v.ahead[p.Key]; behind {
			v.blocked++
		}
		v.ahead[p.Key] = struct{}{}
	}
	return v
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
	v, serial := k.view, k.serial
	c.mu.Unlock()
	if v != nil {
		return v
	}
	v = newView(groups.Cursor(r, n.Group, n.Partition))
	c.mu.Lock()
	defer c.mu.Unlock()
	// One that changed meanwhile may have been read before the change.
	if k := c.known[n]; k != nil && k.serial == serial {
		k.view = v
	}
	return v
}

// changed forgets what a command that was applied has changed.
func (c *cursors) changed(moved []groups.CursorName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range moved {
		if c.known[n] != nil {
			c.renew(n)
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
