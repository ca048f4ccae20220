package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/meshfile"
)

// script makes an executable that stands for isobar.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "isobar")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// obedient is a dev that gets ready and ends when it is asked to.
const obedient = `echo "$@" >"$(dirname "$0")/args"
trap 'echo stopped >"$(dirname "$0")/stopped"; exit 0' INT
echo "REGION API"
echo "eu-north http://127.0.0.1:4711"
echo "us-east http://127.0.0.1:4712"
echo "isobar dev: ready"
while :; do sleep 0.05; done
`

func testPlan() *plan {
	return &plan{speed: 57, carbonClock: time.Date(2023, 11, 16, 18, 15, 0, 0, time.UTC)}
}

func TestStartMesh(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.binary, o.carbon = script(t, obedient), "c.csv"
	var out bytes.Buffer
	m, err := startMesh(t.Context(), o, testPlan(), &out, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if m.address != "http://127.0.0.1:4711" {
		t.Errorf("address %q, want the first one named", m.address)
	}
	if want := "  REGION API\n  eu-north http://127.0.0.1:4711\n  us-east http://127.0.0.1:4712\n"; out.String() != want {
		t.Errorf("shown %q, want %q", &out, want)
	}
	text, err := os.ReadFile(filepath.Join(m.dir, "mesh.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := meshfile.Parse("mesh.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range places() {
		if r, ok := file.Region(p.Region); !ok || r.CPU != o.cpu {
			t.Errorf("region %s offers %v cores, want %v", p.Region, r.CPU, o.cpu)
		}
	}
	if err := m.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := m.stop(); err != nil {
		t.Errorf("second stop: %v", err)
	}
	dir := filepath.Dir(o.binary)
	if _, err := os.Stat(filepath.Join(dir, "stopped")); err != nil {
		t.Errorf("dev was not asked to end: %v", err)
	}
	if _, err := os.Stat(m.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary directory is still there: %v", err)
	}
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"dev --ports auto --mesh ", " --carbon-clock 2023-11-16T18:15:00Z --carbon-speed 57.000 --quality-price 1e-06 --carbon c.csv"} {
		if !strings.Contains(string(args), want) {
			t.Errorf("dev was started with %s, want %q in it", args, want)
		}
	}
}

func TestStartMeshFails(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ body, want string }{
		"ends early":    {"echo busy >&2\nexit 3\n", "exit status 3"},
		"names no API":  {"echo 'isobar dev: ready'\nexec sleep 5\n", "it named no API"},
		"not a program": {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := testOptions()
			o.binary = filepath.Join(t.TempDir(), "none")
			if tt.body != "" {
				o.binary = script(t, tt.body)
			}
			m, err := startMesh(t.Context(), o, testPlan(), &bytes.Buffer{}, &bytes.Buffer{})
			if err == nil || m != nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if tt.body != "" && !errors.Is(err, errNotReady) {
				t.Errorf("%v is not %v", err, errNotReady)
			}
		})
	}
}

// TestStartMeshInterrupted: an interrupt while the mesh starts ends it.
func TestStartMeshInterrupted(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.binary = script(t, strings.ReplaceAll(obedient, "isobar dev: ready", "not yet"))
	ctx, cancel := context.WithCancel(t.Context())
	seen := &trigger{on: "4712", then: cancel}
	if m, err := startMesh(ctx, o, testPlan(), seen, &bytes.Buffer{}); m != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(o.binary), "stopped")); err != nil {
		t.Errorf("dev was not asked to end: %v", err)
	}
}

// trigger acts once a text was written.
type trigger struct {
	on   string
	then func()
}

func (w *trigger) Write(b []byte) (int, error) {
	if strings.Contains(string(b), w.on) {
		w.then()
	}
	return len(b), nil
}

// TestStay: an interrupt is a good end, a mesh that ends by itself is not.
func TestStay(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := stay(ctx, &mesh{ended: make(chan struct{})}); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	ended := make(chan struct{})
	close(ended)
	if err := stay(t.Context(), &mesh{ended: ended, err: errors.New("exit status 1")}); err == nil {
		t.Error("a mesh that ended by itself is a good end")
	}
}
