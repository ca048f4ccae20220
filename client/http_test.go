package client

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// Over real connections: refused ports, a server killed with a call in flight,
// a 64 MiB deploy, and the trace context in the header.
func TestOverHTTP(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	functions := &deploys{}
	srv := connect.NewServer()
	isobarv1.RegisterFunctionServiceHandler(srv, functions)
	isobarv1.RegisterTaskServiceHandler(srv, submits(accept))
	mux := http.NewServeMux()
	connecthttp.Mount(mux, srv, connecthttp.WithReadMaxBytes(80<<20))
	cut := 0
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/Submit") {
			if cut++; cut == 1 {
				panic(http.ErrAbortHandler)
			}
		}
		mux.ServeHTTP(w, r)
	}))
	defer ts.Close()

	cl, err := New([]string{closedPort(t), ts.URL}, WithTracer(tracer))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, span := tracer.Tracer("test").Start(t.Context(), "parent")
	if _, err := cl.Deploy(ctx, &isobarv1.DeployRequest{Modules: [][]byte{make([]byte, 64<<20)}}); err != nil {
		t.Fatal(err)
	}
	span.End()
	if functions.bytes != 64<<20 {
		t.Errorf("%d bytes arrived", functions.bytes)
	}
	if functions.trace != span.SpanContext().TraceID() {
		t.Errorf("the server saw trace %s", functions.trace)
	}
	res, err := cl.Submit(ctx, one("x"))
	if err != nil || res.Results[0].GetTaskId() != "id-x" || cut != 2 {
		t.Errorf("submit: %v, %v, %d tries", res, err, cut)
	}
	nobody, err := New([]string{closedPort(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	if _, err := nobody.Cells(t.Context()); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("cells of nobody: %v", err)
	}
}

type deploys struct {
	isobarv1.UnimplementedFunctionServiceHandler
	bytes int
	trace trace.TraceID
}

func (d *deploys) Deploy(ctx context.Context, r *isobarv1.DeployRequest) (*isobarv1.DeployResponse, error) {
	for _, m := range r.GetModules() {
		d.bytes += len(m)
	}
	info, _ := connect.CallInfoForServerContext(ctx)
	h := propagation.MapCarrier{"traceparent": info.RequestHeader().Get("Traceparent")}
	d.trace = trace.SpanContextFromContext(propagation.TraceContext{}.Extract(ctx, h)).TraceID()
	return &isobarv1.DeployResponse{}, nil
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
