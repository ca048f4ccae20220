package server

import (
	"errors"
	"testing"

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
		TenantWeights:  map[string]float64{"acme": 3, "fresh": 1, "plain": 2},
		TenantAttempts: map[string]float64{"default": 9, "fresh": 5},
	}
	got := map[string]*meshv1.Tenant{}
	for _, e := range tenantEdits(cfg, read) {
		got[e.Name], known[e.Name] = e, e
	}
	switch a := got["acme"]; {
	case len(got) != 4:
		t.Errorf("edits %v, want acme, default, fresh and plain", got)
	case a.Weight != 3 || len(a.Denied) != 1 || a.Concurrency.Cpu != 8 || a.Concurrency.Attempts != 0:
		t.Errorf("acme is %v: its residency and cores stay", a)
	case got["default"].Concurrency.Attempts != 9 || got["fresh"].Weight != 1 || got["plain"].Concurrency != nil:
		t.Errorf("edits %v", got)
	}
	if again := tenantEdits(cfg, read); len(again) != 0 {
		t.Errorf("edits %v of what is so already", again)
	}
}
