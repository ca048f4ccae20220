// Command bench measures what Isobar promises about speed, all in one run on
// one machine, and prints the table of each part as it is ready, or JSON at the
// end with -json:
//
//   - Decide at 10, 100 and 1,000 cells;
//   - durable tasks per second, from Submit to the result, in cells of one and
//     of three servers, beside what the log alone commits;
//   - Invoke beside the same function called directly and a plain echo RPC;
//   - what a backlog in another lane, or of another tenant, adds to a wait;
//   - the time from becoming leader to the first lease, without and with a
//     backlog;
//   - where an Apache Pulsar runs (`make pulsar`): its own client, streams and
//     durable tasks on it, and the same on the embedded broker.
//
// Servers are whole servers of internal/server with their own listeners, logs,
// stores and mutual TLS, but they, the workers and the load share this process
// and its cores. So a figure means little by itself; its ratio to another of
// the same run is what can be compared. It says so under the table.
//
//	go run ./loadtest/bench -only durable -cpuprofile cpu.out
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"runtime/pprof"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options of one run.
type options struct {
	json     bool
	only     *regexp.Regexp
	span     time.Duration // of each measurement
	backlog  int
	rounds   int
	inFlight int
	dir      string // scratch
	log      *slog.Logger
	status   io.Writer
}

// part is one group of measurements.
type part struct {
	name    string
	measure func(context.Context, options, *report) error
}

func parts() []part {
	return []part{
		{"decide", benchDecide},
		{"durable", benchDurable},
		{"invoke", benchInvoke},
		{"lanes", benchLanes},
		{"takeover", benchTakeover},
		{"pulsar-streams", benchStreams},
		{"pulsar-tasks", benchTasks},
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	o := options{status: stderr}
	flags.BoolVar(&o.json, "json", false, "print JSON")
	only := flags.String("only", "", "regular expression of the parts to run: decide, durable, invoke, lanes, takeover, pulsar-streams, pulsar-tasks")
	flags.DurationVar(&o.span, "span", 5*time.Second, "length of each measurement")
	flags.IntVar(&o.backlog, "backlog", 100_000, "waiting tasks at a take-over")
	flags.IntVar(&o.rounds, "rounds", 20, "take-overs whose median is told")
	flags.IntVar(&o.inFlight, "inflight", 256, "tasks in flight in the closed loop")
	profile := flags.String("cpuprofile", "", "file for a CPU profile of the whole run")
	allocs := flags.String("memprofile", "", "file for a profile of all that the run allocated")
	verbose := flags.Bool("v", false, "let the servers log")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if o.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("read -only: %w", err)
	}
	o.log = slog.New(slog.DiscardHandler)
	if *verbose {
		o.log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if o.dir, err = os.MkdirTemp("", "isobar-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // a profile that is cut short is seen by its reader
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if *allocs != "" {
		f, err := os.Create(*allocs)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, pprof.Lookup("allocs").WriteTo(f, 0), f.Close()) }()
	}
	r := newReport()
	for _, p := range parts() {
		if !o.only.MatchString(p.name) {
			continue
		}
		fmt.Fprintf(stderr, "bench: %s\n", p.name)
		if err := p.measure(ctx, o, r); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if o.json {
			continue
		}
		if err := r.text(stdout, p.name); err != nil {
			return err
		}
	}
	if o.json {
		return r.json(stdout)
	}
	return r.footer(stdout)
}
