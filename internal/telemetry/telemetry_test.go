package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/slogtest"
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/telemetry"
)

func TestTracesReachAnOTLPEndpoint(t *testing.T) {
	t.Parallel()
	received := make(chan *collector.ExportTraceServiceRequest, 4)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var req collector.ExportTraceServiceRequest
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, &req) != nil {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		received <- &req
	}))
	t.Cleanup(server.Close)

	tel, err := telemetry.New(t.Context(), telemetry.Options{
		Service: "isobar-server", Version: "v1", Instance: "s1", Region: "eu-north", Cell: "eu-north-1", Endpoint: server.URL,
	})
	if err != nil {
		t.Fatal(err)
	}
	_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "submit")
	span.End()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := tel.Shutdown(ctx); err != nil { // the flush is what is under test
		t.Fatal(err)
	}
	select {
	case req := <-received:
		attrs := map[string]string{}
		for _, kv := range req.GetResourceSpans()[0].GetResource().GetAttributes() {
			attrs[kv.GetKey()] = kv.GetValue().GetStringValue()
		}
		for key, want := range map[string]string{
			"service.name": "isobar-server", "isobar.region": "eu-north", "isobar.cell": "eu-north-1", "service.instance.id": "s1",
		} {
			if attrs[key] != want {
				t.Errorf("%s is %q, want %q", key, attrs[key], want)
			}
		}
		if name := req.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()[0].GetName(); name != "submit" {
			t.Errorf("span %q", name)
		}
	default:
		t.Error("nothing was exported before Shutdown returned")
	}
}

func TestTraceIDsExistWithoutExport(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
	tel, err := telemetry.New(t.Context(), telemetry.Options{Service: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if tel.Exports() {
		t.Error("it says that it exports")
	}
	ctx, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "a")
	defer span.End()
	if !span.SpanContext().IsValid() {
		t.Error("no trace id")
	}
	header := http.Header{}
	tel.Propagator().Inject(ctx, headers(header))
	if !strings.Contains(header.Get("Traceparent"), span.SpanContext().TraceID().String()) {
		t.Errorf("traceparent %q", header.Get("Traceparent"))
	}
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestEnvironmentChoosesProtocol(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
	if _, err := telemetry.New(t.Context(), telemetry.Options{Service: "x"}); err == nil || !strings.Contains(err.Error(), "carrier-pigeon") {
		t.Errorf("error %v", err)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	tel, err := telemetry.New(t.Context(), telemetry.Options{Service: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if !tel.Exports() {
		t.Error("it does not say that it exports")
	}
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	exporter := tracetest.NewInMemoryExporter()
	tel, err := telemetry.New(t.Context(), telemetry.Options{Service: "isobar-server", Exporter: exporter})
	if err != nil {
		t.Fatal(err)
	}
	counter, err := tel.MeterProvider().Meter("test").Int64Counter("isobar.accepted")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)
	w := httptest.NewRecorder()
	tel.MetricsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{"isobar_accepted_total{", "go_goroutines", "process_start_time_seconds"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in the scrape", want)
		}
	}
	_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "a")
	span.End()
	if n := len(exporter.GetSpans()); n != 1 {
		t.Errorf("%d spans", n)
	}
}

func TestLogCarriesTraceAtTheTop(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, err := telemetry.NewLogger(&b, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	id := trace.TraceID{1}
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: trace.SpanID{2}}))
	log.With("a", 1).WithGroup("g").With("b", 2).InfoContext(ctx, "in group", "c", 3)
	log.DebugContext(ctx, "too quiet")
	log.With("a", 1).InfoContext(ctx, "flat")
	log.Info("no trace")

	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("lines %q", lines)
	}
	for i, line := range lines {
		var rec map[string]any
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			t.Fatal(err)
		}
		if got, want := rec["trace_id"], any(id.String()); (i < 2) != (got == want) {
			t.Errorf("%s: trace_id %v", line, got)
		}
		if g, ok := rec["g"].(map[string]any); i == 0 && (!ok || g["b"] != 2.0 || g["c"] != 3.0 || rec["a"] != 1.0) {
			t.Errorf("%s: group is wrong", line)
		}
	}
}

func TestLogHandlerKeepsTheContract(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, err := telemetry.NewLogger(&b, "debug", "json")
	if err != nil {
		t.Fatal(err)
	}
	err = slogtest.TestHandler(log.Handler(), func() []map[string]any {
		var out []map[string]any
		for line := range strings.SplitSeq(strings.TrimSpace(b.String()), "\n") {
			var rec map[string]any
			if err := json.Unmarshal([]byte(line), &rec); err != nil {
				t.Fatal(err)
			}
			out = append(out, rec)
		}
		return out
	})
	if err != nil {
		t.Error(err)
	}
}

func TestLoggerRefuses(t *testing.T) {
	t.Parallel()
	if _, err := telemetry.NewLogger(io.Discard, "loud", "text"); err == nil {
		t.Error("level loud")
	}
	if _, err := telemetry.NewLogger(io.Discard, "info", "xml"); err == nil {
		t.Error("format xml")
	}
}

type headers http.Header

func (h headers) Get(key string) string { return http.Header(h).Get(key) }
func (h headers) Set(key, value string) { http.Header(h).Set(key, value) }
func (h headers) Keys() []string        { return nil }
