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

// A leader that was found bad does not forget it because a server does not answer.
func TestClockIsJudgedByThree(t *testing.T) {
	t.Parallel()
	var c clockWatch
	for _, tt := range []struct {
		others []offset
		ahead  time.Duration
		best   string
	}{
		{[]offset{{"b", time.Hour}}, 0, ""},
		{[]offset{{"b", time.Hour}, {"c", time.Hour}}, time.Hour, "b"},
		{[]offset{{"c", time.Hour}}, time.Hour, "b"},
		{nil, time.Hour, "b"},
		{[]offset{{"b", 0}, {"c", 0}}, 0, "b"},
	} {
		if c.compared(tt.others); c.ahead != tt.ahead || c.best != tt.best {
			t.Errorf("after %v: ahead %s, best %q, want %s, %q", tt.others, c.ahead, c.best, tt.ahead, tt.best)
		}
	}
}
