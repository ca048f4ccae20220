// Command isobar is the one binary: the client, `isobar server`, `isobar
// worker`, and `isobar dev`, which runs a mesh of them on one machine.
//
// It wires packages together and holds no logic of its own: it parses the
// command line, calls the package that does the work, prints. Results go to
// standard output, all else to standard error, where every error ends with a
// line that starts with "hint:". Exit codes: 0 done, 1 failed, 2 wrong usage,
// 3 not reachable, 4 timed out and still running.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is main without the process: what it returns is the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, env: os.LookupEnv}
	root := newRoot(a)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return report(stderr, root.ExecuteContext(ctx))
}
