package registry_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry"
	"github.com/isobar-mesh/isobar/registry/digest"
)

func validSpec() *isobarv1.FunctionSpec {
	return registry.WithDefaults(&isobarv1.FunctionSpec{
		Name: "f", Pace: &isobarv1.Pace{Most: 20},
		Variants: []*isobarv1.Variant{
			{Name: "a", Runtime: registry.RuntimeExec, Command: []string{"cat"}},
			{Name: "b", Runtime: registry.RuntimeWasm, Module: digest.Of(nil)},
			{Name: "c", Runtime: registry.RuntimeHTTP, Url: "http://127.0.0.1:8080/run"},
		},
	})
}

func TestValidate(t *testing.T) {
	t.Parallel()
	if err := registry.Validate(validSpec()); err != nil {
		t.Fatal(err)
	}
	type spec = isobarv1.FunctionSpec
	duration := durationpb.New
	tests := []struct {
		field string // "" is valid
		edit  func(*spec)
	}{
		{"tenant", func(s *spec) { s.Tenant = "" }},
		{"tenant", func(s *spec) { s.Tenant = "a/b" }},
		{"name", func(s *spec) { s.Name = "" }},
		{"name", func(s *spec) { s.Name = "Thumbnail" }},
		{"name", func(s *spec) { s.Name = "-f" }},
		{"name", func(s *spec) { s.Name = "f-" }},
		{"name", func(s *spec) { s.Name = "f_g" }},
		{"name", func(s *spec) { s.Name = strings.Repeat("f", 64) }},
		{"", func(s *spec) { s.Name = strings.Repeat("f", 63) }},
		{"timeout", func(s *spec) { s.Timeout = nil }},
		{"timeout", func(s *spec) { s.Timeout = duration(0) }},
		{"timeout", func(s *spec) { s.Timeout = duration(-time.Second) }},
		{"timeout", func(s *spec) { s.Timeout = duration(24*time.Hour + 1) }},
		{"timeout", func(s *spec) { s.Timeout = &durationpb.Duration{Seconds: math.MaxInt64} }},
		{"timeout", func(s *spec) { s.Timeout = &durationpb.Duration{Seconds: 1, Nanos: -1} }},
		{"", func(s *spec) { s.Timeout = duration(24 * time.Hour) }},
		{"", func(s *spec) {
			s.Concurrency = &isobarv1.Concurrency{Attempts: 1_000_000, Cpu: 0.5, MemoryMib: 1, Gpus: 1}
		}},
		{"ordering.mode", func(s *spec) { s.Ordering = &isobarv1.Ordering{Mode: "loose"} }},
		{"ordering.on_dead", func(s *spec) { s.Ordering = &isobarv1.Ordering{OnDead: "retry"} }},
		{"ordering.on_dead", func(s *spec) { s.Ordering = &isobarv1.Ordering{Mode: "relaxed", OnDead: "block"} }},
		{"concurrency.attempts", func(s *spec) { s.Concurrency = &isobarv1.Concurrency{Attempts: 1_000_001} }},
		{"concurrency.cpu", func(s *spec) { s.Concurrency = &isobarv1.Concurrency{Cpu: -1} }},
		{"concurrency.cpu", func(s *spec) { s.Concurrency = &isobarv1.Concurrency{Cpu: math.NaN()} }},
		{"concurrency.memory_mib", func(s *spec) { s.Concurrency = &isobarv1.Concurrency{MemoryMib: -1} }},
		{"concurrency.cost.tokens", func(s *spec) { s.Concurrency = &isobarv1.Concurrency{Cost: &isobarv1.Cost{Tokens: -1}} }},
		{"concurrency.cost.bytes", func(s *spec) { s.Concurrency = &isobarv1.Concurrency{Cost: &isobarv1.Cost{Bytes: 1<<40 + 1}} }},
		{"concurrency.cost.accelerator_mib", func(s *spec) {
			s.Concurrency = &isobarv1.Concurrency{Cost: &isobarv1.Cost{AcceleratorMib: math.MinInt64}}
		}},
		{"pace.most", func(s *spec) { s.Pace.Most = 0 }},
		{"pace.most", func(s *spec) { s.Pace.Most = math.NaN() }},
		{"pace.most", func(s *spec) { s.Pace.Most = math.Inf(1) }},
		{"pace.start", func(s *spec) { s.Pace.Start = 21 }},
		{"pace.start", func(s *spec) { s.Pace.Start = math.NaN() }},
		{"pace.least", func(s *spec) { s.Pace.Least = -1 }},
		{"pace.errors", func(s *spec) { s.Pace.Errors = 1.1 }},
		{"pace.errors", func(s *spec) { s.Pace.Errors = math.NaN() }},
		{"pace.window", func(s *spec) { s.Pace.Window = durationpb.New(time.Millisecond) }},
		{"pace.window", func(s *spec) { s.Pace.Window = &durationpb.Duration{Seconds: math.MaxInt64} }},
		{"concurrency.gpus", func(s *spec) { s.Concurrency = &isobarv1.Concurrency{Gpus: -1} }},
		{"retry.max_attempts", func(s *spec) { s.Retry.MaxAttempts = 0 }},
		{"retry.max_attempts", func(s *spec) { s.Retry.MaxAttempts = 101 }},
		{"retry.backoff", func(s *spec) { s.Retry.Backoff = duration(-1) }},
		{"retry.max_backoff", func(s *spec) { s.Retry.MaxBackoff = duration(time.Millisecond) }},
		{"retry.max_backoff", func(s *spec) { s.Retry.MaxBackoff = duration(25 * time.Hour) }},
		{"", func(s *spec) { s.Retry.Backoff = duration(0) }},
		{"variants", func(s *spec) { s.Variants = nil }},
		{"variants", func(s *spec) {
			for i := range 14 {
				v := proto.CloneOf(s.Variants[0])
				v.Name = fmt.Sprint("v", i)
				s.Variants = append(s.Variants, v)
			}
		}},
		{"variants[1].name", func(s *spec) { s.Variants[1].Name = "a" }},
		{"variants[1].name", func(s *spec) { s.Variants[1].Name = "" }},
		{"variants[0].runtime", func(s *spec) { s.Variants[0].Runtime = "" }},
		{"variants[0].runtime", func(s *spec) { s.Variants[0].Runtime = "docker" }},
		{"variants[0].command", func(s *spec) { s.Variants[0].Command = nil }},
		{"variants[0].command", func(s *spec) { s.Variants[0].Command = []string{""} }},
		{"variants[0].command", func(s *spec) { s.Variants[0].Command = []string{"a", "\x00"} }},
		{"variants[0].command", func(s *spec) { s.Variants[0].Command = make([]string, 257); s.Variants[0].Command[0] = "a" }},
		{"variants[0].module", func(s *spec) { s.Variants[0].Module = digest.Of(nil) }},
		{"variants[0].url", func(s *spec) { s.Variants[0].Url = "http://x" }},
		{"variants[0].jurisdictions", func(s *spec) { s.Variants[0].Jurisdictions = []string{"eu"} }},
		{"variants[1].module", func(s *spec) { s.Variants[1].Module = "" }},
		{"variants[1].module", func(s *spec) { s.Variants[1].Module = "thumb.wasm" }},
		{"variants[1].command", func(s *spec) { s.Variants[1].Command = []string{"a"} }},
		{"variants[2].url", func(s *spec) { s.Variants[2].Url = "" }},
		{"variants[2].url", func(s *spec) { s.Variants[2].Url = "/run" }},
		{"variants[2].url", func(s *spec) { s.Variants[2].Url = "example.com/run" }},
		{"variants[2].url", func(s *spec) { s.Variants[2].Url = "ftp://example.com" }},
		{"variants[2].url", func(s *spec) { s.Variants[2].Url = "http:example.com" }},
		{"variants[2].url", func(s *spec) { s.Variants[2].Url = "http://:80/" }},
		{"variants[2].url", func(s *spec) { s.Variants[2].Url = "http://u:p@example.com" }},
		{"variants[2].url", func(s *spec) { s.Variants[2].Url = "http://example.com/#a" }},
		{"variants[2].url", func(s *spec) { s.Variants[2].Url = "http://exa mple.com/\x7f" }},
		{"variants[2].url", func(s *spec) { s.Variants[2].Url = "http://e.com/" + strings.Repeat("a", 2048) }},
		{"variants[2].jurisdictions", func(s *spec) { s.Variants[2].Jurisdictions = []string{"EU"} }},
		{"", func(s *spec) { s.Variants[2].Jurisdictions = []string{"eu", "se"} }},
		{"variants[0].resources.cpu", func(s *spec) { s.Variants[0].Resources.Cpu = -1 }},
		{"variants[0].resources.cpu", func(s *spec) { s.Variants[0].Resources.Cpu = 0.0001 }},
		{"variants[0].resources.cpu", func(s *spec) { s.Variants[0].Resources.Cpu = math.NaN() }},
		{"variants[0].resources.cpu", func(s *spec) { s.Variants[0].Resources.Cpu = math.Inf(1) }},
		{"variants[0].resources.memory_mib", func(s *spec) { s.Variants[0].Resources.MemoryMib = -5 }},
		{"variants[0].resources.memory_mib", func(s *spec) { s.Variants[0].Resources.MemoryMib = math.MaxInt64 }},
		{"variants[0].resources.gpus", func(s *spec) { s.Variants[0].Resources.Gpus = -1 }},
		{"variants[0].resources.gpus", func(s *spec) { s.Variants[0].Resources.Gpus = 65 }},
		{"variants[0].resources.gpu_model", func(s *spec) { s.Variants[0].Resources.GpuModel = "a100" }},
		{"variants[0].resources.cpu_utilisation", func(s *spec) { s.Variants[0].Resources.CpuUtilisation = new(1.5) }},
		{"variants[0].resources.gpu_utilisation", func(s *spec) { s.Variants[0].Resources.GpuUtilisation = new(-1.0) }},
		{"variants[0].resources.gpu_model", func(s *spec) { s.Variants[0].Resources.Gpus, s.Variants[0].Resources.GpuModel = 1, "a 100" }},
		{"", func(s *spec) { s.Variants[0].Resources.Gpus, s.Variants[0].Resources.GpuModel = 1, "A100-80G" }},
		{"variants[0].quality", func(s *spec) { s.Variants[0].Quality = 0 }},
		{"variants[0].quality", func(s *spec) { s.Variants[0].Quality = 1.01 }},
		{"variants[0].quality", func(s *spec) { s.Variants[0].Quality = math.NaN() }},
		{"variants[0].usd", func(s *spec) { s.Variants[0].Usd = -1 }},
		{"variants[0].usd", func(s *spec) { s.Variants[0].Usd = math.Inf(1) }},
		{"variants[0].run", func(s *spec) { s.Variants[0].Run = duration(0) }},
		{"variants[0].cold", func(s *spec) { s.Variants[0].Cold = duration(-1) }},
		{"env", func(s *spec) { s.Env = map[string]string{"1A": ""} }},
		{"env", func(s *spec) { s.Env = map[string]string{"": ""} }},
		{"env", func(s *spec) { s.Env = map[string]string{"A=B": ""} }},
		{"env.ISOBAR_ATTEMPT", func(s *spec) { s.Env = map[string]string{"ISOBAR_ATTEMPT": "1"} }},
		{"env.PATH", func(s *spec) { s.Env = map[string]string{"PATH": "/"} }},
		{"env.TRACEPARENT", func(s *spec) { s.Env = map[string]string{"TRACEPARENT": ""} }},
		{"env.A", func(s *spec) { s.Env = map[string]string{"A": "\x00"} }},
		{"env.A", func(s *spec) { s.Env = map[string]string{"A": strings.Repeat("x", 32<<10+1)} }},
		{"env", func(s *spec) {
			s.Env = map[string]string{}
			for i := range 129 {
				s.Env[fmt.Sprint("A", i)] = ""
			}
		}},
		{"spec", func(s *spec) {
			s.Env = map[string]string{}
			for i := range 5 {
				s.Env[fmt.Sprint("A", i)] = strings.Repeat("x", 32<<10)
			}
		}},
		{"", func(s *spec) { s.Env = map[string]string{"_a1": "x", "HOME": "/"} }},
	}
	for i, tt := range tests {
		s := validSpec()
		tt.edit(s)
		err := registry.Validate(s)
		if tt.field == "" {
			if err != nil {
				t.Errorf("row %d: error %v, want none", i, err)
			}
			continue
		}
		var invalid *registry.InvalidError
		if !errors.As(err, &invalid) || !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("row %d: error %v, want one of %s", i, err, tt.field)
			continue
		}
		if len(invalid.Fields) != 1 || invalid.Fields[0].Field != tt.field || invalid.Fields[0].Message == "" {
			t.Errorf("row %d: fields %+v, want %s alone", i, invalid.Fields, tt.field)
		}
	}
}

func TestValidateNothing(t *testing.T) {
	t.Parallel()
	for _, s := range []*isobarv1.FunctionSpec{nil, {}, {Variants: []*isobarv1.Variant{nil}}} {
		if err := registry.Validate(s); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Validate(%v) has error %v", s, err)
		}
		if err := registry.Validate(registry.WithDefaults(s)); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Validate with defaults of %v has error %v", s, err)
		}
	}
}

func TestWithDefaultsIsStable(t *testing.T) {
	t.Parallel()
	in := &isobarv1.FunctionSpec{Name: "f", Variants: []*isobarv1.Variant{{Name: "a", Jurisdictions: []string{"US", "eu", "us"}}}}
	before := proto.CloneOf(in)
	once := registry.WithDefaults(in)
	if !proto.Equal(in, before) {
		t.Error("the argument was changed")
	}
	if twice := registry.WithDefaults(once); !proto.Equal(once, twice) {
		t.Errorf("a second time gives %v after %v", twice, once)
	}
	if j := once.GetVariants()[0].GetJurisdictions(); fmt.Sprint(j) != "[eu us]" {
		t.Errorf("jurisdictions are %v", j)
	}
	long := registry.RetryWithDefaults(&isobarv1.RetryPolicy{Backoff: durationpb.New(time.Hour)})
	if err := registry.ValidateRetry("retry", long); err != nil {
		t.Errorf("a long backoff alone: %v", err)
	}
	if err := registry.ValidateRetry("tasks[0].retry", nil); err == nil || !strings.Contains(err.Error(), "tasks[0].retry.max_attempts") {
		t.Errorf("no policy: error %v", err)
	}
}
