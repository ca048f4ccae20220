package registry_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/strictyaml"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry"
	"github.com/isobar-mesh/isobar/registry/digest"
)

const fullManifest = `
# Makes small pictures of large ones.
name: thumbnail
tenant: acme
timeout: 30s
retry: {max_attempts: 7, backoff: 500ms, max_backoff: 1m30s}
pace: {most: 20, start: 5, least: 0.5, errors: 0.2, window: 30s}
concurrency: {attempts: 20, cpu: 12.5, memory_mib: 4096, gpus: 2, cost: {tokens: 9000, bytes: 1KiB, accelerator_mib: 2}}
ordering: {mode: strict, on_dead: block}
env:
  SIZE: "128"
  EMPTY: ""
variants:
  - name: wasm
    runtime: wasm
    module: build/thumb.wasm
    resources: {cpu: 0.5, memory_mib: 64}
    quality: 0.9
    cost: {usd: 0.00001}
    latency: {run: 50ms, cold: 300ms}
  - name: again
    runtime: wasm
    module: build/copy.wasm
  - name: native
    runtime: exec
    command: [convert, -, -resize, "128", "-"]
    resources:
      gpus: 1
      gpu_model: a100
      cpu_utilisation: 0.25
      gpu_utilisation: 0
  - name: remote
    runtime: http
    url: https://example.com/thumb?x=1
    jurisdictions: [US, eu, us]
`

func writeModules(t *testing.T) (dir string, module []byte) {
	t.Helper()
	dir = t.TempDir()
	module = []byte("\x00asm\x01\x00\x00\x00")
	if err := os.Mkdir(filepath.Join(dir, "build"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"thumb.wasm", "copy.wasm"} {
		if err := os.WriteFile(filepath.Join(dir, "build", name), module, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, module
}

func TestParseManifest(t *testing.T) {
	t.Parallel()
	dir, module := writeModules(t)
	spec, modules, err := registry.ParseManifest([]byte(fullManifest), dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(modules) != 1 || !bytes.Equal(modules[0], module) {
		t.Errorf("got %d modules, want the one that two variants name", len(modules))
	}
	duration := durationpb.New
	plain := func() *isobarv1.Resources { return &isobarv1.Resources{Cpu: 1, MemoryMib: 128} }
	want := &isobarv1.FunctionSpec{
		Tenant: "acme", Name: "thumbnail", Timeout: duration(30 * time.Second),
		Retry: &isobarv1.RetryPolicy{MaxAttempts: 7, Backoff: duration(500 * time.Millisecond), MaxBackoff: duration(90 * time.Second)},
		Env:   map[string]string{"SIZE": "128", "EMPTY": ""},

		Pace:        &isobarv1.Pace{Most: 20, Start: 5, Least: 0.5, Errors: 0.2, Window: durationpb.New(30 * time.Second)},
		Concurrency: &isobarv1.Concurrency{Attempts: 20, Cpu: 12.5, MemoryMib: 4096, Gpus: 2, Cost: &isobarv1.Cost{Tokens: 9000, Bytes: 1024, AcceleratorMib: 2}},
		Ordering:    &isobarv1.Ordering{Mode: "strict", OnDead: "block"},
		Variants: []*isobarv1.Variant{
			{
				Name: "wasm", Runtime: "wasm", Module: digest.Of(module), Quality: 0.9, Usd: 0.00001,
				Resources: &isobarv1.Resources{Cpu: 0.5, MemoryMib: 64},
				Run:       duration(50 * time.Millisecond), Cold: duration(300 * time.Millisecond),
			},
			{
				Name: "again", Runtime: "wasm", Module: digest.Of(module), Quality: 1,
				Resources: plain(), Run: duration(100 * time.Millisecond), Cold: duration(0),
			},
			{
				Name: "native", Runtime: "exec", Command: []string{"convert", "-", "-resize", "128", "-"}, Quality: 1,
				Resources: &isobarv1.Resources{Cpu: 1, MemoryMib: 128, Gpus: 1, GpuModel: "a100", CpuUtilisation: new(0.25), GpuUtilisation: new(0.0)},
				Run:       duration(100 * time.Millisecond), Cold: duration(0),
			},
			{
				Name: "remote", Runtime: "http", Url: "https://example.com/thumb?x=1", Quality: 1,
				Jurisdictions: []string{"eu", "us"},
				Resources:     plain(), Run: duration(100 * time.Millisecond), Cold: duration(0),
			},
		},
	}
	if d := cmp.Diff(want, spec, protocmp.Transform()); d != "" {
		t.Errorf("spec differs (-want +got):\n%s", d)
	}
}

func TestParseManifestDefaults(t *testing.T) {
	t.Parallel()
	spec, modules, err := registry.ParseManifest([]byte("name: f\nvariants:\n- name: v\n  runtime: exec\n  command: [cat]\n"), "")
	if err != nil || modules != nil {
		t.Fatalf("%d modules, error %v", len(modules), err)
	}
	want := registry.WithDefaults(&isobarv1.FunctionSpec{
		Name: "f", Variants: []*isobarv1.Variant{{Name: "v", Runtime: "exec", Command: []string{"cat"}}},
	})
	if !proto.Equal(spec, want) {
		t.Errorf("spec is %v, want %v", spec, want)
	}
	if spec.GetTenant() != "default" || spec.GetTimeout().AsDuration() != time.Minute ||
		spec.GetRetry().GetMaxAttempts() != 4 || spec.GetRetry().GetBackoff().AsDuration() != time.Second ||
		spec.GetRetry().GetMaxBackoff().AsDuration() != 5*time.Minute {
		t.Errorf("defaults are %v", spec)
	}
}

func TestParseManifestRefuses(t *testing.T) {
	t.Parallel()
	dir, _ := writeModules(t)
	const exec = "\nvariants:\n- {name: v, runtime: exec, command: [cat]}\n"
	tests := []struct {
		name, text, want string
	}{
		{"empty", "", "empty"},
		{"comment only", "# nothing\n", "empty"},
		{"a list", "- a\n- b\n", "manifest:1: must be a mapping"},
		{"a word", "name\n", "manifest:1: must be a mapping"},
		{"two documents", "name: f" + exec + "---\nname: g" + exec, "manifest:5: has a second document"},
		{"not YAML", "name: [f\nvariants: x", "manifest:2: "},
		{"unknown field", "name: f\ntimout: 3s" + exec, "manifest:2: timout: unknown field; did you mean timeout?"},
		{"unknown field inside", "name: f\nvariants:\n- name: v\n  runtime: exec\n  command: [cat]\n  resources:\n    cpus: 2\n", "manifest:7: variants[0].resources.cpus: unknown field"},
		{"field twice", "name: f\nname: g" + exec, "manifest:2"},
		{"wrong type", "name: f\nretry: {max_attempts: many}" + exec, "manifest:2"},
		{"negative attempts", "name: f\nretry: {max_attempts: -1}" + exec, "line 2"},
		{"command is text", "name: f\nvariants:\n- name: v\n  runtime: exec\n  command: cat\n", "manifest:5"},
		{"duration without unit", "name: f\ntimeout: 30" + exec, "manifest:2: timeout: "},
		{"timeout of nothing", "name: f\ntimeout: 0s" + exec, "line 2: timeout: must be 1ms to 24h0m0s"},
		{"no attempts", "name: f\nretry:\n  max_attempts: 0" + exec, "line 3: retry.max_attempts: must be above 0"},
		{"no quality", "name: f\nvariants:\n- name: v\n  runtime: exec\n  command: [cat]\n  quality: 0\n", "line 6: variants[0].quality: must be above 0"},
		{"cost", "name: f\nvariants:\n- name: v\n  runtime: exec\n  command: [cat]\n  cost:\n    usd: -1\n", "line 7: variants[0].usd: must be 0 to 1,000,000"},
		{"latency", "name: f\nvariants:\n- name: v\n  runtime: exec\n  command: [cat]\n  latency:\n    run: 25h\n", "line 7: variants[0].run: must be 1ns to 24h0m0s"},
		{"name is missing", "timeout: 3s" + exec, "name: is required"},
		{"no variants", "name: f\n", "variants: must be 1 to 16, not 0"},
		{"second variant", "name: f\nvariants:\n- {name: v, runtime: exec, command: [cat]}\n- {name: w, runtime: jar}\n", "line 4: variants[1].runtime: must be wasm, exec or http"},
		{"reserved variable", "name: f\nenv:\n  A: b\n  ISOBAR_TASK_ID: x" + exec, "line 4: env.ISOBAR_TASK_ID: is reserved"},
		{"module is missing", "name: f\nvariants:\n- {name: v, runtime: wasm, module: none.wasm}\n", "variants[0].module: open "},
		{"module is a folder", "name: f\nvariants:\n- {name: v, runtime: wasm, module: build}\n", "variants[0].module: "},
		{"no module", "name: f\nvariants:\n- {name: v, runtime: wasm}\n", "line 3: variants[0].module: must be the digest"},
		{"too long", "name: f" + strings.Repeat("#", strictyaml.MaxSize), "more than the"},
		{"several", "name: F" + exec + "timeout: x\n", "timeout: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := registry.ParseManifest([]byte(tt.text), dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v\nwant one with %s", err, tt.want)
			}
		})
	}
}

func TestParseManifestListsAll(t *testing.T) {
	t.Parallel()
	_, _, err := registry.ParseManifest([]byte("name: F\ntimeout: 0s\nvariants:\n- {name: v}\n"), "")
	var invalid *registry.InvalidError
	if !errors.As(err, &invalid) {
		t.Fatalf("error is %v, want an InvalidError", err)
	}
	var got []string
	for _, f := range invalid.Fields {
		got = append(got, f.Field)
	}
	if d := cmp.Diff([]string{"name", "timeout", "variants[0].runtime"}, got); d != "" {
		t.Errorf("fields differ (-want +got):\n%s", d)
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(fullManifest))
	f.Add([]byte("name: f\nvariants: [{name: v, runtime: exec, command: [cat]}]"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("variants:\n !0 #0"))
	f.Add([]byte("name: &n f\ntenant: *n\nvariants: []"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if bytes.Contains(text, []byte("module")) {
			return // it would read files
		}
		spec, _, err := registry.ParseManifest(text, t.TempDir())
		if err != nil {
			return
		}
		if err := registry.Validate(spec); err != nil {
			t.Fatalf("a parsed spec is invalid: %v", err)
		}
		if !proto.Equal(spec, registry.WithDefaults(spec)) {
			t.Fatal("a parsed spec lacks defaults")
		}
	})
}
