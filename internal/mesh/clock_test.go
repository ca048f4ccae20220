package mesh

import (
	"testing"
	"time"
)

// TestClockAfterABadOne: a leader whose calendar was an hour ahead has committed
// it. Time does not go back for the next one, does not stand still, and is right
// again after two hours.
func TestClockAfterABadOne(t *testing.T) {
	t.Parallel()
	now := time.Now()
	calendar := time.UnixMilli(1_800_000_000_000)
	ahead := calendar.Add(time.Hour)
	c := NewClock(70, ahead.UnixMilli(), calendar, now)
	for _, tt := range []struct{ after, want time.Duration }{
		{0, time.Hour},
		{time.Minute, time.Hour + 30*time.Second},
		{2 * time.Hour, 2 * time.Hour},
		{3 * time.Hour, 3 * time.Hour},
	} {
		lease, wall := c.LeaseMs(now.Add(tt.after)), c.WallMs(now.Add(tt.after))
		if want := calendar.Add(tt.want).UnixMilli(); wall != want {
			t.Errorf("%v after the election the calendar is %v on, want %v", tt.after, time.Duration(wall-calendar.UnixMilli())*time.Millisecond, tt.want)
		}
		if want := 70 + tt.after.Milliseconds(); lease != want {
			t.Errorf("%v after the election lease time is %d, want %d", tt.after, lease, want)
		}
	}
}

// TestClockStandsStillWithoutALeader: lease time does, the calendar does not.
func TestClockStandsStillWithoutALeader(t *testing.T) {
	t.Parallel()
	now, calendar := time.Now(), time.UnixMilli(1_800_000_000_000)
	c := NewClock(70, calendar.Add(-time.Hour).UnixMilli(), calendar, now)
	if lease, wall := c.LeaseMs(now), c.WallMs(now); lease != 70 || wall != calendar.UnixMilli() {
		t.Errorf("an hour after the last leader: %d and %d", lease, wall)
	}
}
