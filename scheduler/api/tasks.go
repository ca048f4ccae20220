package api

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect/v2"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/peers"
)

const defaultTenant = "default"

type tasks struct {
	isobarv1.UnimplementedTaskServiceHandler
	*Services
}

func (h *tasks) Get(ctx context.Context, r *isobarv1.GetRequest) (*isobarv1.GetResponse, error) {
	cell, err := taskCell(r.TaskId)
	if err != nil {
		return nil, err
	}
	return route(ctx, h.Services, cell, r, func(ctx context.Context, r *isobarv1.GetRequest) (*isobarv1.GetResponse, error) {
		rec, err := h.Scheduler.Get(ctx, r.TaskId)
		if err == nil {
			err = h.outside(ctx, rec)
		}
		if err != nil {
			return nil, err
		}
		return &isobarv1.GetResponse{Task: h.task(rec, !r.OmitResult)}, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.GetRequest) (*isobarv1.GetResponse, error) {
		return isobarv1.NewTaskServiceClient(c).Get(ctx, r)
	})
}

func (s *Services) task(rec *meshv1.TaskRecord, result bool) *isobarv1.Task {
	t := scheduler.TaskMessage(rec)
	t.WaitsBehind, t.Ahead = s.Scheduler.Ahead(rec)
	if result && t.State == isobarv1.TaskState_TASK_STATE_COMPLETED {
		t.Result = s.Scheduler.Result(rec.Id)
		if utf8.Valid(t.Result) {
			t.ResultText = string(t.Result)
		}
	}
	return t
}

// outside refuses to tell of a task to a server that was asked for it and lies
// outside its residency, which bounds results and keys too: whoever wants to
// know has to ask here.
func (s *Services) outside(ctx context.Context, rec *meshv1.TaskRecord) error {
	own := s.Scheduler.Cell.ID
	from, ok := peers.Caller(ctx)
	if !ok || from.ID == own || from.Within(mesh.Residency{Allowed: rec.Allowed, Denied: rec.Denied}) {
		return nil
	}
	return &scheduler.Refusal{
		Reason: scheduler.ResidencyForbids, TaskID: rec.Id, Cell: own, Address: s.address(own),
		Message: fmt.Sprintf("the task may not be told of in %v, where %s lies", from.Jurisdictions, from.ID), Hint: "ask " + string(own),
	}
}

// outsideOf is outside for a task not read yet.
func (s *Services) outsideOf(ctx context.Context, id string) error {
	if from, ok := peers.Caller(ctx); !ok || from.ID == s.Scheduler.Cell.ID {
		return nil
	}
	rec, err := s.Scheduler.Get(ctx, id)
	if err != nil {
		return err
	}
	return s.outside(ctx, rec)
}

// maxReason bounds the text of a Cancel, in bytes.
const maxReason = 1024

const (
	defaultWait = 30 * time.Second
	maxWait     = 10 * time.Minute
	// defaultInvoke is how long an Invoke may take that names no timeout.
	defaultInvoke = 30 * time.Second
)

// Wait answers when the task has ended or the time has passed.
func (h *tasks) Wait(ctx context.Context, r *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error) {
	cell, err := taskCell(r.TaskId)
	if err != nil {
		return nil, err
	}
	wait := defaultWait
	if r.Timeout != nil {
		wait = min(max(r.Timeout.AsDuration(), 0), maxWait)
	}
	return route(ctx, h.Services, cell, r, func(ctx context.Context, r *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		if err := h.outsideOf(ctx, r.TaskId); err != nil {
			return nil, err
		}
		rec, ended, err := h.Scheduler.Wait(ctx, r.TaskId)
		if err != nil {
			return nil, err
		}
		return &isobarv1.WaitResponse{Task: h.task(rec, true), Ended: ended}, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error) {
		return isobarv1.NewTaskServiceClient(c).Wait(ctx, r)
	})
}

// List reads what this server knows of its cell's tasks.
func (h *tasks) List(_ context.Context, r *isobarv1.ListRequest) (*isobarv1.ListResponse, error) {
	limit := int(r.Limit)
	switch {
	case limit == 0:
		limit = 100
	case limit < 0 || limit > 1000:
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "limit", Message: fmt.Sprintf("a limit of %d is not between 1 and 1000", limit), Hint: "page with nextPageToken"}
	}
	if _, ok := isobarv1.TaskState_name[int32(r.State)]; !ok {
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "state", Message: "no such state"}
	}
	list, next := h.Scheduler.List(scheduler.Filter{Tenant: r.Tenant, Function: r.Function, State: r.State, After: r.PageToken, Limit: limit})
	out := &isobarv1.ListResponse{NextPageToken: next, Cell: string(h.Scheduler.Cell.ID), Stale: !h.Scheduler.Leading()}
	if a, ok := h.Log.(interface{ AppliedIndex() uint64 }); ok {
		out.AsOfIndex = a.AppliedIndex()
	}
	for _, rec := range list {
		out.Tasks = append(out.Tasks, h.task(rec, false))
	}
	return out, nil
}

// Cancel ends a task at its home.
func (h *tasks) Cancel(ctx context.Context, r *isobarv1.CancelRequest) (*isobarv1.CancelResponse, error) {
	cell, err := taskCell(r.TaskId)
	if err != nil {
		return nil, err
	}
	if len(r.Reason) > maxReason {
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "reason", Message: fmt.Sprintf("a reason of %d bytes is above %d", len(r.Reason), maxReason), Hint: "a sentence will do"}
	}
	return route(ctx, h.Services, cell, r, func(ctx context.Context, r *isobarv1.CancelRequest) (*isobarv1.CancelResponse, error) {
		if err := h.outsideOf(ctx, r.TaskId); err != nil {
			return nil, err
		}
		rec, won, err := h.Scheduler.Cancel(ctx, r.TaskId, r.Reason)
		if err != nil {
			return nil, err
		}
		return &isobarv1.CancelResponse{Task: h.task(rec, false), Cancelled: won}, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.CancelRequest) (*isobarv1.CancelResponse, error) {
		return isobarv1.NewTaskServiceClient(c).Cancel(ctx, r)
	})
}

// Invoke runs a function now.
func (h *tasks) Invoke(ctx context.Context, r *isobarv1.InvokeRequest) (*isobarv1.InvokeResponse, error) {
	return route(ctx, h.Services, h.Scheduler.Cell.ID, r, h.invokeHere, func(ctx context.Context, c *connect.Client, r *isobarv1.InvokeRequest) (*isobarv1.InvokeResponse, error) {
		return isobarv1.NewTaskServiceClient(c).Invoke(ctx, r)
	})
}

// lastWords is what to look at when a call's function did not succeed.
func lastWords(o *isobarv1.Outcome) string {
	switch {
	case o.Status == "memory":
		return "give the variant more memory_mib"
	case len(o.StderrTail) == 0:
		return "the function wrote nothing to standard error"
	default:
		return "its last words: " + string(o.StderrTail)
	}
}

func (h *tasks) invokeHere(ctx context.Context, r *isobarv1.InvokeRequest) (*isobarv1.InvokeResponse, error) {
	timeout := defaultInvoke
	if r.Timeout != nil {
		if timeout = r.Timeout.AsDuration(); timeout <= 0 {
			return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "timeout", Message: "a timeout of " + timeout.String(), Hint: "leave it out for " + defaultInvoke.String()}
		}
	}
	spec := &isobarv1.TaskSpec{
		Tenant: r.Tenant, Function: r.Function, ContentType: r.ContentType, Residency: r.Residency, MinQuality: r.MinQuality,
		CorrelationId: r.CorrelationId, Cost: r.Cost,
	}
	if spec.Tenant == "" {
		spec.Tenant = defaultTenant
	}
	switch in := r.Input.(type) {
	case *isobarv1.InvokeRequest_Payload:
		spec.Input = &isobarv1.TaskSpec_Payload{Payload: in.Payload}
	case *isobarv1.InvokeRequest_Text:
		spec.Input = &isobarv1.TaskSpec_Text{Text: in.Text}
	case *isobarv1.InvokeRequest_Json:
		spec.Input = &isobarv1.TaskSpec_Json{Json: in.Json}
	}
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	sub, err := h.submission(ctx, spec)
	if err != nil {
		return nil, err
	}
	in, err := h.Scheduler.Invocation(*sub)
	if err != nil {
		return nil, h.withAddress(err)
	}
	in.Timeout = min(in.Timeout, timeout)
	correlate(ctx, r.CorrelationId)
	out, err := h.Scheduler.Invoke(ctx, *in)
	if err != nil {
		return nil, err
	}
	o := out.Outcome
	if o.Status != "done" {
		return nil, &scheduler.Refusal{
			Reason: scheduler.FunctionFailed, Message: fmt.Sprintf("%s ended as %s: %s", r.Function, o.Status, o.Message), Unknown: true,
			Hint: lastWords(o),
		}
	}
	res := &isobarv1.InvokeResponse{
		Result: o.Result, Cell: string(out.Cell), Variant: out.Variant, Worker: out.Worker, RunTime: o.RunTime, Cold: o.Cold, Why: out.Why,
	}
	if utf8.Valid(o.Result) {
		res.ResultText = string(o.Result)
	}
	return res, nil
}
