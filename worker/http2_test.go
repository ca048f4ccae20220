package worker

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect/v2/connecthttp"
	"go.uber.org/goleak"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/registry/digest"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

// Over a real connection, with HTTP/2 in clear text: code is fetched, work
// goes both ways, and nothing is left behind.
func TestOverHTTP2(t *testing.T) { //nolint:paralleltest // looks for leaked goroutines
	before := goleak.IgnoreCurrent()
	module := []byte("the module")
	lib := newLibrary(map[string][]byte{digest.Of(module): module})
	lib.streams = make(chan *stream, 64)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, lib.connect())
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()

	cache, err := NewCode(CodeOptions{Dir: t.TempDir(), Addresses: []string{srv.URL}})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := cache.Open(t.Context(), digest.Of(module)); err != nil || string(b) != "the module" {
		t.Errorf("open: %q, %v", b, err)
	}
	if err := cache.Close(); err != nil {
		t.Error(err)
	}

	runtime := newScript()
	w, err := New(Options{
		Name: "w1", Addresses: []string{"127.0.0.1:1", srv.URL}, // nobody is at the first
		Capacity: mesh.Capacity{CPUMilli: 1000, MemoryMiB: 1024},
		Runtimes: map[attempt.Kind]attempt.Runtime{attempt.Exec: runtime},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	left := make(chan error, 1)
	go func() { left <- w.Run(ctx) }()
	st := lib.stream(t)
	st.welcome()
	a := assignment("task-1", 1)
	a.Payload = make([]byte, mesh.MaxPayload)
	st.assign(a)
	run := runtime.next(t)
	if len(run.in.Payload) != mesh.MaxPayload {
		t.Errorf("payload of %d bytes", len(run.in.Payload))
	}
	run.finish <- attempt.Outcome{Status: attempt.Done, Result: make([]byte, mesh.MaxResult)}
	m := st.next(t)
	if n := len(m.GetComplete().GetOutcome().GetResult()); n != mesh.MaxResult {
		t.Errorf("result of %d bytes", n)
	}
	st.verdict(m, "accepted")
	cancel()
	if err := <-left; err != nil {
		t.Error(err)
	}
	srv.Close()
	goleak.VerifyNone(t, before)
}
