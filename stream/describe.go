package stream

import (
	"context"
	"fmt"

	"github.com/isobar-mesh/isobar/broker"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// shownDead is how many dead letters of a group are shown, the newest.
const shownDead = 100

// Description is a stream as it is now.
type Description struct {
	Stream     *meshv1.StreamRecord
	Partitions []broker.Extent
	Groups     []GroupDescription
}

// GroupDescription is one group of it.
type GroupDescription struct {
	Name    string
	Record  *meshv1.GroupRecord
	Cursors []CursorDescription
	Dead    []groups.DeadLetter
}

// CursorDescription is the group's place in one partition.
type CursorDescription struct {
	// Position: everything below is acknowledged.
	Position uint64
	// Lag counts the messages kept that are not acknowledged.
	Lag      uint64
	InFlight int
}

// Find returns the stream alone, as the log has it: with leadership verified, but
// without a look at its partitions. The record must not be changed.
func (s *Streams) Find(ctx context.Context, n groups.Name) (*meshv1.StreamRecord, error) {
	if _, err := s.leading(); err != nil {
		return nil, err
	}
	if err := s.Log.Verify(ctx); err != nil {
		return nil, fmt.Errorf("stream: describe %s: %w", n, err)
	}
	rec, ok := groups.Stream(s.State, n)
	if !ok {
		return nil, fmt.Errorf("stream: describe %s: %w", n, groups.ErrUnknownStream)
	}
	return rec, nil
}

// Describe reads a stream with its groups; leadership is verified, so it is not
// stale.
func (s *Streams) Describe(ctx context.Context, n groups.Name) (*Description, error) {
	rec, err := s.Find(ctx, n)
	if err != nil {
		return nil, err
	}
	d := &Description{Stream: rec}
	for p := range rec.Partitions {
		ext, err := s.Messages.Extent(ctx, partition(n, p), 0)
		if err != nil {
			return nil, fmt.Errorf("stream: describe %s: %w", n, err)
		}
		d.Partitions = append(d.Partitions, ext)
	}
	for g := range groups.Groups(s.State, n) {
		grp, err := s.describeGroup(ctx, g, d)
		if err != nil {
			return nil, fmt.Errorf("stream: describe %s: %w", g, err)
		}
		d.Groups = append(d.Groups, grp)
	}
	return d, nil
}

func (s *Streams) describeGroup(ctx context.Context, g groups.Group, d *Description) (GroupDescription, error) {
	out := GroupDescription{Name: g.Group}
	out.Record, _ = groups.ReadGroup(s.State, g)
	for p, ext := range d.Partitions {
		cur := groups.ReadCursor(s.State, g, uint32(p))
		c := CursorDescription{Position: max(groups.Position(cur), ext.First)}
		unread, err := s.Messages.Extent(ctx, partition(g.Name, uint32(p)), cur.Next)
		if err != nil {
			return out, err
		}
		c.Lag = unread.Messages
		for _, m := range cur.Pending {
			if m.Position >= ext.First {
				c.Lag++
			}
			if m.UntilLeaseMs > 0 {
				c.InFlight++
			}
		}
		out.Cursors = append(out.Cursors, c)
	}
	for dead := range groups.DeadLetters(s.State, g) {
		out.Dead = append(out.Dead, dead)
		if len(out.Dead) > shownDead {
			out.Dead = out.Dead[1:]
		}
	}
	return out, nil
}
