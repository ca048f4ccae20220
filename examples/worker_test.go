// Package examples_test runs the examples that are not Go, as a newcomer would.
package examples_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// cell leases what is in its list, one at a time, and keeps what it hears.
type cell struct {
	isobarv1.UnimplementedWorkerServiceHandler
	mu        sync.Mutex
	tasks     []*isobarv1.Assignment
	deny      map[string]int // the number of the extend that is denied
	extends   map[string]int
	outcomes  map[string]*isobarv1.Outcome
	completed map[string]bool
	idle      func() // called when there is no task left
}

func (c *cell) Lease(_ context.Context, r *isobarv1.LeaseRequest) (*isobarv1.LeaseResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.GetWorker() == "" || r.GetSession() == "" || r.GetRequestId() == "" || r.GetOffer().GetMemoryMib() == 0 || r.GetWait().AsDuration() != 10*time.Second {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "bad lease: %v", r)
	}
	if len(c.tasks) == 0 {
		c.idle()
		return &isobarv1.LeaseResponse{}, nil
	}
	a := c.tasks[0]
	c.tasks = c.tasks[1:]
	return &isobarv1.LeaseResponse{Assignments: []*isobarv1.Assignment{a}}, nil
}

func (c *cell) Extend(_ context.Context, r *isobarv1.ExtendRequest) (*isobarv1.ExtendResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	res := &isobarv1.ExtendResponse{}
	for _, lease := range r.GetLeases() {
		id := lease.GetTaskId()
		c.extends[id]++
		res.Results = append(res.Results, &isobarv1.ExtendResult{Lease: lease, Confirmed: c.extends[id] != c.deny[id]})
	}
	return res, nil
}

func (c *cell) end(id string, o *isobarv1.Outcome, completed bool) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcomes[id], c.completed[id] = o, completed
	return "accepted"
}

func (c *cell) Complete(_ context.Context, r *isobarv1.CompleteRequest) (*isobarv1.CompleteResponse, error) {
	return &isobarv1.CompleteResponse{Lease: r.GetLease(), Verdict: c.end(r.GetLease().GetTaskId(), r.GetOutcome(), true)}, nil
}

func (c *cell) Fail(_ context.Context, r *isobarv1.FailRequest) (*isobarv1.FailResponse, error) {
	return &isobarv1.FailResponse{Lease: r.GetLease(), Verdict: c.end(r.GetLease().GetTaskId(), r.GetOutcome(), false)}, nil
}

func TestPythonWorker(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	idle := make(chan struct{})
	c := &cell{
		deny: map[string]int{"denied": 1, "stopped": 2}, extends: map[string]int{}, outcomes: map[string]*isobarv1.Outcome{}, completed: map[string]bool{},
		idle: sync.OnceFunc(func() { close(idle) }),
	}
	add := func(id, command string) {
		c.tasks = append(c.tasks, &isobarv1.Assignment{
			TaskId: id, Attempt: 7, Payload: []byte("größe"), Timeout: durationpb.New(time.Minute),
			Env:     map[string]string{"GREETING": "hello"},
			Variant: &isobarv1.Variant{Name: "v", Runtime: "exec", Command: []string{"/bin/sh", "-c", command}},
		})
	}
	pid := filepath.Join(t.TempDir(), "pid")
	add("done", `cat; echo " $GREETING $ISOBAR_TASK_ID $ISOBAR_ATTEMPT"; echo noted >&2`)
	add("again", "exit 75")
	add("failed", "exit 3")
	add("denied", "echo never")
	add("stopped", "echo $$ > "+pid+"; exec sleep 60")
	srv := connect.NewServer()
	isobarv1.RegisterWorkerServiceHandler(srv, c)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, srv)
	ts := httptest.NewServer(mux)
	defer ts.Close()

	out := work(t, exec.Command(python, "worker.py", ts.URL), idle)
	if want := "done done accepted\nagain retry accepted\nfailed failed accepted\n"; out != want {
		t.Errorf("it printed\n%swant\n%s", out, want)
	}
	o := c.outcomes["done"]
	if string(o.GetResult()) != "größe hello done 7\n" || string(o.GetStderrTail()) != "noted\n" || !c.completed["done"] {
		t.Errorf("done: %v", o)
	}
	if o := c.outcomes["failed"]; o.GetStatus() != "failed" || o.GetExitCode() != 3 || c.completed["failed"] {
		t.Errorf("failed: %v", o)
	}
	if c.outcomes["denied"] != nil {
		t.Errorf("an unconfirmed lease was started: %v", c.outcomes["denied"])
	}
	for id, n := range c.extends {
		if n < 1 {
			t.Errorf("%s was not extended", id)
		}
	}
	if lives(t, pid) {
		t.Error("the attempt whose lease was lost goes on")
	}
}

// work runs the worker until it asks for more than there is.
func work(t *testing.T, cmd *exec.Cmd, idle <-chan struct{}) string {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-idle:
	case err := <-ended:
		t.Fatalf("worker.py ended: %v\n%s", err, &out)
	case <-time.After(30 * time.Second):
		t.Error("worker.py did not come for more")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	<-ended
	return out.String()
}

// lives reports whether the process of the file still runs a second later.
func lives(t *testing.T, file string) bool {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		state, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
		var none *exec.ExitError
		switch {
		case errors.As(err, &none), err == nil && strings.HasPrefix(string(state), "Z"):
			return false
		case err != nil:
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return true
}

// TestPythonWorkerIsShort: it is an example of how little a worker needs.
func TestPythonWorkerIsShort(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("worker.py")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n > 30 {
		t.Errorf("worker.py has %d lines, more than 30", n)
	}
}
