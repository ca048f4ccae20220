package server

import (
	"fmt"
	"slices"
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
		{"one of two others is off", []time.Duration{-time.Hour, 3 * time.Millisecond}, 0},
		{"one of two is off the other way", []time.Duration{3 * time.Millisecond, time.Hour}, 3 * time.Millisecond},
		{"all three differ, and it is the middle one", []time.Duration{time.Hour, -time.Hour}, 0},
		{"all three differ, and it is the last", []time.Duration{-time.Hour, -2 * time.Hour}, -time.Hour},
		{"the only other differs", []time.Duration{time.Hour}, 0},
		{"the middle of five", []time.Duration{time.Hour, 2 * time.Minute, 90 * time.Second, -time.Hour}, 90 * time.Second},
		{"behind", []time.Duration{-2 * time.Minute, -2 * time.Minute}, -2 * time.Minute},
	} {
		var others []offset
		for i, by := range tt.offsets {
			others = append(others, offset{fmt.Sprint(i), by})
		}
		got, best := medianOffset(others)
		if got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		for _, o := range others {
			if chosen := others[slices.IndexFunc(others, func(o offset) bool { return o.server == best })]; (o.by - got).Abs() < (chosen.by - got).Abs() {
				t.Errorf("%s: %v is nearer to the median than %v", tt.name, o.by, chosen.by)
			}
		}
	}
}
