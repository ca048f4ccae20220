package worker

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/worker/attempt"
	"github.com/isobar-mesh/isobar/worker/attempt/process"
)

// Real commands: the contract's environment, exit codes, and a kill.
func TestRealCommands(t *testing.T) {
	t.Parallel()
	commands, err := process.New(process.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = commands.Close(context.Background()) }()
	s := newServer()
	w, err := New(Options{
		Name: "w1", Addresses: []string{"http://a"},
		Capacity:  mesh.Capacity{CPUMilli: 8000, MemoryMiB: 8192},
		Runtimes:  map[attempt.Kind]attempt.Runtime{attempt.Exec: commands},
		Transport: func(string) connect.Transport { return connectinprocess.New(s.connect()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	left := make(chan error, 1)
	go func() { left <- w.Run(ctx) }()
	st := s.stream(t)
	st.welcome()
	run := func(n uint64, script string) *isobarv1.WorkRequest {
		a := assignment("task-1", n)
		a.Traceparent, a.Payload = parent, []byte("in")
		a.Variant.Command = []string{"/bin/sh", "-c", script}
		st.assign(a)
		if strings.Contains(script, "sleep") {
			st.stop("task-1", n)
		}
		m := st.next(t)
		st.verdict(m, "accepted")
		return m
	}
	got := run(1, `cat; echo " $A$B $ISOBAR_TASK_ID $ISOBAR_ATTEMPT $TRACEPARENT"; env | grep -c HOME; exit 0`)
	if want := "in 12 task-1 1 " + parent + "\n0\n"; string(got.GetComplete().GetOutcome().GetResult()) != want {
		t.Errorf("result %q, want %q", got.GetComplete().GetOutcome().GetResult(), want)
	}
	if o := run(2, "echo why >&2; exit 75").GetFail().GetOutcome(); o.GetStatus() != "retry" || string(o.GetStderrTail()) != "why\n" || o.GetExitCode() != 75 {
		t.Errorf("retry: %v", o)
	}
	begin := time.Now()
	if o := run(3, "sleep 60 & sleep 60").GetFail().GetOutcome(); o.GetStatus() != "cancelled" {
		t.Errorf("stopped: %v", o)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("took %v to stop", d)
	}
	cancel()
	if err := <-left; err != nil {
		t.Error(err)
	}
}
