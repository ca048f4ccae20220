package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

const (
	testEvery = 3 * time.Second
	testLease = 12 * time.Second
)

// server is one server of a cell, as a worker sees it.
type server struct {
	isobarv1.UnimplementedWorkerServiceHandler
	streams chan *stream
	code    func(digest string, send func([]byte) error) error
	mu      sync.Mutex
	// turn, when set, ends a stream at once.
	turn func() error
}

// refuse makes the server end each stream at once.
func (s *server) refuse(turn func() error) {
	s.mu.Lock()
	s.turn = turn
	s.mu.Unlock()
}

func newServer() *server { return &server{streams: make(chan *stream, 64)} }

func (s *server) connect() *connect.Server {
	srv := connect.NewServer()
	isobarv1.RegisterWorkerServiceHandler(srv, s)
	return srv
}

func (s *server) Code(_ context.Context, r *isobarv1.CodeRequest, out isobarv1.WorkerServiceCodeServerStream) error {
	return s.code(r.GetDigest(), func(b []byte) error { return out.Send(&isobarv1.CodeResponse{Chunk: b}) })
}

// stream is the server's half of one Work stream, driven by the test. Extends
// are answered with a confirmation unless mute; everything else comes in in.
type stream struct {
	hello *isobarv1.Hello
	in    chan *isobarv1.WorkRequest
	out   chan *isobarv1.WorkResponse
	end   chan error
	gone  chan struct{}

	mu      sync.Mutex
	mute    bool
	deny    map[string]string // task: reason
	extends []*isobarv1.ExtendRequest
	at      []time.Time
}

func (s *server) Work(ctx context.Context, ws isobarv1.WorkerServiceWorkServerStream) error {
	first, err := ws.Receive()
	if err != nil {
		return err
	}
	s.mu.Lock()
	turn := s.turn
	s.mu.Unlock()
	if turn != nil {
		s.streams <- &stream{hello: first.GetHello()}
		return turn()
	}
	st := &stream{
		hello: first.GetHello(),
		in:    make(chan *isobarv1.WorkRequest, 256),
		out:   make(chan *isobarv1.WorkResponse, 256),
		end:   make(chan error, 1),
		gone:  make(chan struct{}),
		deny:  map[string]string{},
	}
	s.streams <- st
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var reader sync.WaitGroup
	defer close(st.gone)
	defer reader.Wait()
	closed := make(chan error, 1)
	reader.Go(func() { closed <- st.read(ctx, ws) })
	for {
		select {
		case m := <-st.out:
			if err := ws.Send(m); err != nil {
				return err
			}
		case err := <-st.end:
			cancel()
			return err
		case err := <-closed:
			return err
		}
	}
}

func (s *stream) read(ctx context.Context, ws isobarv1.WorkerServiceWorkServerStream) error {
	msgs, errs := make(chan *isobarv1.WorkRequest), make(chan error, 1)
	go func() {
		for {
			m, err := ws.Receive()
			if err != nil {
				errs <- err
				return
			}
			select {
			case msgs <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-errs:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case m := <-msgs:
			if e := m.GetExtend(); e != nil {
				s.extended(e)
			} else {
				s.in <- m
			}
		}
	}
}

func (s *stream) extended(e *isobarv1.ExtendRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.extends = append(s.extends, e)
	s.at = append(s.at, time.Now())
	if s.mute {
		return
	}
	res := &isobarv1.ExtendResponse{}
	for _, ref := range e.GetLeases() {
		r := &isobarv1.ExtendResult{Lease: ref, Confirmed: true, Duration: durationpb.New(testLease)}
		if why, ok := s.deny[ref.GetTaskId()]; ok {
			r = &isobarv1.ExtendResult{Lease: ref, Reason: why}
		}
		res.Results = append(res.Results, r)
	}
	s.out <- &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Extended{Extended: res}}
}

func (s *stream) silence() {
	s.mu.Lock()
	s.mute = true
	s.mu.Unlock()
}

func (s *stream) extendsSoFar() []*isobarv1.ExtendRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*isobarv1.ExtendRequest(nil), s.extends...)
}

func (s *stream) welcome() {
	s.out <- &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Welcome{Welcome: &isobarv1.Welcome{
		Cell: "eu-north-1", Region: "eu-north",
		ExtendEvery: durationpb.New(testEvery), Lease: durationpb.New(testLease),
	}}}
}

func (s *stream) assign(a *isobarv1.Assignment) {
	s.out <- &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Assign{Assign: a}}
}

func (s *stream) stop(task string, n uint64) {
	s.out <- &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Stop{Stop: &isobarv1.LeaseRef{TaskId: task, Attempt: n}}}
}

func (s *stream) verdict(m *isobarv1.WorkRequest, verdict string) {
	if c := m.GetComplete(); c != nil {
		s.out <- &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Completed{
			Completed: &isobarv1.CompleteResponse{Lease: c.GetLease(), Verdict: verdict}}}
		return
	}
	s.out <- &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Failed{
		Failed: &isobarv1.FailResponse{Lease: m.GetFail().GetLease(), Verdict: verdict}}}
}

// next is the next message but an Extend or Warm; it waits in virtual time.
func (s *stream) next(t *testing.T) *isobarv1.WorkRequest {
	t.Helper()
	late := time.After(10 * time.Minute)
	for {
		select {
		case m := <-s.in:
			if m.GetWarm() == nil {
				return m
			}
		case <-late:
			t.Fatal("the worker sent nothing")
		}
	}
}

// quiet fails when anything but an Extend or Warm has come.
func (s *stream) quiet(t *testing.T) {
	t.Helper()
	synctest.Wait()
	for {
		select {
		case m := <-s.in:
			if m.GetWarm() == nil {
				t.Fatalf("unexpected message: %v", m)
			}
		default:
			return
		}
	}
}

func (s *server) stream(t *testing.T) *stream {
	t.Helper()
	select {
	case st := <-s.streams:
		return st
	case <-time.After(10 * time.Minute):
		t.Fatal("no stream")
		return nil
	}
}

// notLeader is how a server points to the leader.
func notLeader(address string) error {
	d, err := connectproto.NewErrorDetail(&isobarv1.TaskError{Code: "unavailable", Reason: "not_leader", Address: address})
	if err != nil {
		return err
	}
	return connect.NewError(connect.CodeUnavailable, "not the leader").WithDetail(d)
}

// run is one attempt inside the scripted runtime.
type run struct {
	spec  attempt.Spec
	in    attempt.Input
	begun time.Time
	// finish ends it with an outcome; else it runs until it is killed.
	finish chan attempt.Outcome
	killed chan struct{}
	// death is when and why it was killed; read after killed is closed.
	death time.Time
	why   *attempt.Kill
}

// script is a runtime whose attempts the test ends.
type script struct {
	runs chan *run
	// lag is how long a killed attempt takes to end.
	lag time.Duration
}

func newScript() *script { return &script{runs: make(chan *run, 256)} }

func (s *script) Prepare(context.Context, attempt.Spec) error { return nil }
func (s *script) Close(context.Context) error                 { return nil }

func (s *script) Run(ctx context.Context, spec attempt.Spec, in attempt.Input) attempt.Outcome {
	r := &run{spec: spec, in: in, begun: time.Now(), finish: make(chan attempt.Outcome, 1), killed: make(chan struct{})}
	s.runs <- r
	o := attempt.Outcome{Started: r.begun}
	select {
	case o = <-r.finish:
		o.Started, o.Ended = r.begun, time.Now()
		return o
	case <-ctx.Done():
		if s.lag > 0 {
			<-time.After(s.lag)
		}
		r.death, r.why = time.Now(), attempt.KillOf(ctx)
		close(r.killed)
		o.Kill(r.why)
		o.Ended = r.death
		return o
	}
}

func (s *script) next(t *testing.T) *run {
	t.Helper()
	select {
	case r := <-s.runs:
		return r
	case <-time.After(10 * time.Minute):
		t.Fatal("nothing was run")
		return nil
	}
}

func (s *script) none(t *testing.T) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-s.runs:
		t.Fatalf("unexpected run of %s attempt %d", r.in.TaskID, r.in.Attempt)
	default:
	}
}

// rig is a worker on a cell of scripted servers "http://a", "http://b", …
type rig struct {
	t       *testing.T
	w       *Worker
	servers map[string]*server
	script  *script
	log     *strings.Builder
	stop    context.CancelFunc
	left    chan error
}

func newRig(t *testing.T, servers []string, change func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, servers: map[string]*server{}}
	wires := map[string]connect.Transport{}
	var addresses []string
	for _, name := range servers {
		r.servers[name] = newServer()
		wires["http://"+name] = connectinprocess.New(r.servers[name].connect())
		addresses = append(addresses, "http://"+name)
	}
	r.run(addresses, wires, change)
	return r
}

// newRigOn is a worker on one server that drives itself.
func newRigOn(t *testing.T, handler isobarv1.WorkerServiceHandler, change func(*Options)) *rig {
	t.Helper()
	srv := connect.NewServer()
	isobarv1.RegisterWorkerServiceHandler(srv, handler)
	r := &rig{t: t}
	r.run([]string{"http://a"}, map[string]connect.Transport{"http://a": connectinprocess.New(srv)}, change)
	return r
}

func (r *rig) run(addresses []string, wires map[string]connect.Transport, change func(*Options)) {
	r.t.Helper()
	r.script, r.log, r.left = newScript(), &strings.Builder{}, make(chan error, 1)
	opts := Options{
		Name:      "w1",
		Addresses: addresses,
		Capacity:  mesh.Capacity{CPUMilli: 4000, MemoryMiB: 1024},
		Runtimes:  map[attempt.Kind]attempt.Runtime{attempt.Exec: r.script},
		Logger:    slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Transport: func(a string) connect.Transport {
			if wire, ok := wires[a]; ok {
				return wire
			}
			return deadEnd{}
		},
	}
	if change != nil {
		change(&opts)
	}
	w, err := New(opts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.w = w
	ctx, cancel := context.WithCancel(r.t.Context())
	r.stop = cancel
	go func() { r.left <- w.Run(ctx) }()
}

// end stops the worker and waits for it to leave.
func (r *rig) end() error {
	r.stop()
	err := <-r.left
	synctest.Wait()
	return err
}

// start brings the worker to its first welcomed stream.
func (r *rig) start(name string) *stream {
	r.t.Helper()
	st := r.servers[name].stream(r.t)
	st.welcome()
	synctest.Wait()
	return st
}

// deadEnd is an address where nobody is.
type deadEnd struct{}

func (deadEnd) NewClientStream(context.Context, connect.Spec) (connect.ClientStream, error) {
	return nil, connect.NewError(connect.CodeUnavailable, "connection refused")
}

func task(i int) string { return fmt.Sprintf("task-%d", i) }

func assignment(task string, n uint64) *isobarv1.Assignment {
	return &isobarv1.Assignment{
		TaskId: task, Attempt: n, Tenant: "default", Function: "upper", Version: "sha256:v1",
		Variant: &isobarv1.Variant{
			Name: "small", Runtime: "exec", Command: []string{"tr", "a-z", "A-Z"},
			Resources: &isobarv1.Resources{Cpu: 0.5, MemoryMib: 64},
		},
		Env:     map[string]string{"B": "2", "A": "1"},
		Timeout: durationpb.New(time.Hour),
		Payload: []byte("secret payload"),
		Lease:   durationpb.New(testLease),
	}
}
