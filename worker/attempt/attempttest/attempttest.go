// Package attempttest builds the programs that the tests of the runtimes run:
// real modules and real commands, made by the go tool from source in the tree.
// It is for tests only.
package attempttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// Module returns the probe as a WASI module. The probe behaves as its
// environment variable MODE says; see its source.
func Module(t testing.TB) []byte {
	t.Helper()
	return BuildWasm(t, probeDir(t))
}

// Command returns the path of the probe as a program of this host, which is
// there until t ends.
func Command(t testing.TB) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "probe")
	build(t, probeDir(t), out)
	return out
}

// BuildWasm builds the main package in dir to a WASI module.
func BuildWasm(t testing.TB, dir string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "module.wasm")
	build(t, dir, out, "GOOS=wasip1", "GOARCH=wasm")
	module, err := os.ReadFile(out)
	if err != nil {
		t.Fatalf("attempttest: read module: %v", err)
	}
	return module
}

func build(t testing.TB, dir, out string, env ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append([]string{"CGO_ENABLED=0", "GOFLAGS="}, env...)...)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("attempttest: build %s: %v\n%s", dir, err, msg)
	}
}

func probeDir(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("attempttest: find the probe: no caller")
	}
	return filepath.Join(filepath.Dir(file), "testdata", "probe")
}
