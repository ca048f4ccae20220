package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry"
	"github.com/isobar-mesh/isobar/scheduler"
)

// maxBatch bounds one Submit.
const maxBatch = 1000

// Submit accepts each task at its home: those of one ordering key one after the
// other, all else side by side. All are accepted before any is waited for.
func (h *tasks) Submit(ctx context.Context, r *isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
	if n := len(r.Tasks); n == 0 || n > maxBatch {
		return nil, &scheduler.Refusal{
			Reason: scheduler.BadRequest, Field: "tasks", Message: fmt.Sprintf("%d tasks; one call takes 1 to %d", n, maxBatch), Hint: `send {"tasks":[{"function":"…"}]}`,
		}
	}
	wait := min(max(r.Wait.AsDuration(), 0), maxWait)
	if len(r.Tasks) == 1 {
		res, err := h.submit(ctx, r.Tasks[0], wait)
		if err != nil {
			return nil, ofTask(0, err)
		}
		return &isobarv1.SubmitResponse{Results: []*isobarv1.SubmitResult{res}}, nil
	}
	out := h.submitAll(ctx, r)
	if wait > 0 {
		h.await(ctx, out.Results, wait)
	}
	return out, nil
}

// submitAll accepts several tasks, each with a result of its own.
func (h *tasks) submitAll(ctx context.Context, r *isobarv1.SubmitRequest) *isobarv1.SubmitResponse {
	out := &isobarv1.SubmitResponse{Results: make([]*isobarv1.SubmitResult, len(r.Tasks))}
	errs := make([]error, len(r.Tasks))
	var wait sync.WaitGroup
	slots := make(chan struct{}, 256)
	for _, line := range lines(r.Tasks) {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			for _, i := range line {
				var err error
				if out.Results[i], err = h.submit(ctx, r.Tasks[i], 0); err != nil {
					refuseRest(errs, line, i, err)
					return
				}
			}
		})
	}
	wait.Wait()
	for i, err := range errs {
		if err != nil {
			out.Results[i] = &isobarv1.SubmitResult{Error: Describe(err, func() string { return "" })}
		}
	}
	return out
}

// await waits for the ends of what was accepted. A wait that fails leaves its
// result as it is: the task is accepted all the same.
func (h *tasks) await(ctx context.Context, results []*isobarv1.SubmitResult, wait time.Duration) {
	var all sync.WaitGroup
	for _, res := range results {
		if res.Error != nil {
			continue
		}
		all.Go(func() {
			got, err := h.Wait(ctx, &isobarv1.WaitRequest{TaskId: res.TaskId, Timeout: durationpb.New(wait)})
			if err == nil && got.Ended {
				res.Task = got.Task
			}
		})
	}
	all.Wait()
}

// lines are the indexes of the tasks that must be accepted one after the other:
// those of one ordering key together, each other one by itself.
func lines(specs []*isobarv1.TaskSpec) [][]int {
	var out [][]int
	of := map[[3]string]int{}
	for i, spec := range specs {
		key := [3]string{cmp.Or(spec.GetTenant(), defaultTenant), spec.GetFunction(), spec.GetOrderingKey()}
		if at, ok := of[key]; ok && spec.GetOrderingKey() != "" {
			out[at] = append(out[at], i)
			continue
		}
		of[key] = len(out)
		out = append(out, []int{i})
	}
	return out
}

// refuseRest notes that the task at failed, and that those behind it in its line
// were not tried: accepted, they would have gone before it.
func refuseRest(errs []error, line []int, failed int, err error) {
	for _, i := range line[slices.Index(line, failed):] {
		errs[i] = ofTask(i, err)
		if i == failed {
			continue
		}
		ref := *refusal(err, func() string { return "" })
		ref.Message = fmt.Sprintf("not tried: tasks[%d], before it with the ordering key, was not accepted: %s", failed, ref.Message)
		ref.Unknown, ref.Field, ref.TaskID = false, "", ""
		errs[i] = &ref
	}
}

// ofTask says which task of the request a refused field belongs to.
func ofTask(i int, err error) error {
	ref := refusal(err, func() string { return "" })
	if ref.Field == "" {
		return err
	}
	at := *ref
	at.Field = fmt.Sprintf("tasks[%d].%s", i, ref.Field)
	return &at
}

func (h *tasks) submit(ctx context.Context, spec *isobarv1.TaskSpec, wait time.Duration) (*isobarv1.SubmitResult, error) {
	if spec == nil {
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "function", Message: "an empty task"}
	}
	if spec.Tenant == "" {
		spec.Tenant = defaultTenant
	}
	if spec.RequestId == "" {
		spec.RequestId = uuid.NewString() // repeats of this forward find the first
	}
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	cell := h.Scheduler.Cell.ID
	if key := homeKey(spec); key != "" {
		if err := h.checkHomes(ctx); err != nil {
			return nil, err
		}
		// The tenant's too: a server outside it must not pass the body on.
		res, err := h.Scheduler.Residency(spec)
		if err != nil {
			return nil, err
		}
		if cell, err = h.keyedHome(spec.Tenant, key, res); err != nil {
			return nil, err
		}
		if cell != h.Scheduler.Cell.ID && res.Bound() && !h.Scheduler.Cell.Within(res) {
			return nil, &scheduler.Refusal{
				Reason: scheduler.ResidencyForbids, Field: "residency", Cell: cell, Address: h.address(cell),
				Message: fmt.Sprintf("%s lies in %v, which the residency leaves out", h.Scheduler.Cell.ID, h.Scheduler.Cell.Jurisdictions),
				Hint:    "submit it to " + string(cell),
			}
		}
	}
	here := func(ctx context.Context, spec *isobarv1.TaskSpec) (*isobarv1.SubmitResult, error) {
		return h.submitHere(ctx, spec, wait)
	}
	res, err := route(ctx, h.Services, cell, spec, here, h.submitThere(cell, wait))
	return res, h.withAddress(err)
}

// submitThere passes a task on. An answer without its result leaves open whether
// it was accepted.
func (h *tasks) submitThere(cell mesh.CellID, wait time.Duration) func(context.Context, *connect.Client, *isobarv1.TaskSpec) (*isobarv1.SubmitResult, error) {
	return func(ctx context.Context, c *connect.Client, spec *isobarv1.TaskSpec) (*isobarv1.SubmitResult, error) {
		req := &isobarv1.SubmitRequest{Tasks: []*isobarv1.TaskSpec{spec}}
		if wait > 0 {
			req.Wait = durationpb.New(wait)
		}
		res, err := isobarv1.NewTaskServiceClient(c).Submit(ctx, req)
		if err != nil {
			return nil, err
		}
		if len(res.Results) != 1 {
			return nil, h.unavailable(cell, fmt.Errorf("api: submit to %s: %d results for one task", cell, len(res.Results)), true)
		}
		return res.Results[0], nil
	}
}

// homeKey is what decides where a task's home is; "" when it may be anywhere. An
// order needs one home; so does an idempotency key, which then counts among the
// tasks of the ordering key.
func homeKey(spec *isobarv1.TaskSpec) string {
	if spec.OrderingKey != "" {
		return spec.Function + "\x00" + spec.OrderingKey
	}
	return spec.IdempotencyKey
}

// withAddress adds where to submit to a refusal that names a cell.
func (s *Services) withAddress(err error) error {
	var ref *scheduler.Refusal
	if !errors.As(err, &ref) || ref.Reason != scheduler.ResidencyForbids || ref.Address != "" || ref.Cell == "" {
		return err
	}
	at := *ref
	at.Address = s.address(ref.Cell)
	return &at
}

// checkSpec refuses what no server has to look up.
func checkSpec(spec *isobarv1.TaskSpec) error {
	bad := func(field, message, hint string) error {
		return &scheduler.Refusal{Reason: scheduler.BadRequest, Field: field, Message: message, Hint: hint}
	}
	switch {
	case spec.Function == "":
		return bad("function", "a task names a function", "isobar function list shows them")
	case !(spec.MinQuality >= 0 && spec.MinQuality <= 1): // NaN too
		return bad("minQuality", fmt.Sprintf("%v is not between 0 and 1", spec.MinQuality), "quality is a share: 0.8")
	case len(spec.IdempotencyKey) > 256 || len(spec.RequestId) > 256 || len(spec.CorrelationId) > 256:
		return bad("idempotencyKey", "keys and ids are at most 256 bytes", "hash longer ones")
	case len(spec.OrderingKey) > 256 || strings.Contains(spec.OrderingKey, "\x00"):
		return bad("orderingKey", "an ordering key is at most 256 bytes, none of them zero", "hash longer ones")
	case len(spec.ContentType) > 256:
		return bad("contentType", "a content type is at most 256 bytes", "application/json, say")
	case len(spec.GetResidency().GetAllowed())+len(spec.GetResidency().GetDenied()) > 64:
		return bad("residency", "at most 64 jurisdictions", "name the larger ones")
	case spec.Deadline != nil && !spec.Deadline.IsValid():
		return bad("deadline", "not a time between the years 1 and 9999", "2026-01-02T15:04:05Z")
	case spec.NotBefore != nil && !spec.NotBefore.IsValid():
		return bad("notBefore", "not a time between the years 1 and 9999", "2026-01-02T15:04:05Z")
	case spec.MaxDelay != nil && (!spec.MaxDelay.IsValid() || spec.MaxDelay.AsDuration() < 0):
		return bad("maxDelay", "a start is put off by 0 s or more", "6h, say; leave it out for a start as soon as it can")
	case spec.MaxDelay.AsDuration() > 0 && spec.MaxDelay.AsDuration() < time.Millisecond:
		return bad("maxDelay", "a start is put off by whole milliseconds", "1ms or more")
	case spec.MaxRtt != nil && (!spec.MaxRtt.IsValid() || spec.MaxRtt.AsDuration() < 0):
		return bad("maxRtt", "a round trip is 0 s or more", "0.05s, say; leave it out for any distance")
	case spec.MaxRtt.AsDuration() > 0 && spec.MaxRtt.AsDuration() < time.Microsecond:
		return bad("maxRtt", "a round trip is told in whole microseconds", "0.05s, say")
	case len(spec.Lane) > 64:
		return bad("lane", "there is no lane of that name", "use critical, interactive, standard or batch")
	}
	if err := checkInputs(spec.Inputs); err != nil {
		return err
	}
	if err := scheduler.CheckCost("cost", spec.Cost); err != nil {
		return err
	}
	if spec.Retry == nil {
		return nil
	}
	// What it leaves out is its function's, which is not known yet.
	if invalid, ok := errors.AsType[*registry.InvalidError](registry.ValidateRetry("retry", registry.RetryWithDefaults(spec.Retry))); ok {
		f := invalid.Fields[0]
		return bad(f.Field, f.Field+" "+f.Message, "leave it out for the function's own policy")
	}
	return nil
}

// Bounds of what a task says about its inputs.
const (
	mostInputs = 16
	mostPlaces = 64
	mostBytes  = 1 << 50
)

// checkInputs refuses what cannot be data that lies somewhere.
func checkInputs(inputs []*isobarv1.Input) error {
	bad := func(field, message, hint string) error {
		return &scheduler.Refusal{Reason: scheduler.BadRequest, Field: field, Message: message, Hint: hint}
	}
	if len(inputs) > mostInputs {
		return bad("inputs", fmt.Sprintf("%d inputs are above %d", len(inputs), mostInputs), "join the small ones that lie in one place")
	}
	names := map[string]bool{}
	for i, in := range inputs {
		field := fmt.Sprintf("inputs[%d]", i)
		switch name := in.GetName(); {
		case name == "" || len(name) > 256:
			return bad(field+".name", "an input is named by 1 to 256 bytes", "weights, say")
		case names[name]:
			return bad(field+".name", "there are two inputs "+name, "name all places of an input in its places")
		}
		names[in.Name] = true
		switch {
		case in.Bytes < 1 || in.Bytes > mostBytes:
			return bad(field+".bytes", fmt.Sprintf("a size of %d bytes is not 1 byte to 1 PiB", in.Bytes), "leave out what takes no room")
		case len(in.Places) == 0 || len(in.Places) > mostPlaces:
			return bad(field+".places", fmt.Sprintf("an input lies in 1 to %d regions, not in %d", mostPlaces, len(in.Places)), "name those it can be read from")
		case slices.ContainsFunc(in.Places, func(p string) bool { return p == "" || len(p) > 64 }):
			return bad(field+".places", "a region is named by 1 to 64 bytes", "isobar mesh lists the regions")
		}
	}
	return nil
}

func (h *tasks) submitHere(ctx context.Context, spec *isobarv1.TaskSpec, wait time.Duration) (*isobarv1.SubmitResult, error) {
	sub, err := h.submission(ctx, spec)
	if err != nil {
		return nil, err
	}
	sub.Wait = wait
	rec, err := h.Scheduler.Submit(ctx, *sub)
	if err != nil {
		return nil, err
	}
	correlate(ctx, spec.CorrelationId)
	res := &isobarv1.SubmitResult{TaskId: rec.TaskID, State: rec.State, Duplicate: rec.Duplicate}
	if d := rec.Decision; d != nil {
		res.Provisional, res.Why = scheduler.CandidateMessage(d.Chosen), d.Summary()
	}
	// A duplicate may be of another residency than the one that was asked with.
	if rec.Task != nil && h.outside(ctx, rec.Task) == nil {
		res.Task = h.task(rec.Task, true)
	}
	return res, nil
}

// correlate carries the caller's own id to the trace. Only the server that took
// the task does: its residency may leave others out.
func correlate(ctx context.Context, id string) {
	if id != "" {
		trace.SpanFromContext(ctx).SetAttributes(attribute.String("isobar.correlation_id", id))
	}
}

func (s *Services) submission(ctx context.Context, spec *isobarv1.TaskSpec) (*scheduler.Submission, error) {
	sub := &scheduler.Submission{Spec: spec, ContentType: spec.ContentType, Traceparent: s.traceparent(ctx)}
	kind := ""
	var err error
	switch in := spec.Input.(type) {
	case *isobarv1.TaskSpec_Payload:
		sub.Payload, kind = in.Payload, "application/octet-stream"
	case *isobarv1.TaskSpec_Text:
		sub.Payload, kind = []byte(in.Text), "text/plain; charset=utf-8"
	case *isobarv1.TaskSpec_Json:
		sub.Payload, err = jsonBytes(in.Json)
		kind = "application/json"
	}
	if sub.ContentType == "" {
		sub.ContentType = kind
	}
	return sub, err
}

// jsonBytes writes a JSON value in one line. protojson is not used: its output
// varies on purpose, and the payload's hash must not.
func jsonBytes(v *structpb.Value) ([]byte, error) {
	b, err := json.Marshal(v.AsInterface())
	if err != nil {
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "json", Message: "the value is not JSON", Err: err}
	}
	return b, nil
}

// Get answers from the task's home.
