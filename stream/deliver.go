package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/consensus"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/stream/groups"
)

const (
	// batchBytes bounds the payloads of one answer, but for a single larger one.
	batchBytes = 4 << 20
	// lookAgain is how often a waiting session looks by itself: pauses pass, and
	// a broker of others may have got a message that nothing here was told of.
	lookAgain = 250 * time.Millisecond
	// maxBlocked is how many messages may wait behind others of their key before
	// no more is read in search of other keys.
	maxBlocked = 256
)

// Member is a session of a group.
type Member struct {
	Group    groups.Group
	Session  string
	Consumer string
	// Latest: a group that is new begins at the end, else at the start.
	Latest bool
}

// Want is what a session asks for.
type Want struct {
	// Max messages now, and InFlight unacknowledged in all.
	Max, InFlight int
	// Wait for the first message, or for another share than Generation's.
	Wait       time.Duration
	Generation uint64
}

// Assignment is a session's share of its group.
type Assignment struct {
	Generation uint64
	Partitions []uint32
	Members    int
	// Waiting: there are more members than partitions.
	Waiting bool
}

// Delivery is a message in the hands of one session.
type Delivery struct {
	groups.Delivery
	*broker.StreamStored
}

// Batch is what a session gets.
type Batch struct {
	Assignment Assignment
	Deliveries []Delivery
}

// Next joins the group if need be and returns what the session is given next:
// when there is something, when its share changed, or when the time has passed.
// The session stays in the group while a call is under way, and Lease after.
func (s *Streams) Next(ctx context.Context, m Member, w Want) (*Batch, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	calls, release := l.hold(session{m.Group, m.Session})
	defer release()
	until := time.Now().Add(w.Wait)
	for {
		b, err := l.lookAndWait(ctx, m, w, &calls.deliver, until)
		if b != nil || err != nil {
			return b, err
		}
	}
}

// lookAndWait gives the session what there is now, or waits for more and returns
// nothing.
func (l *leader) lookAndWait(ctx context.Context, m Member, w Want, one sync.Locker, until time.Time) (*Batch, error) {
	woken, done := l.await(m.Group.Name)
	defer done()
	b, err := l.look(ctx, m, w, one)
	if err != nil {
		return nil, err
	}
	left := time.Until(until)
	if len(b.Deliveries) > 0 || w.Generation != 0 && b.Assignment.Generation != w.Generation || left <= 0 {
		return b, nil
	}
	timer := time.NewTimer(min(left, lookAgain))
	defer timer.Stop()
	select {
	case <-woken:
	case <-timer.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.ctx.Done():
		return nil, fmt.Errorf("stream: wait for %s: %w", m.Group, consensus.ErrNotLeader)
	}
	return nil, nil
}

// look gives the session what there is now.
func (l *leader) look(ctx context.Context, m Member, w Want, one sync.Locker) (*Batch, error) {
	rec, ok := l.Lookup(m.Group.Name)
	if !ok {
		return nil, fmt.Errorf("stream: consume %s: %w", m.Group, groups.ErrUnknownStream)
	}
	grp, err := l.member(ctx, m, rec)
	if err != nil {
		return nil, err
	}
	b := &Batch{Assignment: assignment(grp, m.Session)}
	if len(b.Assignment.Partitions) == 0 {
		return b, nil
	}
	one.Lock()
	defer one.Unlock()
	cursors, held := l.inFlight(m, rec)
	room := min(w.Max, w.InFlight-held)
	bytes := uint64(batchBytes)
	// Another partition comes first each time, so that none waits for a busy one.
	owned := b.Assignment.Partitions
	first := int(time.Now().UnixMicro()/1000) % len(owned)
	for i := range owned {
		if room <= 0 || bytes == 0 {
			break
		}
		p := owned[(first+i)%len(owned)]
		got, err := l.take(ctx, m, rec, p, cursors[p], room, bytes)
		if err != nil {
			if len(b.Deliveries) > 0 {
				break // what is committed must be handed over; the rest comes next time
			}
			return nil, err
		}
		if b.Deliveries == nil {
			b.Deliveries = got
		} else {
			b.Deliveries = append(b.Deliveries, got...)
		}
		room -= len(got)
		for _, d := range got {
			bytes -= min(bytes, uint64(len(d.Payload)))
		}
	}
	return b, nil
}

// member returns the group with the session in it.
func (l *leader) member(ctx context.Context, m Member, rec *meshv1.StreamRecord) (*meshv1.GroupRecord, error) {
	grp, known := groups.ReadGroup(l.State, m.Group)
	lease := l.Lease.Milliseconds()
	for _, in := range grp.GetMembers() {
		if in.Session == m.Session && in.UntilLeaseMs > l.clock.LeaseMs(time.Now())+lease/2 {
			return grp, nil
		}
	}
	join := &meshv1.GroupJoin{Name: m.Group.Message(), Session: m.Session, Consumer: m.Consumer, TtlMs: lease}
	if !known && m.Latest {
		for p := range rec.Partitions {
			ext, err := l.Messages.Extent(ctx, partition(m.Group.Name, p), 0)
			if err != nil {
				return nil, fmt.Errorf("stream: join %s: %w", m.Group, err)
			}
			join.Start = append(join.Start, ext.End)
		}
	}
	res, err := l.command(ctx, &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Join{Join: join}})
	if err != nil {
		return nil, fmt.Errorf("stream: join %s: %w", m.Group, err)
	}
	return res.Group, nil
}

func assignment(grp *meshv1.GroupRecord, session string) Assignment {
	a := Assignment{Generation: grp.Generation, Members: len(grp.Members)}
	for p, s := range grp.Owners {
		if s == session {
			a.Partitions = append(a.Partitions, uint32(p))
		}
	}
	a.Waiting = len(a.Partitions) == 0
	return a
}

// inFlight reads the stream's cursors and counts what the session has in hand, also
// of partitions that are another's by now.
func (l *leader) inFlight(m Member, rec *meshv1.StreamRecord) (cursors []*view, n int) {
	for p := range rec.Partitions {
		cur := l.cursors.read(l.State, groups.CursorName{Group: m.Group, Partition: p})
		n += cur.inHand[m.Session]
		cursors = append(cursors, cur)
	}
	return cursors, n
}

// take delivers from one partition. Nothing, without an error, when the state
// has moved on: whoever waits looks again.
func (l *leader) take(ctx context.Context, m Member, rec *meshv1.StreamRecord, p uint32, cur *view, room int, bytes uint64) ([]Delivery, error) {
	if cur.draining(m.Session) {
		return nil, nil
	}
	// What waits is read before it is given out: a delivery that can't be handed
	// over would count all the same.
	waiting, size, all := cur.ready(rec.Relaxed, l.clock.LeaseMs(time.Now()), room, bytes)
	again, n, err := l.fetch(ctx, partition(m.Group.Name, p), waiting)
	waiting = waiting[:n]
	var read []*broker.StreamStored
	fresh := 0
	if err == nil && all && size < bytes {
		read, fresh, err = l.read(ctx, m.Group.Name, p, cur, rec.Relaxed, room-n, bytes-size)
	}
	if err != nil && n == 0 {
		return nil, fmt.Errorf("stream: deliver from %s/%d: %w", m.Group, p, err)
	}
	if n+fresh == 0 {
		return nil, nil
	}
	cmd := &meshv1.GroupDeliver{
		Name: m.Group.Message(), Session: m.Session, Partition: p, From: cur.Next, Max: uint32(room), MaxBytes: bytes, Again: groups.Ascending(waiting),
	}
	told := make([]groups.Read, len(read))
	for i := range read {
		told[i] = groups.Read{Position: read[i].Position, Key: read[i].Key, Size: uint64(len(read[i].Payload))}
	}
	cmd.Read = groups.Columns(told)
	res, err := l.command(ctx, &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Deliver{Deliver: cmd}})
	switch {
	case errors.Is(err, groups.ErrStale), errors.Is(err, groups.ErrDraining), errors.Is(err, groups.ErrNotOwner), errors.Is(err, groups.ErrNotMember):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("stream: deliver from %s/%d: %w", m.Group, p, err)
	}
	return fill(res.Deliveries, append(again, read...)), nil
}

// read looks for as many messages that may be delivered as are wanted; fresh is
// how many of those read they are. In a strict stream the rest wait behind
// others of their key.
func (l *leader) read(ctx context.Context, n groups.Name, p uint32, cur *view, relaxed bool, want int, bytes uint64) (read []*broker.StreamStored, fresh int, err error) {
	limit := groups.MaxPending - len(cur.Pending)
	blocked := cur.blocked
	if want <= 0 || limit <= 0 || !relaxed && (blocked >= maxBlocked || cur.stuck.Load()) {
		return nil, 0, nil
	}
	taken := map[string]struct{}{} // keys of what is fresh
	var size uint64
	for msg, err := range l.Messages.Read(ctx, partition(n, p), cur.Next) {
		if err != nil {
			return nil, 0, err
		}
		if len(read) > 0 && size+uint64(len(msg.Payload)) > bytes {
			break
		}
		read, size = append(read, msg), size+uint64(len(msg.Payload))
		_, ahead := cur.ahead[msg.Key]
		if !ahead && !relaxed {
			_, ahead = taken[msg.Key]
			taken[msg.Key] = struct{}{}
		}
		if ahead && !relaxed {
			blocked++
		} else {
			fresh++
		}
		if fresh >= want || len(read) >= limit || !relaxed && blocked >= maxBlocked {
			break
		}
	}
	if fresh == 0 && !relaxed && blocked >= maxBlocked {
		cur.stuck.Store(true)
	}
	return read, fresh, nil
}

// fill joins deliveries with their messages, both by position. One whose message
// is gone is left out: the trim has taken it out of the group's hands, or will.
func fill(given []groups.Delivery, read []*broker.StreamStored) []Delivery {
	out := make([]Delivery, 0, len(given))
	for _, d := range given {
		for len(read) > 0 && read[0].Position < d.Position {
			read = read[1:]
		}
		if len(read) > 0 && read[0].Position == d.Position {
			out = append(out, Delivery{d, read[0]})
		}
	}
	return out
}

// passOver is how many messages that are not wanted are read on the way to the
// next one, rather than begin to read again.
const passOver = 16

// fetch reads the messages at the positions, but for those that are gone. With an
// error it got no further than the first n.
func (l *leader) fetch(ctx context.Context, p broker.Partition, positions []broker.Position) (got []*broker.StreamStored, n int, err error) {
	for n < len(positions) && err == nil {
		var more int
		more, err = l.fetchOn(ctx, p, positions[n:], &got)
		n += more
	}
	return got, n, err
}

// fetchOn reads the messages at the first n positions, in one go. n is less than
// all when the next lies far behind them, or with an error.
func (l *leader) fetchOn(ctx context.Context, p broker.Partition, positions []broker.Position, got *[]*broker.StreamStored) (n int, err error) {
	passed := 0
	for msg, err := range l.Messages.Read(ctx, p, positions[0]) {
		if err != nil {
			return n, err
		}
		for n < len(positions) && positions[n] < msg.Position {
			n++ // trimmed
		}
		switch {
		case n == len(positions):
			return n, nil
		case positions[n] == msg.Position:
			*got = append(*got, msg)
			n, passed = n+1, 0
			if n == len(positions) {
				return n, nil
			}
		case passed == passOver && n > 0:
			return n, nil
		default:
			passed++
		}
	}
	return len(positions), nil // what lacks lies behind the end: trimmed
}

func partition(n groups.Name, p uint32) broker.Partition {
	return broker.Partition{Tenant: n.Tenant, Stream: n.Stream, Number: p}
}
