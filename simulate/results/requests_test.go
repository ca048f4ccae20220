package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
)

// TestRequestsGoOn: a table that was played in slices is the one that is played
// in one go, and what was kept is not played again.
func TestRequestsGoOn(t *testing.T) {
	t.Parallel()
	data, out := carried(t), t.TempDir()
	table := func(args ...string) (string, error) {
		if err := run(append([]string{"-data", data, "-out", out, "-only", "requests"}, args...), io.Discard); err != nil {
			return "", err
		}
		page, err := os.ReadFile(filepath.Join(out, "requests.md"))
		return string(page), err
	}
	whole, err := table("-starts", "2")
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(t.TempDir(), "cache")
	if _, err := table("-starts", "1", "-cache", cache); err != nil {
		t.Fatal(err)
	}
	if _, err := table("-starts", "2", "-cache", cache, "-for", "1ns"); !errors.Is(err, errUnfinished) {
		t.Fatalf("no time at all: %v", err)
	}
	if page, err := table("-starts", "2", "-cache", cache); err != nil || page != whole {
		t.Fatalf("%v:\n%s\nin one go:\n%s", err, page, whole)
	}
	if page, err := table("-starts", "2", "-cache", cache, "-for", "1ns"); err != nil || page != whole {
		t.Fatalf("all was kept: %v:\n%s", err, page)
	}
}

// TestStartsNest: every second start of 24 is one of 12, and they lie over the
// year and over four hours of the day.
func TestStartsNest(t *testing.T) {
	t.Parallel()
	table, err := carbon.ReadFile(filepath.Join(carried(t), "electricitymaps-2022", "carbon-intensity-hourly-2022.csv.gz"), carbon.Average)
	if err != nil {
		t.Fatal(err)
	}
	s := sources{table: table}
	hours := map[int]bool{}
	for k := range 24 {
		at := s.at(k, 24)
		hours[at.Hour()] = true
		if k%2 == 0 && !at.Equal(s.at(k/2, 12)) {
			t.Errorf("start %d of 24 is at %v, %d of 12 at %v", k, at, k/2, s.at(k/2, 12))
		}
	}
	if last := s.at(23, 24).Sub(s.table.Start()); len(hours) < 4 || last < 340*24*time.Hour {
		t.Errorf("%d hours of the day, the last after %v", len(hours), last)
	}
}
