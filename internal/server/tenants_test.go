package server

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/config"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

func TestTenantsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	known := map[string]*meshv1.Tenant{
		"default": {Name: "default"},
		"acme":    {Name: "acme", Denied: []string{"us"}, Weight: 1, Concurrency: &isobarv1.Concurrency{Attempts: 2, Cpu: 8}},
		"other":   {Name: "other", Weight: 7},
	}
	read := func(name string) (*meshv1.Tenant, error) {
		if t, ok := known[name]; ok {
			return t, nil
		}
		return nil, errors.New("unknown")
	}
	cfg := &config.Server{
		Tenants: map[string]config.Tenant{
			"acme": {Weight: 3}, "plain": {Weight: 2}, "default": {Concurrency: config.Concurrency{Attempts: 9}},
			"fresh": {Concurrency: config.Concurrency{
				CPU: 1.5, MemoryMiB: 64, GPUs: 2, Cost: config.Cost{Tokens: 1_000, Bytes: 1 << 20, AcceleratorMiB: 512},
			}},
		},
	}
	got := map[string]*meshv1.Tenant{}
	for _, e := range tenantEdits(cfg, read) {
		got[e.Name], known[e.Name] = e, e
	}
	switch a := got["acme"]; {
	case len(got) != 4:
		t.Errorf("edits %v, want acme, default, fresh and plain", got)
	case a.Weight != 3 || len(a.Denied) != 1 || a.Concurrency != nil:
		t.Errorf("acme is %v: its residency stays, its bounds are gone", a)
	case got["default"].Concurrency.Attempts != 9 || got["plain"].Concurrency != nil:
		t.Errorf("edits %v", got)
	}
	want := &isobarv1.Concurrency{Cpu: 1.5, MemoryMib: 64, Gpus: 2, Cost: &isobarv1.Cost{Tokens: 1_000, Bytes: 1 << 20, AcceleratorMib: 512}}
	if fresh := got["fresh"].GetConcurrency(); !proto.Equal(fresh, want) {
		t.Errorf("fresh is bounded by %v, want %v", fresh, want)
	}
	if again := tenantEdits(cfg, read); len(again) != 0 {
		t.Errorf("edits %v of what is so already", again)
	}
}
