package carbon_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
)

var _ carbon.Feed = (*carbon.Learner)(nil)

// seasons is a table of two zones over so many days: a day's wave, a drift, and
// from the row `changed` on another level.
func seasons(t testing.TB, days, changed int) (*carbon.Table, []float64) {
	t.Helper()
	var b strings.Builder
	var rows []float64
	b.WriteString("datetime_utc,DE,FR\n")
	for h := range days * 24 {
		x := 300 + 120*math.Sin(float64(h)*math.Pi/12) + 60*math.Sin(float64(h)/53) + float64(h%7)
		if h >= changed {
			x += 5000
		}
		x = math.Round(x*100) / 100
		rows = append(rows, x)
		fmt.Fprintf(&b, "%s,%.2f,%d\n", at("2022-01-01T00:00:00Z").Add(time.Duration(h)*time.Hour).Format(time.RFC3339), x, h)
	}
	got, err := carbon.ReadTable(strings.NewReader(b.String()), "seasons.csv", carbon.Average)
	if err != nil {
		t.Fatal(err)
	}
	return got, rows
}

func learner(t testing.TB, s *carbon.Table, wall time.Time) *carbon.Learner {
	t.Helper()
	f, err := carbon.NewLearner(s, carbon.Clock{}, wall)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func ahead(t testing.TB, f carbon.Feed, wall time.Time, hours int) []carbon.Reading {
	t.Helper()
	got, err := f.Ahead("DE", wall, hours)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestLearnerIsTheModel: it answers what the model says that has learned the
// rows up to the present hour, hour after hour.
func TestLearnerIsTheModel(t *testing.T) {
	t.Parallel()
	table, rows := seasons(t, 40, math.MaxInt)
	start := table.Start()
	f := learner(t, table, start)
	for _, h := range []int{400, 401, 450, 450, 900, 420} { // a clock may be set back
		m := carbon.NewModel(rows)
		m.Advance(h)
		for k, r := range ahead(t, f, start.Add(time.Duration(h)*time.Hour+25*time.Minute), 30) {
			want, name := rows[h], ""
			if k > 0 {
				want, name = m.Ahead(k), carbon.ByModel
			}
			if r.Intensity != want || r.Forecast != name || r.Zone != "DE" || r.Kind != carbon.Average ||
				!r.Hour.Equal(start.Add(time.Duration(h+k)*time.Hour)) || strings.Contains(r.Source, "past rows") != (k > 0) {
				t.Fatalf("%d hours ahead of row %d: %+v, want %g by %q", k, h, r, want, name)
			}
		}
	}
}

// TestLearnerNeverLooksAhead: what comes after the present hour changes nothing.
func TestLearnerNeverLooksAhead(t *testing.T) {
	t.Parallel()
	const now = 500
	one, _ := seasons(t, 40, math.MaxInt)
	other, _ := seasons(t, 40, now+1)
	wall := one.Start().Add(now * time.Hour)
	a, b := ahead(t, learner(t, one, wall), wall, 72), ahead(t, learner(t, other, wall), wall, 72)
	for k := range a {
		if a[k] != b[k] {
			t.Fatalf("%d hours ahead: %+v, and %+v where the hours to come differ", k, a[k], b[k])
		}
	}
}

// TestLearnerWithoutAPast: a table that holds too little before the present, or
// has run out, is answered for by persistence, which the readings say.
func TestLearnerWithoutAPast(t *testing.T) {
	t.Parallel()
	table, _ := seasons(t, 20, math.MaxInt)
	start := table.Start()
	p, f := feed(t, table, start), learner(t, table, start)
	for _, h := range []int{0, 5, 335, 20 * 24, 30 * 24} {
		wall := start.Add(time.Duration(h) * time.Hour)
		want, got := ahead(t, p, wall, 30), ahead(t, f, wall, 30)
		for k := range want {
			if got[k] != want[k] || (k > 0 && got[k].Forecast != carbon.ByPersistence) {
				t.Fatalf("row %d, %d ahead: %+v, want %+v", h, k, got[k], want[k])
			}
		}
	}
	if got := ahead(t, f, start.Add(336*time.Hour), 2); got[1].Forecast != carbon.ByModel {
		t.Errorf("with two weeks before: %+v", got[1])
	}
	if got := ahead(t, f, start.Add(336*time.Hour), 0); got != nil {
		t.Errorf("no hours: %v", got)
	}
	if _, err := f.Ahead("XX", start.Add(400*time.Hour), 2); err == nil {
		t.Error("a zone that the table lacks was answered for")
	}
}
