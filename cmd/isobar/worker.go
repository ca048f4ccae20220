package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/internal/telemetry"
	"github.com/isobar-mesh/isobar/worker"
	"github.com/isobar-mesh/isobar/worker/accel"
	"github.com/isobar-mesh/isobar/worker/attempt"
	"github.com/isobar-mesh/isobar/worker/attempt/endpoint"
	"github.com/isobar-mesh/isobar/worker/attempt/process"
	"github.com/isobar-mesh/isobar/worker/attempt/wasm"
)

func newWorker(a *app) *cobra.Command {
	var f processFlags
	c := &cobra.Command{
		Use: "worker", Short: "Run a worker, which runs attempts for one cell, from a YAML file",
		Long: "Runs a worker until it is interrupted; running attempts then have the grace of its configuration.",
		Args: args(0, 0),
	}
	f.add(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.LoadWorker(f.config, a.env, nil)
		if err != nil {
			return hinted(exitUsage, err, hintConfig)
		}
		ctx, cancel := f.context(cmd.Context(), a.stdin)
		defer cancel()
		log, tel, err := a.observe(ctx, cfg.Log, telemetry.Options{
			Service: "isobar-worker", Instance: cfg.Name, Endpoint: cfg.OTLP.Endpoint, Protocol: cfg.OTLP.Protocol,
		})
		if err != nil {
			return err
		}
		defer flush(tel, log)
		return runWorker(ctx, cfg, log, tel)
	}
	return c
}

// closeTimeout bounds the end of the runtimes once no attempt runs.
const closeTimeout = 5 * time.Second

// runWorker runs one worker until ctx ends.
func runWorker(ctx context.Context, cfg config.Worker, log *slog.Logger, tel *telemetry.Telemetry) (err error) {
	capacity, err := offer(cfg)
	if err != nil {
		return hinted(exitFailed, err, "set cpu and memory_mib in the worker's configuration")
	}
	runtimes, err := openRuntimes(ctx, cfg, log)
	defer func() {
		closing, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		for _, r := range runtimes {
			err = errors.Join(err, r.Close(closing))
		}
	}()
	if err != nil {
		return err
	}
	w, err := worker.New(worker.Options{
		Name: cfg.Name, Addresses: cfg.Servers, Capacity: capacity, Runtimes: runtimes, Functions: cfg.Functions,
		DrainTimeout: drain(cfg.Grace), Logger: log, Tracer: tel.TracerProvider(),
	})
	if err != nil {
		return err
	}
	return w.Run(ctx)
}

// drain maps a grace of zero, which ends attempts at once, to the worker's word
// for that.
func drain(grace time.Duration) time.Duration {
	if grace == 0 {
		return -1
	}
	return grace
}

// offer is what the worker has: as configured, and else the host's.
func offer(cfg config.Worker) (mesh.Capacity, error) {
	capacity := mesh.Capacity{CPUMilli: int64(cfg.CPU * 1000), MemoryMiB: cfg.MemoryMiB, Most: mesh.Cost{
		Tokens: cfg.InFlight.Tokens, Bytes: int64(cfg.InFlight.Bytes), AcceleratorMiB: cfg.InFlight.AcceleratorMiB,
	}}
	if capacity.CPUMilli == 0 || capacity.MemoryMiB == 0 {
		host, err := accel.Host()
		if err != nil {
			return mesh.Capacity{}, fmt.Errorf("find the host's resources: %w", err)
		}
		if capacity.CPUMilli == 0 {
			capacity.CPUMilli = host.CPUMilli
		}
		if capacity.MemoryMiB == 0 {
			capacity.MemoryMiB = max(host.MemoryMiB/2, 1)
		}
	}
	if cfg.Accelerators == "" {
		return capacity, nil
	}
	inventory, err := accel.Load(cfg.Accelerators)
	if err != nil {
		return mesh.Capacity{}, err
	}
	return inventory.Capacity(capacity), nil
}

// openRuntimes opens those that the configuration offers. What was opened is
// returned with an error too, to be closed.
func openRuntimes(ctx context.Context, cfg config.Worker, log *slog.Logger) (map[attempt.Kind]attempt.Runtime, error) {
	runtimes := map[attempt.Kind]attempt.Runtime{}
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return runtimes, fmt.Errorf("make data directory: %w", err)
	}
	if slices.Contains(cfg.Runtimes, "exec") {
		r, err := process.New(process.Options{Dir: filepath.Join(cfg.Data, "attempts"), Log: log})
		if err != nil {
			return runtimes, err
		}
		runtimes[attempt.Exec] = r
	}
	if slices.Contains(cfg.Runtimes, "http") {
		runtimes[attempt.HTTP] = endpoint.New(endpoint.Options{})
	}
	if slices.Contains(cfg.Runtimes, "wasm") {
		code, err := worker.NewCode(worker.CodeOptions{Dir: filepath.Join(cfg.Data, "code"), Addresses: cfg.Servers, Logger: log})
		if err != nil {
			return runtimes, err
		}
		// Compiling outlives the context that asks to stop: attempts drain first.
		r, err := wasm.New(context.WithoutCancel(ctx), wasm.Options{Code: code, CacheDir: filepath.Join(cfg.Data, "compiled")})
		if err != nil {
			return runtimes, err
		}
		runtimes[attempt.Wasm] = r
	}
	return runtimes, nil
}
