package api

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect/v2"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/peers"
)

type workers struct {
	isobarv1.UnimplementedWorkerServiceHandler
	*Services
}

// Work serves one session of a streaming worker. A server that does not lead
// names the leader in its error.
func (h *workers) Work(ctx context.Context, stream isobarv1.WorkerServiceWorkServerStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil {
		return &scheduler.Refusal{Reason: scheduler.BadRequest, Message: "the first message must be hello", Hint: "send worker, session and offer"}
	}
	session, err := h.Scheduler.Open(hello)
	if err != nil {
		return err
	}
	defer session.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		for {
			m, err := stream.Receive()
			if err == nil {
				err = session.Receive(ctx, m)
			}
			if err != nil {
				cancel(err)
				return
			}
		}
	}()
	for {
		m, err := session.Next(ctx)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, context.Canceled):
			return nil // the worker ended the stream
		case err != nil:
			return err
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}

func (h *workers) Lease(ctx context.Context, r *isobarv1.LeaseRequest) (*isobarv1.LeaseResponse, error) {
	return route(ctx, h.Services, h.Scheduler.Cell.ID, r, h.Scheduler.Lease, func(ctx context.Context, c *connect.Client, r *isobarv1.LeaseRequest) (*isobarv1.LeaseResponse, error) {
		return isobarv1.NewWorkerServiceClient(c).Lease(ctx, r)
	})
}

func (h *workers) Extend(ctx context.Context, r *isobarv1.ExtendRequest) (*isobarv1.ExtendResponse, error) {
	return route(ctx, h.Services, h.Scheduler.Cell.ID, r, h.Scheduler.Extend, func(ctx context.Context, c *connect.Client, r *isobarv1.ExtendRequest) (*isobarv1.ExtendResponse, error) {
		return isobarv1.NewWorkerServiceClient(c).Extend(ctx, r)
	})
}

func (h *workers) Complete(ctx context.Context, r *isobarv1.CompleteRequest) (*isobarv1.CompleteResponse, error) {
	return route(ctx, h.Services, h.Scheduler.Cell.ID, r, h.Scheduler.Complete, func(ctx context.Context, c *connect.Client, r *isobarv1.CompleteRequest) (*isobarv1.CompleteResponse, error) {
		return isobarv1.NewWorkerServiceClient(c).Complete(ctx, r)
	})
}

func (h *workers) Fail(ctx context.Context, r *isobarv1.FailRequest) (*isobarv1.FailResponse, error) {
	return route(ctx, h.Services, h.Scheduler.Cell.ID, r, h.Scheduler.Fail, func(ctx context.Context, c *connect.Client, r *isobarv1.FailRequest) (*isobarv1.FailResponse, error) {
		return isobarv1.NewWorkerServiceClient(c).Fail(ctx, r)
	})
}

// Code streams a module of this server's store.
func (h *workers) Code(ctx context.Context, r *isobarv1.CodeRequest, out isobarv1.WorkerServiceCodeServerStream) error {
	return peers.SendCode(ctx, h.Modules, r.Digest, func(b []byte) error { return out.Send(&isobarv1.CodeResponse{Chunk: b}) })
}
