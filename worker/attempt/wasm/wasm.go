// Package wasm runs functions that are WebAssembly modules with WASI preview 1,
// in the worker's own process, by wazero.
//
// Each attempt is an instance of its own with fresh memory; only compiled code
// is shared. The module reads the payload on stdin and writes the result on
// stdout; it has a clock, randomness, arguments and the environment of the
// contract, and no files, sockets or anything else of the host.
//
// The end of an attempt's context ends the module within thousands of turns of
// its loops, far below a second; a sleep ends at once. The package guarantees that a module can harm only its own attempt:
// memory is bounded by refusing to grow, the result by its cap, time by the
// context. It never checks digests: attempt.Code does.
package wasm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	wasi "github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"github.com/isobar-mesh/isobar/worker/attempt"
)

const (
	defaultCacheBytes = 128 << 20
	maxMemory         = 4 << 30 // of the format: 65,536 pages
)

// Options configure a Runtime.
type Options struct {
	// Code gives the modules; it must be set.
	Code attempt.Code
	// CacheBytes bounds the modules kept compiled, by the size of the module
	// files; machine code takes a few times as much. 0: 128 MiB.
	CacheBytes int64
	// CacheDir keeps machine code across restarts; "" keeps none. Whoever can
	// write there can run code in the worker.
	CacheDir string
}

// Runtime implements attempt.Runtime for attempt.Wasm.
type Runtime struct {
	code    attempt.Code
	runtime wazero.Runtime
	disk    wazero.CompilationCache // nil without a CacheDir
	host    map[string]api.FunctionDefinition
	modules *cache

	ended context.Context //nolint:containedctx // ends with Close
	end   context.CancelCauseFunc
	busy  sync.WaitGroup // whatever uses runtime
}

var _ attempt.Runtime = (*Runtime)(nil)

// New returns a Runtime, which must be closed.
func New(ctx context.Context, o Options) (*Runtime, error) {
	config := wazero.NewRuntimeConfig()
	r := &Runtime{code: o.Code}
	if o.CacheDir != "" {
		disk, err := wazero.NewCompilationCacheWithDir(o.CacheDir)
		if err != nil {
			return nil, fmt.Errorf("wasm: open cache %s: %w", o.CacheDir, err)
		}
		r.disk = disk
		config = config.WithCompilationCache(disk)
	}
	r.runtime = wazero.NewRuntimeWithConfig(ctx, config)
	host, err := wasi.NewBuilder(r.runtime).Compile(ctx)
	if err == nil {
		r.host = host.ExportedFunctions()
		_, err = r.runtime.InstantiateModule(ctx, host, wazero.NewModuleConfig())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wasm: start runtime: %w", err), r.free(ctx))
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = defaultCacheBytes
	}
	r.modules = newCache(o.CacheBytes, &r.busy, r.load)
	r.ended, r.end = context.WithCancelCause(context.Background())
	return r, nil
}

// errNoCode marks a failure to get the module, unlike one of the module.
type errNoCode struct{ error }

func (e errNoCode) Unwrap() error { return e.error }

func (r *Runtime) load(ctx context.Context, digest string) (wazero.CompiledModule, int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(r.ended, func() { cancel(context.Cause(r.ended)) })()
	module, err := r.code.Open(ctx, digest)
	if err != nil {
		return nil, 0, errNoCode{fmt.Errorf("wasm: fetch module %s: %w", digest, err)}
	}
	compiled, err := compile(ctx, r.runtime, r.host, module)
	return compiled, int64(len(module)), err
}

// Prepare implements attempt.Runtime. A spec or module that can never run is
// an *attempt.SpecError or a *ModuleError.
func (r *Runtime) Prepare(ctx context.Context, spec attempt.Spec) error {
	r.busy.Add(1)
	defer r.busy.Done()
	if err := check(spec); err != nil {
		return err
	}
	m, _, err := r.modules.acquire(ctx, spec.Digest)
	if err != nil {
		return err
	}
	defer r.modules.release(m)
	return m.fits(memoryLimit(spec))
}

// Warm lists the digests of the modules that are compiled, sorted.
func (r *Runtime) Warm() []string { return r.modules.digests() }

// Run implements attempt.Runtime.
func (r *Runtime) Run(ctx context.Context, spec attempt.Spec, in attempt.Input) attempt.Outcome {
	r.busy.Add(1)
	defer r.busy.Done()
	if err := check(spec); err != nil {
		return attempt.Unable(attempt.Failed, attempt.BadSpec, err, time.Now())
	}
	m, cold, err := r.modules.acquire(ctx, spec.Digest)
	if err != nil {
		return unable(err)
	}
	defer r.modules.release(m)
	limit := memoryLimit(spec)
	if err := m.fits(limit); err != nil {
		return attempt.Unable(attempt.Failed, attempt.Memory, err, time.Now())
	}
	mem, err := newArena(limit)
	if err != nil {
		return attempt.Unable(attempt.Retry, attempt.NotStarted, err, time.Now())
	}
	out := r.call(ctx, m, mem, spec, in)
	out.Cold, out.PeakMemory = cold, int64(mem.peak)
	if err := mem.release(); err != nil && out.Message == "" {
		out.Message = err.Error()
	}
	return out
}

// call runs the module in mem to its end.
func (r *Runtime) call(ctx context.Context, m *entry, mem *arena, spec attempt.Spec, in attempt.Input) attempt.Outcome {
	out := attempt.Outcome{Started: time.Now()}
	ctx, until, cancel := attempt.Window(ctx, spec.Limits, in.Deadline, out.Started)
	defer cancel(nil)
	defer context.AfterFunc(r.ended, func() { cancel(context.Cause(r.ended)) })()

	if ctx.Err() != nil {
		out.Kill(attempt.KillOf(ctx))
		out.Ended = out.Started
		return out
	}
	result := attempt.NewResult(spec.Limits.MaxResult(), func(k *attempt.Kill) { cancel(k) })
	var stderr attempt.Tail
	config := wazero.NewModuleConfig().
		WithName(""). // Unnamed, so that instances of one module can be many.
		WithStartFunctions().
		WithArgs("function").
		WithStdin(bytes.NewReader(in.Payload)).WithStdout(result).WithStderr(&stderr).
		WithSysWalltime().WithSysNanotime().WithNanosleep(sleeper(ctx)).
		WithRandSource(rand.Reader)
	for _, v := range attempt.Environ(spec, in, until) {
		config = config.WithEnv(v.Name, v.Value)
	}

	instance, err := r.runtime.InstantiateModule(experimental.WithMemoryAllocator(ctx, mem), m.code, config)
	if err == nil {
		err = start(ctx, instance)
		_ = instance.Close(context.WithoutCancel(ctx)) // It holds memory only, which is the arena's.
	}
	out.Ended = time.Now()
	out.StderrTail = stderr.Bytes()
	settle(ctx, &out, err, mem, spec)
	// A result over its cap counts however the module took the failed write.
	if out.Result = result.Bytes(); out.Result == nil {
		out.Kill(attempt.Excess(spec.Limits.MaxResult()))
	} else if out.Status != attempt.Done {
		out.Result = nil
	}
	return out
}

// start calls the module's entry point, and stops it when ctx ends.
func start(ctx context.Context, instance api.Module) error {
	flag, ok := instance.ExportedGlobal(stopGlobal).(api.MutableGlobal)
	if !ok {
		return errors.New("wasm: the module is not metered, so nothing could stop it")
	}
	defer context.AfterFunc(ctx, func() { flag.Set(1) })()
	_, err := instance.ExportedFunction(entryPoint).Call(ctx)
	return err
}

// settle reads the end of a module from the error of its entry point.
func settle(ctx context.Context, out *attempt.Outcome, err error, mem *arena, spec attempt.Spec) {
	exit, exited := errors.AsType[*sys.ExitError](err)
	switch {
	case err == nil || exited && exit.ExitCode() == 0:
		out.Settle(0)
	case !exited && ctx.Err() != nil: // the trap of its metering
		out.Kill(attempt.KillOf(ctx))
	case mem.refused:
		// It asked for more than its limit, and then gave up: that is the
		// cause, whatever way it took to end.
		out.Kill(&attempt.Kill{Reason: attempt.Memory, Message: fmt.Sprintf("needs more memory than its limit of %d MiB", spec.Limits.MemoryMiB)})
	case exited:
		out.Settle(int(exit.ExitCode()))
	default:
		out.Status, out.Reason, out.ExitCode = attempt.Failed, attempt.Trap, -1
		out.Message = "trap: " + trapName(err)
	}
}

// sleeper is the module's sleep: it ends with the attempt.
func sleeper(ctx context.Context) sys.Nanosleep {
	return func(ns int64) {
		t := time.NewTimer(time.Duration(ns))
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

// unable is the outcome of an attempt that got no module.
func unable(err error) attempt.Outcome {
	out := attempt.Unable(attempt.Failed, attempt.BadSpec, err, time.Now())
	if kill, ok := errors.AsType[*attempt.Kill](err); ok {
		out.Kill(kill)
	} else if _, ok := errors.AsType[errNoCode](err); ok {
		out.Status, out.Reason = attempt.Retry, attempt.NoCode
	}
	return out
}

func check(spec attempt.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	if spec.Kind != attempt.Wasm {
		return &attempt.SpecError{Field: "runtime", Problem: fmt.Sprintf("%q is not run by the wasm runtime", string(spec.Kind))}
	}
	return nil
}

// memoryLimit is the most memory an instance may have, in bytes.
func memoryLimit(spec attempt.Spec) uint64 {
	if mib := spec.Limits.MemoryMiB; mib > 0 && mib < maxMemory>>20 {
		return uint64(mib) << 20
	}
	return maxMemory
}

// Close implements attempt.Runtime: it kills what runs, waits for it to end,
// and frees all compiled code. When ctx ends first, nothing is freed.
func (r *Runtime) Close(ctx context.Context) error {
	r.end(&attempt.Kill{Reason: attempt.Lost, Message: "the worker shuts down"})
	idle := make(chan struct{})
	go func() {
		r.busy.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return r.free(ctx)
	case <-ctx.Done():
		return fmt.Errorf("wasm: close runtime: attempts still run: %w", context.Cause(ctx))
	}
}

func (r *Runtime) free(ctx context.Context) error {
	err := r.runtime.Close(ctx)
	if r.disk != nil {
		err = errors.Join(err, r.disk.Close(ctx))
	}
	if err != nil {
		return fmt.Errorf("wasm: close runtime: %w", err)
	}
	return nil
}
