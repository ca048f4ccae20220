package server

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/config"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// setTenantsWithin bounds what a new leader waits for its tenants.
const setTenantsWithin = 5 * time.Second

// setTenants makes the tenants of the configuration, where the registry does not
// hold them so already.
func (s *Server) setTenants() error {
	ctx, cancel := context.WithTimeout(context.Background(), setTenantsWithin)
	defer cancel()
	for _, t := range tenantEdits(&s.cfg, s.reg.Tenant) {
		command, err := s.reg.SetTenant(t, time.Now())
		if err != nil {
			return err
		}
		if err := s.commitRegistry(ctx, command); err != nil {
			return fmt.Errorf("server: set tenant %s: %w", t.Name, err)
		}
	}
	return nil
}

// tenantEdits lists the tenants that are not yet as the configuration wants them.
// Their weight and bounds are the configuration's; what else their documents say
// stays.
func tenantEdits(cfg *config.Server, read func(name string) (*meshv1.Tenant, error)) []*meshv1.Tenant {
	var edits []*meshv1.Tenant
	for _, name := range slices.Sorted(maps.Keys(cfg.Tenants)) {
		old, err := read(name)
		if err != nil {
			old = &meshv1.Tenant{Name: name} // unknown so far
		}
		t := proto.CloneOf(old)
		t.Weight, t.Concurrency = cfg.Tenants[name].Weight, concurrencyMessage(cfg.Tenants[name].Concurrency)
		if err != nil || !proto.Equal(t, old) {
			edits = append(edits, t)
		}
	}
	return edits
}

// concurrencyMessage writes bounds; nil for none.
func concurrencyMessage(c config.Concurrency) *isobarv1.Concurrency {
	m := &isobarv1.Concurrency{Attempts: uint32(c.Attempts), Cpu: c.CPU, MemoryMib: c.MemoryMiB, Gpus: c.GPUs, Cost: costMessage(c.Cost)}
	if proto.Size(m) == 0 {
		return nil
	}
	return m
}

// costMessage writes a bound by cost; nil for none.
func costMessage(c config.Cost) *isobarv1.Cost {
	if c == (config.Cost{}) {
		return nil
	}
	return &isobarv1.Cost{Tokens: c.Tokens, Bytes: int64(c.Bytes), AcceleratorMib: c.AcceleratorMiB}
}
