// Command demo is the program behind `make run`: it starts a mesh of three
// regions with `isobar dev`, deploys two functions that do real work, plays a
// workload shaped like a published trace against the three APIs, checks every
// result, and prints where the work ran, why, how long it took and what it cost
// in money and carbon. Then it stays up until interrupted, or ends with --once.
//
// It talks to the mesh over the public API alone. Nothing it prints is assumed:
// latencies are measured, costs are read from the decisions the mesh stored,
// accuracy is counted against labels.
//
// `demo compare A.json B.json` compares the outputs of two runs' reports.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes: a run that went wrong, and arguments or files that are.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "compare" {
		return compareFiles(args[1:], stdout, stderr)
	}
	o, err := parseOptions(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		_, _ = fmt.Fprintln(stderr, "demo:", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d := &demo{options: o, out: stdout, err: stderr, terminal: isTerminal(stdout)}
	switch err := d.run(ctx); {
	case errors.As(err, new(*usageError)):
		_, _ = fmt.Fprintln(stderr, "demo:", err)
		return exitUsage
	case err != nil && ctx.Err() != nil:
		_, _ = fmt.Fprintln(stderr, "demo: interrupted")
		return exitFailed
	case err != nil:
		_, _ = fmt.Fprintln(stderr, "demo:", err)
		return exitFailed
	}
	return 0
}

// isTerminal reports whether what is written is seen by a person as it comes.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
