package placement

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// green prices a gram at a dollar.
func green() Policy { return Policy{CarbonUSDPerTonne: 1e6} }

func TestHoursOfAFeed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		cell  func(*Cell)
		put   time.Duration
		grams float64
	}{
		{"an hour", func(*Cell) {}, 3 * time.Hour, 50},
		{"an hour passes in ten minutes", func(c *Cell) { c.Energy.Step = 10 * time.Minute }, 30 * time.Minute, 50},
		{"the first began a while ago", func(c *Cell) { c.Energy.From = noon().Add(-2*time.Hour - 15*time.Minute) }, 45 * time.Minute, 50},
		{"all of them are past", func(c *Cell) { c.Energy.From = noon().Add(-9 * time.Hour) }, 0, 50},
		{"none has begun", func(c *Cell) { c.Energy.From = noon().Add(time.Hour) }, 3 * time.Hour, 50},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := hourly("a-1", 300, 200, 100, 50)
			tt.cell(&c)
			d := Decide(waits(time.Minute, 4*time.Hour), View{Cells: []Cell{c}}, green(), noon(), Options{})
			if d.Chosen.Put != tt.put {
				t.Errorf("put off %s, want %s", d.Chosen.Put, tt.put)
			}
			within(t, "grams", d.Chosen.GCO2eq, tt.grams/60)
		})
	}
}

func TestLaterSaysWhenWhereAndWhy(t *testing.T) {
	t.Parallel()
	in := View{Cells: []Cell{hourly("eu-1", 300, 200, 100, 50)}}
	d := Decide(waits(time.Hour, 3*time.Hour), in, green(), noon(), Options{Starts: true})
	if want := "starts about 15:00 UTC in eu, because carbon is 250 g/kWh lower then"; d.Later() != want {
		t.Errorf("%q, want %q", d.Later(), want)
	}
	if !strings.Contains(d.Summary(), "; put off until 15:00 UTC: carbon is 250 g/kWh lower then") {
		t.Errorf("summary %q", d.Summary())
	}
	if len(d.Starts) != 4 || d.Starts[0].Put != 0 || d.Starts[3].Put != d.Chosen.Put || d.Starts[3].Score != d.Chosen.Score {
		t.Errorf("starts %+v, chosen %+v", d.Starts, d.Chosen)
	}
	// Seconds where they matter, the day where it is another.
	c := hourly("eu-1", 300, 50)
	c.Energy.Step = 5 * time.Second
	d = Decide(waits(time.Millisecond, time.Minute), View{Cells: []Cell{c}}, green(), noon(), Options{Starts: true})
	if !strings.HasPrefix(d.Later(), "starts about 12:00:05 UTC in eu") {
		t.Errorf("%q", d.Later())
	}
	if got := clock(noon(), noon().Add(15*time.Hour)); got != "2026-03-02 03:00 UTC" {
		t.Errorf("%q", got)
	}
	// At once there is nothing to say, and nothing is listed unless asked.
	d = Decide(waits(time.Hour, 3*time.Hour), View{Cells: []Cell{hourly("eu-1", 50, 300, 300, 300)}}, green(), noon(), Options{Starts: true})
	if d.Later() != "" || d.Starts != nil {
		t.Errorf("%q, starts %v", d.Later(), d.Starts)
	}
}

func TestHintAsksForEveryTime(t *testing.T) {
	t.Parallel()
	full := hourly("b-1", 1)
	full.RTT, full.Backlog[2] = 60*time.Millisecond, time.Hour
	full.Free.CPUMilli = 0
	in := waits(time.Second, time.Minute, func(t *Task) {
		t.MaxRTT, t.Deadline = 50*time.Millisecond, noon().Add(30*time.Minute)
	})
	d := Decide(in, View{Cells: []Cell{full}}, Policy{}, noon(), Options{Explain: true})
	for _, want := range []string{"allow a round trip of 60ms to b-1", "move the deadline 30m", "let the task start 59m"} {
		if d.Chosen != nil || !strings.Contains(d.Hint, want) {
			t.Errorf("hint %q lacks %q", d.Hint, want)
		}
	}
	in.MaxRTT, in.Deadline, in.StartBy = 60*time.Millisecond, noon().Add(61*time.Minute), noon().Add(time.Hour+time.Minute)
	if d := Decide(in, View{Cells: []Cell{full}}, Policy{}, noon(), Options{}); d.Chosen == nil {
		t.Errorf("what the hint asks for is not enough: %s", d.Hint)
	}
}

// TestStartsAreWhatWasCompared: the list holds the chosen start and none that is
// cheaper, the terms of each sum to its score, and each is what the decision
// would be were it the only start.
func TestStartsAreWhatWasCompared(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		w.Opts.Explain = true
		if slack := pick(t, "slack", 0, time.Second, 20*time.Minute, 5*time.Hour); slack > 0 {
			w.Task.StartBy = w.Now.Add(slack)
		}
		d := w.decide()
		if d.Chosen == nil || w.Task.StartBy.IsZero() {
			if d.Starts != nil {
				t.Fatalf("starts %v", d.Starts)
			}
			return
		}
		found := false
		for i, s := range d.Starts {
			if math.Abs(s.Terms.Sum()-s.Score) > 1e-9*max(1, s.Score) {
				t.Fatalf("terms %v of %g", s.Terms, s.Score)
			}
			if lower(s.Score, d.Chosen.Score) && math.Abs(s.Score-d.Chosen.Score) > 1e-9*max(1, s.Score) {
				t.Fatalf("the start at %s costs %g, the chosen %g", s.Put, s.Score, d.Chosen.Score)
			}
			if i > 0 && s.Put <= d.Starts[i-1].Put {
				t.Fatalf("starts are not in order: %v", d.Starts)
			}
			found = found || s.Put == d.Chosen.Put && s.Score == d.Chosen.Score && s.At.Equal(d.Chosen.Start)
		}
		if len(d.Starts) > 0 && !found {
			t.Fatalf("the chosen start %s is not in %v", d.Chosen.Put, d.Starts)
		}
	})
}

// TestNoteOnTheWeight: at a weight on either side of the one that the note
// names, the same cell and variant starts at once, or does not.
func TestNoteOnTheWeight(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		hours := rapid.SliceOfN(rapid.Float64Range(1, 600), 2, 24).Draw(t, "hours")
		run := rapid.SampledFrom([]time.Duration{time.Minute, time.Hour, 150 * time.Minute}).Draw(t, "run")
		in := waits(run, time.Duration(rapid.IntRange(1, 30).Draw(t, "slack"))*time.Hour)
		view := View{Cells: []Cell{hourly("eu-1", hours...)}}
		policy := Policy{CarbonUSDPerTonne: rapid.Float64Range(1, 1000).Draw(t, "carbon"), LatencyUSDPerS: 1e-5, DelayUSDPerS: 1e-5}
		d := Decide(in, view, policy, noon(), Options{Explain: true})
		at, ok := turn(&d, policy)
		if !ok {
			if d.Chosen.Put > 0 {
				t.Fatalf("put off %s for nothing", d.Chosen.Put)
			}
			return
		}
		for _, factor := range []float64{0.999, 1.001} {
			policy.CarbonUSDPerTonne = at * factor
			if got := Decide(in, view, policy, noon(), Options{}); (got.Chosen.Put > 0) != (factor > 1) {
				t.Fatalf("at %g times %g it is put off %s", factor, at, got.Chosen.Put)
			}
		}
	})
}

// turn is the carbon price at which the decision says that it turns.
func turn(d *Decision, p Policy) (float64, bool) {
	q := question{policy: p}
	return turnOf(&q, d.Starts)
}
