package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isobar-mesh/isobar/loadtest"
)

// TestProgress: lines every few seconds where nothing can be redrawn, one line
// that is redrawn on a terminal, and in both the end.
func TestProgress(t *testing.T) {
	t.Parallel()
	for _, terminal := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			d := &demo{out: &out, terminal: terminal}
			pl := &player{plan: &plan{jobs: make([]job, 9)}}
			stop := d.progress(pl)
			pl.sent.Store(7)
			pl.ended.Store(5)
			pl.bad.Store(1)
			<-time.After(11 * time.Second)
			stop()
			lines := strings.Count(out.String(), "\n")
			redrawn := strings.Count(out.String(), "\r")
			if terminal && (lines != 1 || redrawn < 50) || !terminal && (lines != 3 || redrawn != 0) {
				t.Errorf("terminal %v: %d lines, %d redrawn", terminal, lines, redrawn)
			}
			if want := " 11 s: 7 of 9 sent, 4 completed, 1 bad, 2 under way"; !strings.Contains(out.String(), want) {
				t.Errorf("no %q in %q", want, &out)
			}
		})
	}
}

// TestHeader: what is played is said, with its source and its compression.
func TestHeader(t *testing.T) {
	t.Parallel()
	o := testOptions()
	p, err := newPlan(o)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	(&demo{options: o, out: &out}).header(p)
	for _, want := range []string{
		"Patel et al., Splitwise, ISCA 2024", "CC-BY 4.0", "120 requests", "evenly picked", "time is compressed: 56m", "in 10s, 34",
		loadtest.SpreadRule, "residency [eu]", "each region offers 1 core", "priced at USD 0.000001,",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, &out)
		}
	}
}

// TestNext: the three commands name a task that moved, and a server unless the
// ports are the ones the CLI knows.
func TestNext(t *testing.T) {
	t.Parallel()
	outcomes := []loadtest.Outcome{{Task: "t1"}, {Task: "t2", Moved: true}}
	for _, tt := range []struct{ ports, want string }{
		{"fixed", "bin/isobar explain t2\n"},
		{"auto", "bin/isobar explain --server http://127.0.0.1:4711 t2\n"},
	} {
		var out bytes.Buffer
		d := &demo{options: options{binary: "bin/isobar", ports: tt.ports}, out: &out}
		d.next(&mesh{address: "http://127.0.0.1:4711"}, outcomes)
		if !strings.Contains(out.String(), tt.want) || strings.Count(out.String(), "  bin/isobar ") != 3 {
			t.Errorf("want three commands, one of them %q, in:\n%s", tt.want, &out)
		}
	}
}

func TestWriteJSON(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "r.json")
	if err := writeJSON(path, loadtest.NewReport(nil)); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(text), "{\n  \"sent\": 0") {
		t.Errorf("got %q, %v", text, err)
	}
	if err := writeJSON(filepath.Join(path, "below"), loadtest.Report{}); err == nil {
		t.Error("a report below a file was written")
	}
}
