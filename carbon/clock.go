package carbon

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// MaxSpeed is the fastest a Clock may run, in feed seconds a second.
const MaxSpeed = 1e6

// ErrBadClock is returned for a clock that cannot run.
var ErrBadClock = errors.New("clock cannot run")

// Clock maps wall time to feed time, so that a mesh of today can live through
// another day's carbon, or through a day of it in a minute. Nothing else of a
// mesh follows it. The zero Clock is wall time.
type Clock struct {
	// Start is the feed time at Epoch; zero is Epoch itself.
	Start time.Time
	// Speed is how many feed seconds pass in a second; zero is 1.
	Speed float64
	// Epoch is the wall time at which the feed stands at Start. It is required
	// with Start or Speed. Servers that are to see one feed time share it.
	Epoch time.Time
}

// Validate reports what is wrong with the clock, as ErrBadClock.
func (c Clock) Validate() error {
	switch {
	case !(c.Speed >= 0 && c.Speed <= MaxSpeed):
		return fmt.Errorf("carbon: clock speed %g, of 0 to %g: %w", c.Speed, float64(MaxSpeed), ErrBadClock)
	case c.Epoch.IsZero() && (!c.Start.IsZero() || c.Speed != 0):
		return fmt.Errorf("carbon: clock without an epoch: %w", ErrBadClock)
	}
	return nil
}

// At is the feed time at a wall time, UTC. Before Epoch it stands at Start.
func (c Clock) At(wall time.Time) time.Time {
	if c.Epoch.IsZero() {
		return wall.UTC()
	}
	start := c.Start
	if start.IsZero() {
		start = c.Epoch
	}
	elapsed := max(wall.Sub(c.Epoch), 0)
	if c.Speed == 0 || c.Speed == 1 {
		return start.Add(elapsed).UTC()
	}
	// In parts, as a fast clock leaves the range of a Duration.
	whole, frac := math.Modf(elapsed.Seconds() * c.Speed)
	return time.Unix(start.Unix()+int64(whole), int64(start.Nanosecond())+int64(frac*1e9)).UTC()
}

// Hour tells in wall time when the present hour of the feed began, and how long
// an hour of it lasts. Within an hour the answer is always the same.
func (c Clock) Hour(wall time.Time) (from time.Time, lasts time.Duration) {
	hour := c.At(wall).Truncate(time.Hour)
	if c.Epoch.IsZero() {
		return hour, time.Hour
	}
	start, speed := c.Start, c.Speed
	if start.IsZero() {
		start = c.Epoch
	}
	if speed == 0 {
		speed = 1
	}
	since := float64(hour.Unix()-start.Unix()) - float64(start.Nanosecond())/1e9
	return c.Epoch.Add(time.Duration(since / speed * 1e9)).UTC(), time.Duration(float64(time.Hour) / speed)
}
