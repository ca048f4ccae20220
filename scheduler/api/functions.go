package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry"
	"github.com/isobar-mesh/isobar/scheduler"
)

type functions struct {
	isobarv1.UnimplementedFunctionServiceHandler
	*Services
}

// readyWithin is how long Deploy waits for the other cells.
const readyWithin = 5 * time.Second

// Deploy stores modules, commits the version and spreads both.
func (h *functions) Deploy(ctx context.Context, r *isobarv1.DeployRequest) (*isobarv1.DeployResponse, error) {
	return route(ctx, h.Services, h.Scheduler.Cell.ID, r, h.deployHere, func(ctx context.Context, c *connect.Client, r *isobarv1.DeployRequest) (*isobarv1.DeployResponse, error) {
		return isobarv1.NewFunctionServiceClient(c).Deploy(ctx, r)
	})
}

func (h *functions) deployHere(ctx context.Context, r *isobarv1.DeployRequest) (*isobarv1.DeployResponse, error) {
	if r.Spec == nil {
		return nil, &scheduler.Refusal{Reason: scheduler.BadFunction, Field: "spec", Message: "no manifest", Hint: "docs/functions.md describes one"}
	}
	if r.Spec.Tenant == "" {
		r.Spec.Tenant = defaultTenant
	}
	spec := registry.WithDefaults(r.Spec)
	if err := registry.Validate(spec); err != nil {
		return nil, err
	}
	if _, err := h.Registry.Tenant(spec.Tenant); err != nil {
		return nil, err
	}
	if err := h.modules(ctx, spec, r.Modules); err != nil {
		return nil, err
	}
	command, fn, err := h.Registry.Deploy(spec, time.Now())
	if err != nil {
		return nil, err
	}
	if command != nil {
		if err := h.CommitRegistry(ctx, command); err != nil {
			return nil, err
		}
	}
	h.Exchange.Changed()
	return &isobarv1.DeployResponse{Function: fn, Cells: h.readiness(ctx, readyWithin)}, nil
}

// modules checks and stores what the variants name: each module is sent along
// or is here already.
func (h *functions) modules(ctx context.Context, spec *isobarv1.FunctionSpec, modules [][]byte) error {
	sent := map[string][]byte{}
	for _, m := range modules {
		sum := sha256.Sum256(m)
		sent["sha256:"+hex.EncodeToString(sum[:])] = m
	}
	for i, v := range spec.Variants {
		if v.Module == "" {
			continue
		}
		content, ok := sent[v.Module]
		if !ok {
			if h.Modules.Renew(v.Module) {
				continue
			}
			return &scheduler.Refusal{
				Reason: scheduler.BadModule, Field: fmt.Sprintf("variants[%d].module", i), Message: "module " + v.Module + " was not sent and is not here",
				Hint: "send its bytes in modules",
			}
		}
		if err := h.ValidateModule(content); err != nil {
			return &scheduler.Refusal{
				Reason: scheduler.BadModule, Field: fmt.Sprintf("variants[%d].module", i), Message: "not a module this runs: " + err.Error(),
				Hint: "build for WASI preview 1: GOOS=wasip1 GOARCH=wasm go build",
			}
		}
		if err := h.Modules.PutAs(v.Module, bytes.NewReader(content)); err != nil {
			return err
		}
		if err := h.Spread(ctx, v.Module, content); err != nil {
			return err
		}
	}
	return nil
}

// readiness asks every other cell whether it can run what is deployed, until
// all can or the time has passed.
func (h *functions) readiness(ctx context.Context, within time.Duration) []*isobarv1.CellReadiness {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	cells := h.cells()
	out := make([]*isobarv1.CellReadiness, len(cells))
	var wait sync.WaitGroup
	for i, cell := range cells {
		wait.Go(func() { out[i] = h.cellReadiness(ctx, cell) })
	}
	wait.Wait()
	return out
}

func (h *functions) cellReadiness(ctx context.Context, cell mesh.CellID) *isobarv1.CellReadiness {
	out := &isobarv1.CellReadiness{Cell: string(cell)}
	for {
		var lacks []string
		var err error
		if cell == h.Scheduler.Cell.ID {
			lacks = h.Exchange.Missing()
		} else if err = h.Exchange.With(ctx, cell); err == nil {
			lacks, _ = h.Exchange.Readiness(cell)
		}
		switch {
		case err != nil:
			out.Message = "not reached yet: it catches up when it is back"
		case len(lacks) > 0:
			out.Message = fmt.Sprintf("%d modules under way", len(lacks))
		default:
			out.Ready, out.Message = true, ""
			return out
		}
		select {
		case <-ctx.Done():
			return out
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// cells lists every cell known, this one included.
func (s *Services) cells() []mesh.CellID {
	set := []mesh.CellID{s.Scheduler.Cell.ID}
	for _, srv := range s.Directory.Servers() {
		set = append(set, srv.Cell)
	}
	slices.Sort(set)
	return slices.Compact(set)
}

func (h *functions) Get(ctx context.Context, r *isobarv1.FunctionServiceGetRequest) (*isobarv1.FunctionServiceGetResponse, error) {
	fn, err := h.Registry.Function(tenantOr(r.Tenant), r.Name)
	if err != nil {
		return nil, err
	}
	return &isobarv1.FunctionServiceGetResponse{Function: fn, Cells: h.readiness(ctx, time.Second), Pace: h.Scheduler.Pace(fn)}, nil
}

// Report is counted by the leader of each cell, as far as it is reached.
func (h *functions) Report(ctx context.Context, r *isobarv1.ReportRequest) (*isobarv1.ReportResponse, error) {
	if err := scheduler.CheckReport(r); err != nil {
		return nil, err
	}
	r.Tenant = tenantOr(r.Tenant)
	if r.Cell != "" {
		return h.reportTo(ctx, mesh.CellID(r.Cell), r)
	}
	if fn, err := h.Registry.Function(r.Tenant, r.Function); err != nil {
		return nil, err
	} else if fn.GetSpec().GetPace() == nil {
		return h.reportTo(ctx, h.Scheduler.Cell.ID, r) // says why not
	}
	if r.ReportId == "" {
		r.ReportId = uuid.NewString()
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	cells := h.cells()
	out := &isobarv1.ReportResponse{ReportId: r.ReportId, Results: make([]*isobarv1.ReportResult, len(cells))}
	errs := make([]error, len(cells))
	var wait sync.WaitGroup
	for i, cell := range cells {
		one := proto.CloneOf(r)
		one.Cell = string(cell)
		wait.Go(func() {
			res, err := h.reportTo(ctx, cell, one)
			if err != nil {
				out.Results[i], errs[i] = &isobarv1.ReportResult{Cell: string(cell), Message: err.Error()}, err
				return
			}
			out.Results[i] = res.GetResults()[0]
		})
	}
	wait.Wait()
	if !slices.ContainsFunc(errs, func(err error) bool { return err == nil }) {
		return nil, errs[0]
	}
	return out, nil
}

// reportTo has one cell count a report.
func (h *functions) reportTo(ctx context.Context, cell mesh.CellID, r *isobarv1.ReportRequest) (*isobarv1.ReportResponse, error) {
	return route(ctx, h.Services, cell, r, func(ctx context.Context, r *isobarv1.ReportRequest) (*isobarv1.ReportResponse, error) {
		pace, err := h.Scheduler.Report(ctx, r)
		if err != nil {
			return nil, err
		}
		return &isobarv1.ReportResponse{ReportId: r.ReportId, Results: []*isobarv1.ReportResult{{Cell: string(cell), Pace: pace}}}, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.ReportRequest) (*isobarv1.ReportResponse, error) {
		res, err := isobarv1.NewFunctionServiceClient(c).Report(ctx, r)
		if err == nil && len(res.GetResults()) != 1 {
			err = &scheduler.Refusal{Reason: scheduler.OutcomeUnknown, Unknown: true, Message: string(cell) + " gave an empty answer", Hint: "repeat the report with its id"}
		}
		return res, err
	})
}

func (h *functions) List(_ context.Context, r *isobarv1.FunctionServiceListRequest) (*isobarv1.FunctionServiceListResponse, error) {
	list, err := h.Registry.Functions(tenantOr(r.Tenant))
	if err != nil {
		return nil, err
	}
	return &isobarv1.FunctionServiceListResponse{Functions: list}, nil
}

func (h *functions) Delete(ctx context.Context, r *isobarv1.FunctionServiceDeleteRequest) (*isobarv1.FunctionServiceDeleteResponse, error) {
	return route(ctx, h.Services, h.Scheduler.Cell.ID, r, func(ctx context.Context, r *isobarv1.FunctionServiceDeleteRequest) (*isobarv1.FunctionServiceDeleteResponse, error) {
		command, err := h.Registry.Delete(tenantOr(r.Tenant), r.Name, time.Now())
		if err != nil {
			return nil, err
		}
		if command != nil {
			if err := h.CommitRegistry(ctx, command); err != nil {
				return nil, err
			}
		}
		h.Exchange.Changed()
		return &isobarv1.FunctionServiceDeleteResponse{}, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.FunctionServiceDeleteRequest) (*isobarv1.FunctionServiceDeleteResponse, error) {
		return isobarv1.NewFunctionServiceClient(c).Delete(ctx, r)
	})
}

func tenantOr(t string) string {
	if t == "" {
		return defaultTenant
	}
	return t
}
