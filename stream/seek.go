package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// PositionError says that a place asked for is not in the stream: its messages
// were dropped already, or are still to come.
type PositionError struct {
	Partition uint32
	// First is the oldest position kept, End the one behind the newest.
	First, End uint64
	// Dropped: what was asked for lies before First; else it lies behind End.
	Dropped bool
}

func (e *PositionError) Error() string {
	if e.Dropped {
		return fmt.Sprintf("it lies before retention: the earliest position of partition %d is %d", e.Partition, e.First)
	}
	return fmt.Sprintf("it lies behind the end of partition %d, %d", e.Partition, e.End)
}

// Target is where to seek; exactly one field is set.
type Target struct {
	Position   *uint64
	Time       time.Time
	Start, End bool
}

// Seek moves a group in one partition, or in all for nil, and returns where to,
// by partition. What it has in hand counts for nothing then. The error is a
// *PositionError for a place that is not kept.
func (s *Streams) Seek(ctx context.Context, g groups.Group, only *uint32, to Target) (map[uint32]uint64, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	rec, ok := s.Lookup(g.Name)
	if !ok {
		return nil, fmt.Errorf("stream: seek %s: %w", g, groups.ErrUnknownStream)
	}
	out := map[uint32]uint64{}
	cmd := &meshv1.GroupSeek{Name: g.Message()}
	for p := range rec.Partitions {
		if only != nil && *only != p {
			continue
		}
		at, err := l.resolve(ctx, rec, partition(g.Name, p), to)
		if err != nil {
			return nil, fmt.Errorf("stream: seek %s: %w", g, err)
		}
		out[p] = at
		cmd.To = append(cmd.To, &meshv1.GroupSeekTo{Partition: p, Position: at})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("stream: seek %s/%d: %w", g, *only, groups.ErrUnknownPartition)
	}
	if _, err := l.command(ctx, &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Seek{Seek: cmd}}); err != nil {
		return nil, err
	}
	return out, nil
}

func (l *leader) resolve(ctx context.Context, rec *meshv1.StreamRecord, p broker.Partition, to Target) (uint64, error) {
	ext, err := l.Messages.Extent(ctx, p, 0)
	if err != nil {
		return 0, err
	}
	outside := &PositionError{Partition: p.Number, First: ext.First, End: ext.End}
	switch {
	case to.Start:
		return ext.First, nil
	case to.End:
		return ext.End, nil
	case to.Position != nil:
		if outside.Dropped = *to.Position < ext.First; outside.Dropped || *to.Position > ext.End {
			return 0, outside
		}
		return *to.Position, nil
	default:
		if reach := l.clock.WallMs(time.Now()) - rec.MaxAgeMs; to.Time.UnixMilli() < reach {
			outside.Dropped = true
			return 0, outside
		}
		return l.Messages.Find(ctx, p, broker.Search{Since: to.Time})
	}
}
