package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect/v2"
	"connectrpc.com/otelconnect"

	"github.com/isobar-mesh/isobar/scheduler/api"
	"github.com/isobar-mesh/isobar/scheduler/peers"
)

// serveAPI serves clients and workers: Connect and gRPC over HTTP/1.1 and
// HTTP/2 without TLS, health, reflection and metrics.
func (s *Server) serveAPI(ctx context.Context) error {
	server, err := s.connect(s.leaderAddress(func(p peers.Server) string { return p.API }))
	if err != nil {
		return err
	}
	s.api.Register(server)
	grpcreflect.Register(server)
	mux := http.NewServeMux()
	mount(mux, server)
	mux.Handle(grpchealth.NewHandler(&health{s: s}))
	mux.Handle("GET /metrics", s.tel.MetricsHandler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if s.raft.Status().Leader.ID == "" {
			http.Error(w, "no leader", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return serveHTTP(ctx, s.apiListener, &http.Server{
		Handler: mux, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleTimeout, HTTP2: http2(),
	})
}

// servePeers serves other servers over mutual TLS, with the same services for
// what they forward.
func (s *Server) servePeers(ctx context.Context) error {
	server, err := s.connect(s.leaderAddress(func(p peers.Server) string { return p.Peer }))
	if err != nil {
		return err
	}
	s.api.Register(server)
	cell := &peers.Cell{
		Scheduler: s.sched, Exchange: s.spread, Modules: heldModules{s.code}, Members: s.raft, Log: s.raft, Self: s.self,
	}
	cell.Register(server)
	mux := http.NewServeMux()
	mount(mux, server)
	config := s.creds.ServerTLS(nil)
	config.NextProtos = []string{"h2"}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return serveHTTP(ctx, tls.NewListener(s.peerListener, config), &http.Server{
		Handler: mux, Protocols: protocols, TLSConfig: config, ReadHeaderTimeout: 10 * time.Second, ErrorLog: s.strangers(),
		IdleTimeout: idleTimeout, HTTP2: http2(),
	})
}

// idleTimeout is longer than clients and servers keep idle connections, so that
// they close them.
const idleTimeout = 10 * time.Minute

// http2 allows many calls on one connection: the waits of a whole server may be
// forwarded on one. A caller that is gone without a word is noticed by pings.
func http2() *http.HTTP2Config {
	return &http.HTTP2Config{MaxConcurrentStreams: 2000, SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second}
}

func (s *Server) connect(leader func() string) (*connect.Server, error) {
	tracing, err := otelconnect.NewServerInterceptor(s.otel()...)
	if err != nil {
		return nil, err
	}
	return connect.NewServer(failStop, tracing, api.Errors(leader)), nil
}

// compressFrom is the least message that is compressed, in bytes: below it, that
// costs more processor time than it saves network.
const compressFrom = 4 << 10

// failStop ends the process when a handler panics. net/http would go on with
// whatever the handler held still locked; a server that stopped is replaced.
func failStop(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		defer func() {
			if p := recover(); p != nil {
				stack := debug.Stack()
				go func() { panic(fmt.Sprintf("server: serve %s: %v\n%s", spec.Procedure, p, stack)) }() //nolint:forbidigo // a broken invariant
				select {}
			}
		}()
		return next(ctx, spec, stream)
	}
}

func mount(mux *http.ServeMux, server *connect.Server) {
	connecthttp.Mount(mux, server, connecthttp.WithCompressMinBytes(compressFrom),
		connecthttp.WithReadMaxBytes(peers.MaxMessage), connecthttp.WithSendMaxBytes(peers.MaxMessage),
		connecthttp.WithCodecs(connectproto.NewBinaryCodec(), api.StrictJSON()),
	)
}

// serveHTTP serves until ctx ends, then lets requests finish for a moment.
func serveHTTP(ctx context.Context, l net.Listener, srv *http.Server) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if srv.Shutdown(end) != nil {
			_ = srv.Close() // streams never finish by themselves
		}
	}()
	err := srv.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		<-stopped
		return nil
	}
	return err
}

// health answers gRPC's health checks: the server serves while its cell has a
// leader.
type health struct{ s *Server }

func (h *health) Check(context.Context, *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	status := grpchealth.StatusServing
	if h.s.raft.Status().Leader.ID == "" {
		status = grpchealth.StatusNotServing
	}
	return &grpchealth.CheckResponse{Status: status}, nil
}
