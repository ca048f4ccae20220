package main

import (
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/simulate"
)

// TestProgressBar: one line that changes, and nothing is left of it at the end.
func TestProgressBar(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	bar := progressBar{w: &out, policies: simulate.Policies(), begin: now, now: func() time.Time { return now }}
	bar.show(simulate.Home, 0, 200)
	bar.show(simulate.Home, 0, 200) // nothing new
	now = now.Add(99*time.Second + 100*time.Millisecond)
	bar.show(simulate.Isobar, 100, 200)
	now = now.Add(21 * time.Second)
	bar.show(simulate.Oracle, 200, 200)
	bar.show(simulate.Oracle, 0, 0)
	bar.clear()
	want := []string{
		"1/5 home     [" + strings.Repeat("·", 30) + "]   0 %  0s",
		"4/5 isobar   [" + strings.Repeat("#", 15) + strings.Repeat("·", 15) + "]  50 %  1m39s",
		"5/5 oracle   [" + strings.Repeat("#", 30) + "] 100 %  2m0s ",
		"5/5 oracle   [" + strings.Repeat("·", 30) + "]   0 %  2m0s",
		strings.Repeat(" ", len([]rune("5/5 oracle   [] 100 %  2m0s"))+30),
		"",
	}
	got := strings.Split(out.String(), "\r")[1:]
	if len(got) != len(want) {
		t.Fatalf("%d lines: %q", len(got), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("line %d %q, want %q", i, got[i], want[i])
		}
	}
}
