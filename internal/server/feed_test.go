package server

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/placement"
)

// TestFeedForetellsFromItsPast: a file with two weeks before the present hour is
// foretold by the model, one without by persistence; both say so.
func TestFeedForetellsFromItsPast(t *testing.T) {
	t.Parallel()
	start := time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)
	var b strings.Builder
	b.WriteString("datetime_utc,SE\n")
	for h := range 21 * 24 {
		fmt.Fprintf(&b, "%s,%d\n", start.Add(time.Duration(h)*time.Hour).Format(time.RFC3339), 100+h%24*10+h/24)
	}
	file := filepath.Join(t.TempDir(), "carbon.csv")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	table, err := carbon.ReadFile(file, carbon.Average)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		days int
		cfg  config.Carbon
		want string
	}{
		{"a past", 15, config.Carbon{Zone: "SE", File: file}, carbon.ByModel},
		{"too little of it", 3, config.Carbon{Zone: "SE", File: file}, carbon.ByPersistence},
		{"made up", 15, config.Carbon{Zone: "SE-SE1", Generate: true}, carbon.ByPersistence},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			epoch, clock := time.Now(), start.AddDate(0, 0, tt.days)
			tt.cfg.Epoch, tt.cfg.Clock, tt.cfg.Speed = &epoch, &clock, 1
			s := &Server{cfg: config.Server{Carbon: tt.cfg}, log: slog.New(slog.DiscardHandler)}
			feed, err := s.feed()
			if err != nil {
				t.Fatal(err)
			}
			got := s.energyOf(feed)()
			if !got.Known || got.Forecast != tt.want || len(got.Intensity) != hoursAhead {
				t.Fatalf("%+v, want the forecast %s", got, tt.want)
			}
			if tt.want != carbon.ByModel {
				return
			}
			l, err := carbon.NewLearner(table, carbon.Clock{Start: clock, Epoch: epoch, Speed: 1}, epoch)
			if err != nil {
				t.Fatal(err)
			}
			want, err := l.Ahead("SE", epoch, hoursAhead)
			if err != nil {
				t.Fatal(err)
			}
			for k := range want {
				if want[k].Intensity != got.Intensity[k] {
					t.Errorf("%d hours ahead: %g, want %g", k, got.Intensity[k], want[k].Intensity)
				}
			}
		})
	}
}

func TestRoutesNeedBothFigures(t *testing.T) {
	t.Parallel()
	r := routes{
		RTTMs:           map[string]map[string]float64{"a": {"b": 60}},
		EgressUSDPerGiB: map[string]map[string]float64{"a": {"b": 0.02}, "b": {"a": 0.08, "c": 0.01}},
	}
	for _, tt := range []struct {
		from, to string
		want     placement.Route
		ok       bool
	}{
		{"a", "b", placement.Route{RTT: 60 * time.Millisecond, USDPerGiB: 0.02}, true},
		{"b", "a", placement.Route{RTT: 60 * time.Millisecond, USDPerGiB: 0.08}, true},
		{"b", "c", placement.Route{}, false},
		{"c", "a", placement.Route{}, false},
	} {
		if got, ok := r.Between(tt.from, tt.to); ok != tt.ok || (ok && got != tt.want) {
			t.Errorf("from %s to %s: %+v, %v", tt.from, tt.to, got, ok)
		}
	}
}
