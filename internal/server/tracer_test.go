package server

import (
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
)

// TestALeasesSpanSaysWhatHeldItUp: cause, bound and time, and nothing that a person
// wrote of a pace or a pause.
func TestALeasesSpanSaysWhatHeldItUp(t *testing.T) {
	t.Parallel()
	var spans tracetest.SpanRecorder
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(&spans))
	tracer := leaseTracer{tracer: provider.Tracer("test"), cell: mesh.Cell{ID: "eu-1"}}
	_, end := tracer.Lease("", scheduler.LeaseInfo{
		Name: "isobar.lease", Record: &meshv1.TaskRecord{Id: "t1"}, Held: []*isobarv1.Held{
			{Cause: "concurrency", Why: "concurrency: tenant acme is at its bound of 9 tokens", Lasted: durationpb.New(1500 * time.Millisecond)},
			{Cause: "paced", Why: "paced: function f starts 1 a second, of 2 at most: drift reported: a person's words", Lasted: durationpb.New(time.Second)},
		},
	})
	end("completed")
	events := spans.Ended()[0].Events()
	want := [][]attribute.KeyValue{
		{
			attribute.String("isobar.held.cause", "concurrency"), attribute.Int64("isobar.held.ms", 1500),
			attribute.String("isobar.held.why", "concurrency: tenant acme is at its bound of 9 tokens"),
		},
		{attribute.String("isobar.held.cause", "paced"), attribute.Int64("isobar.held.ms", 1000)},
	}
	if len(events) != len(want) {
		t.Fatalf("the span has events %v", events)
	}
	for i, e := range events {
		got, wanted := attribute.NewSet(e.Attributes...), attribute.NewSet(want[i]...)
		if e.Name != "isobar.held" || !got.Equals(&wanted) {
			t.Errorf("event %s says %v, want %v", e.Name, e.Attributes, want[i])
		}
	}
}
