package client

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/otelconnect"
	"github.com/cenkalti/backoff/v5"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

const (
	dialTimeout = 3 * time.Second
	// maxAnswer is the largest answer that is read, in bytes.
	maxAnswer = 72 << 20

	defaultPatience = 10 * time.Second
	firstPause      = 50 * time.Millisecond
	maxPause        = 2 * time.Second
)

// Client asks the servers of a mesh. It is safe for concurrent use.
type Client struct {
	addresses []string
	patience  time.Duration
	log       *slog.Logger
	redirect  func(Redirect)
	transport func(address string) connect.Transport
	streaming func(address string) connect.Transport // of the messages of streams
	tracer    trace.TracerProvider
	intercept []connect.ClientInterceptor
	closeIdle func()

	mu      sync.Mutex
	at      int // index of the address that answered last
	servers map[string]*server
	// cells are the groups of addresses that were seen to be one cell's.
	cells [][]string
}

// server is one address.
type server struct {
	address   string
	tasks     isobarv1.TaskServiceClient
	functions isobarv1.FunctionServiceClient
	placement isobarv1.PlacementServiceClient
	mesh      isobarv1.MeshServiceClient
	streams   isobarv1.StreamServiceClient
	queues    isobarv1.QueueServiceClient
	letters   isobarv1.DeadLetterServiceClient
}

func (s *server) taskCalls() isobarv1.TaskServiceClient           { return s.tasks }
func (s *server) functionCalls() isobarv1.FunctionServiceClient   { return s.functions }
func (s *server) placementCalls() isobarv1.PlacementServiceClient { return s.placement }
func (s *server) meshCalls() isobarv1.MeshServiceClient           { return s.mesh }
func (s *server) streamCalls() isobarv1.StreamServiceClient       { return s.streams }
func (s *server) queueCalls() isobarv1.QueueServiceClient         { return s.queues }
func (s *server) letterCalls() isobarv1.DeadLetterServiceClient   { return s.letters }

// Redirect tells that a cell pointed to another one, and that the call goes
// there.
type Redirect struct {
	// Op is the call: "submit".
	Op string
	// From and To are addresses; Cell is who answers at To.
	From, To, Cell string
	// Reason is the cell's own: "residency".
	Reason string
}

// Option changes a Client.
type Option func(*Client)

// WithLogger logs repeats and redirects. Default: nothing is logged.
func WithLogger(l *slog.Logger) Option { return func(c *Client) { c.log = l } }

// WithRedirect is called before each redirect is followed. It must not call
// the client.
func WithRedirect(f func(Redirect)) Option { return func(c *Client) { c.redirect = f } }

// WithTracer makes a span for each call and hands its W3C trace context to the
// server.
func WithTracer(p trace.TracerProvider) Option { return func(c *Client) { c.tracer = p } }

// WithPatience sets how long a safe call is repeated while the cell says
// unavailable, as in a change of leader. Default 10 s; zero or less: never.
func WithPatience(d time.Duration) Option { return func(c *Client) { c.patience = d } }

// WithTransport replaces the way to an address. Default: HTTP/1.1, and HTTP/2
// where TLS agrees on it.
func WithTransport(f func(address string) connect.Transport) Option {
	return func(c *Client) { c.transport = f }
}

// ErrAddress is wrapped by New for an address that is no http or https URL.
var ErrAddress = errors.New("not an http or https address")

// New makes a client of the servers at the addresses, "http://127.0.0.1:7101";
// a bare host:port is taken as http. It connects to none yet.
func New(addresses []string, opts ...Option) (*Client, error) {
	c := &Client{
		patience: defaultPatience,
		log:      slog.New(slog.DiscardHandler),
		redirect: func(Redirect) {},
		servers:  map[string]*server{},
	}
	for _, a := range addresses {
		base, err := baseURL(a)
		if err != nil {
			return nil, fmt.Errorf("client: check address: %w", err)
		}
		if !slices.Contains(c.addresses, base) {
			c.addresses = append(c.addresses, base)
		}
	}
	if len(c.addresses) == 0 {
		return nil, fmt.Errorf("client: check address: none given: %w", ErrAddress)
	}
	for _, o := range opts {
		o(c)
	}
	if c.transport == nil {
		c.transport, c.streaming, c.closeIdle = dialer()
	}
	if c.streaming == nil {
		c.streaming = c.transport
	}
	if c.tracer != nil {
		i, err := otelconnect.NewClientInterceptor(
			otelconnect.WithTracerProvider(c.tracer),
			otelconnect.WithPropagator(propagation.TraceContext{}),
			otelconnect.WithoutMetrics(),
		)
		if err != nil {
			return nil, fmt.Errorf("client: trace calls: %w", err)
		}
		c.intercept = append(c.intercept, i)
	}
	return c, nil
}

// Close lets go of idle connections. Calls under way go on.
func (c *Client) Close() {
	if c.closeIdle != nil {
		c.closeIdle()
	}
}

// dialer makes the ways to an address; streaming is that of messages of streams,
// which come as they were published: packing and unpacking them costs both sides
// more than all else that is done to them.
func dialer() (transport, streaming func(address string) connect.Transport, closeIdle func()) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	rt := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		Protocols:           protocols,
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     90 * time.Second,
	}
	httpClient := &http.Client{Transport: rt}
	way := func(opts ...connecthttp.Option) func(address string) connect.Transport {
		opts = append(opts, connecthttp.WithReadMaxBytes(maxAnswer))
		return func(address string) connect.Transport { return connecthttp.NewTransport(httpClient, address, opts...) }
	}
	return way(), way(connecthttp.WithCompressors()), rt.CloseIdleConnections
}

func baseURL(address string) (string, error) {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("parse %q: %w: %w", address, err, ErrAddress)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return "", fmt.Errorf("parse %q: %w", address, ErrAddress)
	}
	return strings.TrimRight(u.Scheme+"://"+u.Host+u.Path, "/"), nil
}

// server returns the calls to an address, which baseURL has made.
func (c *Client) server(address string) *server {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.servers[address]
	if s == nil {
		calls := connect.NewClient(c.transport(address), c.intercept...)
		messages := connect.NewClient(c.streaming(address), c.intercept...)
		s = &server{
			address:   address,
			tasks:     isobarv1.NewTaskServiceClient(calls),
			functions: isobarv1.NewFunctionServiceClient(calls),
			placement: isobarv1.NewPlacementServiceClient(calls),
			mesh:      isobarv1.NewMeshServiceClient(calls),
			streams:   isobarv1.NewStreamServiceClient(messages),
			queues:    isobarv1.NewQueueServiceClient(calls),
			letters:   isobarv1.NewDeadLetterServiceClient(calls),
		}
		c.servers[address] = s
	}
	return s
}

// current is the server to ask first.
func (c *Client) current() *server {
	c.mu.Lock()
	address := c.addresses[c.at%len(c.addresses)]
	c.mu.Unlock()
	return c.server(address)
}

// advance moves on from a server that did not answer, unless another call has
// done so already.
func (c *Client) advance(from *server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.addresses[c.at%len(c.addresses)] == from.address {
		c.at = (c.at + 1) % len(c.addresses)
	}
}

// newPause is the growing, jittered pause between repeats.
func newPause() *backoff.ExponentialBackOff {
	b := &backoff.ExponentialBackOff{
		InitialInterval: firstPause, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: maxPause,
	}
	b.Reset()
	return b
}
