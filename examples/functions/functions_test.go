// Package functions_test builds the example functions as a newcomer would and
// runs them by the runtimes of a worker.
package functions_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/isobar-mesh/isobar/worker/attempt"
	"github.com/isobar-mesh/isobar/worker/attempt/attempttest"
	"github.com/isobar-mesh/isobar/worker/attempt/process"
	"github.com/isobar-mesh/isobar/worker/attempt/wasm"
)

// built are modules by the directory they are built from.
type built map[string][]byte

func (b built) Open(_ context.Context, digest string) ([]byte, error) { return b[digest], nil }

func runtime(t *testing.T, dirs ...string) *wasm.Runtime {
	t.Helper()
	code := built{}
	for _, dir := range dirs {
		code[dir] = attempttest.BuildWasm(t, dir)
		if err := wasm.Validate(code[dir]); err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
	}
	r, err := wasm.New(t.Context(), wasm.Options{Code: code})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for _, dir := range dirs {
		began := time.Now()
		if err := r.Prepare(t.Context(), spec(dir, 64)); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: module of %d KiB, fetched and compiled in %s", dir, len(code[dir])>>10, time.Since(began).Round(time.Millisecond))
	}
	return r
}

func spec(dir string, mib int64) attempt.Spec {
	return attempt.Spec{Kind: attempt.Wasm, Digest: dir, Limits: attempt.Limits{Timeout: time.Minute, MemoryMiB: mib}}
}

func run(t *testing.T, r attempt.Runtime, s attempt.Spec, payload []byte) attempt.Outcome {
	t.Helper()
	out := r.Run(t.Context(), s, attempt.Input{TaskID: "t", Attempt: 1, Payload: payload})
	if out.Status != attempt.Done {
		t.Fatalf("got %v: %s, stderr %q", out.Status, out.Message, out.StderrTail)
	}
	return out
}

func TestThumbnail(t *testing.T) {
	t.Parallel()
	r := runtime(t, "thumbnail")
	for _, side := range []int{100, 800, 2000} {
		picture := image.NewRGBA(image.Rect(0, 0, side, side/2))
		for i := range picture.Pix {
			picture.Pix[i] = 255
		}
		picture.Set(0, 0, color.Black)
		var in bytes.Buffer
		if err := png.Encode(&in, picture); err != nil {
			t.Fatal(err)
		}
		out := run(t, r, spec("thumbnail", 256), in.Bytes())
		got, err := png.DecodeConfig(bytes.NewReader(out.Result))
		if err != nil {
			t.Fatal(err)
		}
		if want := min(side, 128); got.Width != want || got.Height != want/2 {
			t.Errorf("got %d×%d of %d×%d", got.Width, got.Height, side, side/2)
		}
		t.Logf("%d×%d: %s, peak memory %d MiB", side, side/2, out.Ended.Sub(out.Started).Round(time.Millisecond), out.PeakMemory>>20)
	}
	out := r.Run(t.Context(), spec("thumbnail", 256), attempt.Input{TaskID: "t", Attempt: 1, Payload: []byte("hello")})
	if out.Status != attempt.Failed || out.ExitCode != 1 || !strings.Contains(string(out.StderrTail), "not a PNG or JPEG") {
		t.Errorf("a text: got %v, exit code %d, stderr %q", out.Status, out.ExitCode, out.StderrTail)
	}
}

// TestSentiment: both variants answer, and the better one does more work.
func TestSentiment(t *testing.T) {
	t.Parallel()
	const small, large = "sentiment/small", "sentiment/large"
	r := runtime(t, small, large)
	took := map[string]time.Duration{}
	for _, variant := range []string{small, large} {
		var times []time.Duration
		for range 7 {
			out := run(t, r, spec(variant, 64), []byte("A wonderful, friendly place.\nThe worst, most terrible soup.\n"))
			times = append(times, out.Ended.Sub(out.Started))
			var labels []string
			for d := json.NewDecoder(bytes.NewReader(out.Result)); d.More(); {
				var v struct{ Label string }
				if err := d.Decode(&v); err != nil {
					t.Fatal(err)
				}
				labels = append(labels, v.Label)
			}
			if fmt.Sprint(labels) != "[positive negative]" {
				t.Errorf("%s: got %s", variant, out.Result)
			}
		}
		slices.Sort(times)
		took[variant] = times[len(times)/2]
	}
	t.Logf("median of an attempt: %v", took)
	if took[large] < 2*took[small] {
		t.Errorf("large takes %s and small %s, want large at least twice as long", took[large], took[small])
	}
}

func TestLedger(t *testing.T) {
	t.Parallel()
	var manifest struct {
		Env      map[string]string
		Variants []struct{ Command []string }
	}
	text, err := os.ReadFile("ledger/ledger.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	command := manifest.Variants[0].Command
	script, err := os.ReadFile("ledger/ledger.sh")
	if err != nil {
		t.Fatal(err)
	}
	if len(command) != 3 || command[2] != string(script) {
		t.Fatalf("the manifest's script is not that of ledger.sh:\n%s", command)
	}

	r, err := process.New(process.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	ledger := filepath.Join(t.TempDir(), "ledger")
	s := attempt.Spec{
		Kind: attempt.Exec, Command: command, Env: []attempt.Var{{Name: "LEDGER", Value: ledger}},
		Limits: attempt.Limits{Timeout: time.Minute, MemoryMiB: 32},
	}
	for payload, atLeast := range map[string]time.Duration{"": 0, "0": 0, "8": 8 * time.Millisecond, "010": 10 * time.Millisecond, "1020": 1020 * time.Millisecond} {
		out := run(t, r, s, []byte(payload))
		if took := out.Ended.Sub(out.Started); took < atLeast || took > atLeast+5*time.Second {
			t.Errorf("%q: took %s, want %s", payload, took, atLeast)
		}
		if string(out.Result) != "t 1\n" {
			t.Errorf("%q: got result %q", payload, out.Result)
		}
	}
	if got, err := os.ReadFile(ledger); err != nil || string(got) != strings.Repeat("t 1\n", 5) {
		t.Errorf("got ledger %q, %v", got, err)
	}
	for _, bad := range []string{"soon", "-1", "123456", "1 2"} {
		if out := r.Run(t.Context(), s, attempt.Input{TaskID: "t", Attempt: 1, Payload: []byte(bad)}); out.Status != attempt.Failed {
			t.Errorf("%q: got %v", bad, out.Status)
		}
	}
}
