package fairness

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func policy() Pacing {
	return Pacing{Most: 20, Start: 4, Least: 0.5, Errors: 0.2, Window: 10 * time.Second}
}

func TestRate(t *testing.T) {
	t.Parallel()
	p := policy()
	for _, c := range []struct {
		from  float64
		after time.Duration
		want  float64
	}{
		{4, 0, 4},
		{4, 9 * time.Second, 4},
		{4, 10 * time.Second, 5}, // a twentieth of 20 each window
		{4, time.Minute, 10},
		{4, time.Hour, 20},
		{0.1, 0, 0.5},
		{4, -time.Hour, 4}, // a clock that went back
		{19.5, 30 * time.Second, 20},
	} {
		if got := p.Rate(c.from, noon, noon.Add(c.after)); got != c.want {
			t.Errorf("from %v after %s: %v, want %v", c.from, c.after, got, c.want)
		}
	}
	for halvings, want := range map[int64]float64{0: 8, 1: 4, 2: 2, 9: 0.5, 1 << 62: 0.5} {
		if got := p.Slower(8, halvings); got != want {
			t.Errorf("8 after %d halvings is %v, want %v", halvings, got, want)
		}
	}
}

// TestShareOfErrors: it counts once enough have ended, and once a window.
func TestShareOfErrors(t *testing.T) {
	t.Parallel()
	p := policy()
	var s Pace
	at := noon
	end := func(ended, errors int64) bool { return s.Ended(p, ended, errors, at) }
	for range 4 {
		if end(1, 1) {
			t.Fatal("judged before enough had ended")
		}
	}
	if !end(1, 1) {
		t.Fatal("five errors of five pass")
	}
	if end(10, 10) {
		t.Fatal("judged twice in a window")
	}
	at = at.Add(p.Window)
	if end(8, 0) || end(2, 2) {
		t.Fatal("two of ten are acceptable")
	}
	if !end(0, 1) { // reported of one that had ended well
		t.Fatal("three of ten are not")
	}
	at = at.Add(p.Window)
	if !end(0, 7) {
		t.Fatal("reports alone count")
	}
}

// TestABucketKeepsTheRate: whatever the pauses, no more start than the rate and
// half a second's worth allow; and who waits as told may start.
func TestABucketKeepsTheRate(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var s Pace
		rate := rapid.Float64Range(0.01, 1000).Draw(t, "rate")
		at, started := noon, 0
		for range rapid.IntRange(1, 300).Draw(t, "tries") {
			wait := s.Wait(rate, at)
			if wait <= 0 {
				s.Took()
				started++
			} else if rapid.Bool().Draw(t, "waits") {
				at = at.Add(wait)
				if wait < time.Hour && s.Wait(rate, at) > time.Microsecond {
					t.Fatalf("after the wait of %s there is another", wait)
				}
			}
			at = at.Add(time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "pause")))
		}
		if most := rate*at.Sub(noon).Seconds() + math.Max(rate/2, 1) + 1e-6; float64(started) > most {
			t.Fatalf("%d started in %s at %v a second", started, at.Sub(noon), rate)
		}
	})
}
