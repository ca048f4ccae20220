package api

import (
	"cmp"
	"context"
	"fmt"
	"unicode/utf8"

	"connectrpc.com/connect/v2"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
)

type queues struct {
	isobarv1.UnimplementedQueueServiceHandler
	*Services
}

// cellOr is the cell a request names, or this one.
func (s *Services) cellOr(cell string) mesh.CellID {
	return cmp.Or(mesh.CellID(cell), s.Scheduler.Cell.ID)
}

// limitOf reads a request's limit: 0 is the default.
func limitOf(asked int32, otherwise, most int) (int, error) {
	switch n := int(asked); {
	case n == 0:
		return otherwise, nil
	case n < 0 || n > most:
		return 0, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "limit", Message: fmt.Sprintf("a limit of %d is not between 1 and %d", n, most), Hint: "page with nextPageToken"}
	default:
		return n, nil
	}
}

// named refuses a request that names no function.
func named(function string) error {
	if function == "" {
		return &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "function", Message: "no function is named", Hint: "a queue is a function's tasks in one lane"}
	}
	return nil
}

func reasonFits(reason string) error {
	if len(reason) > maxReason {
		return &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "reason", Message: fmt.Sprintf("a reason of %d bytes is above %d", len(reason), maxReason), Hint: "a sentence will do"}
	}
	return nil
}

// List shows the queues of a cell.
func (h *queues) List(ctx context.Context, r *isobarv1.QueueServiceListRequest) (*isobarv1.QueueServiceListResponse, error) {
	limit, err := limitOf(r.Limit, 100, 1000)
	if err != nil {
		return nil, err
	}
	return route(ctx, h.Services, h.cellOr(r.Cell), r, func(ctx context.Context, r *isobarv1.QueueServiceListRequest) (*isobarv1.QueueServiceListResponse, error) {
		list, next, err := h.Scheduler.Queues(ctx, r.Tenant, r.Function, r.PageToken, limit)
		if err != nil {
			return nil, err
		}
		return &isobarv1.QueueServiceListResponse{Queues: list, NextPageToken: next, Cell: string(h.Scheduler.Cell.ID)}, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.QueueServiceListRequest) (*isobarv1.QueueServiceListResponse, error) {
		return isobarv1.NewQueueServiceClient(c).List(ctx, r)
	})
}

// Pause stops the dispatch of a function's queues.
func (h *queues) Pause(ctx context.Context, r *isobarv1.PauseRequest) (*isobarv1.PauseResponse, error) {
	if err := cmp.Or(named(r.Function), reasonFits(r.Reason)); err != nil {
		return nil, err
	}
	return route(ctx, h.Services, h.cellOr(r.Cell), r, func(ctx context.Context, r *isobarv1.PauseRequest) (*isobarv1.PauseResponse, error) {
		list, changed, err := h.Scheduler.SetPaused(ctx, tenantOr(r.Tenant), r.Function, r.Lane, true, r.Reason)
		if err != nil {
			return nil, err
		}
		return &isobarv1.PauseResponse{Queues: list, Changed: uint32(changed)}, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.PauseRequest) (*isobarv1.PauseResponse, error) {
		return isobarv1.NewQueueServiceClient(c).Pause(ctx, r)
	})
}

// Resume lets them go on.
func (h *queues) Resume(ctx context.Context, r *isobarv1.ResumeRequest) (*isobarv1.ResumeResponse, error) {
	if err := named(r.Function); err != nil {
		return nil, err
	}
	return route(ctx, h.Services, h.cellOr(r.Cell), r, func(ctx context.Context, r *isobarv1.ResumeRequest) (*isobarv1.ResumeResponse, error) {
		list, changed, err := h.Scheduler.SetPaused(ctx, tenantOr(r.Tenant), r.Function, r.Lane, false, "")
		if err != nil {
			return nil, err
		}
		return &isobarv1.ResumeResponse{Queues: list, Changed: uint32(changed)}, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.ResumeRequest) (*isobarv1.ResumeResponse, error) {
		return isobarv1.NewQueueServiceClient(c).Resume(ctx, r)
	})
}

// Purge cancels what waits.
func (h *queues) Purge(ctx context.Context, r *isobarv1.PurgeRequest) (*isobarv1.PurgeResponse, error) {
	if err := cmp.Or(named(r.Function), reasonFits(r.Reason)); err != nil {
		return nil, err
	}
	return route(ctx, h.Services, h.cellOr(r.Cell), r, func(ctx context.Context, r *isobarv1.PurgeRequest) (*isobarv1.PurgeResponse, error) {
		n, token, err := h.Scheduler.Purge(ctx, tenantOr(r.Tenant), r.Function, r.Lane, r.Reason, r.Token)
		if err != nil {
			return nil, err
		}
		return &isobarv1.PurgeResponse{Cancelled: uint64(n), Token: token}, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.PurgeRequest) (*isobarv1.PurgeResponse, error) {
		return isobarv1.NewQueueServiceClient(c).Purge(ctx, r)
	})
}

// Peek reads what is next.
func (h *queues) Peek(ctx context.Context, r *isobarv1.PeekRequest) (*isobarv1.PeekResponse, error) {
	if err := named(r.Function); err != nil {
		return nil, err
	}
	limit, err := limitOf(r.Limit, 10, 100)
	if err != nil {
		return nil, err
	}
	return route(ctx, h.Services, h.cellOr(r.Cell), r, func(ctx context.Context, r *isobarv1.PeekRequest) (*isobarv1.PeekResponse, error) {
		recs, payloads, err := h.Scheduler.Peek(ctx, tenantOr(r.Tenant), r.Function, r.Lane, limit)
		if err != nil {
			return nil, err
		}
		out := &isobarv1.PeekResponse{}
		for i, rec := range recs {
			if h.outside(ctx, rec) != nil {
				continue // its residency keeps it from the server that asks for another's sake
			}
			p := &isobarv1.PeekedTask{Task: h.task(rec, false), Payload: payloads[i], ContentType: rec.ContentType, PayloadLost: payloads[i] == nil}
			if utf8.Valid(payloads[i]) {
				p.PayloadText = string(payloads[i])
			}
			out.Tasks = append(out.Tasks, p)
		}
		return out, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.PeekRequest) (*isobarv1.PeekResponse, error) {
		return isobarv1.NewQueueServiceClient(c).Peek(ctx, r)
	})
}
