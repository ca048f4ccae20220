package stream

import (
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// meshClock writes a leader's two clocks as commands carry them.
type meshClock struct{ mesh.Clock }

func newClock(leaseMs, wallMs int64, calendar, now time.Time) meshClock {
	return meshClock{mesh.NewClock(leaseMs, wallMs, calendar, now)}
}

func (c meshClock) read(now time.Time) *meshv1.Clocks {
	return &meshv1.Clocks{LeaseMs: c.LeaseMs(now), WallMs: c.WallMs(now)}
}
