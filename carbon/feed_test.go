package carbon_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isobar-mesh/isobar/carbon"
)

var (
	_ carbon.Series = (*carbon.Table)(nil)
	_ carbon.Series = (*carbon.Generator)(nil)
	_ carbon.Feed   = (*carbon.Persistence)(nil)
	_ carbon.Feed   = (*carbon.Joined)(nil)
)

// counting is a table of one zone where the value is the row's number.
func counting(t testing.TB, zone string, kind carbon.Kind, hours int) *carbon.Table {
	t.Helper()
	var b strings.Builder
	b.WriteString("datetime_utc," + zone + "\n")
	for h := range hours {
		fmt.Fprintf(&b, "%s,%d\n", at("2022-01-01T00:00:00Z").Add(time.Duration(h)*time.Hour).Format(time.RFC3339), h)
	}
	got, err := carbon.ReadTable(strings.NewReader(b.String()), "counting.csv", kind)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func feed(t testing.TB, s carbon.Series, wall time.Time) *carbon.Persistence {
	t.Helper()
	f, err := carbon.NewPersistence(s, carbon.Clock{}, wall)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestPersistenceNeverLooksAhead(t *testing.T) {
	t.Parallel()
	start := at("2022-01-01T00:00:00Z")
	table := counting(t, "DE", carbon.Average, 72)
	f := feed(t, table, start)
	for _, tt := range []struct {
		name         string
		now          time.Duration
		hours        int
		want         []float64
		extrapolated []bool
	}{
		{"the day before", 30 * time.Hour, 4, []float64{30, 7, 8, 9}, []bool{false, false, false, false}},
		{"past a day, the same day again", 47*time.Hour + 59*time.Minute, 26, []float64{
			47, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 24,
		}, make([]bool, 26)},
		{"no day before: the present", 2 * time.Hour, 4, []float64{2, 2, 2, 2}, []bool{false, true, true, true}},
		{"the first hours of the day before are missing", 22 * time.Hour, 4, []float64{22, 22, 0, 1}, []bool{false, true, false, false}},
		{"past the end", 73 * time.Hour, 3, []float64{71, 50, 51}, []bool{true, false, false}},
		{"one", 30 * time.Hour, 1, []float64{30}, []bool{false}},
		{"none", 30 * time.Hour, 0, nil, nil},
		{"less than none", 30 * time.Hour, -1, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := f.Ahead("DE", start.Add(tt.now), tt.hours)
			if err != nil {
				t.Fatal(err)
			}
			var values []float64
			var extrapolated []bool
			for k, r := range got {
				values, extrapolated = append(values, r.Intensity), append(extrapolated, r.Extrapolated)
				if want := start.Add(tt.now).Truncate(time.Hour).Add(time.Duration(k) * time.Hour); !r.Hour.Equal(want) {
					t.Errorf("hour %d is %v, want %v", k, r.Hour, want)
				}
				if r.Zone != "DE" || r.Kind != carbon.Average || strings.Contains(r.Source, "day before") != (k > 0) {
					t.Errorf("hour %d: %+v", k, r)
				}
			}
			if diff := cmp.Diff(tt.want, values); diff != "" {
				t.Errorf("values (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.extrapolated, extrapolated); diff != "" {
				t.Errorf("extrapolated (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := f.Ahead("FR", start, 3); !errors.Is(err, carbon.ErrUnknownZone) {
		t.Errorf("unknown zone: %v", err)
	}
	if f.Kind() != carbon.Average || !cmp.Equal(f.Zones(), []string{"DE"}) {
		t.Errorf("kind %s zones %v", f.Kind(), f.Zones())
	}
}

func TestPersistenceStartsInsideTheSeries(t *testing.T) {
	t.Parallel()
	table := counting(t, "DE", carbon.Average, 3)
	for _, tt := range []struct {
		wall string
		want error
	}{
		{"2021-12-31T23:59:59Z", carbon.ErrOutside},
		{"2022-01-01T00:00:00Z", nil},
		{"2022-01-01T02:59:59Z", nil},
		{"2022-01-01T03:00:00Z", carbon.ErrOutside},
	} {
		if _, err := carbon.NewPersistence(table, carbon.Clock{}, at(tt.wall)); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.wall, err, tt.want)
		}
	}
	if _, err := carbon.NewPersistence(carbon.NewGenerator(), carbon.Clock{}, at("1999-01-01T00:00:00Z")); err != nil {
		t.Errorf("the generator has no bounds: %v", err)
	}
	if _, err := carbon.NewPersistence(table, carbon.Clock{Speed: -1}, at("2022-01-01T00:00:00Z")); !errors.Is(err, carbon.ErrBadClock) {
		t.Errorf("bad clock: %v", err)
	}
}

func TestFeedRunsByItsClock(t *testing.T) {
	t.Parallel()
	epoch := at("2026-03-01T09:17:30Z")
	clock := carbon.Clock{Start: at("2022-01-02T05:00:00Z"), Speed: 60, Epoch: epoch}
	f, err := carbon.NewPersistence(counting(t, "DE", carbon.Average, 72), clock, epoch)
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Ahead("DE", epoch.Add(90*time.Second), 2) // an hour and a half
	if err != nil || got[0].Intensity != 30 || got[1].Intensity != 7 || !got[0].Hour.Equal(at("2022-01-02T06:00:00Z")) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestClock(t *testing.T) {
	t.Parallel()
	epoch, start := at("2026-03-01T09:00:00Z"), at("2022-01-01T00:00:00.5Z")
	for _, tt := range []struct {
		name  string
		clock carbon.Clock
		after time.Duration
		want  time.Time
	}{
		{"wall", carbon.Clock{}, time.Hour, epoch.Add(time.Hour)},
		{"shifted", carbon.Clock{Start: start, Epoch: epoch}, time.Hour, start.Add(time.Hour)},
		{"shifted, speed said", carbon.Clock{Start: start, Speed: 1, Epoch: epoch}, 3, start.Add(3)},
		{"fast", carbon.Clock{Start: start, Speed: 3600, Epoch: epoch}, 1500 * time.Millisecond, start.Add(90 * time.Minute)},
		{"slow", carbon.Clock{Start: start, Speed: 0.5, Epoch: epoch}, time.Hour, start.Add(30 * time.Minute)},
		{"faster from now", carbon.Clock{Speed: 60, Epoch: epoch}, time.Minute, epoch.Add(time.Hour)},
		{"before the epoch", carbon.Clock{Start: start, Speed: 60, Epoch: epoch}, -time.Minute, start},
		{"beyond a Duration", carbon.Clock{Start: start, Speed: carbon.MaxSpeed, Epoch: epoch}, 20000 * time.Hour, time.Unix(start.Unix()+72e12, 5e8)},
	} {
		if err := tt.clock.Validate(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := tt.clock.At(epoch.Add(tt.after)); !got.Equal(tt.want) || got.Location() != time.UTC {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	for _, bad := range []carbon.Clock{
		{Start: start}, {Speed: 2}, {Speed: -1, Epoch: epoch}, {Speed: math.NaN(), Epoch: epoch}, {Speed: 2 * carbon.MaxSpeed, Epoch: epoch},
	} {
		if err := bad.Validate(); !errors.Is(err, carbon.ErrBadClock) {
			t.Errorf("%+v: got %v", bad, err)
		}
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	start := at("2022-01-01T00:00:00Z")
	de := feed(t, counting(t, "DE", carbon.Average, 30), start)
	fr := feed(t, counting(t, "FR", carbon.Average, 50), start)
	marginal := feed(t, counting(t, "GB", carbon.Marginal, 30), start)

	j, err := carbon.Join(fr, de)
	if err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal(j.Zones(), []string{"DE", "FR"}) || j.Kind() != carbon.Average {
		t.Errorf("zones %v kind %s", j.Zones(), j.Kind())
	}
	if r, err := j.At("DE", start.Add(40*time.Hour)); err != nil || !r.Extrapolated || r.Intensity != 29 {
		t.Errorf("DE: %+v, %v", r, err)
	}
	if r, err := j.Ahead("FR", start.Add(40*time.Hour), 2); err != nil || len(r) != 2 || r[1].Intensity != 17 {
		t.Errorf("FR: %+v, %v", r, err)
	}
	if _, err := j.At("GB", start); !errors.Is(err, carbon.ErrUnknownZone) {
		t.Errorf("GB: %v", err)
	}
	if _, err := j.Ahead("GB", start, 1); !errors.Is(err, carbon.ErrUnknownZone) {
		t.Errorf("GB: %v", err)
	}
	if _, err := carbon.Join(de, marginal); !errors.Is(err, carbon.ErrMixedKinds) {
		t.Errorf("kinds were mixed: %v", err)
	}
	if _, err := carbon.Join(de, fr, feed(t, counting(t, "DE", carbon.Average, 3), start)); !errors.Is(err, carbon.ErrSharedZone) {
		t.Errorf("a zone was shared: %v", err)
	}
	if j, err := carbon.Join(); err != nil || len(j.Zones()) != 0 {
		t.Errorf("nothing joined: %v, %v", j, err)
	}
}

func TestGeneratorKeepsThePublishedMeans(t *testing.T) {
	t.Parallel()
	// Of Google's region-carbon-info, 2024.
	want := map[string]float64{"SE-SE1": 2.73, "US-MIDA-PJM": 323.05, "IN-MH": 678.76, "DE": 275.82, "GB": 105.94, "US-CAL-CISO": 169.28, "AU-NSW": 497.5}
	g := carbon.NewGenerator()
	if len(g.Zones()) < 13 {
		t.Errorf("%d zones", len(g.Zones()))
	}
	checked := 0
	for i, zone := range g.Zones() {
		if i > 0 && g.Zones()[i-1] >= zone {
			t.Errorf("zones are not sorted at %s", zone)
		}
		const hours = 8760
		sum, lowest := 0.0, math.Inf(1)
		for h := range hours {
			r, err := g.At(zone, at("2024-01-01T00:30:00Z").Add(time.Duration(h)*time.Hour))
			if err != nil || r.Kind != carbon.Average || r.Extrapolated || r.Source == "" {
				t.Fatalf("%+v, %v", r, err)
			}
			sum += r.Intensity
			lowest = min(lowest, r.Intensity)
		}
		if lowest <= 0 {
			t.Errorf("%s falls to %g", zone, lowest)
		}
		if mean, ok := want[zone]; ok {
			checked++
			if off := math.Abs(sum/hours/mean - 1); off > 0.06 {
				t.Errorf("%s: mean %g, published %g", zone, sum/hours, mean)
			}
		}
	}
	if checked != len(want) {
		t.Errorf("%d of %d zones found", checked, len(want))
	}
	if _, err := g.At("XX", at("2024-01-01T00:00:00Z")); !errors.Is(err, carbon.ErrUnknownZone) {
		t.Errorf("unknown zone: %v", err)
	}
}

// TestGeneratorHasShape looks for the day's, the week's and the weather's
// marks over a year.
func TestGeneratorHasShape(t *testing.T) {
	t.Parallel()
	g := carbon.NewGenerator()
	series := func(zone string) []float64 {
		out := make([]float64, 8736) // 52 weeks from a Monday
		for h := range out {
			r, err := g.At(zone, at("2024-01-01T00:00:00Z").Add(time.Duration(h)*time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			out[h] = r.Intensity
		}
		return out
	}
	mean := func(x []float64, take func(h int) bool) float64 {
		sum, n := 0.0, 0.0
		for h, v := range x {
			if take(h) {
				sum, n = sum+v, n+1
			}
		}
		return sum / n
	}
	california := series("US-CAL-CISO")
	noon := mean(california, func(h int) bool { return h%24 == 20 }) // 12 in Los Angeles
	night := mean(california, func(h int) bool { return h%24 == 10 })
	if noon > 0.75*night {
		t.Errorf("California: %g at noon, %g at night", noon, night)
	}
	britain := series("GB")
	if week, end := mean(britain, func(h int) bool { return h/24%7 < 5 }), mean(britain, func(h int) bool { return h/24%7 >= 5 }); end > week {
		t.Errorf("Britain: %g in the week, %g at its end", week, end)
	}
	// Wind: hours resemble the next, and not those of the next week.
	like := func(x []float64, lag int) float64 {
		m := mean(x, func(int) bool { return true })
		var same, all float64
		for h := range len(x) - lag {
			same += (x[h] - m) * (x[h+lag] - m)
			all += (x[h] - m) * (x[h] - m)
		}
		return same / all
	}
	if near, far := like(britain, 1), like(britain, 24*6); near < 0.9 || far > 0.5 {
		t.Errorf("Britain: alike by %g after an hour, %g after six days", near, far)
	}
	sydney := series("AU-NSW")
	if july, january := mean(sydney, func(h int) bool { return h/24 >= 182 && h/24 < 213 }), mean(sydney, func(h int) bool { return h/24 < 31 }); july < january {
		t.Errorf("Sydney: %g in July, %g in January", july, january)
	}
}

// TestGeneratorIsTheSameEverywhere pins a few values: servers of one mesh may
// run different builds.
func TestGeneratorIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	a, b := carbon.NewGenerator(), carbon.NewGenerator()
	for _, tt := range []struct {
		zone, at string
		want     float64
	}{
		{"SE-SE1", "2024-01-01T00:00:00Z", 3.03},
		{"US-MIDA-PJM", "2024-07-01T18:00:00Z", 280.72},
		{"IN-MH", "2026-03-01T06:59:59Z", 633.67},
	} {
		first, err := a.At(tt.zone, at(tt.at))
		if err != nil {
			t.Fatal(err)
		}
		second, err := b.At(tt.zone, at(tt.at))
		if err != nil || first != second || first.Intensity != tt.want {
			t.Errorf("%s at %s: %g and %g, want %g (%v)", tt.zone, tt.at, first.Intensity, second.Intensity, tt.want, err)
		}
	}
}

func BenchmarkGeneratedDay(b *testing.B) {
	f := feed(b, carbon.NewGenerator(), at("2024-01-01T00:00:00Z"))
	for b.Loop() {
		if _, err := f.Ahead("DE", at("2024-01-01T00:00:00Z"), 24); err != nil {
			b.Fatal(err)
		}
	}
}

func TestHourOfTheClock(t *testing.T) {
	t.Parallel()
	epoch := at("2026-03-01T12:10:00.25Z")
	for _, tt := range []struct {
		name  string
		clock carbon.Clock
		after time.Duration
		from  time.Duration // from the epoch
		lasts time.Duration
	}{
		{"the wall's", carbon.Clock{}, 20 * time.Minute, -10*time.Minute - 250*time.Millisecond, time.Hour},
		{"an hour a second, from a full hour", carbon.Clock{Start: at("2022-06-01T00:00:00Z"), Speed: 3600, Epoch: epoch}, 2700 * time.Millisecond, 2 * time.Second, time.Second},
		{"from half an hour", carbon.Clock{Start: at("2022-06-01T00:30:00Z"), Speed: 3600, Epoch: epoch}, 100 * time.Millisecond, -500 * time.Millisecond, time.Second},
		{"its next hour", carbon.Clock{Start: at("2022-06-01T00:30:00Z"), Speed: 3600, Epoch: epoch}, 600 * time.Millisecond, 500 * time.Millisecond, time.Second},
		{"from the epoch itself", carbon.Clock{Speed: 60, Epoch: epoch}, 0, -10*time.Second - 4166666*time.Nanosecond, time.Minute},
		{"slow", carbon.Clock{Start: at("2022-06-01T00:00:00Z"), Speed: 0.5, Epoch: epoch}, 3 * time.Hour, 2 * time.Hour, 2 * time.Hour},
		{"a year a minute, for days", carbon.Clock{Start: at("2022-06-01T00:00:00Z"), Speed: 525_600, Epoch: epoch}, 72 * time.Hour, 72 * time.Hour, 6849315 * time.Nanosecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			from, lasts := tt.clock.Hour(epoch.Add(tt.after))
			if diff := from.Sub(epoch.Add(tt.from)).Abs(); diff > 10*time.Microsecond && diff > lasts {
				t.Errorf("from %s, want %s", from.Sub(epoch), tt.from)
			}
			if lasts != tt.lasts {
				t.Errorf("lasts %s, want %s", lasts, tt.lasts)
			}
			if again, _ := tt.clock.Hour(epoch.Add(tt.after + time.Microsecond)); tt.after > 0 && !again.Equal(from) {
				t.Errorf("within one hour it is %s, then %s", from, again)
			}
		})
	}
}
