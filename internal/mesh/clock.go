package mesh

import "time"

// Clock gives a leader's two clocks, in milliseconds. Both start at election
// and go on by monotonic elapsed time: lease time from the last committed
// value, so it stands still without a leader; calendar time from the wall
// clock, but never behind what was committed.
type Clock struct {
	elected time.Time // with its monotonic reading
	leaseMs int64
	wallMs  int64
}

// NewClock starts the clocks of a leader elected now; leaseMs and wallMs were
// committed last.
func NewClock(leaseMs, wallMs int64, now time.Time) Clock {
	return Clock{elected: now, leaseMs: leaseMs, wallMs: max(wallMs, now.UnixMilli())}
}

// LeaseMs is lease time.
func (c Clock) LeaseMs(now time.Time) int64 { return c.leaseMs + now.Sub(c.elected).Milliseconds() }

// WallMs is calendar time, since 1970.
func (c Clock) WallMs(now time.Time) int64 { return c.wallMs + now.Sub(c.elected).Milliseconds() }

// Wall is calendar time.
func (c Clock) Wall(now time.Time) time.Time { return time.UnixMilli(c.wallMs).Add(now.Sub(c.elected)) }

// Elected is when the clocks started.
func (c Clock) Elected() time.Time { return c.elected }
