package server

import (
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
)

// leaseTracer makes a span of each lease, with the decision that bound it as an
// event. It never sees a payload, a result or a key.
type leaseTracer struct {
	tracer trace.Tracer
	cell   mesh.Cell
}

// tracer is nil when nobody would see the spans: what they say is not put together
// then, and the context of the submit goes on to workers.
func (s *Server) tracer() scheduler.Tracer {
	if !s.tel.Exports() {
		return nil
	}
	return leaseTracer{s.tel.TracerProvider().Tracer("isobar/scheduler"), s.cell}
}

func (t leaseTracer) Lease(parent string, l scheduler.LeaseInfo) (string, func(string)) {
	propagator := propagation.TraceContext{}
	ctx := propagator.Extract(context.Background(), propagation.MapCarrier{"traceparent": parent})
	attrs := []attribute.KeyValue{
		attribute.Int64("isobar.attempt", int64(l.Attempt)), attribute.String("isobar.cell", string(l.Cell)),
		attribute.String("isobar.variant", l.Variant), attribute.String("faas.trigger", "pubsub"),
	}
	if l.Worker != "" {
		attrs = append(attrs, attribute.String("isobar.worker", l.Worker))
	}
	if r := l.Record; r != nil {
		attrs = append(attrs,
			attribute.String("isobar.task.id", r.Id), attribute.String("isobar.tenant", r.Tenant), attribute.String("faas.invoked_name", r.Function),
			attribute.String("isobar.lane", mesh.Lane(r.Lane).String()), attribute.String("isobar.home", string(t.cell.ID)),
			attribute.Int64("isobar.queue_ms", r.GetLease().GetGrantedMs()-r.SubmittedMs))
	}
	if g := l.Guest; g != nil {
		attrs = append(attrs,
			attribute.String("isobar.task.id", g.TaskId), attribute.String("isobar.tenant", g.Tenant), attribute.String("faas.invoked_name", g.Function),
			attribute.String("isobar.home", g.Home))
	}
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(attrs...)}
	if submit := trace.SpanContextFromContext(ctx); submit.IsValid() && l.Record != nil {
		// As OpenTelemetry's messaging conventions ask: what processes a message
		// links to what created it, whichever attempt this is.
		options = append(options, trace.WithLinks(trace.Link{
			SpanContext: submit, Attributes: []attribute.KeyValue{attribute.String("messaging.operation.type", "create")},
		}))
	}
	ctx, span := t.tracer.Start(ctx, l.Name, options...)
	if d := l.Decision; d != nil {
		span.AddEvent("isobar.decision", trace.WithAttributes(decisionAttributes(l)...))
	}
	for _, h := range l.Held {
		span.AddEvent("isobar.held", trace.WithAttributes(heldAttributes(h)...))
	}
	carrier := propagation.MapCarrier{}
	propagator.Inject(ctx, carrier)
	out := carrier["traceparent"]
	if out == "" {
		out = parent // not sampled here: the context goes on as it came
	}
	return out, func(outcome string) {
		span.SetAttributes(attribute.String("isobar.outcome", outcome))
		if strings.Contains(outcome, "DEAD") {
			span.SetStatus(codes.Error, outcome)
		}
		span.End()
	}
}

// Planned makes a span of no length of a start that was put off: when it will be
// looked at again may be another leader's to see.
func (t leaseTracer) Planned(parent string, p scheduler.PlanInfo) {
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": parent})
	c := p.Decision.Chosen
	_, span := t.tracer.Start(ctx, "isobar.plan", trace.WithAttributes(
		attribute.String("isobar.task.id", p.Record.Id), attribute.String("isobar.tenant", p.Record.Tenant),
		attribute.String("faas.invoked_name", p.Record.Function), attribute.String("isobar.home", string(t.cell.ID)),
	))
	span.AddEvent("isobar.put_off", trace.WithAttributes(
		attribute.String("isobar.plan.until", p.Until.UTC().Format(time.RFC3339Nano)), attribute.String("isobar.plan.reason", p.Decision.Later()),
		attribute.String("isobar.cell", string(c.Cell)), attribute.String("isobar.variant", c.Variant), attribute.Int("isobar.plan.number", int(p.Record.Plans)),
	))
	span.End()
}

// heldAttributes says which bound held the task up and how long. The words of a pace
// and of a pause hold what a person wrote, which is not for a trace.
func heldAttributes(h *isobarv1.Held) []attribute.KeyValue {
	attrs := []attribute.KeyValue{
		attribute.String("isobar.held.cause", h.Cause), attribute.Int64("isobar.held.ms", h.Lasted.AsDuration().Milliseconds()),
	}
	if h.Cause != "paced" && h.Cause != "paused" {
		attrs = append(attrs, attribute.String("isobar.held.why", h.Why))
	}
	return attrs
}

func decisionAttributes(l scheduler.LeaseInfo) []attribute.KeyValue {
	d := l.Decision
	attrs := []attribute.KeyValue{attribute.String("isobar.decision.summary", d.Summary())}
	var names []string
	var scores []float64
	for _, c := range d.Candidates {
		names, scores = append(names, string(c.Cell)+"/"+c.Variant), append(scores, c.Score)
	}
	attrs = append(attrs, attribute.StringSlice("isobar.decision.candidates", names), attribute.Float64Slice("isobar.decision.scores_usd", scores))
	for _, c := range d.Counts {
		attrs = append(attrs, attribute.Int("isobar.decision.ruled_out."+string(c.Constraint), c.Count))
	}
	return attrs
}
