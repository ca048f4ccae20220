// Package process runs functions that are commands of the host. An attempt is
// one process group with a working directory of its own, which is removed when
// it is over; the command reads the payload on stdin and writes the result on
// stdout, and its environment is that of the contract and a fixed PATH.
//
// However an attempt ends, its whole group is killed (SIGKILL) before Run
// returns, so nothing that the command left in the background stays. On Linux
// the command dies with the worker too. A process that leaves its group (setsid)
// is out of reach: commands are code that the operator of the worker trusts
// with the worker's own user. The package isolates
// nothing else; files, network and the process table are the host's.
//
// Memory is what the processes of the group hold for themselves (anonymous and
// shared memory, no files), sampled many times a second; a group above its
// limit is killed. Between samples the kernel bounds each process a few times
// higher (Linux), so that one runaway allocation fails by itself.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/isobar-mesh/isobar/worker/attempt"
)

// Options configure a Runtime.
type Options struct {
	// Dir holds the working directories of running attempts. It belongs to
	// this Runtime alone: what a crashed worker left there is removed at
	// start. It must be set.
	Dir string
	Log *slog.Logger // nil: slog.Default
}

const workDir = "attempt-" // the start of the names in Options.Dir

// Runtime implements attempt.Runtime for attempt.Exec.
type Runtime struct {
	dir   string
	log   *slog.Logger
	spawn *spawner
	watch *watcher

	ended context.Context //nolint:containedctx // ends with Close
	end   context.CancelCauseFunc
	runs  sync.WaitGroup
}

var _ attempt.Runtime = (*Runtime)(nil)

// New returns a Runtime, which must be closed.
func New(o Options) (*Runtime, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("process: open directory %q: %w", o.Dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("process: make directory: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, workDir+"*"))
	if err != nil {
		return nil, fmt.Errorf("process: list directory %s: %w", dir, err)
	}
	for _, d := range left {
		if err := removeAll(d); err != nil {
			return nil, fmt.Errorf("process: remove what was left: %w", err)
		}
	}
	r := &Runtime{dir: dir, log: o.Log, spawn: newSpawner(), watch: newWatcher()}
	if r.log == nil {
		r.log = slog.Default()
	}
	r.ended, r.end = context.WithCancelCause(context.Background())
	return r, nil
}

// Prepare implements attempt.Runtime: it checks that the program exists here.
func (r *Runtime) Prepare(_ context.Context, spec attempt.Spec) error {
	_, err := program(spec)
	return err
}

// Run implements attempt.Runtime.
func (r *Runtime) Run(ctx context.Context, spec attempt.Spec, in attempt.Input) attempt.Outcome {
	r.runs.Add(1)
	defer r.runs.Done()
	path, err := program(spec)
	if err != nil {
		return attempt.Unable(attempt.Failed, attempt.BadSpec, err, time.Now())
	}
	dir, err := os.MkdirTemp(r.dir, workDir+"*")
	if err != nil {
		return attempt.Unable(attempt.Retry, attempt.NotStarted, fmt.Errorf("process: make working directory: %w", err), time.Now())
	}
	defer func() {
		if err := removeAll(dir); err != nil {
			r.log.Warn("working directory of an attempt stays", "dir", dir, "task", in.TaskID, "err", err)
		}
	}()
	return r.run(ctx, path, dir, spec, in)
}

func (r *Runtime) run(ctx context.Context, path, dir string, spec attempt.Spec, in attempt.Input) attempt.Outcome {
	out := attempt.Outcome{Started: time.Now(), ExitCode: -1}
	ctx, until, cancel := attempt.Window(ctx, spec.Limits, in.Deadline, out.Started)
	defer cancel(nil)
	defer context.AfterFunc(r.ended, func() { cancel(context.Cause(r.ended)) })()
	if ctx.Err() != nil {
		out.Kill(attempt.KillOf(ctx))
		out.Ended = out.Started
		return out
	}

	io, err := newStdio(in.Payload, spec.Limits.MaxResult(), cancel)
	if err != nil {
		return attempt.Unable(attempt.Retry, attempt.NotStarted, err, out.Started)
	}
	cmd := &exec.Cmd{
		Path: path, Args: spec.Command, Dir: dir, Env: environ(spec, in, until),
		Stdin: io.childIn, Stdout: io.childOut, Stderr: io.childErr,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	diesWithParent(cmd.SysProcAttr)
	err = r.spawn.start(cmd, spec.Limits)
	io.closeChildEnds()
	if err != nil {
		io.abandon()
		return unableToStart(err, out.Started)
	}
	usage := r.watch.add(cmd.Process.Pid, spec.Limits.MemoryMiB<<20, cancel)
	g := &running{pgid: cmd.Process.Pid}
	defer context.AfterFunc(ctx, g.kill)()
	io.copy()
	awaitExit(cmd.Process.Pid)
	g.killLast()
	out.PeakMemory = r.watch.remove(usage)
	err = cmd.Wait()
	io.finish()
	out.Ended = time.Now()
	r.settle(ctx, &out, cmd, err, io)
	return out
}

// running is a process group whose first process is not reaped yet, so that
// its number can't have passed to another group.
type running struct {
	mu   sync.Mutex
	pgid int
	over bool
}

// kill ends every process of the group; once it is over it does nothing.
func (g *running) kill() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		_ = syscall.Kill(-g.pgid, syscall.SIGKILL) // Fails when all are gone: as wished.
	}
}

// killLast kills what is left of the group. The first process may be reaped
// from then on.
func (g *running) killLast() {
	g.kill()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = true
}

// settle reads how the command ended.
func (r *Runtime) settle(ctx context.Context, out *attempt.Outcome, cmd *exec.Cmd, err error, io *stdio) {
	out.StderrTail = io.stderr.Bytes()
	result := io.result.Bytes()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case result == nil:
		out.Kill(attempt.Excess(io.limit))
	case err == nil:
		out.Settle(0)
		out.Result = result
	case ok && status.Signaled() && status.Signal() == syscall.SIGKILL && ctx.Err() != nil:
		out.Kill(attempt.KillOf(ctx))
	case ok && status.Signaled() && status.Signal() == syscall.SIGKILL:
		out.Kill(&attempt.Kill{Reason: attempt.Lost, Message: "was killed from outside of the worker, by a person or by the system short of memory"})
	case ok && status.Signaled():
		out.Status, out.Reason = attempt.Failed, attempt.Signal
		out.Message = fmt.Sprintf("died by signal %d (%s)", int(status.Signal()), status.Signal())
	case ok && status.Exited():
		out.Settle(status.ExitStatus())
	default:
		out.Status, out.Reason, out.Message = attempt.Retry, attempt.NotStarted, fmt.Sprintf("process: wait for command: %v", err)
	}
}

// unableToStart tells a program that can never start from a host that is short
// of something.
func unableToStart(err error, now time.Time) attempt.Outcome {
	status, reason := attempt.Failed, attempt.BadSpec
	for _, short := range []error{syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE, syscall.ETXTBSY, syscall.EPERM} {
		if errors.Is(err, short) {
			status, reason = attempt.Retry, attempt.NotStarted
		}
	}
	return attempt.Unable(status, reason, fmt.Errorf("process: start command: %w", err), now)
}

func environ(spec attempt.Spec, in attempt.Input, until time.Time) []string {
	env := []string{"PATH=" + attempt.Path}
	for _, v := range attempt.Environ(spec, in, until) {
		env = append(env, v.Name+"="+v.Value)
	}
	return env
}

// program checks the spec and finds its program.
func program(spec attempt.Spec) (string, error) {
	if err := spec.Validate(); err != nil {
		return "", err
	}
	if spec.Kind != attempt.Exec {
		return "", &attempt.SpecError{Field: "runtime", Problem: fmt.Sprintf("%q is not run by the exec runtime", string(spec.Kind))}
	}
	name := spec.Command[0]
	candidates := []string{name}
	if !filepath.IsAbs(name) {
		candidates = candidates[:0]
		for dir := range strings.SplitSeq(attempt.Path, ":") {
			candidates = append(candidates, filepath.Join(dir, name))
		}
	}
	i := slices.IndexFunc(candidates, executable)
	if i >= 0 {
		return candidates[i], nil
	}
	if filepath.IsAbs(name) {
		return "", &attempt.SpecError{Field: "command", Problem: fmt.Sprintf("%s is no program on this worker", name)}
	}
	return "", &attempt.SpecError{Field: "command", Problem: fmt.Sprintf("%q is found nowhere in %s on this worker", name, attempt.Path)}
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// removeAll removes a working directory, also when the command took away the
// right to do so.
func removeAll(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(path, 0o700) //nolint:gosec // in a directory of this worker alone; RemoveAll below tells what is left.
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// Close implements attempt.Runtime: it kills what runs and waits for it to end.
func (r *Runtime) Close(ctx context.Context) error {
	r.end(&attempt.Kill{Reason: attempt.Lost, Message: "the worker shuts down"})
	idle := make(chan struct{})
	go func() {
		r.runs.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		r.spawn.close()
		r.watch.close()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process: close runtime: attempts still run: %w", context.Cause(ctx))
	}
}
