// Package telemetry sets up what a process tells about itself: traces by OTLP,
// metrics for Prometheus, structured logs that carry the trace id.
//
// Nothing is global: who traces or counts is handed a provider or the registry.
// Trace ids are made, propagated and logged even when nothing is exported.
// Exporting never holds work up; spans that cannot be sent in time are dropped.
//
//	tel, err := telemetry.New(ctx, telemetry.Options{Service: "isobar-server", …})
//	defer tel.Shutdown(ctx)
//	mux.Handle("/metrics", tel.MetricsHandler())
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Options say who the process is and where its traces go.
type Options struct {
	// Service is service.name: "isobar-server", "isobar-worker", "isobar-cli".
	Service string
	// Version is service.version, Instance is service.instance.id.
	Version  string
	Instance string
	// Region and Cell are isobar.region and isobar.cell; empty ones are left
	// out.
	Region string
	Cell   string
	// Endpoint is a URL such as http://127.0.0.1:4318. When it is empty,
	// OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_TRACES_ENDPOINT count;
	// when they are too, nothing is exported.
	Endpoint string
	// Protocol is "http" (protobuf over HTTP, the default) or "grpc". It is for
	// Endpoint; with the environment, OTEL_EXPORTER_OTLP_PROTOCOL counts.
	Protocol string
	// Exporter, when set, gets the spans, each as it ends, in place of OTLP. It
	// is for tests.
	Exporter sdktrace.SpanExporter
}

// Telemetry is one process's providers. All methods are safe for concurrent
// use.
type Telemetry struct {
	traces   *sdktrace.TracerProvider
	metrics  *sdkmetric.MeterProvider
	registry *prometheus.Registry
	exports  bool
}

// New sets the providers up. It opens no connection: an endpoint that does not
// answer costs traces, not the process.
func New(ctx context.Context, opts Options) (*Telemetry, error) {
	res, err := describe(ctx, opts)
	if err != nil {
		return nil, err
	}
	// The sampler is the SDK's default, all traces, or what OTEL_TRACES_SAMPLER
	// asks for.
	traceOpts := []sdktrace.TracerProviderOption{sdktrace.WithResource(res)}
	exports := opts.Exporter != nil
	if exports {
		traceOpts = append(traceOpts, sdktrace.WithSyncer(opts.Exporter))
	} else {
		exporter, err := newExporter(ctx, opts)
		if err != nil {
			return nil, err
		}
		if exports = exporter != nil; exports {
			traceOpts = append(traceOpts, sdktrace.WithBatcher(exporter))
		}
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reader, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return nil, fmt.Errorf("telemetry: make metrics reader: %w", err)
	}
	return &Telemetry{
		traces:   sdktrace.NewTracerProvider(traceOpts...),
		metrics:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader), sdkmetric.WithResource(res)),
		registry: registry,
		exports:  exports,
	}, nil
}

// Exports reports whether spans go anywhere. Trace contexts are made and passed on
// all the same.
func (t *Telemetry) Exports() bool { return t.exports }

func describe(ctx context.Context, opts Options) (*resource.Resource, error) {
	attrs := []attribute.KeyValue{attribute.String("service.name", opts.Service)}
	for _, a := range []struct{ key, value string }{
		{"service.version", opts.Version},
		{"service.instance.id", opts.Instance},
		{"isobar.region", opts.Region},
		{"cloud.region", opts.Region},
		{"isobar.cell", opts.Cell},
	} {
		if a.value != "" {
			attrs = append(attrs, attribute.String(a.key, a.value))
		}
	}
	attrs = append(attrs, attribute.Int("process.pid", os.Getpid()))
	// OTEL_RESOURCE_ATTRIBUTES adds to what is known here, and does not win
	// over it: later options win.
	res, err := resource.New(ctx, resource.WithFromEnv(), resource.WithTelemetrySDK(), resource.WithAttributes(attrs...))
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("telemetry: describe process: %w", err)
	}
	return res, nil
}

// newExporter returns nil when no endpoint is configured.
func newExporter(ctx context.Context, opts Options) (sdktrace.SpanExporter, error) {
	protocol := opts.Protocol
	if opts.Endpoint == "" {
		if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
			return nil, nil
		}
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
		if protocol == "" {
			protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
		}
	}
	var exporter sdktrace.SpanExporter
	var err error
	switch protocol {
	case "", "http", "http/protobuf", "http/json":
		var o []otlptracehttp.Option
		if opts.Endpoint != "" {
			o = append(o, otlptracehttp.WithEndpointURL(tracesURL(opts.Endpoint)))
		}
		exporter, err = otlptracehttp.New(ctx, o...)
	case "grpc":
		var o []otlptracegrpc.Option
		if opts.Endpoint != "" {
			o = append(o, otlptracegrpc.WithEndpointURL(opts.Endpoint))
		}
		exporter, err = otlptracegrpc.New(ctx, o...)
	default:
		err = fmt.Errorf("protocol %q is not http or grpc", protocol)
	}
	if err != nil {
		return nil, fmt.Errorf("telemetry: make OTLP exporter: %w", err)
	}
	return exporter, nil
}

// tracesURL appends OTLP's path to a base URL, as the variable
// OTEL_EXPORTER_OTLP_ENDPOINT does; a URL with a path is taken as it is.
func tracesURL(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil || (u.Path != "" && u.Path != "/") {
		return endpoint
	}
	return u.JoinPath("v1", "traces").String()
}

// TracerProvider makes tracers.
func (t *Telemetry) TracerProvider() trace.TracerProvider { return t.traces }

// MeterProvider makes meters; what they count is in the registry too.
func (t *Telemetry) MeterProvider() metric.MeterProvider { return t.metrics }

// Propagator carries W3C trace context and baggage.
func (t *Telemetry) Propagator() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}

// Registry takes collectors of Prometheus's own client.
func (t *Telemetry) Registry() *prometheus.Registry { return t.registry }

// MetricsHandler answers a scrape.
func (t *Telemetry) MetricsHandler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{Registry: t.registry, EnableOpenMetrics: true})
}

// Shutdown sends what is waiting and stops, at most until the context's end.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if err := errors.Join(t.traces.Shutdown(ctx), t.metrics.Shutdown(ctx)); err != nil {
		return fmt.Errorf("telemetry: shut down: %w", err)
	}
	return nil
}
