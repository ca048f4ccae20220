package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/telemetry"
)

// orphanGrace is how long a process may take to end once the one that started
// it has gone.
const orphanGrace = 15 * time.Second

// processFlags are those of `isobar server` and `isobar worker`.
type processFlags struct {
	config        string
	exitWithStdin bool
}

func (f *processFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.config, "config", "", "YAML file; docs/config.md describes it (default: environment only)")
	c.Flags().BoolVar(&f.exitWithStdin, "exit-with-stdin", false, "end when standard input closes; for whoever starts this process")
}

// context ends with the command's, and with standard input where asked.
func (f *processFlags) context(ctx context.Context, stdin io.Reader) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if f.exitWithStdin {
		go func() {
			_, _ = io.Copy(io.Discard, stdin)
			// Nobody is left to kill a process that hangs.
			time.AfterFunc(orphanGrace, func() { os.Exit(exitFailed) })
			cancel()
		}()
	}
	return ctx, cancel
}

// observe sets up a process's log and telemetry.
func (a *app) observe(ctx context.Context, l config.Log, opts telemetry.Options) (*slog.Logger, *telemetry.Telemetry, error) {
	log, err := telemetry.NewLogger(a.stderr, l.Level, l.Format)
	if err != nil {
		return nil, nil, err
	}
	handleTraceErrors(log)
	opts.Version = version()
	tel, err := telemetry.New(ctx, opts)
	if err != nil {
		return nil, nil, hinted(exitUsage, fmt.Errorf("set up telemetry: %w", err), hintConfig)
	}
	return log, tel, nil
}
