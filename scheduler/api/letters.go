package api

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
)

type letters struct {
	isobarv1.UnimplementedDeadLetterServiceHandler
	*Services
}

// maxRedrives bounds one call.
const maxRedrives = 1000

func filterOf(f *isobarv1.DeadLetterFilter, after string, limit int) scheduler.Letters {
	return scheduler.Letters{
		Tenant: f.GetTenant(), Function: f.GetFunction(), Lane: f.GetLane(), Cause: f.GetCause(),
		EndedAfter: timeOf(f.GetEndedAfter()), EndedBefore: timeOf(f.GetEndedBefore()), After: after, Limit: limit,
	}
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// List shows the dead letters of a cell.
func (h *letters) List(ctx context.Context, r *isobarv1.DeadLetterServiceListRequest) (*isobarv1.DeadLetterServiceListResponse, error) {
	limit, err := limitOf(r.Limit, 100, 1000)
	if err != nil {
		return nil, err
	}
	return route(ctx, h.Services, h.cellOr(r.Cell), r, func(ctx context.Context, r *isobarv1.DeadLetterServiceListRequest) (*isobarv1.DeadLetterServiceListResponse, error) {
		list, total, next, err := h.Scheduler.DeadLetters(ctx, filterOf(r.Filter, r.PageToken, limit))
		if err != nil {
			return nil, err
		}
		out := &isobarv1.DeadLetterServiceListResponse{NextPageToken: next, Cell: string(h.Scheduler.Cell.ID), Total: total}
		for _, rec := range list {
			if h.outside(ctx, rec) == nil {
				out.Letters = append(out.Letters, scheduler.LetterMessage(rec))
			}
		}
		return out, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.DeadLetterServiceListRequest) (*isobarv1.DeadLetterServiceListResponse, error) {
		return isobarv1.NewDeadLetterServiceClient(c).List(ctx, r)
	})
}

// Redrive gives dead tasks new attempts, those that are named or those that the
// filter chooses.
func (h *letters) Redrive(ctx context.Context, r *isobarv1.RedriveRequest) (*isobarv1.RedriveResponse, error) {
	limit, err := limitOf(r.Limit, maxRedrives, maxRedrives)
	if err != nil {
		return nil, err
	}
	n := len(r.TaskIds)
	switch {
	case n > 0 && r.Filter != nil:
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "filter", Message: "both task ids and a filter", Hint: "give one of them"}
	case n > maxRedrives:
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "taskIds", Message: fmt.Sprintf("%d tasks; one call takes at most %d", n, maxRedrives), Hint: "call it several times, or use a filter"}
	case n > 0:
		return h.redriveNamed(ctx, r.TaskIds)
	case r.Filter == nil:
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "taskIds", Message: "neither task ids nor a filter", Hint: `an empty filter, {"filter": {}}, means all`}
	}
	return route(ctx, h.Services, h.cellOr(r.Cell), r, func(ctx context.Context, r *isobarv1.RedriveRequest) (*isobarv1.RedriveResponse, error) {
		list, _, next, err := h.Scheduler.DeadLetters(ctx, filterOf(r.Filter, r.PageToken, limit))
		if err != nil {
			return nil, err
		}
		ids := make([]string, len(list))
		for i, rec := range list {
			ids[i] = rec.Id
		}
		out, err := h.redriveHere(ctx, ids)
		if err != nil {
			return nil, err
		}
		out.NextPageToken = next
		return out, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.RedriveRequest) (*isobarv1.RedriveResponse, error) {
		return isobarv1.NewDeadLetterServiceClient(c).Redrive(ctx, r)
	})
}

// redriveNamed asks each task's home. With one task, a refusal is the call's.
func (h *letters) redriveNamed(ctx context.Context, ids []string) (*isobarv1.RedriveResponse, error) {
	out := &isobarv1.RedriveResponse{Results: make([]*isobarv1.RedriveResult, len(ids))}
	places := map[mesh.CellID][]int{}
	var order []mesh.CellID
	for i, id := range ids {
		cell, err := taskCell(id)
		if err != nil {
			if len(ids) == 1 {
				return nil, err
			}
			out.Results[i] = h.result(scheduler.Redriven{TaskID: id, Err: err})
			continue
		}
		if places[cell] == nil {
			order = append(order, cell)
		}
		places[cell] = append(places[cell], i)
	}
	for _, cell := range order {
		part := &isobarv1.RedriveRequest{}
		for _, i := range places[cell] {
			part.TaskIds = append(part.TaskIds, ids[i])
		}
		res, err := route(ctx, h.Services, cell, part, func(ctx context.Context, r *isobarv1.RedriveRequest) (*isobarv1.RedriveResponse, error) {
			if len(ids) > 1 {
				return h.redriveHere(ctx, r.TaskIds)
			}
			list, err := h.Scheduler.Redrive(ctx, r.TaskIds)
			if err != nil {
				return nil, err
			}
			if list[0].Err != nil {
				return nil, list[0].Err
			}
			return &isobarv1.RedriveResponse{Results: []*isobarv1.RedriveResult{h.result(list[0])}}, nil
		}, func(ctx context.Context, c *connect.Client, r *isobarv1.RedriveRequest) (*isobarv1.RedriveResponse, error) {
			return isobarv1.NewDeadLetterServiceClient(c).Redrive(ctx, r)
		})
		if err != nil && len(ids) == 1 {
			return nil, err
		}
		for n, i := range places[cell] {
			if err != nil || n >= len(res.Results) {
				out.Results[i] = h.result(scheduler.Redriven{TaskID: ids[i], Err: err})
				continue
			}
			out.Results[i] = res.Results[n]
		}
	}
	return out, nil
}

func (h *letters) redriveHere(ctx context.Context, ids []string) (*isobarv1.RedriveResponse, error) {
	list, err := h.Scheduler.Redrive(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := &isobarv1.RedriveResponse{}
	for _, r := range list {
		out.Results = append(out.Results, h.result(r))
	}
	return out, nil
}

func (h *letters) result(r scheduler.Redriven) *isobarv1.RedriveResult {
	m := &isobarv1.RedriveResult{TaskId: r.TaskID, Redriven: r.Err == nil && !r.Already, Already: r.Already}
	if r.Record != nil {
		m.State = isobarv1.TaskState(r.Record.State)
	}
	if r.Err != nil {
		m.Error = Describe(r.Err, func() string { return "" })
	}
	return m
}
