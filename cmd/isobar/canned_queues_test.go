package main

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

type cannedQueues struct {
	isobarv1.UnimplementedQueueServiceHandler
}

func (cannedQueues) List(_ context.Context, req *isobarv1.QueueServiceListRequest) (*isobarv1.QueueServiceListResponse, error) {
	return &isobarv1.QueueServiceListResponse{Cell: "eu-north-1", NextPageToken: req.GetFunction() + req.GetCell() + req.GetPageToken(), Queues: []*isobarv1.Queue{
		{
			Tenant: "default", Function: "upper", Lane: "standard", Ready: 12, Deferred: 3, Leased: 4, Dead: 2, Bytes: 4096,
			Oldest: timestamppb.New(time.Now().Add(-90 * time.Second)), BlockedBy: "room: every place that may run it is taken",
		},
		{Tenant: "default", Function: "upper", Lane: "batch", Pause: &isobarv1.Pause{Since: at(1), Reason: "deploy"}, BlockedBy: "paused: deploy"},
	}}, nil
}

func (cannedQueues) Pause(_ context.Context, req *isobarv1.PauseRequest) (*isobarv1.PauseResponse, error) {
	if req.GetFunction() == "none" {
		return nil, refuse(connect.CodeNotFound, &isobarv1.TaskError{
			Reason: "unknown_queue", Message: `tenant default has no function "none" and no task of one here`, Hint: "isobar queue list shows the queues of a cell",
		})
	}
	q := &isobarv1.Queue{Pause: &isobarv1.Pause{Reason: req.GetReason()}, Lane: req.GetLane(), Cell: req.GetCell()}
	if req.GetLane() != "" {
		return &isobarv1.PauseResponse{Queues: []*isobarv1.Queue{q}}, nil // it was
	}
	return &isobarv1.PauseResponse{Queues: []*isobarv1.Queue{q, q, q, q}, Changed: 4}, nil
}

func (cannedQueues) Resume(context.Context, *isobarv1.ResumeRequest) (*isobarv1.ResumeResponse, error) {
	return &isobarv1.ResumeResponse{Queues: make([]*isobarv1.Queue, 4), Changed: 1}, nil
}

func (cannedQueues) Purge(_ context.Context, req *isobarv1.PurgeRequest) (*isobarv1.PurgeResponse, error) {
	if req.GetToken() == "" {
		return &isobarv1.PurgeResponse{Cancelled: 10_000, Token: "t1"}, nil
	}
	return &isobarv1.PurgeResponse{Cancelled: 23}, nil
}

func (cannedQueues) Peek(_ context.Context, req *isobarv1.PeekRequest) (*isobarv1.PeekResponse, error) {
	t, err := task(doneTask)
	if err != nil {
		return nil, err
	}
	return &isobarv1.PeekResponse{Tasks: []*isobarv1.PeekedTask{
		{Task: t, Payload: []byte("hello\n\x1b[31mred " + req.GetLane() + strings.Repeat("x", 80))}, {Task: t, Payload: []byte{0xff, 0}}, {Task: t, PayloadLost: true},
	}}, nil
}

type cannedLetters struct {
	isobarv1.UnimplementedDeadLetterServiceHandler
}

func (cannedLetters) List(_ context.Context, req *isobarv1.DeadLetterServiceListRequest) (*isobarv1.DeadLetterServiceListResponse, error) {
	t, err := task(deadTask)
	if err != nil {
		return nil, err
	}
	t.IdempotencyKey, t.CorrelationId, t.Ended = "k1", "order-7", at(9)
	f := req.GetFilter()
	return &isobarv1.DeadLetterServiceListResponse{
		Letters: []*isobarv1.DeadLetter{{Task: t, Cause: "memory", Redrives: 1}}, Total: 20, Cell: "eu-north-1",
		NextPageToken: strings.Join([]string{f.GetFunction(), f.GetLane(), f.GetCause(), f.GetEndedBefore().AsTime().Format(time.RFC3339)}, "|"),
	}, nil
}

func (cannedLetters) Redrive(_ context.Context, req *isobarv1.RedriveRequest) (*isobarv1.RedriveResponse, error) {
	if req.GetFilter().GetFunction() == "cut" && req.GetPageToken() != "" {
		return nil, refuse(connect.CodeInvalidArgument, &isobarv1.TaskError{Reason: "bad_request", Message: "the page is of another time"})
	}
	if len(req.GetTaskIds()) == 0 && req.GetPageToken() == "" {
		return &isobarv1.RedriveResponse{Results: []*isobarv1.RedriveResult{{TaskId: deadTask, Redriven: true}}, NextPageToken: "p2"}, nil
	}
	if len(req.GetTaskIds()) == 0 {
		return &isobarv1.RedriveResponse{Results: []*isobarv1.RedriveResult{{TaskId: binaryTask, Already: true}}}, nil
	}
	res := &isobarv1.RedriveResponse{}
	for _, id := range req.GetTaskIds() {
		r := &isobarv1.RedriveResult{TaskId: id, Redriven: id == deadTask}
		if id == doneTask {
			r.Error = &isobarv1.TaskError{Reason: "not_dead", Message: "the task is completed, and only a dead one can be redriven"}
		}
		res.Results = append(res.Results, r)
	}
	return res, nil
}
