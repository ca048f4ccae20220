// Package peers carries the messages between cells and between the servers of
// one cell: Connect over HTTP/2 with mutual TLS. It finds the leader of the
// cell that is asked, and reads each cell's identity from its certificate,
// which is the only source of jurisdictions.
//
// It decides nothing and keeps nothing: what a message means is the
// scheduler's, the registry's or the log's affair.
package peers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"

	"github.com/isobar-mesh/isobar/internal/identity"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
)

// MaxMessage bounds one message between cells: a module of 64 MiB and room.
const MaxMessage = 80 << 20

// Server is one server of some cell, as gossip tells it.
type Server struct {
	ID     string
	Name   string
	Cell   mesh.CellID
	Region string
	Peer   string // host:port of this package's port
	API    string // URL
	PID    int64
	Alive  bool
	Gossip string
	RTT    time.Duration
	Raft   string
}

// Directory lists servers; a snapshot.
type Directory interface {
	Servers() []Server
}

// DialFunc opens a connection to a server of the region; it is where the
// emulated distance of a mesh on one machine lies.
type DialFunc func(ctx context.Context, region, address string) (net.Conn, error)

// Options of a Client.
type Options struct {
	Credentials *identity.Credentials
	Directory   Directory
	Dial        DialFunc
	// Interceptors of every call, such as tracing.
	Interceptors []connect.ClientInterceptor
}

// Client calls other servers. It is safe for concurrent use.
type Client struct {
	Options
	mu       sync.Mutex
	conns    map[string]*connect.Client // by peer address
	leaders  map[mesh.CellID]string     // peer address that led last
	verified map[mesh.CellID]mesh.Cell
	close    []func()
}

var _ scheduler.Peers = (*Client)(nil)

// NewClient makes a client; it dials when first used.
func NewClient(o Options) *Client {
	if o.Dial == nil {
		var d net.Dialer
		o.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", address)
		}
	}
	return &Client{Options: o, conns: map[string]*connect.Client{}, leaders: map[mesh.CellID]string{}, verified: map[mesh.CellID]mesh.Cell{}}
}

// Close drops idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.close {
		f()
	}
}

// Identity returns what the cell's certificate said; false until a server of it
// was reached.
func (c *Client) Identity(cell mesh.CellID) (mesh.Cell, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, ok := c.verified[cell]
	return id, ok
}

// to returns the connection to one server.
func (c *Client) to(s Server) *connect.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.conns[s.Peer]; conn != nil {
		return conn
	}
	config := c.Credentials.ClientTLS(func(id identity.Identity) error {
		if id.Cell.ID != s.Cell {
			return fmt.Errorf("peers: dial %s: it is of %s, not %s: %w", s.Peer, id.Cell.ID, s.Cell, identity.ErrNotAllowed)
		}
		c.mu.Lock()
		c.verified[id.Cell.ID] = id.Cell
		c.mu.Unlock()
		return nil
	})
	config.NextProtos = []string{"h2"}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{
		Protocols: protocols,
		DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			raw, err := c.Dial(ctx, s.Region, address)
			if err != nil {
				return nil, fmt.Errorf("peers: dial %s: %w: %w", address, errNotConnected, err)
			}
			conn := tls.Client(raw, config)
			if err := conn.HandshakeContext(ctx); err != nil {
				_ = raw.Close()
				return nil, fmt.Errorf("peers: greet %s: %w: %w", address, errNotConnected, err)
			}
			return conn, nil
		},
		// A dead region must be noticed on idle connections too.
		HTTP2:           &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
		IdleConnTimeout: 5 * time.Minute,
	}
	conn := connect.NewClient(connecthttp.NewTransport(
		&http.Client{Transport: transport}, "https://"+s.Peer,
		connecthttp.WithReadMaxBytes(MaxMessage), connecthttp.WithSendMaxBytes(MaxMessage),
	), c.Interceptors...)
	c.conns[s.Peer] = conn
	c.close = append(c.close, transport.CloseIdleConnections)
	return conn
}

// order lists the servers of a cell: the leader known last first, then the live
// ones, then the others, for gossip may be wrong.
func (c *Client) order(cell mesh.CellID) []Server {
	c.mu.Lock()
	leader := c.leaders[cell]
	c.mu.Unlock()
	var list []Server
	for _, s := range c.Directory.Servers() {
		if s.Cell == cell {
			list = append(list, s)
		}
	}
	rank := func(s Server) int {
		switch {
		case s.Peer == leader:
			return 0
		case s.Alive:
			return 1
		default:
			return 2
		}
	}
	slices.SortStableFunc(list, func(a, b Server) int { return rank(a) - rank(b) })
	return list
}

func (c *Client) led(cell mesh.CellID, address string) {
	c.mu.Lock()
	c.leaders[cell] = address
	c.mu.Unlock()
}

// Ask calls the leader of a cell: it tries the servers in turn and follows a
// not_leader that names another one. Only errors that mean "nothing happened
// here" are tried elsewhere: a connection that breaks with the call under way
// leaves open whether it was served, and the caller knows whether a repeat is
// safe. Either way the error is scheduler.ErrPeerUnavailable.
func (c *Client) Ask(ctx context.Context, cell mesh.CellID, call func(ctx context.Context, conn *connect.Client) error) error {
	tried := map[string]bool{}
	var last error
	queue := c.order(cell)
	for len(queue) > 0 && ctx.Err() == nil {
		s := queue[0]
		queue = queue[1:]
		if tried[s.Peer] {
			continue
		}
		tried[s.Peer] = true
		err := call(ctx, c.to(s))
		if err == nil {
			c.led(cell, s.Peer)
			return nil
		}
		detail := Detail(err)
		switch {
		case detail.GetReason() == string(scheduler.NotLeader):
			if next := detail.GetAddress(); next != "" && !tried[next] {
				queue = append([]Server{{Cell: cell, Region: s.Region, Peer: next}}, queue...)
			}
		case errors.Is(err, errNotConnected):
		case lost(ctx, err):
			return fmt.Errorf("peers: ask %s: %w: %w: %w", cell, ErrAnswerLost, scheduler.ErrPeerUnavailable, err)
		default:
			return err
		}
		last = err
	}
	if last == nil {
		last = ctx.Err()
	}
	if last == nil {
		last = errors.New("no server of it is known")
	}
	return fmt.Errorf("peers: ask %s: %w: %w", cell, scheduler.ErrPeerUnavailable, last)
}

// lost reports whether the connection failed after the call was sent, so that
// what became of it is not known.
func lost(ctx context.Context, err error) bool {
	var ce *connect.Error
	if !errors.As(err, &ce) || ce.IsRemote() {
		return false
	}
	switch ce.Code() {
	case connect.CodeUnavailable, connect.CodeUnknown, connect.CodeInternal, connect.CodeAborted:
		return true
	case connect.CodeCanceled:
		// Connect calls it so too when the other side resets the connection.
		return ctx.Err() == nil
	default: // of our own making: the caller's time is up, the message is too large
		return false
	}
}

// ErrAnswerLost: the call was sent, and what became of it is not known. An
// ErrPeerUnavailable without it says that no server took the call.
var ErrAnswerLost = errors.New("the answer was lost")

// errNotConnected: there was no connection, so nobody saw the call.
var errNotConnected = errors.New("not connected")

// Detail returns the typed detail of an error; nil when it has none.
func Detail(err error) *isobarv1.TaskError {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return nil
	}
	for _, d := range ce.Details() {
		if m, err := connectproto.UnmarshalErrorDetail(d); err == nil {
			if te, ok := m.(*isobarv1.TaskError); ok {
				return te
			}
		}
	}
	return nil
}

// ask is Ask for one unary method of CellService.
func ask[Req, Res any](ctx context.Context, c *Client, cell mesh.CellID, req Req,
	method func(meshv1.CellServiceClient, context.Context, Req) (Res, error),
) (res Res, err error) {
	err = c.Ask(ctx, cell, func(ctx context.Context, conn *connect.Client) error {
		res, err = method(meshv1.NewCellServiceClient(conn), ctx, req)
		return err
	})
	return res, err
}

// Offer hands leases to a cell.
func (c *Client) Offer(ctx context.Context, to mesh.CellID, r *meshv1.OfferRequest) (*meshv1.OfferResponse, error) {
	return ask(ctx, c, to, r, meshv1.CellServiceClient.Offer)
}

// Extend prolongs leases at their home.
func (c *Client) Extend(ctx context.Context, to mesh.CellID, r *meshv1.GuestExtendRequest) (*meshv1.GuestExtendResponse, error) {
	return ask(ctx, c, to, r, meshv1.CellServiceClient.Extend)
}

// Report tells home how attempts ended.
func (c *Client) Report(ctx context.Context, to mesh.CellID, r *meshv1.ReportRequest) (*meshv1.ReportResponse, error) {
	return ask(ctx, c, to, r, meshv1.CellServiceClient.Report)
}

// Payload fetches a leased task's bytes again.
func (c *Client) Payload(ctx context.Context, to mesh.CellID, r *meshv1.PayloadRequest) (*meshv1.PayloadResponse, error) {
	return ask(ctx, c, to, r, meshv1.CellServiceClient.Payload)
}

// Invoke runs one synchronous call there. The error is scheduler.ErrNotTaken
// when the cell refused it.
func (c *Client) Invoke(ctx context.Context, to mesh.CellID, r *meshv1.CellInvokeRequest) (*meshv1.CellInvokeResponse, error) {
	res, err := ask(ctx, c, to, r, meshv1.CellServiceClient.Invoke)
	if d := Detail(err); d.GetOutcome() == "not_accepted" || errors.Is(err, errNotConnected) {
		return nil, fmt.Errorf("peers: invoke at %s: %w: %w", to, scheduler.ErrNotTaken, err)
	}
	return res, err
}

// Sync exchanges registry documents.
func (c *Client) Sync(ctx context.Context, to mesh.CellID, r *meshv1.SyncRequest) (*meshv1.SyncResponse, error) {
	return ask(ctx, c, to, r, meshv1.CellServiceClient.Sync)
}

// Greet asks any server of a cell who it is; that its certificate was seen is
// the point.
func (c *Client) Greet(ctx context.Context, s Server) (*meshv1.IdentityResponse, error) {
	return meshv1.NewCellServiceClient(c.to(s)).Identity(ctx, &meshv1.IdentityRequest{})
}

// Member is a client of one server of the own cell.
func (c *Client) Member(s Server) meshv1.ServerServiceClient {
	return meshv1.NewServerServiceClient(c.to(s))
}

// Code streams a module from one server.
func (c *Client) Code(ctx context.Context, s Server, digest string) (meshv1.CellServiceCodeClientStream, error) {
	return meshv1.NewCellServiceClient(c.to(s)).Code(ctx, &isobarv1.CodeRequest{Digest: digest})
}
