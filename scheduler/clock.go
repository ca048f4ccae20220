package scheduler

import (
	"time"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// clock gives a leader's two clocks. Both start at election and go on by
// monotonic elapsed time: lease time from the last committed value, so it
// stands still without a leader; calendar time from the wall clock, but never
// behind what was committed.
type clock struct {
	elected time.Time // with its monotonic reading
	leaseMs int64
	wallMs  int64
}

func newClock(leaseMs, wallMs int64, now time.Time) clock {
	return clock{elected: now, leaseMs: leaseMs, wallMs: max(wallMs, now.UnixMilli())}
}

func (c clock) read(now time.Time) *meshv1.Clocks {
	d := now.Sub(c.elected).Milliseconds()
	return &meshv1.Clocks{LeaseMs: c.leaseMs + d, WallMs: c.wallMs + d}
}

func (c clock) wall(now time.Time) time.Time {
	return time.UnixMilli(c.wallMs).Add(now.Sub(c.elected))
}
