package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/worker/attempt"
	"github.com/isobar-mesh/isobar/worker/attempt/attempttest"
)

func newRuntime(t testing.TB) *Runtime {
	t.Helper()
	dir := t.TempDir()
	r, err := New(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("working directories stay: %v", left)
		}
	})
	return r
}

func spec(command ...string) attempt.Spec {
	return attempt.Spec{Kind: attempt.Exec, Command: command, Limits: attempt.Limits{Timeout: 30 * time.Second, MemoryMiB: 64}}
}

func sh(script string) attempt.Spec { return spec("sh", "-c", script) }

func input(payload string) attempt.Input {
	return attempt.Input{TaskID: "t", Attempt: 1, Payload: []byte(payload)}
}

type want struct {
	name    string
	spec    attempt.Spec
	payload string
	status  attempt.Status
	reason  attempt.Reason
	exit    int
	message string
	result  string
	stderr  string
}

func (w want) check(t *testing.T, r *Runtime) attempt.Outcome {
	t.Helper()
	out := r.Run(t.Context(), w.spec, input(w.payload))
	if out.Status != w.status || out.Reason != w.reason || out.ExitCode != w.exit {
		t.Fatalf("got %v, %q, exit code %d (%s, stderr %q), want %v, %q, %d",
			out.Status, out.Reason, out.ExitCode, out.Message, out.StderrTail, w.status, w.reason, w.exit)
	}
	if string(out.Result) != w.result {
		t.Errorf("got a result of %d bytes %.40q, want %d bytes %.40q", len(out.Result), out.Result, len(w.result), w.result)
	}
	if (out.Result != nil) != (w.status == attempt.Done) {
		t.Error("a result must be there exactly when the attempt is done")
	}
	if !strings.Contains(out.Message, w.message) {
		t.Errorf("got message %q, want it to hold %q", out.Message, w.message)
	}
	if !strings.Contains(string(out.StderrTail), w.stderr) || len(out.StderrTail) > mesh.MaxStderrTail {
		t.Errorf("got a stderr tail of %d bytes %q, want it to hold %q", len(out.StderrTail), out.StderrTail, w.stderr)
	}
	return out
}

func timeout(s attempt.Spec, d time.Duration) attempt.Spec {
	s.Limits.Timeout = d
	return s
}

func TestRun(t *testing.T) {
	t.Parallel()
	r := newRuntime(t)
	large := strings.Repeat("payload\n", mesh.MaxPayload/8)
	for _, test := range []want{
		{name: "filter", spec: spec("tr", "a-z", "A-Z"), payload: "north wind", status: attempt.Done, result: "NORTH WIND"},
		{name: "absolute", spec: spec("/bin/cat"), payload: large[:mesh.MaxResult], status: attempt.Done, result: large[:mesh.MaxResult]},
		{name: "result too large", spec: spec("cat"), payload: large[:mesh.MaxResult+8], status: attempt.Failed, reason: attempt.TooLarge, exit: -1, message: "result too large: more than 262144 bytes"},
		{name: "never reads", spec: sh("echo fine"), payload: large, status: attempt.Done, result: "fine\n"},
		{name: "closes stdin", spec: sh("exec <&-; sleep 0.1; echo fine"), payload: large, status: attempt.Done, result: "fine\n"},
		{name: "no output", spec: spec("true"), status: attempt.Done},
		{name: "try again", spec: sh("echo later >&2; exit 75"), status: attempt.Retry, reason: attempt.Exit, exit: 75, stderr: "later"},
		{name: "fails", spec: sh("echo half; exit 3"), status: attempt.Failed, reason: attempt.Exit, exit: 3, message: "exit code 3"},
		{name: "signal of its own", spec: sh("kill -TERM $$"), status: attempt.Failed, reason: attempt.Signal, exit: -1, message: "died by signal 15"},
		{name: "killed by others", spec: sh("kill -KILL $$"), status: attempt.Killed, reason: attempt.Lost, exit: -1, message: "from outside"},
		{name: "floods stdout", spec: spec("yes"), status: attempt.Failed, reason: attempt.TooLarge, exit: -1},
		{name: "floods stderr", spec: sh("yes complaint | head -n 100000 >&2; echo end >&2"), status: attempt.Done, stderr: "complaint\nend\n"},
		{name: "hangs", spec: timeout(spec("sleep", "3600"), 100*time.Millisecond), status: attempt.Killed, reason: attempt.Timeout, exit: -1, message: "its timeout of 100ms"},
		{name: "hangs below", spec: timeout(sh("trap '' TERM; sleep 3600 | sleep 3600; echo no"), 100*time.Millisecond), status: attempt.Killed, reason: attempt.Timeout, exit: -1},
		{name: "too many files", spec: sh("ulimit -n; ulimit -c"), status: attempt.Done, result: "1024\n0\n"},
		{name: "no such program", spec: spec("isobar-none"), status: attempt.Failed, reason: attempt.BadSpec, exit: -1, message: "found nowhere in /usr/local/bin:/usr/bin:/bin"},
		{name: "no program", spec: spec("/etc"), status: attempt.Failed, reason: attempt.BadSpec, exit: -1, message: "/etc is no program"},
		{name: "relative", spec: spec("./cat"), status: attempt.Failed, reason: attempt.BadSpec, exit: -1, message: "is relative"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.name == "too many files" && runtime.GOOS != "linux" {
				t.Skip("only Linux sets the limits of another process")
			}
			test.check(t, r)
		})
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("ISOBAR_SECRET", "of the host")
	r := newRuntime(t)
	s := spec("env")
	s.Env = []attempt.Var{{Name: "LANG", Value: "a=b c"}, {Name: "LEDGER", Value: "/tmp/l"}}
	deadline := time.Now().Add(10 * time.Second).Round(0)
	out := r.Run(t.Context(), s, attempt.Input{TaskID: "task-1", Attempt: 7, Deadline: deadline, Traceparent: "00-a-b-01"})
	want := "PATH=/usr/local/bin:/usr/bin:/bin\nISOBAR_TASK_ID=task-1\nISOBAR_ATTEMPT=7\nISOBAR_DEADLINE=" +
		deadline.UTC().Format(time.RFC3339Nano) + "\nTRACEPARENT=00-a-b-01\nLANG=a=b c\nLEDGER=/tmp/l\n"
	if string(out.Result) != want {
		t.Errorf("got environment\n%s\nwant\n%s", out.Result, want)
	}
}

// TestWorkDir: each attempt has an empty directory of its own, which goes with
// it whatever is done to it.
func TestWorkDir(t *testing.T) {
	t.Parallel()
	r := newRuntime(t)
	var seen []string
	for range 2 {
		out := r.Run(t.Context(), sh("pwd; ls -A | wc -l | tr -d ' '; mkdir a; touch a/b; chmod 0 a"), input(""))
		dir, files, _ := strings.Cut(strings.TrimSpace(string(out.Result)), "\n")
		if out.Status != attempt.Done || files != "0" {
			t.Fatalf("got %v, %q (%s), want an empty directory", out.Status, out.Result, out.Message)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s stays: %v", dir, err)
		}
		seen = append(seen, dir)
	}
	if seen[0] == seen[1] {
		t.Errorf("two attempts in one directory: %s", seen)
	}
}

// TestLeftovers of a worker that crashed are removed, and nothing else.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"attempt-1/sub", "other"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r, err := New(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 || left[0].Name() != "other" {
		t.Errorf("got %v left, want only other", left)
	}
}

// TestWholeGroup: however an attempt ends, what it left in the background ends
// with it, and does not hold up its end.
func TestWholeGroup(t *testing.T) {
	t.Parallel()
	r := newRuntime(t)
	const background = "sh -c 'sleep 3600 & echo $!; wait' & echo $!; "
	for _, test := range []struct {
		name, script string
		timeout      time.Duration
		status       attempt.Status
	}{
		{"done", background + "sleep 0.2", 30 * time.Second, attempt.Done},
		{"fails", background + "sleep 0.2; exit 1", 30 * time.Second, attempt.Failed},
		{"timeout", background + "sleep 3600", 300 * time.Millisecond, attempt.Killed},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pids := filepath.Join(t.TempDir(), "pids")
			s := timeout(sh("exec 3>$PIDS; { "+test.script+"; } >&3"), test.timeout)
			s.Env = []attempt.Var{{Name: "PIDS", Value: pids}}
			out := r.Run(t.Context(), s, input(""))
			if out.Status != test.status {
				t.Fatalf("got %v (%s), want %v", out.Status, out.Message, test.status)
			}
			if took := out.Ended.Sub(out.Started); took > 5*time.Second {
				t.Errorf("took %s: something in the background held it up", took)
			}
			wrote, err := os.ReadFile(pids)
			if err != nil || len(strings.Fields(string(wrote))) != 2 {
				t.Fatalf("got processes %q, %v, want two", wrote, err)
			}
			for f := range strings.FieldsSeq(string(wrote)) {
				awaitGone(t, f)
			}
		})
	}
}

// awaitGone waits until a process is gone, or dead and only not yet reaped by
// whoever inherited it.
func awaitGone(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		if syscall.Kill(n, 0) != nil {
			return
		}
		if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && bytes.Contains(stat, []byte(") Z ")) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %s lives on", pid)
		}
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	r := newRuntime(t)
	for _, test := range []struct {
		cause  error
		reason attempt.Reason
	}{
		{nil, attempt.Cancelled},
		{&attempt.Kill{Reason: attempt.Lost, Message: "lease lost"}, attempt.Lost},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(50*time.Millisecond, func() { cancel(test.cause) })
		out := r.Run(ctx, sh("sleep 3600"), input(""))
		if out.Status != attempt.Killed || out.Reason != test.reason {
			t.Errorf("cancelled for %v: got %v, %q (%s)", test.cause, out.Status, out.Reason, out.Message)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if out := r.Run(ctx, spec("true"), input("")); out.Status != attempt.Killed {
		t.Errorf("cancelled before: got %v", out.Status)
	}
}

// TestMemory runs a program that eats memory: on its own, through children, in
// small bites and in one.
func TestMemory(t *testing.T) {
	t.Parallel()
	r := newRuntime(t)
	probe := attempttest.Command(t)
	with := func(s attempt.Spec, mode string) attempt.Spec {
		s.Env = []attempt.Var{{Name: "MODE", Value: mode}, {Name: "PROBE", Value: probe}}
		return s
	}
	eaten := want{status: attempt.Killed, reason: attempt.Memory, exit: -1, message: "more than its limit of 64 MiB"}
	for _, test := range []struct {
		name string
		want want
		spec attempt.Spec
	}{
		{"eats", eaten, with(spec(probe), "eat 8")},
		{"eats below", eaten, with(sh(`"$PROBE" & wait`), "eat 8")},
		{"eats together", eaten, with(sh(`for i in 1 2 3 4; do "$PROBE" & done; wait`), "keep 24")}, // each within the limit
		{"holds", want{status: attempt.Done, result: "1\n"}, with(spec(probe), "hold 24")},
		{"one allocation", want{status: attempt.Failed, reason: attempt.Exit, exit: 2, message: "exit code 2"}, with(spec(probe), "huge 100000")},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "one allocation" && runtime.GOOS != "linux" {
				t.Skip("only Linux bounds a process")
			}
			test.want.spec = test.spec
			out := test.want.check(t, r)
			if test.want.reason == attempt.Memory && out.PeakMemory <= 64<<20 {
				t.Errorf("got peak memory %d, want above the limit", out.PeakMemory)
			}
		})
	}
}

// TestClose kills what still runs.
func TestClose(t *testing.T) {
	t.Parallel()
	r, err := New(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	outs := make(chan attempt.Outcome)
	started := filepath.Join(t.TempDir(), "started")
	s := sh("mkdir $STARTED; sleep 3600")
	s.Env = []attempt.Var{{Name: "STARTED", Value: started}}
	go func() { outs <- r.Run(context.Background(), s, input("")) }()
	for {
		if _, err := os.Stat(started); err == nil {
			break
		}
		runtime.Gosched()
	}
	if err := r.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if out := <-outs; out.Status != attempt.Killed || out.Reason != attempt.Lost {
		t.Errorf("got %v, %q (%s), want killed, lost", out.Status, out.Reason, out.Message)
	}
}

// TestDiesWithWorker: a worker that is killed takes its commands with it. The
// worker is this test again, as a process.
func TestDiesWithWorker(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux can")
	}
	if dir := os.Getenv("PROCESS_TEST_WORKER"); dir != "" {
		r, err := New(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		s := sh("echo $$ >$PID.new; mv $PID.new $PID; exec sleep 3600")
		s.Limits.Timeout = time.Hour
		s.Env = []attempt.Var{{Name: "PID", Value: dir + "/pid"}}
		r.Run(t.Context(), s, input(""))
		return
	}
	dir := t.TempDir()
	worker := exec.Command(os.Args[0], "-test.run=^TestDiesWithWorker$")
	worker.Env = append(os.Environ(), "PROCESS_TEST_WORKER="+dir)
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	var pid []byte
	for end := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
		var err error
		if pid, err = os.ReadFile(filepath.Join(dir, "pid")); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the worker started nothing")
		}
	}
	if err := worker.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = worker.Wait() // Killed: an error, as it must be.
	awaitGone(t, strings.TrimSpace(string(pid)))
}

func TestParsePS(t *testing.T) {
	t.Parallel()
	got := parsePS([]byte("    1   100\n   20  1024\n   20     8\nbad\n   30     1\n"), map[int]bool{20: true, 30: true})
	if want := fmt.Sprint(map[int]int64{20: 1032 << 10, 30: 1 << 10}); fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func BenchmarkRun(b *testing.B) {
	r := newRuntime(b)
	for b.Loop() {
		if out := r.Run(b.Context(), spec("true"), input("")); out.Status != attempt.Done {
			b.Fatal(out.Message)
		}
	}
}
