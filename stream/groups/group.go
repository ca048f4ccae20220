package groups

import (
	"fmt"
	"slices"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// group reads a group of a stream that is not being deleted.
func (a *apply) group(g Group) (*meshv1.StreamRecord, *meshv1.GroupRecord, error) {
	rec, err := a.stream(g.Name)
	if err != nil {
		return nil, nil, err
	}
	var grp meshv1.GroupRecord
	if !get(a, groupKey(g), &grp) {
		return nil, nil, fmt.Errorf("streams: read group %s: %w", g, ErrUnknownGroup)
	}
	return rec, &grp, nil
}

func member(grp *meshv1.GroupRecord, session string) *meshv1.MemberRecord {
	for _, m := range grp.Members {
		if m.Session == session {
			return m
		}
	}
	return nil
}

// join makes the session a member, or renews it.
func (a *apply) join(c *meshv1.GroupJoin) error {
	g := groupOf(c.GetName())
	rec, err := a.stream(g.Name)
	if err != nil {
		return err
	}
	if c.Session == "" || c.TtlMs <= 0 || c.TtlMs > maxMs || !mesh.ValidName(g.Group) ||
		len(c.Start) != 0 && len(c.Start) != int(rec.Partitions) {
		return fmt.Errorf("streams: join group %s: %w", g, ErrBadCommand)
	}
	var grp meshv1.GroupRecord
	if !get(a, groupKey(g), &grp) {
		if rec.Groups >= MaxGroups {
			return fmt.Errorf("streams: join group %s: %d groups: %w", g, rec.Groups, ErrTooMany)
		}
		rec.Groups++
		put(a, streamKey(g.Name), rec)
		grp.Owners = make([]string, rec.Partitions)
		for i, at := range c.Start {
			a.putCursor(g, uint32(i), &Cursor{Next: at})
		}
	}
	until := a.clocks.LeaseMs + c.TtlMs
	m := member(&grp, c.Session)
	switch {
	case m != nil:
		m.UntilLeaseMs = max(m.UntilLeaseMs, until)
	case len(grp.Members) >= MaxMembers:
		return fmt.Errorf("streams: join group %s: %d members: %w", g, len(grp.Members), ErrTooMany)
	default:
		grp.Members = append(grp.Members, &meshv1.MemberRecord{Session: c.Session, Consumer: c.Consumer, UntilLeaseMs: until})
		a.rebalance(g, &grp)
	}
	a.putGroup(g, &grp)
	a.result.Group = &grp
	return nil
}

// rebalance shares the partitions anew. What the former owner of one has in
// hand stays with it until it acknowledges it or its time passes; only then is
// the new one given anything.
func (a *apply) rebalance(g Group, grp *meshv1.GroupRecord) {
	sessions := make([]string, len(grp.Members))
	for i, m := range grp.Members {
		sessions[i] = m.Session
	}
	grp.Owners = Assign(sessions, grp.Owners)
	grp.Generation++
	a.touch(g.Name)
}

// leave takes a session out; one that is not there is gone already.
func (a *apply) leave(c *meshv1.GroupLeave) error {
	g := groupOf(c.GetName())
	rec, grp, err := a.group(g)
	if err != nil {
		return err
	}
	a.remove(g, rec, grp, func(m *meshv1.MemberRecord) bool { return m.Session == c.Session }, "its consumer left")
	return nil
}

// remove takes members out, and puts back what they have in hand.
func (a *apply) remove(g Group, rec *meshv1.StreamRecord, grp *meshv1.GroupRecord, gone func(*meshv1.MemberRecord) bool, cause string) {
	var lost []string
	grp.Members = slices.DeleteFunc(grp.Members, func(m *meshv1.MemberRecord) bool {
		if gone(m) {
			lost = append(lost, m.Session)
			return true
		}
		return false
	})
	if len(lost) == 0 {
		return
	}
	for p := range rec.Partitions {
		cur := a.cursor(g, p)
		if a.putBack(g, p, rec, grp, cur, cause, func(m *Pending) bool {
			return m.UntilLeaseMs > 0 && slices.Contains(lost, m.Session)
		}) {
			a.putCursor(g, p, cur)
		}
	}
	a.rebalance(g, grp)
	a.putGroup(g, grp)
}

func (a *apply) renew(c *meshv1.GroupRenew) error {
	if c.TtlMs <= 0 || c.TtlMs > maxMs {
		return fmt.Errorf("streams: renew: %w", ErrBadCommand)
	}
	known := map[Group]*renewal{}
	var order []*renewal
	for i, s := range c.Sessions {
		g := groupOf(s.GetName())
		r := known[g]
		if r == nil {
			r = a.renewal(g)
			known[g], order = r, append(order, r)
		}
		m := r.members[s.Session]
		if m == nil {
			a.result.Lost = append(a.result.Lost, i)
			continue
		}
		m.UntilLeaseMs = max(m.UntilLeaseMs, a.clocks.LeaseMs+c.TtlMs)
		r.renewed = true
	}
	for _, r := range order {
		if r.renewed {
			a.putGroup(r.name, r.group)
		}
	}
	return nil
}

// renewal is a group some of whose sessions are renewed together: its record grows
// with its members, so it is read and written once.
type renewal struct {
	name    Group
	group   *meshv1.GroupRecord
	members map[string]*meshv1.MemberRecord // none of a group that is not there
	renewed bool
}

func (a *apply) renewal(g Group) *renewal {
	r := &renewal{name: g}
	_, grp, err := a.group(g)
	if err != nil {
		return r
	}
	r.group, r.members = grp, make(map[string]*meshv1.MemberRecord, len(grp.Members))
	for _, m := range grp.Members {
		r.members[m.Session] = m
	}
	return r
}

// putGroup stores the record, due when the first member's lease ends.
func (a *apply) putGroup(g Group, grp *meshv1.GroupRecord) {
	var due int64
	for _, m := range grp.Members {
		if due == 0 || m.UntilLeaseMs < due {
			due = m.UntilLeaseMs
		}
	}
	key := groupKey(g)
	grp.DueLeaseMs = a.moveDue(key, grp.DueLeaseMs, due)
	put(a, key, grp)
}

// moveDue moves a record in the due index.
func (a *apply) moveDue(key []byte, from, to int64) int64 {
	if from == to {
		return to
	}
	if from > 0 {
		a.Delete(dueKey(from, key))
	}
	if to > 0 {
		a.Set(dueKey(to, key), nil)
	}
	return to
}

// tick runs what is due by the lease clock, at most limit records.
func (a *apply) tick(c *meshv1.StreamTick) error {
	limit := int(c.Limit)
	if limit <= 0 {
		limit = 1024
	}
	var keys [][]byte
	for k := range a.Scan([]byte{kindDue}, dueKey(a.clocks.LeaseMs+1, nil)) {
		keys = append(keys, slices.Clone(k))
		if len(keys) == limit {
			a.result.More = true
			break
		}
	}
	for _, k := range keys {
		a.due(k)
	}
	return nil
}

func (a *apply) due(key []byte) {
	kind := key[9]
	g, rest, ok := parseGroup(string(key[10:]))
	rec, grp, err := a.group(g)
	if !ok || err != nil {
		a.Delete(key) // its stream is being deleted
		return
	}
	now := a.clocks.LeaseMs
	if kind == kindGroup {
		a.remove(g, rec, grp, func(m *meshv1.MemberRecord) bool { return m.UntilLeaseMs <= now }, "its consumer was lost")
		return
	}
	p := partitionOf(rest)
	cur := a.cursor(g, p)
	if a.putBack(g, p, rec, grp, cur, "its visibility timeout passed", func(m *Pending) bool {
		return m.UntilLeaseMs > 0 && m.UntilLeaseMs <= now
	}) {
		a.putGroup(g, grp) // it counts dead letters
	}
	a.putCursor(g, p, cur)
	a.touch(g.Name)
}
