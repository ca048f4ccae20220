package api

import (
	"context"
	"fmt"

	"connectrpc.com/connect/v2"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

type decisions struct {
	isobarv1.UnimplementedPlacementServiceHandler
	*Services
}

// Explain shows stored decisions, or decides anew.
func (h *decisions) Explain(ctx context.Context, r *isobarv1.ExplainRequest) (*isobarv1.ExplainResponse, error) {
	cell := h.Scheduler.Cell.ID
	switch {
	case (r.TaskId == "") == (r.Task == nil):
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "taskId", Message: "explain takes a task id or a task", Hint: "one of the two"}
	case r.TaskId != "":
		var err error
		if cell, err = taskCell(r.TaskId); err != nil {
			return nil, err
		}
	}
	for _, w := range []struct {
		name  string
		value *float64
	}{{"carbonPrice", r.CarbonPrice}, {"latencyPrice", r.LatencyPrice}, {"delayPrice", r.DelayPrice}, {"qualityPrice", r.QualityPrice}} {
		if w.value != nil && !(*w.value >= 0 && *w.value <= 1e12) {
			return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: w.name, Message: fmt.Sprintf("a price of %v", *w.value), Hint: "prices are 0 or more"}
		}
	}
	return route(ctx, h.Services, cell, r, h.explainHere, func(ctx context.Context, c *connect.Client, r *isobarv1.ExplainRequest) (*isobarv1.ExplainResponse, error) {
		return isobarv1.NewPlacementServiceClient(c).Explain(ctx, r)
	})
}

func (h *decisions) explainHere(ctx context.Context, r *isobarv1.ExplainRequest) (*isobarv1.ExplainResponse, error) {
	q := scheduler.Question{CarbonPrice: r.CarbonPrice, LatencyPrice: r.LatencyPrice, DelayPrice: r.DelayPrice, QualityPrice: r.QualityPrice, WithoutRegions: r.WithoutRegions}
	out := &isobarv1.ExplainResponse{}
	ask := r.Task != nil || r.CarbonPrice != nil || r.LatencyPrice != nil || r.DelayPrice != nil || r.QualityPrice != nil || len(r.WithoutRegions) > 0
	if r.TaskId != "" {
		rec, err := h.Scheduler.Get(ctx, r.TaskId)
		if err == nil {
			err = h.outside(ctx, rec)
		}
		if err != nil {
			return nil, err
		}
		if out.Decisions, err = scheduler.Decisions(rec); err != nil {
			return nil, err
		}
		if out.Plan, err = scheduler.Plan(rec); err != nil {
			return nil, err
		}
		q.Record = rec
		ask = ask || !fsm.Ended(fsm.State(rec))
	} else {
		if r.Task.Tenant == "" {
			r.Task.Tenant = defaultTenant
		}
		if err := checkSpec(r.Task); err != nil {
			return nil, err
		}
		sub, err := h.submission(ctx, r.Task)
		if err != nil {
			return nil, err
		}
		q.Submission = sub
	}
	if !ask {
		return out, nil
	}
	d, err := h.Scheduler.Decide(q)
	if err != nil {
		return nil, h.withAddress(err)
	}
	out.Now = scheduler.DecisionMessage(d)
	if q.Record != nil {
		out.Now.Held = h.Scheduler.HeldUp(q.Record)
	}
	return out, nil
}
