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
// What else their documents say stays.
func tenantEdits(cfg *config.Server, read func(name string) (*meshv1.Tenant, error)) []*meshv1.Tenant {
	names := slices.Concat(slices.Collect(maps.Keys(cfg.TenantWeights)), slices.Collect(maps.Keys(cfg.TenantAttempts)), slices.Collect(maps.Keys(cfg.TenantTokens)))
	slices.Sort(names)
	var edits []*meshv1.Tenant
	for _, name := range slices.Compact(names) {
		old, err := read(name)
		if err != nil {
			old = &meshv1.Tenant{Name: name} // unknown so far
		}
		t := proto.CloneOf(old)
		t.Weight = cfg.TenantWeights[name]
		if t.Concurrency == nil {
			t.Concurrency = &isobarv1.Concurrency{}
		}
		if t.Concurrency.Cost == nil {
			t.Concurrency.Cost = &isobarv1.Cost{}
		}
		if t.Concurrency.Cost.Tokens = int64(cfg.TenantTokens[name]); proto.Size(t.Concurrency.Cost) == 0 {
			t.Concurrency.Cost = nil
		}
		if t.Concurrency.Attempts = uint32(cfg.TenantAttempts[name]); proto.Size(t.Concurrency) == 0 {
			t.Concurrency = nil
		}
		if err != nil || !proto.Equal(t, old) {
			edits = append(edits, t)
		}
	}
	return edits
}
