package mesh

import "time"

// Clock gives a leader's two clocks, in milliseconds. Both go on by monotonic
// time since the election: lease time from the last committed value, so it
// stands still without a leader; calendar time from this server's own calendar,
// but never behind what was committed. When an earlier leader's calendar was
// ahead, time goes on from there at half its speed until the true time has
// caught up: standing still would hold up what is to be tried again, going on at
// full speed would stay wrong.
type Clock struct {
	elected     time.Time // with its monotonic reading
	leaseMs     int64
	wallMs      int64 // this server's calendar at the election
	committedMs int64 // the cell's calendar at the election
}

// NewClock starts the clocks of a leader elected now, at calendar by its own
// calendar; leaseMs and wallMs were committed last.
func NewClock(leaseMs, wallMs int64, calendar, now time.Time) Clock {
	return Clock{elected: now, leaseMs: leaseMs, wallMs: calendar.UnixMilli(), committedMs: wallMs}
}

// LeaseMs is lease time.
func (c Clock) LeaseMs(now time.Time) int64 { return c.leaseMs + now.Sub(c.elected).Milliseconds() }

// WallMs is calendar time, since 1970.
func (c Clock) WallMs(now time.Time) int64 { return c.Wall(now).UnixMilli() }

// Wall is calendar time.
func (c Clock) Wall(now time.Time) time.Time {
	since := now.Sub(c.elected)
	own, slow := time.UnixMilli(c.wallMs).Add(since), time.UnixMilli(c.committedMs).Add(since/2)
	if slow.After(own) {
		return slow
	}
	return own
}

// Elected is when the clocks started.
func (c Clock) Elected() time.Time { return c.elected }
