package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

// Options say what a worker is and offers.
type Options struct {
	// Name is the worker's stable name, unique in its cell. Required.
	Name string
	// Addresses are the API addresses of the cell's servers, as URLs:
	// "http://10.0.0.1:7101" (HTTP/2 without TLS) or https. One is enough, as
	// each server tells who leads. Required.
	Addresses []string
	// Capacity is what the worker offers in total, with the bounds on what its
	// attempts may cost together. Required; GPUs sorted by model.
	Capacity mesh.Capacity
	// Runtimes run the attempts; what is here is what is offered. Required.
	// The caller closes them after Run has returned.
	Runtimes map[attempt.Kind]attempt.Runtime
	// Functions limits the offer to these; empty offers to run all.
	Functions []string

	// KillGrace is how long a killed attempt may take to end, default 2 s. An
	// attempt whose lease runs out is killed that long before its end, or a
	// quarter of the lease if that is less.
	KillGrace time.Duration
	// DrainTimeout is how long attempts may go on after Run's context has
	// ended, default 30 s; what still runs then is killed and reported lost.
	// Negative kills at once.
	DrainTimeout time.Duration

	// Logger gets the worker's log; nil discards it.
	Logger *slog.Logger
	// Tracer makes the span of each attempt; nil makes none, and functions get
	// the trace context of their lease.
	Tracer trace.TracerProvider
	// Transport carries the calls to one address; nil is HTTP/2, without TLS
	// for http addresses.
	Transport func(address string) connect.Transport
}

const (
	defaultKillGrace    = 2 * time.Second
	defaultDrainTimeout = 30 * time.Second
)

// ErrOptions is wrapped by what New and NewCode answer to options that no
// worker can run with.
var ErrOptions = errors.New("bad options")

// New makes a worker; Run starts it. The session id is made here: one Worker is
// one session.
func New(opts Options) (*Worker, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	if opts.KillGrace <= 0 {
		opts.KillGrace = defaultKillGrace
	}
	if opts.DrainTimeout == 0 {
		opts.DrainTimeout = defaultDrainTimeout
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Tracer == nil {
		opts.Tracer = noop.NewTracerProvider()
	}
	w := &Worker{
		opts:    opts,
		session: uuid.NewString(),
		pid:     int64(os.Getpid()),
		log:     opts.Logger.With("worker", opts.Name),
		tracer:  opts.Tracer.Tracer("github.com/isobar-mesh/isobar/worker"),
		events:  make(chan event),
		done:    make(chan struct{}),
		table:   newTable(opts.Capacity),
		warm:    warmSet{max: maxWarm},
	}
	if w.opts.Transport == nil {
		w.opts.Transport, w.closeIdle = dialer()
	}
	return w, nil
}

func (o Options) check() error {
	switch {
	case o.Name == "":
		return fmt.Errorf("worker: check name: empty: %w", ErrOptions)
	case len(o.Runtimes) == 0:
		return fmt.Errorf("worker: check runtimes: none: %w", ErrOptions)
	case o.Capacity.CPUMilli <= 0 || o.Capacity.MemoryMiB <= 0:
		return fmt.Errorf("worker: check capacity: CPU and memory must be above zero: %w", ErrOptions)
	}
	return checkAddresses(o.Addresses)
}

func checkAddresses(addresses []string) error {
	if len(addresses) == 0 {
		return fmt.Errorf("worker: check addresses: none: %w", ErrOptions)
	}
	for _, a := range addresses {
		if _, err := baseURL(a); err != nil {
			return fmt.Errorf("worker: check addresses: %w: %w", err, ErrOptions)
		}
	}
	return nil
}

// baseURL makes an address a URL to put in front of procedures. A bare
// host:port is taken as http.
func baseURL(address string) (string, error) {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("parse address %q: %w", address, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return "", fmt.Errorf("parse address %q: not an http or https URL with a host", address)
	}
	return strings.TrimRight(u.Scheme+"://"+u.Host+u.Path, "/"), nil
}

// runtimes lists the names of the offered runtimes, sorted.
func (o Options) runtimes() []string {
	names := make([]string, 0, len(o.Runtimes))
	for kind := range o.Runtimes {
		names = append(names, string(kind))
	}
	slices.Sort(names)
	return names
}
