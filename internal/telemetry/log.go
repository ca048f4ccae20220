package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"go.opentelemetry.io/otel/trace"
)

// NewLogger makes a logger that adds trace_id and span_id to every record
// logged with a traced context. Level is debug, info, warn or error; format is
// text or json.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("telemetry: parse log level %q: %w", level, err)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(traced(slog.NewTextHandler(w, opts))), nil
	case "json":
		return slog.New(traced(slog.NewJSONHandler(w, opts))), nil
	default:
		return nil, fmt.Errorf("telemetry: parse log format %q: not text or json", format)
	}
}

// tracedHandler adds the ids at the top level of a record. Once a group is
// open, what is added would land inside it, so from there on root is kept
// together with what was done to it, and done again per traced record.
type tracedHandler struct {
	slog.Handler
	root slog.Handler                      // before the first group
	redo []func(slog.Handler) slog.Handler // since; empty without a group
}

func traced(h slog.Handler) slog.Handler { return &tracedHandler{Handler: h, root: h} }

func (h *tracedHandler) Handle(ctx context.Context, r slog.Record) error {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return h.Handler.Handle(ctx, r)
	}
	ids := []slog.Attr{slog.String("trace_id", sc.TraceID().String()), slog.String("span_id", sc.SpanID().String())}
	if len(h.redo) == 0 {
		r = r.Clone()
		r.AddAttrs(ids...)
		return h.Handler.Handle(ctx, r)
	}
	top := h.root.WithAttrs(ids)
	for _, step := range h.redo {
		top = step(top)
	}
	return top.Handle(ctx, r)
}

func (h *tracedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(h.redo) == 0 {
		return traced(h.Handler.WithAttrs(attrs))
	}
	return h.then(func(n slog.Handler) slog.Handler { return n.WithAttrs(attrs) })
}

func (h *tracedHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return h.then(func(n slog.Handler) slog.Handler { return n.WithGroup(name) })
}

func (h *tracedHandler) then(step func(slog.Handler) slog.Handler) slog.Handler {
	redo := append(slices.Clone(h.redo), step)
	return &tracedHandler{Handler: step(h.Handler), root: h.root, redo: redo}
}
