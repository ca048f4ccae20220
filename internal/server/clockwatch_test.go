package server

import (
	"testing"
	"time"
)

// The hand-over of rule 8 hangs on this: one voter with a bad clock must not
// depose a leader with a good one.
func TestMedianOffset(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		offsets []time.Duration
		want    time.Duration
	}{
		{"nobody answered", nil, 0},
		{"all agree that the leader is ahead", []time.Duration{5 * time.Minute, 5*time.Minute + time.Second}, 5 * time.Minute},
		{"one of two voters is off", []time.Duration{-time.Hour, 3 * time.Millisecond}, 3 * time.Millisecond},
		{"one of two is off the other way", []time.Duration{3 * time.Millisecond, time.Hour}, 3 * time.Millisecond},
		{"the middle of four", []time.Duration{time.Hour, 2 * time.Second, -time.Second, -time.Hour}, -time.Second},
		{"behind", []time.Duration{-2 * time.Minute, -2 * time.Minute}, -2 * time.Minute},
	} {
		if got := medianOffset(tt.offsets); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
