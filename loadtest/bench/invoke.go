package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/loadtest"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/worker"
	"github.com/isobar-mesh/isobar/worker/attempt"
	"github.com/isobar-mesh/isobar/worker/attempt/wasm"
)

// benchInvoke compares Invoke of a function that does nothing, by a real worker,
// with a direct call of the worker's runtime and with an RPC that only echoes.
func benchInvoke(ctx context.Context, o options, r *report) (err error) {
	c, err := startCell(ctx, o, 1, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	code, err := worker.NewCode(worker.CodeOptions{Dir: filepath.Join(o.dir, "code"), Addresses: []string{c.leader}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, code.Close()) }()
	runtime, err := wasm.New(ctx, wasm.Options{Code: code})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, runtime.Close(context.WithoutCancel(ctx))) }()
	stop, err := startWorker(ctx, c, runtime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	echo, stopEcho, err := startEcho()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopEcho()) }()
	return compareCalls(ctx, o, r, calls{
		direct: directCall(runtime), invoke: invokeCall(c), echo: echoCall(echo),
	})
}

// calls are the three ways.
type calls struct{ direct, echo, invoke func(context.Context) error }

// compareCalls measures each way alone, one call at a time, then many.
func compareCalls(ctx context.Context, o options, r *report, c calls) error {
	type speed struct{ alone, rate float64 }
	measure := func(call func(context.Context) error) (s speed, err error) {
		if err := ready(ctx, call); err != nil {
			return s, err
		}
		_, lat, err := repeat(ctx, call, o.span/3, 1)
		if err != nil {
			return s, err
		}
		s.alone = micros(lat.Quantile(0.5))
		s.rate, _, err = repeat(ctx, call, o.span/3, 64)
		return s, err
	}
	direct, err := measure(c.direct)
	if err != nil {
		return fmt.Errorf("direct call: %w", err)
	}
	echo, err := measure(c.echo)
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	invoke, err := measure(c.invoke)
	if err != nil {
		return fmt.Errorf("invoke: %w", err)
	}
	r.add("invoke", "direct call", direct.alone, "µs", fmt.Sprintf("p50 alone; %.0f/s at 64 in flight; the worker's wasm runtime, in process", direct.rate))
	r.add("invoke", "echo RPC", echo.alone, "µs", fmt.Sprintf("p50 alone; %.0f/s at 64 in flight; Connect over HTTP/2", echo.rate))
	r.add("invoke", "Invoke", invoke.alone, "µs", fmt.Sprintf("p50 alone; %.0f/s at 64 in flight; client, server, worker", invoke.rate))
	r.add("invoke", "Invoke / direct call", invoke.alone/direct.alone, "×", fmt.Sprintf("latency; %.2f × of its throughput", invoke.rate/direct.rate))
	r.add("invoke", "Invoke / echo RPC", invoke.alone/echo.alone, "×", fmt.Sprintf("latency; %.2f × of its throughput", invoke.rate/echo.rate))
	r.add("invoke", "Invoke / (direct call + 2 echo RPCs)", invoke.alone/(direct.alone+2*echo.alone), "×", "latency; Invoke crosses two sockets and back")
	return nil
}

// ready waits until the call succeeds: the worker may not be welcome yet.
func ready(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		err := call(ctx)
		if err == nil {
			return nil
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return err
		}
	}
}

// repeat calls for the span, n at a time.
func repeat(ctx context.Context, call func(context.Context) error, span time.Duration, n int) (rate float64, lat *loadtest.Latencies, err error) {
	var wait sync.WaitGroup
	var failed atomic.Pointer[error]
	each := make([][]time.Duration, n)
	start := time.Now()
	for i := range n {
		wait.Go(func() {
			for time.Since(start) < span && failed.Load() == nil {
				began := time.Now()
				if err := call(ctx); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				each[i] = append(each[i], time.Since(began))
			}
		})
	}
	wait.Wait()
	if p := failed.Load(); p != nil {
		return 0, nil, *p
	}
	lat = &loadtest.Latencies{}
	for _, list := range each {
		for _, d := range list {
			lat.Add(d)
		}
	}
	return float64(lat.Count()) / time.Since(start).Seconds(), lat, nil
}

// startWorker runs a real worker until stop.
func startWorker(ctx context.Context, c *cell, runtime attempt.Runtime) (stop func() error, err error) {
	w, err := worker.New(worker.Options{
		Name: "real", Addresses: []string{c.leader}, Capacity: mesh.Capacity{CPUMilli: 1 << 20, MemoryMiB: 1 << 20},
		Runtimes: map[attempt.Kind]attempt.Runtime{attempt.Wasm: runtime}, DrainTimeout: -1,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	return func() error { cancel(); return <-ended }, nil
}

func directCall(r *wasm.Runtime) func(context.Context) error {
	spec := attempt.Spec{Kind: attempt.Wasm, Digest: moduleDigest(), Limits: attempt.Limits{Timeout: 10 * time.Second, MemoryMiB: 1}}
	payload := make([]byte, payloadBytes)
	return func(ctx context.Context) error {
		out := r.Run(ctx, spec, attempt.Input{TaskID: "direct", Attempt: 1, Payload: payload})
		if out.Status != attempt.Done {
			return fmt.Errorf("%w: %s: %s", errNotDone, out.Status, out.Message)
		}
		return nil
	}
}

func invokeCall(c *cell) func(context.Context) error {
	payload := make([]byte, payloadBytes)
	return func(ctx context.Context) error {
		_, err := c.client.Invoke(ctx, &isobarv1.InvokeRequest{Function: function, Input: &isobarv1.InvokeRequest_Payload{Payload: payload}})
		return err
	}
}

// echoServer answers a call with nothing, through the same stack as a server.
type echoServer struct {
	isobarv1.UnimplementedTaskServiceHandler
}

func (echoServer) Invoke(_ context.Context, r *isobarv1.InvokeRequest) (*isobarv1.InvokeResponse, error) {
	return &isobarv1.InvokeResponse{Result: r.GetPayload()}, nil
}

// startEcho serves it until stop.
func startEcho() (url string, stop func() error, err error) {
	s := connect.NewServer()
	isobarv1.RegisterTaskServiceHandler(s, echoServer{})
	mux := http.NewServeMux()
	connecthttp.Mount(mux, s)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: protocols, ReadHeaderTimeout: time.Second}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	go func() { _ = srv.Serve(l) }() // ends with stop
	return "http://" + l.Addr().String(), srv.Close, nil
}

func echoCall(url string) func(context.Context) error {
	calls := isobarv1.NewTaskServiceClient(connect.NewClient(h2c(url)))
	payload := make([]byte, payloadBytes)
	return func(ctx context.Context) error {
		_, err := calls.Invoke(ctx, &isobarv1.InvokeRequest{Function: function, Input: &isobarv1.InvokeRequest_Payload{Payload: payload}})
		return err
	}
}
