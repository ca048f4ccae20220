package loadtest

import (
	"math"
	"reflect"
	"testing"
	"time"
)

func at(d time.Duration, service string) Arrival {
	return Arrival{At: d, Service: service, Input: 1, Output: 1}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	noon := time.Date(2023, 11, 16, 12, 0, 0, 0, time.UTC)
	a := Trace{Start: noon.Add(time.Second), Arrivals: []Arrival{at(0, "a"), at(2*time.Second, "a")}}
	b := Trace{Start: noon, Arrivals: []Arrival{at(time.Second, "b"), at(2*time.Second, "b")}}
	want := Trace{Start: noon, Arrivals: []Arrival{
		at(time.Second, "a"), at(time.Second, "b"), at(2*time.Second, "b"), at(3*time.Second, "a"),
	}}
	if got := Merge(a, b); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if a.Arrivals[0].At != 0 {
		t.Error("the merged trace was changed")
	}
	if got := Merge(); len(got.Arrivals) != 0 {
		t.Errorf("nothing merged is %+v", got)
	}
}

func TestWindow(t *testing.T) {
	t.Parallel()
	start := time.Date(2023, 11, 16, 12, 0, 0, 0, time.UTC)
	trace := Trace{Start: start, Arrivals: []Arrival{at(0, "a"), at(time.Second, "a"), at(2*time.Second, "a")}}
	want := Trace{Start: start.Add(time.Second), Arrivals: []Arrival{at(0, "a")}}
	if got := trace.Window(time.Second, 2*time.Second); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestSample(t *testing.T) {
	t.Parallel()
	full := Trace{Arrivals: Generate(1, Conv(), 1000)}
	for _, tt := range []struct{ n, want int }{{10, 10}, {999, 999}, {1000, 1000}, {5000, 1000}, {0, 1000}, {-1, 1000}} {
		got := full.Sample(tt.n)
		if len(got.Arrivals) != tt.want {
			t.Errorf("Sample(%d): %d arrivals, want %d", tt.n, len(got.Arrivals), tt.want)
		}
		seen := map[time.Duration]bool{}
		for _, a := range got.Arrivals {
			seen[a.At] = true
		}
		if len(seen) != len(got.Arrivals) {
			t.Errorf("Sample(%d): an arrival is there twice", tt.n)
		}
	}
	// Even: each tenth of the list gives a tenth of the sample.
	got := full.Sample(100)
	for i, a := range got.Arrivals {
		if part := full.Arrivals[i*10 : i*10+10]; a.At < part[0].At || a.At > part[9].At {
			t.Errorf("sample %d is not of its part of the list", i)
		}
	}
}

func TestShares(t *testing.T) {
	t.Parallel()
	places := []Place{{"eu-north", 1}, {"us-east", -5}, {"ap-south", 5.5}}
	for _, tt := range []struct {
		utc  string
		want []float64
	}{
		{"18:15", []float64{0.353, 0.544, 0.103}}, // early afternoon in us-east, midnight in ap-south
		{"08:30", []float64{0.388, 0.077, 0.535}}, // early afternoon in ap-south, night in us-east
	} {
		when, err := time.Parse("15:04", tt.utc)
		if err != nil {
			t.Fatal(err)
		}
		got, sum := Shares(places, when), 0.0
		for i := range got {
			sum += got[i]
			if math.Abs(got[i]-tt.want[i]) > 0.002 {
				t.Errorf("%s: %s gets %.3f, want %.3f", tt.utc, places[i].Region, got[i], tt.want[i])
			}
		}
		if math.Abs(sum-1) > 1e-12 {
			t.Errorf("%s: the shares sum to %v", tt.utc, sum)
		}
	}
	peak := Shares([]Place{{"peak", 0}, {"trough", 12}}, time.Date(2023, 1, 1, 14, 0, 0, 0, time.UTC))
	if ratio := peak[0] / peak[1]; math.Abs(ratio-9) > 1e-9 {
		t.Errorf("peak is %.2f times the trough, want 9", ratio)
	}
}

func TestSpread(t *testing.T) {
	t.Parallel()
	places := []Place{{"eu-north", 1}, {"us-east", -5}, {"ap-south", 5.5}}
	make20k := func() Trace {
		tr := Trace{Start: time.Date(2023, 11, 16, 18, 15, 0, 0, time.UTC), Arrivals: make([]Arrival, 20_000)}
		Spread(4, tr, places)
		return tr
	}
	one := make20k()
	if !reflect.DeepEqual(one, make20k()) {
		t.Error("two spreads of one seed differ")
	}
	counts := map[string]float64{}
	for _, a := range one.Arrivals {
		counts[a.Origin]++
	}
	for i, share := range Shares(places, one.Start) {
		if got := counts[places[i].Region] / 20_000; math.Abs(got-share) > 0.02 {
			t.Errorf("%s got %.3f of the arrivals, want %.3f", places[i].Region, got, share)
		}
	}
	bare := Trace{Arrivals: []Arrival{{}}}
	Spread(4, bare, nil)
	if bare.Arrivals[0].Origin != "" {
		t.Error("an origin without places")
	}
}
