package peers

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
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

// asked is a server of a cell that answers Invoke as the test says.
type asked struct {
	meshv1.UnimplementedCellServiceHandler
	answer func() error
	mu     sync.Mutex
	from   mesh.Cell
}

func (a *asked) Invoke(ctx context.Context, _ *meshv1.CellInvokeRequest) (*meshv1.CellInvokeResponse, error) {
	a.mu.Lock()
	a.from, _ = Caller(ctx)
	a.mu.Unlock()
	return &meshv1.CellInvokeResponse{Worker: "w1"}, a.answer()
}

type directory []Server

func (d directory) Servers() []Server { return d }

func credentials(t *testing.T, ca *identity.Authority, cell, server string) *identity.Credentials {
	t.Helper()
	now := time.Now()
	pair, err := ca.Issue(identity.Identity{
		Mesh: "test", Server: server, Cell: mesh.Cell{ID: mesh.CellID(cell), Region: "here", Jurisdictions: []string{"eu"}},
	}, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := identity.New("test", ca.CertPEM(), pair, now)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serve starts a server of the cell there-1 and returns its address.
func serve(t *testing.T, ca *identity.Authority, a *asked) string {
	t.Helper()
	config := credentials(t, ca, "there-1", "s1").ServerTLS(nil)
	config.NextProtos = []string{"h2"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := connect.NewServer()
	meshv1.RegisterCellServiceHandler(server, a)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: protocols, TLSConfig: config, ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(tls.NewListener(l, config)) }() // ends with Close
	t.Cleanup(func() { _ = srv.Close() })
	return l.Addr().String()
}

func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func refusal(t *testing.T, code connect.Code, d *isobarv1.TaskError) error {
	t.Helper()
	detail, err := connectproto.NewErrorDetail(d)
	if err != nil {
		t.Fatal(err)
	}
	return connect.NewError(code, d.Message).WithDetail(detail)
}

// TestAskTellsWhetherTheCallWasTaken asks cells that answer, refuse, point
// elsewhere, or do not answer at all.
func TestAskTellsWhetherTheCallWasTaken(t *testing.T) {
	t.Parallel()
	ca, err := identity.NewAuthority("test", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	good := &asked{answer: func() error { return nil }}
	leader := serve(t, ca, good)
	notLeader := func(address string) error {
		return refusal(t, connect.CodeFailedPrecondition, &isobarv1.TaskError{Reason: "not_leader", Outcome: "not_accepted", Address: address})
	}
	follower := serve(t, ca, &asked{answer: func() error { return notLeader(leader) }})
	electing := serve(t, ca, &asked{answer: func() error { return notLeader("") }})
	full := serve(t, ca, &asked{answer: func() error {
		return refusal(t, connect.CodeResourceExhausted, &isobarv1.TaskError{Reason: "no_room", Outcome: "not_accepted"})
	}})
	failing := serve(t, ca, &asked{answer: func() error {
		return refusal(t, connect.CodeAborted, &isobarv1.TaskError{Reason: "function_failed", Outcome: "outcome_unknown"})
	}})
	dying := serve(t, ca, &asked{answer: func() error { panic(http.ErrAbortHandler) }})
	gone := nobody(t)

	cases := map[string]struct {
		servers                        []string
		ok, unavailable, notTaken, cut bool
	}{
		"the leader":                    {servers: []string{leader}, ok: true},
		"a follower that knows":         {servers: []string{follower}, ok: true},
		"the second, the first is gone": {servers: []string{gone, leader}, ok: true},
		"all gone":                      {servers: []string{gone}, unavailable: true, notTaken: true},
		"no leader":                     {servers: []string{electing}, unavailable: true, notTaken: true},
		"no leader, one gone":           {servers: []string{electing, gone}, unavailable: true, notTaken: true},
		"no room":                       {servers: []string{full, leader}, notTaken: true},
		"it ran and failed":             {servers: []string{failing, leader}},
		"cut off half way":              {servers: []string{dying, leader}, unavailable: true, cut: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var d directory
			for _, address := range c.servers {
				d = append(d, Server{Cell: "there-1", Region: "there", Peer: address, Alive: true})
			}
			client := NewClient(Options{Credentials: credentials(t, ca, "here-1", "s1"), Directory: d})
			t.Cleanup(client.Close)
			res, err := client.Invoke(t.Context(), "there-1", &meshv1.CellInvokeRequest{})
			if (err == nil) != c.ok || c.ok && res.GetWorker() != "w1" {
				t.Fatalf("got %v, %v", res, err)
			}
			for what, is := range map[error]bool{scheduler.ErrPeerUnavailable: c.unavailable, scheduler.ErrNotTaken: c.notTaken, ErrAnswerLost: c.cut} {
				if errors.Is(err, what) != is {
					t.Errorf("the error %q is %q: %v, want %v", err, what, !is, is)
				}
			}
		})
	}
	t.Cleanup(func() {
		if good.from.ID != "here-1" || len(good.from.Jurisdictions) != 1 {
			t.Errorf("the caller is %v", good.from)
		}
	})
}
