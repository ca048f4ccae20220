package groups

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// The pause before a message that was given back is delivered again.
const (
	firstPauseMs int64 = 1_000
	maxPauseMs   int64 = 60_000
)

func partitionOf(rest string) uint32 { return binary.BigEndian.Uint32([]byte(rest)) }

func (a *apply) cursor(g Group, partition uint32) *Cursor {
	return readCursor(a, cursorKey(g, partition))
}

// putCursor stores the cursor, due when the first visibility timeout ends. It is
// not changed any more.
func (a *apply) putCursor(g Group, partition uint32, cur *Cursor) {
	var due int64
	for i := range cur.Pending {
		if p := &cur.Pending[i]; p.UntilLeaseMs > 0 && (due == 0 || p.UntilLeaseMs < due) {
			due = p.UntilLeaseMs
		}
	}
	key := cursorKey(g, partition)
	cur.dueLeaseMs = a.moveDue(key, cur.dueLeaseMs, due)
	put(a, key, cur.record())
	a.result.Moved = append(a.result.Moved, Move{CursorName{g, partition}, cur})
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
	again, known := ascending(c.Again)
	read, ok := rows(c.Read)
	if !known || !ok || len(cur.Pending)+len(read) > MaxPending {
		return fmt.Errorf("streams: deliver from %s/%d: %d read beside %d: %w", g, c.Partition, len(read), len(cur.Pending), ErrBadCommand)
	}
	cur.Pending = slices.Grow(cur.Pending, len(read))
	for _, m := range read {
		if m.Position < cur.Next {
			return fmt.Errorf("streams: deliver from %s/%d: %d is below %d: %w", g, c.Partition, m.Position, cur.Next, ErrBadCommand)
		}
		cur.Pending = append(cur.Pending, Pending{Read: m})
		cur.Next = m.Position + 1
	}
	var bytes uint64
	for i := range Deliverable(cur, rec.Relaxed, a.clocks.LeaseMs) {
		p := &cur.Pending[i]
		if _, found := slices.BinarySearch(again, p.Position); !found && p.Position < c.From {
			continue // the leader has not got it, and can't hand it over
		}
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
func Draining(cur *Cursor, session string) bool {
	for i := range cur.Pending {
		if p := &cur.Pending[i]; p.UntilLeaseMs > 0 && p.Session != session {
			return true
		}
	}
	return false
}

// Deliverable yields the index of each pending message that may be delivered now,
// in order: those in nobody's hands whose pause has passed, and in a strict stream
// only the first of each key.
func Deliverable(cur *Cursor, relaxed bool, leaseMs int64) iter.Seq[int] {
	return func(yield func(int) bool) {
		var ahead map[string]struct{}
		if !relaxed {
			ahead = make(map[string]struct{}, len(cur.Pending))
		}
		for i := range cur.Pending {
			p := &cur.Pending[i]
			if !relaxed {
				before := len(ahead)
				if ahead[p.Key] = struct{}{}; len(ahead) == before {
					continue
				}
			}
			if p.UntilLeaseMs == 0 && p.NotBeforeLeaseMs <= leaseMs && !yield(i) {
				return
			}
		}
	}
}

// Position is where everything below is acknowledged.
func Position(cur *Cursor) uint64 {
	if len(cur.Pending) > 0 {
		return cur.Pending[0].Position
	}
	return cur.Next
}

func (a *apply) ack(c *meshv1.GroupAck) error {
	g := groupOf(c.GetName())
	rec, grp, err := a.group(g)
	if err != nil {
		return err
	}
	cursors := map[uint32]*Cursor{}
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
func (a *apply) settle(g Group, rec *meshv1.StreamRecord, grp *meshv1.GroupRecord, cur *Cursor, session string, item *meshv1.GroupAckItem) (Verdict, error) {
	i, found := slices.BinarySearchFunc(cur.Pending, item.Position, func(p Pending, at uint64) int { return cmp.Compare(p.Position, at) })
	_, dead := a.Get(deadKey(g, item.Partition, item.Position))
	switch {
	case !found && !dead && item.Position < cur.Next && item.Delivery <= cur.Deliveries:
		return Done, nil
	case !found || item.Delivery == 0 || cur.Pending[i].Delivery != item.Delivery || cur.Pending[i].Session != session:
		return Moved, nil
	}
	p := &cur.Pending[i]
	switch item.Action {
	case "", "ack":
		if !item.Cumulative {
			cur.Pending = slices.Delete(cur.Pending, i, i+1)
			break
		}
		kept := cur.Pending[:0]
		for j := range cur.Pending {
			if p := &cur.Pending[j]; j > i || p.Delivery == 0 || p.Session != session {
				kept = append(kept, *p)
			}
		}
		cur.Pending = kept
	case "retry":
		p.NotBeforeLeaseMs = a.clocks.LeaseMs + min(firstPauseMs<<min(p.Attempts-1, 16), maxPauseMs)
		a.putBack(g, item.Partition, rec, grp, cur, retryCause(item.Reason), func(m *Pending) bool { return m.Position == item.Position })
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
func (a *apply) putBack(g Group, partition uint32, rec *meshv1.StreamRecord, grp *meshv1.GroupRecord, cur *Cursor,
	cause string, which func(*Pending) bool,
) bool {
	found := false
	kept := cur.Pending[:0]
	for i := range cur.Pending {
		p := &cur.Pending[i]
		if !which(p) {
			kept = append(kept, *p)
			continue
		}
		found = true
		p.UntilLeaseMs = 0
		if rec.MaxDeliveries == 0 || p.Attempts < rec.MaxDeliveries {
			kept = append(kept, *p)
			continue
		}
		put(a, deadKey(g, partition, p.Position), &meshv1.DeadRecord{Key: p.Key, Attempts: p.Attempts, Cause: cause, AtMs: a.clocks.WallMs})
		grp.Dead++
	}
	cur.Pending = kept
	return found
}

// dropDead forgets the dead letters in [from, to): their messages are gone, or
// are delivered anew.
func (a *apply) dropDead(g Group, partition uint32, from, to uint64) {
	var keys [][]byte
	for k := range a.Scan(deadKey(g, partition, from), deadKey(g, partition, to)) {
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

// seek moves the group; deliveries of before count for nothing from then on, and
// what was given up and comes again is no dead letter any more.
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
		a.dropDead(g, to.Partition, to.Position, ^uint64(0))
		cur.Next, cur.Pending = to.Position, nil
		// The numbers in the hands of others are below all to come, so an
		// acknowledgement of one can't be taken for that of a later delivery.
		cur.Deliveries++
		a.putCursor(g, to.Partition, cur)
	}
	a.touch(g.Name)
	return nil
}
