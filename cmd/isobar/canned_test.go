package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// The tasks that the canned cell knows.
const (
	doneTask    = "01jd9x6m2e8k6v8w1b4c5d6e7f-eu-north-1-k3f9ab"
	deadTask    = "01jd9x6m2e8k6v8w1b4c5d6e7d-eu-north-1-k3f9ab"
	runningTask = "01jd9x6m2e8k6v8w1b4c5d6e7r-eu-north-1-k3f9ab"
	putOffTask  = "01jd9x6m2e8k6v8w1b4c5d6e7p-eu-north-1-k3f9ab"
	binaryTask  = "01jd9x6m2e8k6v8w1b4c5d6e7b-eu-north-1-k3f9ab"
)

// cannedCell answers as a cell would, without one: the scripts are about what
// the command line does with the answers.
func cannedCell() http.Handler {
	mux := http.NewServeMux()
	server := connect.NewServer()
	isobarv1.RegisterTaskServiceHandler(server, cannedTasks{})
	isobarv1.RegisterFunctionServiceHandler(server, cannedFunctions{})
	isobarv1.RegisterPlacementServiceHandler(server, cannedPlacement{})
	isobarv1.RegisterMeshServiceHandler(server, cannedMesh{})
	isobarv1.RegisterStreamServiceHandler(server, &cannedStreams{held: map[string]int{}})
	isobarv1.RegisterQueueServiceHandler(server, cannedQueues{})
	isobarv1.RegisterDeadLetterServiceHandler(server, cannedLetters{})
	connecthttp.Mount(mux, server)
	return mux
}

func refuse(code connect.Code, e *isobarv1.TaskError) error {
	detail, err := connectproto.NewErrorDetail(e)
	if err != nil {
		return err
	}
	return connect.NewError(code, e.GetMessage()).WithDetail(detail)
}

func at(second int) *timestamppb.Timestamp {
	return timestamppb.New(time.Date(2026, 1, 2, 3, 4, second, 0, time.UTC))
}

type cannedTasks struct {
	isobarv1.UnimplementedTaskServiceHandler
}

func input(t *isobarv1.TaskSpec) string {
	switch in := t.GetInput().(type) {
	case *isobarv1.TaskSpec_Text:
		return "text:" + in.Text
	case *isobarv1.TaskSpec_Payload:
		return "bytes:" + string(in.Payload)
	case *isobarv1.TaskSpec_Json:
		return "json:" + in.Json.GetStructValue().GetFields()["a"].GetStringValue()
	default:
		return "none"
	}
}

func (cannedTasks) Submit(_ context.Context, req *isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
	t := req.GetTasks()[0]
	result := &isobarv1.SubmitResult{TaskId: doneTask, State: isobarv1.TaskState_TASK_STATE_READY, Why: "eu-north-1 is the cheapest of 3"}
	switch t.GetFunction() {
	case "upper":
	case "echo": // says what arrived
		result.Why = strings.Join([]string{
			input(t), t.GetTenant(), t.GetLane(), strings.Join(t.GetResidency().GetAllowed(), "+"),
			strings.Join(t.GetResidency().GetDenied(), "+"), t.GetIdempotencyKey(), t.GetRequestId(),
		}, "|")
		if t.GetMaxDelay() != nil || t.GetMaxRtt() != nil {
			result.Why += "|" + t.GetMaxDelay().AsDuration().String() + "|" + t.GetMaxRtt().AsDuration().String()
		}
		if c := t.GetCost(); c != nil {
			result.Why += fmt.Sprintf("|%d tokens %d bytes %d MiB", c.GetTokens(), c.GetBytes(), c.GetAcceleratorMib())
		}
		for _, in := range t.GetInputs() {
			result.Why += fmt.Sprintf("|%s %d %s", in.GetName(), in.GetBytes(), strings.Join(in.GetPlaces(), "+"))
		}
	case "dead":
		result.TaskId = deadTask
	case "slow":
		result.TaskId = runningTask
	case "again":
		result.Duplicate, result.State = true, isobarv1.TaskState_TASK_STATE_COMPLETED
	case "full":
		return nil, refuse(connect.CodeResourceExhausted, &isobarv1.TaskError{
			Reason: "queue_full", Message: "the queue of full holds 100000 tasks, its cap", Hint: "try again in 2s", Outcome: "not_accepted",
		})
	default:
		return nil, refuse(connect.CodeNotFound, &isobarv1.TaskError{
			Reason: "unknown_function", Message: "no function " + t.GetFunction(), Hint: "deploy it: isobar deploy " + t.GetFunction(), Outcome: "not_accepted",
		})
	}
	if t.GetLane() == "fast" {
		return nil, refuse(connect.CodeInvalidArgument, &isobarv1.TaskError{
			Reason: "unknown_lane", Message: `unknown lane "fast"`, Hint: "use critical, interactive, standard or batch", Outcome: "not_accepted",
		})
	}
	return &isobarv1.SubmitResponse{Results: []*isobarv1.SubmitResult{result}}, nil
}

func task(id string) (*isobarv1.Task, error) {
	t := &isobarv1.Task{
		Id: id, Tenant: "default", Function: "upper", Version: "sha256:1111", Lane: "standard", Home: "eu-north-1",
		Submitted: at(5), PayloadBytes: 5, Attempt: 2,
		Attempts: []*isobarv1.Attempt{
			{
				Number: 1, Cell: "us-east-1", Region: "us-east", Worker: "w1", Variant: "small", Leased: at(6), Ended: at(7), Outcome: "retry",
				Counted: true, ExitCode: 75, Message: "try again", StderrTail: []byte("not now\n\x1b[31mred\n"),
				RunTime: durationpb.New(83 * time.Millisecond), Cold: true, Decision: "us-east-1 is the cheapest of 3",
			},
			{
				Number: 2, Cell: "eu-north-1", Region: "eu-north", Worker: "w1", Variant: "small", Leased: at(8), Ended: at(9), Outcome: "done",
				Counted: true, RunTime: durationpb.New(1234 * time.Millisecond),
			},
		},
	}
	switch id {
	case doneTask:
		t.State, t.Ended, t.Result, t.ResultText = isobarv1.TaskState_TASK_STATE_COMPLETED, at(9), []byte("HELLO\n"), "HELLO\n"
	case binaryTask:
		t.State, t.Ended, t.Result = isobarv1.TaskState_TASK_STATE_COMPLETED, at(9), []byte{0xff, 0x00, 0x1b}
	case deadTask:
		t.State, t.Ended, t.Reason = isobarv1.TaskState_TASK_STATE_DEAD, at(9), "4 of 4 attempts failed"
	case runningTask:
		t.State = isobarv1.TaskState_TASK_STATE_LEASED
	case putOffTask:
		t.State, t.Attempts, t.Attempt, t.Next = isobarv1.TaskState_TASK_STATE_DEFERRED, nil, 0, at(11)
		t.Inputs = []*isobarv1.Input{{Name: "weights", Bytes: 40 << 30, Places: []string{"eu-west", "us-east"}}}
		t.MaxDelay, t.StartBy, t.MaxRtt = durationpb.New(8*time.Second), at(13), durationpb.New(150*time.Millisecond)
		t.Plan = &isobarv1.Plan{Start: at(11), Cell: "us-east-1", Region: "us-east", Variant: "small", Reason: cannedPlan().Later, Plans: 1, Waits: true}
	default:
		return nil, refuse(connect.CodeNotFound, &isobarv1.TaskError{Reason: "unknown_task", Message: "no task " + id})
	}
	return t, nil
}

func (cannedTasks) Get(_ context.Context, req *isobarv1.GetRequest) (*isobarv1.GetResponse, error) {
	t, err := task(req.GetTaskId())
	return &isobarv1.GetResponse{Task: t}, err
}

func (cannedTasks) Wait(ctx context.Context, req *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error) {
	t, err := task(req.GetTaskId())
	if err == nil && !ended(t.GetState()) {
		timer := time.NewTimer(req.GetTimeout().AsDuration())
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return &isobarv1.WaitResponse{Task: t, Ended: ended(t.GetState())}, err
}

func (cannedTasks) List(_ context.Context, req *isobarv1.ListRequest) (*isobarv1.ListResponse, error) {
	res := &isobarv1.ListResponse{Cell: "eu-north-1", Stale: true, NextPageToken: "p2"}
	for _, id := range []string{doneTask, deadTask} {
		t, err := task(id)
		if err != nil {
			return nil, err
		}
		if req.GetState() == 0 || req.GetState() == t.GetState() {
			res.Tasks = append(res.Tasks, t)
		}
	}
	return res, nil
}

func (cannedTasks) Cancel(_ context.Context, req *isobarv1.CancelRequest) (*isobarv1.CancelResponse, error) {
	t, err := task(req.GetTaskId())
	if err == nil && t.GetState() == isobarv1.TaskState_TASK_STATE_LEASED {
		t.State, t.Reason = isobarv1.TaskState_TASK_STATE_CANCELLED, req.GetReason()
		return &isobarv1.CancelResponse{Task: t, Cancelled: true}, nil
	}
	return &isobarv1.CancelResponse{Task: t}, err
}

func (cannedTasks) Invoke(_ context.Context, req *isobarv1.InvokeRequest) (*isobarv1.InvokeResponse, error) {
	if req.GetFunction() == "nobody" {
		return nil, refuse(connect.CodeUnavailable, &isobarv1.TaskError{
			Reason: "no_leader", Message: "the cell has no leader now", Outcome: "outcome_unknown",
		})
	}
	return &isobarv1.InvokeResponse{
		Result: []byte(strings.ToUpper(req.GetText())), Cell: "eu-north-1", Variant: "small", Worker: "w1",
		RunTime: durationpb.New(3 * time.Millisecond), Cold: true, Why: "the home has room",
	}, nil
}

type cannedFunctions struct {
	isobarv1.UnimplementedFunctionServiceHandler
}

func cells() []*isobarv1.CellReadiness {
	return []*isobarv1.CellReadiness{{Cell: "eu-north-1", Ready: true}, {Cell: "us-east-1", Message: "pulling code"}}
}

func (cannedFunctions) Deploy(_ context.Context, req *isobarv1.DeployRequest) (*isobarv1.DeployResponse, error) {
	spec := req.GetSpec()
	v := spec.GetVariants()[0]
	version := strings.Join([]string{v.GetRuntime(), v.GetModule(), strings.Join(v.GetCommand(), ","), v.GetUrl()}, ";")
	return &isobarv1.DeployResponse{Function: &isobarv1.Function{Spec: spec, Version: version}, Cells: cells()}, nil
}

func (cannedFunctions) Get(_ context.Context, req *isobarv1.FunctionServiceGetRequest) (*isobarv1.FunctionServiceGetResponse, error) {
	fn := &isobarv1.Function{Version: "sha256:1111", Deployed: at(1), Spec: &isobarv1.FunctionSpec{
		Tenant: "default", Name: req.GetName(), Timeout: durationpb.New(time.Minute),
		Variants: []*isobarv1.Variant{{
			Name: "small", Runtime: "exec", Command: []string{"tr", "a-z", "A-Z"}, Quality: 0.72, Usd: 0.000012,
			Resources: &isobarv1.Resources{Cpu: 0.5, MemoryMib: 64, Gpus: 1, GpuModel: "H100"}, Run: durationpb.New(80 * time.Millisecond),
		}},
	}}
	ready := cells()
	ready[1] = &isobarv1.CellReadiness{Cell: "us-east-1", Ready: req.GetName() != "stuck"}
	res := &isobarv1.FunctionServiceGetResponse{Function: fn, Cells: ready}
	if req.GetName() == "paced" {
		res.Pace = &isobarv1.PaceState{Cell: "eu-north-1", Rate: 2.5, Most: 20, Reason: "drift reported: PSI 0.31", Since: at(2), Drift: 3}
	}
	return res, nil
}

func (cannedFunctions) Report(_ context.Context, r *isobarv1.ReportRequest) (*isobarv1.ReportResponse, error) {
	words := fmt.Sprintf("%s %s %d %s", r.GetKind(), r.GetSeverity(), r.GetCount(), r.GetMessage())
	res := &isobarv1.ReportResponse{ReportId: r.GetReportId(), Results: []*isobarv1.ReportResult{
		{Cell: "eu-north-1", Pace: &isobarv1.PaceState{Cell: "eu-north-1", Rate: 2.5, Most: 20, Reason: words}},
	}}
	if r.GetFunction() == "half" {
		res.Results = append(res.Results, &isobarv1.ReportResult{Cell: "us-east-1", Message: "no server answers"})
	}
	return res, nil
}

func (c cannedFunctions) List(ctx context.Context, _ *isobarv1.FunctionServiceListRequest) (*isobarv1.FunctionServiceListResponse, error) {
	res, err := c.Get(ctx, &isobarv1.FunctionServiceGetRequest{Name: "upper"})
	return &isobarv1.FunctionServiceListResponse{Functions: []*isobarv1.Function{res.GetFunction()}}, err
}

func (cannedFunctions) Delete(context.Context, *isobarv1.FunctionServiceDeleteRequest) (*isobarv1.FunctionServiceDeleteResponse, error) {
	return &isobarv1.FunctionServiceDeleteResponse{}, nil
}

// cannedPlan is a decision that put a start off.
func cannedPlan() *isobarv1.Decision {
	start := func(s, put int, carbon, latency, g float64) *isobarv1.Start {
		return &isobarv1.Start{
			At: at(s), Put: durationpb.New(time.Duration(put) * time.Second), Score: 14e-6 + carbon + latency, Compute: 14e-6, Carbon: carbon,
			Latency: latency, Gco2Eq: carbon / 190 * 1e6, Intensity: g,
		}
	}
	return &isobarv1.Decision{
		At: at(6), Home: "eu-north-1", CarbonPrice: 190, LatencyPrice: 1.33e-5, DelayPrice: 1.33e-7, QualityPrice: 0.001,
		Later:   "starts about 03:04:11 UTC in us-east, because carbon is 120 g/kWh lower then",
		Summary: "us-east-1/small: $0.000022, of it carbon 36 %; put off until 03:04:11 UTC: carbon is 120 g/kWh lower then",
		Candidates: []*isobarv1.Candidate{
			{Cell: "us-east-1", Variant: "small", Start: at(11), Put: durationpb.New(5 * time.Second), Score: 25e-6, Compute: 14e-6, Carbon: 7e-6, Latency: 1e-6, Intensity: 200, Scarcity: 3e-6, Forecast: "model"},
			{
				Cell: "eu-north-1", Variant: "small", Start: at(6), Score: 0.80014, Compute: 14e-6, Carbon: 9e-6, Data: 0.8001, Scarcity: 17e-6,
				Fetch: durationpb.New(9500 * time.Millisecond),
			},
		},
		Starts: []*isobarv1.Start{start(6, 0, 10e-6, 0, 320), start(8, 2, 9e-6, 5e-7, 300), start(11, 5, 7e-6, 1e-6, 200)},
		Notes:  []string{"us-east-1/small would start at once with a carbon_price below 50 (now 190)"},
	}
}

type cannedPlacement struct {
	isobarv1.UnimplementedPlacementServiceHandler
}

func (cannedPlacement) Explain(_ context.Context, req *isobarv1.ExplainRequest) (*isobarv1.ExplainResponse, error) {
	d := &isobarv1.Decision{
		At: at(6), Home: "eu-north-1", CarbonPrice: 190, LatencyPrice: 1.33e-5, QualityPrice: 0.001, Attempt: 1,
		Summary: "us-east-1 is the cheapest of 2: compute is lower by 0.83 USD for a million",
		Candidates: []*isobarv1.Candidate{
			{
				Cell: "us-east-1", Variant: "small", Score: 15.5e-6, Compute: 13.3e-6, Egress: 1e-7, Carbon: 8e-7, Latency: 1.2e-6, ColdStart: 1e-7,
				Run: durationpb.New(time.Second), Rtt: durationpb.New(112 * time.Millisecond), Gco2Eq: 0.00041, Intensity: 425.3, Free: 4,
			},
			{Cell: "eu-north-1", Variant: "small", Score: 15.6e-6, Compute: 14.2e-6, Carbon: 3e-8, Latency: 1.37e-6, Run: durationpb.New(time.Second)},
		},
		RuledOut: []*isobarv1.RuledOut{{Cell: "ap-south-1", Variant: "small", Constraint: "residency", Detail: "lies in in; allowed are eu, us"}},
		Flips:    []*isobarv1.Flip{{Weight: "carbon_price", Now: 190, At: 214.5, Cell: "eu-north-1", Variant: "small"}},
		Notes:    []string{"carbon of us-east unknown, mean used"},
		Counts:   []*isobarv1.ConstraintCount{{Constraint: "residency", Count: 3}},
		Held: []*isobarv1.Held{
			{Cause: "paced", Why: "paced: function classify starts 0.5 a second", Since: at(1), Lasted: durationpb.New(4200 * time.Millisecond)},
			{Cause: "concurrency", Why: "concurrency: tenant acme is at its bound of 5000 tokens", Since: at(5), Lasted: durationpb.New(800 * time.Millisecond)},
		},
	}
	res := &isobarv1.ExplainResponse{Decisions: []*isobarv1.Decision{d}}
	if req.GetTask() != nil || req.CarbonPrice != nil || req.LatencyPrice != nil || len(req.GetWithoutRegions()) > 0 {
		now := &isobarv1.Decision{
			At: at(7), Home: "eu-north-1", CarbonPrice: req.GetCarbonPrice(), LatencyPrice: req.GetLatencyPrice(),
			Hint: "no region allowed by eu offers H100; us-east does",
			Notes: []string{
				"asked without " + strings.Join(req.GetWithoutRegions(), "+") + ", within " +
					strings.Join(req.GetTask().GetResidency().GetAllowed(), "+") + ", of " + req.GetTask().GetFunction(),
			},
		}
		res = &isobarv1.ExplainResponse{Now: now}
	}
	if req.GetTaskId() == putOffTask {
		res.Decisions, res.Plan = nil, cannedPlan()
	}
	return res, nil
}

type cannedMesh struct {
	isobarv1.UnimplementedMeshServiceHandler
}

func (m cannedMesh) Watch(ctx context.Context, _ *isobarv1.WatchRequest, out isobarv1.MeshServiceWatchServerStream) error {
	for range 2 {
		res, err := m.Cells(ctx, nil)
		if err != nil {
			return err
		}
		if err := out.Send(&isobarv1.WatchResponse{Cells: res.Cells[:1]}); err != nil {
			return err
		}
	}
	return connect.NewError(connect.CodeInternal, "the test is over")
}

func (cannedMesh) Workers(context.Context, *isobarv1.WorkersRequest) (*isobarv1.WorkersResponse, error) {
	return &isobarv1.WorkersResponse{Workers: []*isobarv1.WorkerInfo{{
		Worker: "w1", Total: &isobarv1.Offer{Cpu: 4, MemoryMib: 1024, Runtimes: []string{"exec", "wasm"}}, Free: &isobarv1.Offer{Cpu: 1.5, MemoryMib: 512},
		Running: 3, Warm: []string{"upper"}, Since: timestamppb.New(time.UnixMilli(1767323045000)), Pid: 99,
	}}}, nil
}

func (cannedMesh) Carbon(context.Context, *isobarv1.CarbonRequest) (*isobarv1.CarbonResponse, error) {
	return &isobarv1.CarbonResponse{Series: []*isobarv1.CarbonSeries{{
		Region: "eu-north", Zone: "SE-SE1", Kind: "average", Source: "own feed; the hours ahead by persistence",
		From: timestamppb.New(time.UnixMilli(1767322800000)), Gco2EqPerKwh: []float64{15.9, 16, 17.25},
	}}}, nil
}

func (cannedMesh) Cells(context.Context, *isobarv1.CellsRequest) (*isobarv1.CellsResponse, error) {
	offer := func(cpu float64) *isobarv1.Offer {
		return &isobarv1.Offer{Cpu: cpu, MemoryMib: 1024, Accelerators: []*isobarv1.AcceleratorCount{{Model: "H100", Count: 2}}}
	}
	return &isobarv1.CellsResponse{Cells: []*isobarv1.CellInfo{
		{
			Cell: "eu-north-1", Region: "eu-north", Jurisdictions: []string{"eu", "se"}, Self: true, Health: "ok", Total: offer(4), Free: offer(2.5),
			Backlog: []int64{1, 0, 2, 0}, Leased: 3, UsdPerCpuHour: 0.051, Zone: "SE-SE1", Gco2EqPerKwh: 15.9, Workers: 1, Forecast: "persistence",
			Addresses: []string{"http://127.0.0.1:7101"}, Servers: []*isobarv1.ServerInfo{{Name: "s1", Leader: true, Voter: true, Pid: 4242}},
		},
		{
			Cell: "us-east-1", Region: "us-east", Jurisdictions: []string{"us"}, Health: "digest is 9s old", DigestAge: durationpb.New(9 * time.Second),
			Total: offer(4), Free: offer(0), UsdPerCpuHour: 0.048, Zone: "US-MIDA-PJM", Gco2EqPerKwh: 425.34, Workers: 1, Forecast: "model",
			Rtt: durationpb.New(112 * time.Millisecond), RttEmulated: true, Addresses: []string{"http://127.0.0.1:7201"},
		},
	}}, nil
}
