package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/telemetry"
)

const (
	defaultServer  = "http://127.0.0.1:7101"
	defaultTimeout = 30 * time.Second
	// flushTimeout is how long the end of a process may wait for its traces.
	flushTimeout = 3 * time.Second
)

// app is what every command is given.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            config.Lookup

	// Flags of every command that asks a server.
	servers []string
	tenant  string
	output  string
	timeout time.Duration
}

const (
	groupMesh  = "mesh"
	groupWork  = "work"
	groupOther = "other"
)

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "isobar",
		Short: "Runs event-driven work across regions, each task placed by one explained decision",
		Long: `Isobar evens out the pressure of event-driven work across regions: every task is
placed by cost, latency, residency and carbon, and says why.

Start a mesh of three regions on this machine with: isobar dev

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not reachable,
4 timed out and still running.`,
		SilenceErrors: true, SilenceUsage: true,
		Args: noCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := root.PersistentFlags()
	flags.StringSliceVar(&a.servers, "server", nil, "API address of a server, or several (ISOBAR_SERVER; default "+defaultServer+")")
	flags.StringVar(&a.tenant, "tenant", "", "owner of functions and tasks (ISOBAR_TENANT; default \"default\")")
	flags.StringVarP(&a.output, "output", "o", "table", "table or json")
	flags.DurationVar(&a.timeout, "timeout", defaultTimeout, "how long to wait for an answer, or with wait and --wait for the task's end")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(err.Error(), "see `"+cmd.CommandPath()+" --help`")
	})
	root.AddGroup(
		&cobra.Group{ID: groupMesh, Title: "Run a mesh:"},
		&cobra.Group{ID: groupWork, Title: "Use it:"},
		&cobra.Group{ID: groupOther, Title: "More:"},
	)
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupMesh, local(newDev(a)), local(newServer(a)), local(newWorker(a)))
	add(groupWork, newDeploy(a), newFunction(a), newSubmit(a), newInvoke(a), newGet(a), newWait(a), newList(a), newCancel(a),
		newLogs(a), newExplain(a), newQueue(a), newDLQ(a), newMesh(a), newStream(a))
	add(groupOther, local(newSimulate(a)), local(newConfig(a)), newVersion(a))
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.check() }
	return root
}

// local marks a command that asks no server: the flags for that are refused
// there instead of being ignored.
func local(c *cobra.Command) *cobra.Command {
	c.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		for _, name := range []string{"server", "tenant", "output", "timeout"} {
			if cmd.Flags().Changed(name) {
				return usage(fmt.Sprintf("--%s does not belong to %s", name, cmd.CommandPath()), "see `"+cmd.CommandPath()+" --help`")
			}
		}
		return nil
	}
	c.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		for _, name := range []string{"server", "tenant", "output", "timeout"} {
			if f := cmd.Root().PersistentFlags().Lookup(name); f != nil {
				f.Hidden = true
			}
		}
		cmd.Root().HelpFunc()(cmd, args)
	})
	return c
}

func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "see `" + cmd.CommandPath() + " --help`"
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return usage(fmt.Sprintf("unknown command %q of %s", args[0], cmd.CommandPath()), hint)
}

// group is a command that only holds others.
func group(c *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	c.Args = noCommand
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	c.AddCommand(commands...)
	return c
}

// args bounds the number of arguments, with a usage error like all others.
func args(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < low || len(args) > high {
			_, form, _ := strings.Cut(cmd.UseLine(), " ")
			return usage(fmt.Sprintf("%s was given %d arguments", cmd.CommandPath(), len(args)), "use it as: isobar "+form)
		}
		return nil
	}
}

// check completes the common flags from the environment.
func (a *app) check() error {
	if a.output != "table" && a.output != "json" {
		return usage(fmt.Sprintf("unknown output %q", a.output), "use -o table or -o json")
	}
	if a.timeout <= 0 {
		return usage("--timeout must be above 0", "for instance --timeout 1m")
	}
	if len(a.servers) == 0 {
		list, _ := a.env("ISOBAR_SERVER")
		a.servers = strings.Split(cmp.Or(list, defaultServer), ",")
	}
	if a.tenant == "" {
		a.tenant, _ = a.env("ISOBAR_TENANT")
	}
	return nil
}

func (a *app) json() bool { return a.output == "json" }

// call runs a command's question: with a client, a span, and the timeout.
func (a *app) call(cmd *cobra.Command, timeout time.Duration, ask func(context.Context, *client.Client) error) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	tel, err := telemetry.New(ctx, telemetry.Options{Service: "isobar-cli", Version: version()})
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	handleTraceErrors(log) // a collector that is away must not disturb the answer
	defer flush(tel, log)
	ctx, span := tel.TracerProvider().Tracer("github.com/isobar-mesh/isobar/cmd/isobar").
		Start(ctx, cmd.CommandPath(), trace.WithSpanKind(trace.SpanKindClient))
	defer span.End()
	c, err := client.New(a.servers, client.WithTracer(tel.TracerProvider()), client.WithRedirect(func(r client.Redirect) {
		fmt.Fprintf(a.stderr, "%s: %s points to cell %s at %s (%s)\n", cmd.CommandPath(), r.From, r.Cell, r.To, r.Reason)
	}))
	if err != nil {
		return usage(err.Error(), "--server and ISOBAR_SERVER are addresses such as "+defaultServer)
	}
	defer c.Close()
	return ask(ctx, c)
}

// handleTraceErrors sends the trace library's own errors to the log; it has no
// other place to set that than the process.
func handleTraceErrors(log *slog.Logger) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("telemetry", "error", err) }))
}

func flush(tel *telemetry.Telemetry, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if err := tel.Shutdown(ctx); err != nil {
		log.Warn("traces were not sent", "error", err)
	}
}
