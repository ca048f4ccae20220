package loadtest

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// cand is a candidate of which each change sets one term; its score is their
// sum, as placement's are.
func cand(cell, variant string, changes ...func(*isobarv1.Candidate)) *isobarv1.Candidate {
	c := &isobarv1.Candidate{Cell: cell, Variant: variant, Quality: 0.8}
	for _, change := range changes {
		change(c)
	}
	c.Score = c.Compute + c.Egress + c.Carbon + c.Latency + c.ColdStart + c.QualityLost
	return c
}

func compute(x float64) func(*isobarv1.Candidate) {
	return func(c *isobarv1.Candidate) { c.Compute = x }
}
func egress(x float64) func(*isobarv1.Candidate) { return func(c *isobarv1.Candidate) { c.Egress = x } }
func carbon(x float64) func(*isobarv1.Candidate) { return func(c *isobarv1.Candidate) { c.Carbon = x } }
func slow(x float64) func(*isobarv1.Candidate)   { return func(c *isobarv1.Candidate) { c.Latency = x } }
func cold(x float64) func(*isobarv1.Candidate) {
	return func(c *isobarv1.Candidate) { c.ColdStart = x }
}

// less is of a lower quality than the others, at a price.
func less(lost float64) func(*isobarv1.Candidate) {
	return func(c *isobarv1.Candidate) { c.Quality, c.QualityLost = 0.6, lost }
}

func wait(d time.Duration) func(*isobarv1.Candidate) {
	return func(c *isobarv1.Candidate) { c.Wait = durationpb.New(d) }
}

func ruled(name string, n uint32) *isobarv1.ConstraintCount {
	return &isobarv1.ConstraintCount{Constraint: name, Count: n}
}

func TestWhy(t *testing.T) {
	t.Parallel()
	type cands = []*isobarv1.Candidate
	type counts = []*isobarv1.ConstraintCount
	for _, tt := range []struct {
		want       string
		candidates cands
		counts     counts
	}{
		{"nowhere to run", nil, nil},
		{"home: elsewhere is too far for what it saves", cands{cand("home", "a", slow(1)), cand("far", "a", slow(2))}, nil},
		{"home: elsewhere is busy or too far for what it saves", cands{cand("home", "a", slow(1)), cand("far", "a", slow(2), wait(time.Second))}, nil},
		{"home: sending the bytes costs more than it saves", cands{cand("home", "a", carbon(1)), cand("far", "a", egress(2))}, nil},
		{"home: elsewhere is cold", cands{cand("home", "a"), cand("far", "a", cold(2))}, nil},
		{"home: elsewhere has dirtier electricity", cands{cand("home", "a"), cand("far", "a", carbon(2))}, nil},
		{"home: elsewhere has dearer computing", cands{cand("home", "a"), cand("far", "a", compute(2))}, nil},
		{"home: the cheaper place had just refused or lost it", cands{cand("home", "a", compute(2)), cand("far", "a", compute(1))}, nil},
		{"home: residency allows no other region", cands{cand("home", "a")}, counts{ruled("residency", 2)}},
		{"home: no other region could run it (health); a: the task's minimum quality", cands{cand("home", "a")}, counts{ruled("min_quality", 3), ruled("health", 2)}},
		{"home: no other region could run it", cands{cand("home", "a")}, nil},
		{"moved: home was busy, waiting there costs more", cands{cand("far", "a"), cand("home", "a", slow(3), wait(time.Second))}, nil},
		{"moved: an answer from there comes sooner", cands{cand("far", "a"), cand("home", "a", slow(3))}, nil},
		{"moved: cleaner electricity than at home", cands{cand("far", "a", slow(1)), cand("home", "a", carbon(3))}, nil},
		{"moved: cheaper computing than at home", cands{cand("far", "a", slow(1)), cand("home", "a", compute(3))}, nil},
		{"moved: warm there, cold at home", cands{cand("far", "a", slow(1)), cand("home", "a", cold(3))}, nil},
		{"moved: home had just refused or lost it", cands{cand("far", "a", slow(3)), cand("home", "a", slow(1))}, nil},
		{"moved: home could not run it (accelerator)", cands{cand("far", "a")}, counts{ruled("residency", 5), ruled("accelerator", 1)}},
		{
			"home: elsewhere is too far for what it saves; large: its quality is worth its price",
			cands{cand("home", "large", slow(1)), cand("far", "large", slow(2)), cand("home", "small", less(3))}, nil,
		},
		{
			"home: elsewhere is too far for what it saves; small: good enough, and cheaper in time",
			cands{cand("home", "small", less(0.1)), cand("far", "small", slow(0.5), less(0.1)), cand("home", "large", slow(1))}, nil,
		},
		{
			"home: elsewhere is too far for what it saves; large: the task's minimum quality",
			cands{cand("home", "large", slow(1)), cand("far", "large", slow(2))}, counts{ruled("min_quality", 3)},
		},
		{
			"home: residency allows no other region; small: the task's deadline",
			cands{cand("home", "small")}, counts{ruled("residency", 4), ruled("deadline", 1)},
		},
		{
			"home: elsewhere is too far for what it saves; large: it is warm, small would start cold",
			cands{cand("home", "large", slow(1)), cand("far", "large", slow(2)), cand("home", "small", less(1), cold(2))}, nil,
		},
		{"home: elsewhere is too far for what it saves; b: cheaper in time", cands{cand("home", "b"), cand("far", "b", slow(1)), cand("home", "a", slow(9))}, nil},
	} {
		d := &isobarv1.Decision{Home: "home", Candidates: tt.candidates, Counts: tt.counts}
		place, variant, _ := strings.Cut(tt.want, "; ")
		if gotPlace, gotVariant := Why(d); gotPlace != place || gotVariant != variant {
			t.Errorf("got  %q, %q\nwant %q, %q", gotPlace, gotVariant, place, variant)
		}
	}
	if got, _ := Why(nil); got != "nowhere to run" {
		t.Errorf("no decision: %q", got)
	}
}

func TestAtHome(t *testing.T) {
	t.Parallel()
	cheap := cand("home", "b", slow(2))
	d := &isobarv1.Decision{Home: "home", Candidates: []*isobarv1.Candidate{cand("far", "a"), cand("home", "a", slow(3)), cheap}}
	if got := AtHome(d); got != cheap {
		t.Errorf("got %v, want the cheapest at home", got)
	}
	if got := AtHome(&isobarv1.Decision{Home: "home", Candidates: d.Candidates[:1]}); got != nil {
		t.Errorf("home is not among them, got %v", got)
	}
	if got := AtHome(nil); got != nil {
		t.Errorf("no decision, got %v", got)
	}
}

func TestExpected(t *testing.T) {
	t.Parallel()
	c := &isobarv1.Candidate{
		Rtt: durationpb.New(1), Wait: durationpb.New(20), Cold: durationpb.New(300), Run: durationpb.New(4000),
	}
	if got := Expected(c); got != 4321 {
		t.Errorf("got %d, want 4321", got)
	}
	if got := Expected(nil); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}
