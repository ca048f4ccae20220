package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// fakeWorker is a worker on the real stream that runs nothing: it answers each
// assignment at once, so that what is measured is the mesh.
type fakeWorker struct {
	stream isobarv1.WorkerServiceWorkClientStream
	send   chan *isobarv1.WorkRequest
	mu     sync.Mutex
	held   map[string]*isobarv1.LeaseRef
}

const fakeSession = "bench-session"

var errFake = errors.New("the fake worker's stream ended")

// runFake serves until ctx ends; welcomed closes with the cell's Welcome.
func runFake(ctx context.Context, address string, welcomed chan<- struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	calls := isobarv1.NewWorkerServiceClient(connect.NewClient(h2c(address)))
	stream, err := calls.Work(ctx)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	defer func() { _ = stream.Close() }()
	w := &fakeWorker{stream: stream, send: make(chan *isobarv1.WorkRequest, 4096), held: map[string]*isobarv1.LeaseRef{}}
	w.send <- &isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Hello{Hello: &isobarv1.Hello{
		Worker: "fake", Session: fakeSession, Offer: &isobarv1.Offer{Cpu: 1 << 12, MemoryMib: 1 << 30, Runtimes: []string{"wasm"}},
	}}}
	go w.write(ctx)
	for {
		m, err := stream.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errFake, err)
		}
		switch m := m.Message.(type) {
		case *isobarv1.WorkResponse_Welcome:
			close(welcomed)
		case *isobarv1.WorkResponse_Assign:
			w.finish(m.Assign)
		case *isobarv1.WorkResponse_Completed:
			w.mu.Lock()
			delete(w.held, m.Completed.Lease.TaskId)
			w.mu.Unlock()
		}
	}
}

// finish answers as a function that did nothing.
func (w *fakeWorker) finish(a *isobarv1.Assignment) {
	outcome := &isobarv1.Outcome{Status: "done", Result: a.Payload, RunTime: durationpb.New(time.Microsecond)}
	if a.Invoke {
		w.send <- &isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Invoked{Invoked: &isobarv1.InvokeResult{TaskId: a.TaskId, Outcome: outcome}}}
		return
	}
	lease := &isobarv1.LeaseRef{TaskId: a.TaskId, Attempt: a.Attempt}
	w.mu.Lock()
	w.held[a.TaskId] = lease
	w.mu.Unlock()
	w.send <- &isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Complete{Complete: &isobarv1.CompleteRequest{Lease: lease, Outcome: outcome}}}
}

// write sends what is queued and extends what is held, as a worker must.
func (w *fakeWorker) write(ctx context.Context) {
	extend := time.NewTicker(2 * time.Second)
	defer extend.Stop()
	for {
		var m *isobarv1.WorkRequest
		select {
		case <-ctx.Done():
			return
		case m = <-w.send:
		case <-extend.C:
			m = &isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Extend{Extend: &isobarv1.ExtendRequest{Leases: w.leases()}}}
		}
		if w.stream.Send(m) != nil {
			return // Receive has why
		}
	}
}

func (w *fakeWorker) leases() []*isobarv1.LeaseRef {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*isobarv1.LeaseRef
	for _, l := range w.held {
		out = append(out, l)
	}
	return out
}

// h2c is a transport over HTTP/2 without TLS, as workers and clients use.
func h2c(address string) connect.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return connecthttp.NewTransport(&http.Client{Transport: &http.Transport{Protocols: protocols}}, base(address), connecthttp.WithCompressors())
}

// base is the URL of an address.
func base(address string) string {
	if len(address) > 7 && address[:7] == "http://" {
		return address
	}
	return "http://" + address
}
