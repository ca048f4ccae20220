package groups

import (
	"encoding/binary"
	"fmt"
	"slices"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// The pause before a message that was given back is delivered again.
const (
	firstPauseMs int64 = 1_000
	maxPauseMs   int64 = 60_000
)

func partitionOf(rest string) uint32 { return binary.BigEndian.Uint32([]byte(rest)) }

func (a *apply) cursor(g Group, partition uint32) *meshv1.CursorRecord {
	var cur meshv1.CursorRecord
	get(a, cursorKey(g, partition), &cur)
	return &cur
}

// putCursor stores the record, due when the first visibility timeout ends.
func (a *apply) putCursor(g Group, partition uint32, cur *meshv1.CursorRecord) {
	var due int64
	for _, p := range cur.Pending {
		if p.UntilLeaseMs > 0 && (due == 0 || p.UntilLeaseMs < due) {
			due = p.UntilLeaseMs
		}
	}
	key := cursorKey(g, partition)
	cur.DueLeaseMs = a.moveDue(key, cur.DueLeaseMs, due)
	put(a, key, cur)
	a.result.Moved = append(a.result.Moved, CursorName{g, partition})
}

// deliver takes in what was read, and gives the session what waits.
func (a *apply) deliver(c *meshv1.GroupDeliver) error {
	g := groupOf(c.GetName())
	rec, grp, err := a.group(g)
	if err != nil {
		return err
	}
	switch {
	case c.Partition >= rec.Partitions:
		return fmt.Errorf("streams: deliver from %s/%d: %w", g, c.Partition, ErrUnknownPartition)
	case member(grp, c.Session) == nil:
		return fmt.Errorf("streams: deliver from %s/%d: %w", g, c.Partition, ErrNotMember)
	case grp.Owners[c.Partition] != c.Session:
		return fmt.Errorf("streams: deliver from %s/%d: %w", g, c.Partition, ErrNotOwner)
	}
	cur := a.cursor(g, c.Partition)
	if Draining(cur, c.Session) {
		return fmt.Errorf("streams: deliver from %s/%d: %w", g, c.Partition, ErrDraining)
	}
	if c.From != cur.Next {
		return fmt.Errorf("streams: deliver from %s/%d: read at %d, next is %d: %w", g, c.Partition, c.From, cur.Next, ErrStale)
	}
	if len(cur.Pending)+len(c.Read) > MaxPending {
		return fmt.Errorf("streams: deliver from %s/%d: %d read beside %d: %w", g, c.Partition, len(c.Read), len(cur.Pending), ErrBadCommand)
	}
	for _, m := range c.Read {
		if m.Position < cur.Next {
			return fmt.Errorf("streams: deliver from %s/%d: %d is below %d: %w", g, c.Partition, m.Position, cur.Next, ErrBadCommand)
		}
		cur.Pending = append(cur.Pending, &meshv1.PendingRecord{Position: m.Position, Key: m.Key, Size: m.Size})
		cur.Next = m.Position + 1
	}
	var bytes uint64
	for _, p := range Deliverable(cur, rec.Relaxed, a.clocks.LeaseMs) {
		if len(a.result.Deliveries) == int(c.Max) || bytes > 0 && bytes+p.Size > c.MaxBytes {
			break
		}
		bytes += p.Size + 1
		cur.Deliveries++
		p.Delivery, p.Session = cur.Deliveries, c.Session
		p.Attempts++
		p.UntilLeaseMs, p.NotBeforeLeaseMs = a.clocks.LeaseMs+rec.VisibilityMs, 0
		a.result.Deliveries = append(a.result.Deliveries, Delivery{Position: p.Position, Number: p.Delivery, Attempt: p.Attempts})
	}
	a.putCursor(g, c.Partition, cur)
	return nil
}

// Draining reports whether another session has deliveries of the partition in
// hand.
func Draining(cur *meshv1.CursorRecord, session string) bool {
	return slices.ContainsFunc(cur.Pending, func(p *meshv1.PendingRecord) bool { return p.UntilLeaseMs > 0 && p.Session != session })
}

// Deliverable lists the pending messages that may be delivered now, in order:
// those in nobody's hands whose pause has passed, and in a strict stream only
// the first of each key.
func Deliverable(cur *meshv1.CursorRecord, relaxed bool, leaseMs int64) []*meshv1.PendingRecord {
	var out []*meshv1.PendingRecord
	ahead := map[string]bool{}
	for _, p := range cur.Pending {
		blocked := !relaxed && ahead[p.Key]
		if !relaxed {
			ahead[p.Key] = true
		}
		if !blocked && p.UntilLeaseMs == 0 && p.NotBeforeLeaseMs <= leaseMs {
			out = append(out, p)
		}
	}
	return out
}

// Position is where everything below is acknowledged.
func Position(cur *meshv1.CursorRecord) uint64 {
	if len(cur.GetPending()) > 0 {
		return cur.Pending[0].Position
	}
	return cur.GetNext()
}

func (a *apply) ack(c *meshv1.GroupAck) error {
	g := groupOf(c.GetName())
	rec, grp, err := a.group(g)
	if err != nil {
		return err
	}
	cursors := map[uint32]*meshv1.CursorRecord{}
	var order []uint32
	dead := grp.Dead
	for _, item := range c.Items {
		if item.Partition >= rec.Partitions {
			return fmt.Errorf("streams: acknowledge %s/%d: %w", g, item.Partition, ErrUnknownPartition)
		}
		cur := cursors[item.Partition]
		if cur == nil {
			cur = a.cursor(g, item.Partition)
			cursors[item.Partition] = cur
			order = append(order, item.Partition)
		}
		v, err := a.settle(g, rec, grp, cur, c.Session, item)
		if err != nil {
			return err
		}
		a.result.Verdicts = append(a.result.Verdicts, v)
	}
	for _, p := range order {
		a.putCursor(g, p, cursors[p])
	}
	if grp.Dead != dead {
		a.putGroup(g, grp)
	}
	a.touch(g.Name)
	return nil
}

// settle does what one item says.
func (a *apply) settle(g Group, rec *meshv1.StreamRecord, grp *meshv1.GroupRecord, cur *meshv1.CursorRecord, session string, item *meshv1.GroupAckItem) (Verdict, error) {
	i, found := slices.BinarySearchFunc(cur.Pending, item.Position, func(p *meshv1.PendingRecord, at uint64) int {
		switch {
		case p.Position < at:
			return -1
		case p.Position > at:
			return 1
		default:
			return 0
		}
	})
	_, dead := a.Get(deadKey(g, item.Partition, item.Position))
	switch {
	case !found && !dead && item.Position < cur.Next && item.Delivery <= cur.Deliveries:
		return Done, nil
	case !found || item.Delivery == 0 || cur.Pending[i].Delivery != item.Delivery || cur.Pending[i].Session != session:
		return Moved, nil
	}
	p := cur.Pending[i]
	switch item.Action {
	case "", "ack":
		if !item.Cumulative {
			cur.Pending = slices.Delete(cur.Pending, i, i+1)
			break
		}
		cur.Pending = slices.DeleteFunc(cur.Pending, func(p *meshv1.PendingRecord) bool {
			return p.Position <= item.Position && p.Delivery > 0 && p.Session == session
		})
	case "retry":
		a.putBack(g, item.Partition, rec, grp, cur, retryCause(item.Reason), func(m *meshv1.PendingRecord) bool { return m == p })
		p.NotBeforeLeaseMs = a.clocks.LeaseMs + min(firstPauseMs<<min(p.Attempts-1, 16), maxPauseMs)
	case "extend":
		if p.UntilLeaseMs == 0 {
			return Moved, nil // it is in nobody's hands, and may be given to another next
		}
		p.UntilLeaseMs = a.clocks.LeaseMs + rec.VisibilityMs
	default:
		return "", fmt.Errorf("streams: acknowledge %s: action %q: %w", g, item.Action, ErrBadCommand)
	}
	return Accepted, nil
}

func retryCause(reason string) string {
	if reason == "" {
		return "given back by its consumer"
	}
	return "given back by its consumer: " + reason
}

// putBack takes messages out of their session's hands: they wait for another
// delivery, or become dead letters when they have had their last. It reports
// whether there were any.
func (a *apply) putBack(g Group, partition uint32, rec *meshv1.StreamRecord, grp *meshv1.GroupRecord, cur *meshv1.CursorRecord,
	cause string, which func(*meshv1.PendingRecord) bool,
) bool {
	found := false
	cur.Pending = slices.DeleteFunc(cur.Pending, func(p *meshv1.PendingRecord) bool {
		if !which(p) {
			return false
		}
		found = true
		p.UntilLeaseMs = 0
		if rec.MaxDeliveries == 0 || p.Attempts < rec.MaxDeliveries {
			return false
		}
		put(a, deadKey(g, partition, p.Position), &meshv1.DeadRecord{Key: p.Key, Attempts: p.Attempts, Cause: cause, AtMs: a.clocks.WallMs})
		grp.Dead++
		return true
	})
	return found
}

// dropDead forgets dead letters whose messages are gone.
func (a *apply) dropDead(g Group, partition uint32, first uint64) {
	var keys [][]byte
	for k := range a.Scan(deadKey(g, partition, 0), deadKey(g, partition, first)) {
		keys = append(keys, slices.Clone(k))
	}
	if len(keys) == 0 {
		return
	}
	for _, k := range keys {
		a.Delete(k)
	}
	var grp meshv1.GroupRecord
	if get(a, groupKey(g), &grp) {
		grp.Dead -= uint64(len(keys))
		a.putGroup(g, &grp)
	}
}

// seek moves the group; deliveries of before count for nothing from then on.
func (a *apply) seek(c *meshv1.GroupSeek) error {
	g := groupOf(c.GetName())
	rec, _, err := a.group(g)
	if err != nil {
		return err
	}
	for _, to := range c.To {
		if to.Partition >= rec.Partitions {
			return fmt.Errorf("streams: seek %s/%d: %w", g, to.Partition, ErrUnknownPartition)
		}
		cur := a.cursor(g, to.Partition)
		cur.Next, cur.Pending = to.Position, nil
		// The numbers in the hands of others are below all to come, so an
		// acknowledgement of one can't be taken for that of a later delivery.
		cur.Deliveries++
		a.putCursor(g, to.Partition, cur)
	}
	a.touch(g.Name)
	return nil
}
