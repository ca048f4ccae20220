package worker

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

// The words of Outcome.status.
const (
	statusDone      = "done"
	statusRetry     = "retry"
	statusFailed    = "failed"
	statusTimeout   = "timeout"
	statusMemory    = "memory"
	statusCancelled = "cancelled"
	statusLost      = "lost"
	statusRefused   = "refused"
)

const (
	// What the API takes when a manifest names none.
	defaultTimeout   = time.Minute
	defaultMemoryMiB = 128
	// maxMessageText bounds an outcome's sentence, in bytes.
	maxMessageText = 1 << 10
)

// start runs the attempt in its own goroutine, which posts its end.
func (w *Worker) start(j *job, a *isobarv1.Assignment) {
	w.counts.started.Add(1)
	w.jobLog(j).Debug("attempt starts", "function", a.GetFunction(), "variant", a.GetVariant().GetName())
	ctx, kill := context.WithCancelCause(context.Background())
	j.kill = kill
	j.variant = a.GetFunction() + "/" + a.GetVariant().GetName()
	runtime := w.opts.Runtimes[attempt.Kind(a.GetVariant().GetRuntime())]
	go func() {
		defer kill(nil)
		o, warm := w.execute(ctx, runtime, a)
		w.post(event{job: j, outcome: o, warm: warm})
	}()
}

// kill ends a running attempt; the runtime reports the reason back.
func (w *Worker) kill(j *job, reason attempt.Reason, message string, now time.Time) {
	if !j.running() || !j.killed.IsZero() {
		return
	}
	j.killed = now
	w.jobLog(j).Info("kill", "reason", message)
	j.kill(&attempt.Kill{Reason: reason, Message: message})
}

// ended keeps the outcome of an attempt and hands it over.
func (w *Worker) ended(j *job, o *isobarv1.Outcome, warm bool, now time.Time) {
	w.table.end(j, o)
	if warm && w.warm.touch(j.variant) {
		w.sendWarm(w.link)
	}
	if o.GetStatus() == statusDone {
		w.counts.done.Add(1)
	} else {
		w.counts.failed.Add(1)
	}
	w.jobLog(j).Debug("attempt ended", "status", o.GetStatus(), "run_time", o.GetRunTime().AsDuration())
	w.deliver(j, now)
}

// deliver sends an outcome if there is a stream; else it waits for one. That
// of an invoke is sent once, to the server whose caller waits, or dropped.
func (w *Worker) deliver(j *job, now time.Time) {
	l := w.link
	if l == nil || !l.up {
		return
	}
	if !j.invoke {
		w.sendResult(j, l, now)
		return
	}
	w.table.remove(j)
	if l.address == j.from {
		l.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Invoked{
			Invoked: &isobarv1.InvokeResult{TaskId: j.task, Outcome: j.outcome},
		}})
	}
}

func (w *Worker) sendResult(j *job, l *link, now time.Time) {
	j.sentOn, j.sentAt = l, now
	if j.outcome.GetStatus() == statusDone {
		l.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Complete{Complete: &isobarv1.CompleteRequest{
			Worker: w.opts.Name, Session: w.session, Lease: j.ref(), Outcome: j.outcome,
		}}})
		return
	}
	l.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Fail{Fail: &isobarv1.FailRequest{
		Worker: w.opts.Name, Session: w.session, Lease: j.ref(), Outcome: j.outcome,
	}}})
}

func (w *Worker) sendWarm(l *link) {
	if l == nil || !l.up || len(w.warm.names) == 0 {
		return
	}
	l.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Warm{
		Warm: &isobarv1.Warm{Variants: w.warm.sorted()},
	}})
}

// execute runs one attempt inside its span. It reports whether the function
// itself was run, so that its variant is warm now. It uses nothing of the
// loop's.
func (w *Worker) execute(ctx context.Context, runtime attempt.Runtime, a *isobarv1.Assignment) (_ *isobarv1.Outcome, warm bool) {
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": a.GetTraceparent()})
	kind := trace.SpanKindConsumer
	trigger := semconv.FaaSTriggerPubSub
	if a.GetInvoke() {
		kind, trigger = trace.SpanKindServer, semconv.FaaSTriggerOther
	}
	ctx, span := w.tracer.Start(ctx, "isobar.attempt", trace.WithSpanKind(kind), trace.WithAttributes(
		attribute.String("isobar.task.id", a.GetTaskId()),
		attribute.Int64("isobar.attempt", int64(min(a.GetAttempt(), math.MaxInt64))),
		attribute.String("isobar.tenant", a.GetTenant()),
		attribute.String("isobar.function", a.GetFunction()),
		attribute.String("isobar.variant", a.GetVariant().GetName()),
		attribute.String("isobar.worker", w.opts.Name),
		semconv.FaaSName(a.GetFunction()),
		semconv.FaaSVersion(a.GetVersion()),
		semconv.FaaSInstance(w.opts.Name),
		semconv.FaaSInvocationID(a.GetTaskId()),
		trigger,
	))
	defer span.End()
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	out := runtime.Run(ctx, specOf(a), inputOf(a, carrier.Get("traceparent")))
	o := outcomeOf(out)
	span.SetAttributes(
		attribute.String("isobar.outcome", o.GetStatus()),
		semconv.FaaSColdstart(o.GetCold()),
	)
	if o.GetStatus() != statusDone {
		// The reason is one of a few words; the message could quote the
		// function, and stays out of the span.
		span.SetStatus(codes.Error, string(out.Reason))
	}
	switch out.Reason {
	case attempt.BadSpec, attempt.NoCode, attempt.NotStarted:
		return o, false
	default:
		return o, true
	}
}

func specOf(a *isobarv1.Assignment) attempt.Spec {
	v := a.GetVariant()
	env := make([]attempt.Var, 0, len(a.GetEnv()))
	for name, value := range a.GetEnv() {
		env = append(env, attempt.Var{Name: name, Value: value})
	}
	slices.SortFunc(env, func(a, b attempt.Var) int { return strings.Compare(a.Name, b.Name) })
	timeout := a.GetTimeout().AsDuration()
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	memory := v.GetResources().GetMemoryMib()
	if memory <= 0 {
		memory = defaultMemoryMiB
	}
	return attempt.Spec{
		Kind:    attempt.Kind(v.GetRuntime()),
		Digest:  v.GetModule(),
		Command: v.GetCommand(),
		URL:     v.GetUrl(),
		Env:     env,
		Limits:  attempt.Limits{Timeout: timeout, MemoryMiB: memory},
	}
}

func inputOf(a *isobarv1.Assignment, traceparent string) attempt.Input {
	in := attempt.Input{
		TaskID:      mesh.TaskID(a.GetTaskId()),
		Attempt:     a.GetAttempt(),
		Traceparent: traceparent,
		ContentType: a.GetContentType(),
		Payload:     a.GetPayload(),
	}
	if a.GetDeadline() != nil {
		in.Deadline = a.GetDeadline().AsTime()
	}
	return in
}

// demandOf is what an attempt takes, as the cell accounts for it: what was left
// out of a manifest the cell has filled in.
func demandOf(a *isobarv1.Assignment) mesh.Demand {
	r, c := a.GetVariant().GetResources(), a.GetCost()
	return mesh.Demand{
		CPUMilli:  max(int64(math.Round(r.GetCpu()*1000)), 0),
		MemoryMiB: max(r.GetMemoryMib(), 0),
		GPUs:      max(r.GetGpus(), 0),
		GPUModel:  r.GetGpuModel(),
		Cost: mesh.Cost{
			Tokens: max(c.GetTokens(), 0), Bytes: max(c.GetBytes(), 0) + int64(len(a.GetPayload())), AcceleratorMiB: max(c.GetAcceleratorMib(), 0),
		},
	}
}

func outcomeOf(o attempt.Outcome) *isobarv1.Outcome {
	out := &isobarv1.Outcome{
		Status:     statusOf(o),
		Result:     o.Result,
		ExitCode:   int32(min(max(o.ExitCode, math.MinInt32), math.MaxInt32)),
		Message:    text(o.Message),
		StderrTail: o.StderrTail,
		Cold:       o.Cold > 0,
	}
	if len(out.StderrTail) > mesh.MaxStderrTail {
		out.StderrTail = out.StderrTail[len(out.StderrTail)-mesh.MaxStderrTail:]
	}
	if out.Status == statusDone && len(out.Result) > mesh.MaxResult {
		// The cell would not take it, and the result would wait for ever.
		out.Status, out.Result = statusFailed, nil
		out.Message = attempt.Excess(mesh.MaxResult).Message
	}
	if !o.Started.IsZero() {
		out.Started = timestamppb.New(o.Started)
		out.RunTime = durationpb.New(max(o.Ended.Sub(o.Started), 0))
	}
	if o.Cold > 0 {
		out.ColdStart = durationpb.New(o.Cold)
	}
	if o.RetryAfter > 0 {
		out.RetryAfter = durationpb.New(o.RetryAfter)
	}
	return out
}

func statusOf(o attempt.Outcome) string {
	switch o.Status {
	case attempt.Done:
		return statusDone
	case attempt.Retry:
		return statusRetry
	case attempt.Killed:
		switch o.Reason {
		case attempt.Timeout:
			return statusTimeout
		case attempt.Memory:
			return statusMemory
		case attempt.Cancelled:
			return statusCancelled
		default:
			return statusLost
		}
	default:
		return statusFailed
	}
}

// text makes a sentence fit for a message: valid UTF-8, which the wire format
// insists on, and short.
func text(s string) string {
	if len(s) > maxMessageText {
		s = s[:maxMessageText]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// offer is what the worker can run in total: nothing while it drains.
func (w *Worker) offer() *isobarv1.Offer {
	c := w.opts.Capacity
	if w.draining {
		c = mesh.Capacity{}
	}
	o := &isobarv1.Offer{
		Cpu:       float64(c.CPUMilli) / 1000,
		MemoryMib: c.MemoryMiB,
		Runtimes:  w.opts.runtimes(),
		Functions: w.opts.Functions,
	}
	if m := c.Most; m != (mesh.Cost{}) {
		o.InFlight = &isobarv1.Cost{Tokens: m.Tokens, Bytes: m.Bytes, AcceleratorMib: m.AcceleratorMiB}
	}
	for _, g := range c.GPUs {
		o.Accelerators = append(o.Accelerators, &isobarv1.AcceleratorCount{Model: g.Model, Count: g.Count})
	}
	return o
}

// traceID is the trace of a W3C traceparent; "" when it is none.
func traceID(traceparent string) string {
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent})
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		return sc.TraceID().String()
	}
	return ""
}

func (w *Worker) jobLog(j *job) *slog.Logger {
	l := w.log.With("task", j.task, "attempt", j.attempt)
	if j.traceID != "" {
		l = l.With("trace_id", j.traceID)
	}
	return l
}
