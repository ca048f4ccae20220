package scheduler

import (
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// clock writes a leader's two clocks as commands carry them.
type clock struct{ mesh.Clock }

func newClock(leaseMs, wallMs int64, calendar, now time.Time) clock {
	return clock{mesh.NewClock(leaseMs, wallMs, calendar, now)}
}

func (c clock) read(now time.Time) *meshv1.Clocks {
	return &meshv1.Clocks{LeaseMs: c.LeaseMs(now), WallMs: c.WallMs(now)}
}

func (c clock) wall(now time.Time) time.Time { return c.Wall(now) }
