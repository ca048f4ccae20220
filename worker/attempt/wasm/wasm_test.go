package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/worker/attempt"
	"github.com/isobar-mesh/isobar/worker/attempt/attempttest"
)

// shelf is an attempt.Code of fixed modules, which counts its opens.
type shelf struct {
	modules map[string][]byte
	opens   atomic.Int64
}

func (s *shelf) Open(_ context.Context, digest string) ([]byte, error) {
	s.opens.Add(1)
	if m, ok := s.modules[digest]; ok {
		return m, nil
	}
	return nil, errors.New("no peer has it")
}

func newRuntime(t testing.TB, o Options) *Runtime {
	t.Helper()
	r, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

func spec(digest string, env ...attempt.Var) attempt.Spec {
	return attempt.Spec{
		Kind: attempt.Wasm, Digest: digest, Env: env,
		Limits: attempt.Limits{Timeout: 30 * time.Second, MemoryMiB: 128},
	}
}

func mode(m string) attempt.Var { return attempt.Var{Name: "MODE", Value: m} }

// TestProbe runs a real program, built for WASI, through all it may do well or
// badly.
func TestProbe(t *testing.T) {
	t.Parallel()
	code := &shelf{modules: map[string][]byte{"probe": attempttest.Module(t)}}
	r := newRuntime(t, Options{Code: code, CacheDir: t.TempDir()})
	if err := r.Prepare(t.Context(), spec("probe")); err != nil {
		t.Fatal(err)
	}
	payload := bytes.Repeat([]byte("payload\n"), mesh.MaxResult/8)

	for _, test := range []struct {
		mode    string
		timeout time.Duration
		status  attempt.Status
		reason  attempt.Reason
		exit    int
		message string
		result  string
		stderr  string
	}{
		{mode: "echo", status: attempt.Done, result: string(payload)},
		{mode: "exit 0", status: attempt.Done, stderr: "leaving with 0\n"},
		{mode: "exit 75", status: attempt.Retry, reason: attempt.Exit, exit: 75, stderr: "leaving with 75\n"},
		{mode: "exit 3", status: attempt.Failed, reason: attempt.Exit, exit: 3, message: "exit code 3"},
		{mode: "panic", status: attempt.Failed, reason: attempt.Exit, exit: 2, stderr: "panic: as asked"},
		{mode: "loop", timeout: 100 * time.Millisecond, status: attempt.Killed, reason: attempt.Timeout, exit: -1, message: "ran longer than its timeout of 100ms"},
		{mode: "sleep", timeout: 100 * time.Millisecond, status: attempt.Killed, reason: attempt.Timeout, exit: -1, message: "timeout"},
		{mode: "eat 8", status: attempt.Killed, reason: attempt.Memory, exit: -1, message: "limit of 128 MiB"},
		{mode: "huge 1024", status: attempt.Killed, reason: attempt.Memory, exit: -1, message: "limit of 128 MiB"},
		{mode: "hold 64", status: attempt.Done, result: "1\n"},
		{mode: fmt.Sprint("write ", mesh.MaxResult), status: attempt.Done, result: strings.Repeat("x", mesh.MaxResult)},
		{mode: fmt.Sprint("write ", mesh.MaxResult+1), status: attempt.Failed, reason: attempt.TooLarge, exit: -1, message: "result too large: more than 262144 bytes"},
		{mode: "flood", status: attempt.Failed, reason: attempt.TooLarge, exit: -1, message: "result too large"},
		{mode: "complain 100000", status: attempt.Done, stderr: "line 99998\nline 99999\n"},
		{mode: "reach", status: attempt.Done, result: "end"},
	} {
		t.Run(test.mode, func(t *testing.T) {
			t.Parallel()
			s := spec("probe", mode(test.mode))
			if test.timeout > 0 {
				s.Limits.Timeout = test.timeout
			}
			out := r.Run(t.Context(), s, attempt.Input{TaskID: "t", Attempt: 1, Payload: payload})
			if out.Status != test.status || out.Reason != test.reason || out.ExitCode != test.exit {
				t.Fatalf("got %v, %q, exit code %d (%s, stderr %q), want %v, %q, %d",
					out.Status, out.Reason, out.ExitCode, out.Message, out.StderrTail, test.status, test.reason, test.exit)
			}
			if string(out.Result) != test.result {
				t.Errorf("got a result of %d bytes %.40q, want %d bytes %.40q", len(out.Result), out.Result, len(test.result), test.result)
			}
			if (out.Result != nil) != (test.status == attempt.Done) {
				t.Error("a result must be there exactly when the attempt is done")
			}
			if !strings.Contains(out.Message, test.message) {
				t.Errorf("got message %q, want it to hold %q", out.Message, test.message)
			}
			if !strings.Contains(string(out.StderrTail), test.stderr) || len(out.StderrTail) > mesh.MaxStderrTail {
				t.Errorf("got a stderr tail of %d bytes %q, want it to hold %q", len(out.StderrTail), out.StderrTail, test.stderr)
			}
			if out.PeakMemory < 1<<20 || out.PeakMemory > 128<<20 {
				t.Errorf("got peak memory %d, want within the limit", out.PeakMemory)
			}
			if out.Cold != 0 {
				t.Errorf("got a cold start of %s after Prepare", out.Cold)
			}
			if took := out.Ended.Sub(out.Started); test.timeout > 0 && took > test.timeout+5*time.Second {
				t.Errorf("killed after %s, want soon after %s", took, test.timeout)
			}
		})
	}
	t.Run("env", func(t *testing.T) {
		t.Parallel()
		deadline := time.Now().Add(10 * time.Second).Round(0)
		out := r.Run(t.Context(), spec("probe", attempt.Var{Name: "LANG", Value: "a=b c"}, mode("env")), attempt.Input{
			TaskID: "task-1", Attempt: 7, Deadline: deadline, Traceparent: "00-a-b-01",
		})
		want := "ISOBAR_ATTEMPT=7\nISOBAR_DEADLINE=" + deadline.UTC().Format(time.RFC3339Nano) +
			"\nISOBAR_TASK_ID=task-1\nLANG=a=b c\nMODE=env\nTRACEPARENT=00-a-b-01"
		if string(out.Result) != want {
			t.Errorf("got environment\n%s\nwant\n%s", out.Result, want)
		}
	})
	t.Run("kill", func(t *testing.T) {
		t.Parallel()
		for _, test := range []struct {
			cause  error
			reason attempt.Reason
		}{
			{nil, attempt.Cancelled},
			{errors.New("no longer wanted"), attempt.Cancelled},
			{&attempt.Kill{Reason: attempt.Lost, Message: "lease lost"}, attempt.Lost},
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(50*time.Millisecond, func() { cancel(test.cause) })
			out := r.Run(ctx, spec("probe", mode("loop")), attempt.Input{TaskID: "t", Attempt: 1})
			if out.Status != attempt.Killed || out.Reason != test.reason {
				t.Errorf("cancelled for %v: got %v, %q (%s), want killed, %q", test.cause, out.Status, out.Reason, out.Message, test.reason)
			}
			if test.cause != nil && !strings.Contains(out.Message, test.cause.Error()) {
				t.Errorf("got message %q, want it to hold %q", out.Message, test.cause)
			}
		}
	})
	t.Run("past deadline", func(t *testing.T) {
		t.Parallel()
		out := r.Run(t.Context(), spec("probe", mode("echo")), attempt.Input{TaskID: "t", Attempt: 1, Deadline: time.Now().Add(-time.Second)})
		if out.Status != attempt.Killed || out.Reason != attempt.Timeout {
			t.Errorf("got %v, %q (%s), want killed by timeout", out.Status, out.Reason, out.Message)
		}
	})
}

// TestTrap names the trap that ended a module.
func TestTrap(t *testing.T) {
	t.Parallel()
	code := &shelf{modules: map[string][]byte{
		"unreachable":    module(body(0x00)),
		"divide":         module(body(0x41, 1, 0x41, 0, 0x6d, 0x1a)), // 1 / 0
		"out of bounds":  module(body(0x41, 0x7f, 0x28, 2, 0, 0x1a)), // load at -1
		"stack overflow": module(body(0x10, 0)),                      // calls itself
		// Grows its table of no bound by 2^20+1 entries, and traps when it can.
		"table": module(section{4, []byte{1, 0x70, 0, 0}},
			body(0xd0, 0x70, 0x41, 0x81, 0x80, 0xc0, 0, 0xfc, 15, 0, 0x41, 0x7f, 0x47, 0x04, 0x40, 0, 0x0b)),
		"grow":          module(body(0x41, 0x10, 0x40, 0, 0x1a)),          // 16 pages more
		"grow and trap": module(body(0x41, 0xff, 0x0f, 0x40, 0, 0x1a, 0)), // 2047 pages more
	}}
	r := newRuntime(t, Options{Code: code})
	for digest, want := range map[string]string{
		"unreachable":    "trap: unreachable",
		"divide":         "trap: integer divide by zero",
		"out of bounds":  "trap: out of bounds memory access",
		"stack overflow": "trap: stack overflow",
		"table":          "",
		"grow":           "",
		"grow and trap":  "needs more memory than its limit of 16 MiB",
	} {
		s := spec(digest)
		s.Limits.MemoryMiB = 16
		out := r.Run(t.Context(), s, attempt.Input{TaskID: "t", Attempt: 1})
		if out.Message != want {
			t.Errorf("%s: got %v, %q, message %q, want %q", digest, out.Status, out.Reason, out.Message, want)
		}
		if strings.HasPrefix(want, "trap") && (out.Status != attempt.Failed || out.Reason != attempt.Trap) {
			t.Errorf("%s: got %v, %q, want failed by a trap", digest, out.Status, out.Reason)
		}
	}
}

// TestHostile are modules that try to go on when they are told to stop. While
// they run, the worker's garbage collector must not wait for them either.
func TestHostile(t *testing.T) {
	t.Parallel()
	code := &shelf{modules: map[string][]byte{
		"loop":          module(body(0x03, 0x40, 0x0c, 0, 0x0b)),
		"fill":          module(memory(2048), body(0x03, 0x40, 0x41, 0, 0x41, 1, 0x41, 0x80, 0x80, 0x80, 0xc0, 0, 0xfc, 11, 0, 0x0c, 0, 0x0b)),
		"loop in loop":  module(body(0x03, 0x40, 0x03, 0x40, 0x0c, 1, 0x0b, 0x0b)),
		"call for ever": module(body(0x03, 0x40, 0x10, 1, 0x0c, 0, 0x0b), section{3, []byte{2, 0, 0}}, section{10, []byte{2, 9, 0, 0x03, 0x40, 0x10, 1, 0x0c, 0, 0x0b, 0x0b, 2, 0, 0x0b}}),
	}}
	r := newRuntime(t, Options{Code: code})
	for digest := range code.modules {
		s := spec(digest)
		s.Limits.Timeout = 300 * time.Millisecond
		outs := make(chan attempt.Outcome)
		if err := r.Prepare(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", digest, err)
		}
		go func() { outs <- r.Run(t.Context(), s, attempt.Input{TaskID: "t", Attempt: 1}) }()
		began := time.Now()
		runtime.GC()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: the garbage collector took %s", digest, took)
		}
		out := <-outs
		if out.Status != attempt.Killed || out.Reason != attempt.Timeout {
			t.Errorf("%s: got %v, %q (%s), want killed by timeout", digest, out.Status, out.Reason, out.Message)
		}
		if took := out.Ended.Sub(out.Started); took > 5*time.Second {
			t.Errorf("%s: killed after %s", digest, took)
		} else {
			t.Logf("%s: killed after %s", digest, took)
		}
	}
}

// TestFreshMemory: what one attempt left in memory, no other sees.
func TestFreshMemory(t *testing.T) {
	t.Parallel()
	// Traps when the byte at 100 is set, then sets it.
	m := module(body(
		0x41, 0xe4, 0, 0x2d, 0, 0, 0x04, 0x40, 0x00, 0x0b,
		0x41, 0xe4, 0, 0x41, 1, 0x3a, 0, 0))
	r := newRuntime(t, Options{Code: &shelf{modules: map[string][]byte{"m": m}}})
	for range 3 {
		if out := r.Run(t.Context(), spec("m"), attempt.Input{TaskID: "t", Attempt: 1}); out.Status != attempt.Done {
			t.Fatalf("got %v: %s", out.Status, out.Message)
		}
	}
}

// TestUnable are the ways in which a module never runs.
func TestUnable(t *testing.T) {
	t.Parallel()
	code := &shelf{modules: map[string][]byte{"bad": []byte("#!/bin/sh\n"), "big": module(body(), memory(4096))}}
	r := newRuntime(t, Options{Code: code})
	for _, test := range []struct {
		digest string
		status attempt.Status
		reason attempt.Reason
	}{
		{"absent", attempt.Retry, attempt.NoCode},
		{"bad", attempt.Failed, attempt.BadSpec},
		{"big", attempt.Failed, attempt.Memory},
		{"", attempt.Failed, attempt.BadSpec},
	} {
		if err := r.Prepare(t.Context(), spec(test.digest)); err == nil {
			t.Errorf("%q: Prepare took it", test.digest)
		}
		out := r.Run(t.Context(), spec(test.digest), attempt.Input{TaskID: "t", Attempt: 1})
		if out.Status != test.status || out.Reason != test.reason || out.Message == "" {
			t.Errorf("%q: got %v, %q (%s), want %v, %q", test.digest, out.Status, out.Reason, out.Message, test.status, test.reason)
		}
	}
}

// TestCache: a module is fetched and compiled once, and the one that was not
// used for longest goes first.
func TestCache(t *testing.T) {
	t.Parallel()
	code := &shelf{modules: map[string][]byte{}}
	for _, d := range []string{"a", "b", "c"} {
		code.modules[d] = module(body(), name(d))
	}
	size := int64(len(code.modules["a"]))
	r := newRuntime(t, Options{Code: code, CacheBytes: 2 * size})
	run := func(digest string, wantCold bool) {
		t.Helper()
		out := r.Run(t.Context(), spec(digest), attempt.Input{TaskID: "t", Attempt: 1})
		if out.Status != attempt.Done || (out.Cold > 0) != wantCold {
			t.Fatalf("%s: got %v (%s), cold start %s, want cold: %v", digest, out.Status, out.Message, out.Cold, wantCold)
		}
	}
	run("a", true)
	run("b", true)
	run("a", false)
	run("c", true) // b goes
	if got := fmt.Sprint(r.Warm()); got != "[a c]" {
		t.Errorf("got warm modules %s, want [a c]", got)
	}
	run("b", true) // a goes
	run("c", false)
	if n := code.opens.Load(); n != 4 {
		t.Errorf("got %d fetches, want 4", n)
	}

	// Evicted while in use: the attempt goes on.
	m, _, err := r.modules.acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	run("b", true)
	run("c", true)
	if m.place != nil || m.code == nil {
		t.Fatal("a module in use must leave the cache and stay usable")
	}
	r.modules.release(m)
	if m.code != nil {
		t.Error("a module that is neither kept nor used must be freed")
	}
}

// TestColdTogether: attempts that come at once share one fetch.
func TestColdTogether(t *testing.T) {
	t.Parallel()
	code := &shelf{modules: map[string][]byte{"a": module(body())}}
	r := newRuntime(t, Options{Code: code})
	outs := make(chan attempt.Outcome)
	for range 16 {
		go func() { outs <- r.Run(t.Context(), spec("a"), attempt.Input{TaskID: "t", Attempt: 1}) }()
	}
	for range 16 {
		if out := <-outs; out.Status != attempt.Done {
			t.Errorf("got %v: %s", out.Status, out.Message)
		}
	}
	if n := code.opens.Load(); n != 1 {
		t.Errorf("got %d fetches, want 1", n)
	}
}

// TestClose kills what still runs.
func TestClose(t *testing.T) {
	t.Parallel()
	r, err := New(t.Context(), Options{Code: &shelf{modules: map[string][]byte{"loop": module(body(0x03, 0x40, 0x0c, 0, 0x0b))}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Prepare(t.Context(), spec("loop")); err != nil {
		t.Fatal(err)
	}
	outs := make(chan attempt.Outcome)
	started := make(chan struct{})
	go func() {
		close(started)
		outs <- r.Run(context.Background(), spec("loop"), attempt.Input{TaskID: "t", Attempt: 1})
	}()
	<-started
	closed := make(chan error)
	time.AfterFunc(50*time.Millisecond, func() { closed <- r.Close(context.Background()) })
	out := <-outs
	if out.Status != attempt.Killed || out.Reason != attempt.Lost {
		t.Errorf("got %v, %q (%s), want killed, lost", out.Status, out.Reason, out.Message)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func BenchmarkRun(b *testing.B) {
	code := &shelf{modules: map[string][]byte{"go": attempttest.Module(b), "tiny": module(body())}}
	r := newRuntime(b, Options{Code: code})
	for _, digest := range []string{"tiny", "go"} {
		b.Run(digest, func(b *testing.B) {
			if err := r.Prepare(b.Context(), spec(digest)); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if out := r.Run(b.Context(), spec(digest, mode("exit 0")), attempt.Input{TaskID: "t", Attempt: 1}); out.Status != attempt.Done {
					b.Fatal(out.Message)
				}
			}
		})
	}
}
