package client

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"connectrpc.com/connect/v2/connectproto"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// fake is one server whose answers a test gives.
type fake struct {
	isobarv1.UnimplementedTaskServiceHandler
	isobarv1.UnimplementedMeshServiceHandler
	address string

	mu sync.Mutex
	// down refuses connections.
	down bool
	// answers are taken one a call; the last one stays.
	answers []func(*isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error)
	submits []*isobarv1.SubmitRequest
	get     func() error
	hangs   bool // answers no Get and no Submit, and sends one message of a stream
	watches int
	gets    int
	wait    func(context.Context, *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error)
	invoke  func() error
	invokes int
	cells   *isobarv1.CellsResponse
	// operated, when not nil, are its queues and dead letters.
	operated *operated
}

func (f *fake) Submit(ctx context.Context, r *isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
	if f.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.submits = append(f.submits, r)
	answer := f.answers[0]
	if len(f.answers) > 1 {
		f.answers = f.answers[1:]
	}
	return answer(r)
}

func (f *fake) Get(ctx context.Context, _ *isobarv1.GetRequest) (*isobarv1.GetResponse, error) {
	if f.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gets++
	if f.get != nil {
		if err := f.get(); err != nil {
			return nil, err
		}
	}
	return &isobarv1.GetResponse{Task: &isobarv1.Task{Id: "t", Home: f.address}}, nil
}

func (f *fake) Wait(ctx context.Context, r *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error) {
	return f.wait(ctx, r)
}

func (f *fake) Invoke(context.Context, *isobarv1.InvokeRequest) (*isobarv1.InvokeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.invokes++
	if f.invoke != nil {
		if err := f.invoke(); err != nil {
			return nil, err
		}
	}
	return &isobarv1.InvokeResponse{Cell: f.address}, nil
}

func (f *fake) Cells(context.Context, *isobarv1.CellsRequest) (*isobarv1.CellsResponse, error) {
	if f.cells == nil {
		return nil, connect.NewError(connect.CodeUnavailable, "")
	}
	return f.cells, nil
}

// Watch sends the cells, and goes on, or ends.
func (f *fake) Watch(ctx context.Context, _ *isobarv1.WatchRequest, out isobarv1.MeshServiceWatchServerStream) error {
	f.mu.Lock()
	f.watches++
	f.mu.Unlock()
	if err := out.Send(&isobarv1.WatchResponse{Cells: []*isobarv1.CellInfo{{Cell: f.address}}}); err != nil || !f.hangs {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (f *fake) set(down bool) {
	f.mu.Lock()
	f.down = down
	f.mu.Unlock()
}

// wire is the way to a fake: refused when it is down.
type wire struct {
	f  *fake
	in connect.Transport
}

func (w wire) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	if w.f != nil {
		w.f.mu.Lock()
		down := w.f.down
		w.f.mu.Unlock()
		if !down {
			return w.in.NewClientStream(ctx, spec)
		}
	}
	return nil, connect.NewError(connect.CodeUnavailable, "dial").WithCause(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
}

// newClient is a client of fakes at http://a, http://b, …; those named in known
// only are given to it.
func newClient(t *testing.T, known []string, fakes map[string]*fake, opts ...Option) *Client {
	t.Helper()
	wires := map[string]wire{}
	for name, f := range fakes {
		f.address = name
		srv := connect.NewServer()
		isobarv1.RegisterTaskServiceHandler(srv, f)
		isobarv1.RegisterMeshServiceHandler(srv, f)
		if f.operated != nil {
			isobarv1.RegisterQueueServiceHandler(srv, operatedQueues{operated: f.operated})
			isobarv1.RegisterDeadLetterServiceHandler(srv, operatedLetters{operated: f.operated})
		}
		wires["http://"+name] = wire{f, connectinprocess.New(srv)}
	}
	opts = append([]Option{WithTransport(func(a string) connect.Transport { return wires[a] })}, opts...)
	c, err := New(known, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func refuse(code connect.Code, te *isobarv1.TaskError) error {
	te.Code = code.String()
	d, err := connectproto.NewErrorDetail(te)
	if err != nil {
		return err
	}
	return connect.NewError(code, te.GetMessage()).WithDetail(d)
}

// accept gives each task its request id as the id.
func accept(r *isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
	res := &isobarv1.SubmitResponse{}
	for _, task := range r.GetTasks() {
		res.Results = append(res.Results, &isobarv1.SubmitResult{TaskId: "id-" + task.GetRequestId()})
	}
	return res, nil
}

func fail(err error) func(*isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
	return func(*isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) { return nil, err }
}

func submits(answers ...func(*isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error)) *fake {
	return &fake{answers: answers}
}

func notAccepted(reason string) error {
	return refuse(connect.CodeUnavailable, &isobarv1.TaskError{Reason: reason, Outcome: NotAccepted})
}

func unknown() error {
	return refuse(connect.CodeUnavailable, &isobarv1.TaskError{Reason: "commit_unknown", Outcome: OutcomeUnknown})
}

func pointer(to string) error {
	return refuse(connect.CodeFailedPrecondition, &isobarv1.TaskError{
		Reason: "residency", Outcome: NotAccepted, Cell: to + "-cell", Address: to, Message: "not here", Hint: "submit there",
	})
}

func follower(leader string) error {
	return refuse(connect.CodeFailedPrecondition, &isobarv1.TaskError{Reason: notLeader, Outcome: NotAccepted, Address: leader})
}

func one(tasks ...string) *isobarv1.SubmitRequest {
	r := &isobarv1.SubmitRequest{}
	for _, id := range tasks {
		r.Tasks = append(r.Tasks, &isobarv1.TaskSpec{Function: "upper", RequestId: id})
	}
	return r
}

var errCut = errors.New("connection cut")
