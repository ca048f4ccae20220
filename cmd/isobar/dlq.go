package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

func newDLQ(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use: "dlq", Short: "Show dead letters and give them new attempts",
		Long: "Shows tasks that are dead, with what they died of, and gives them new attempts under their own ids.",
	}, newDLQList(a), newDLQRedrive(a))
}

// letterFlags choose dead letters.
type letterFlags struct {
	queueFlags
	function, cause, older, newer string
}

func (f *letterFlags) add(c *cobra.Command) {
	f.queueFlags.add(c, "all lanes when left out")
	flags := c.Flags()
	flags.StringVar(&f.function, "function", "", "only of this function")
	flags.StringVar(&f.cause, "cause", "", "only of this outcome of the last attempt: failed, retry, timeout, memory, lost, refused, undelivered, payload_lost")
	flags.StringVar(&f.older, "older-than", "", "only those that died before: a time, or a duration such as 1h")
	flags.StringVar(&f.newer, "newer-than", "", "only those that died since: a time, or a duration such as 1h")
}

func (f *letterFlags) filter(tenant string) (*isobarv1.DeadLetterFilter, error) {
	m := &isobarv1.DeadLetterFilter{Tenant: tenant, Function: f.function, Lane: f.lane, Cause: f.cause}
	var err error
	if m.EndedBefore, err = past("--older-than", f.older); err != nil {
		return nil, err
	}
	m.EndedAfter, err = past("--newer-than", f.newer)
	return m, err
}

// past reads a time, or how long ago it was.
func past(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return timestamppb.New(time.Now().Add(-d)), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, usage(fmt.Sprintf("%s %q is neither a time nor a duration", flag, text), "write 2026-01-02T15:04:05Z, or 10m for ten minutes ago")
	}
	return timestamppb.New(t), nil
}

func newDLQList(a *app) *cobra.Command {
	var f letterFlags
	var limit int32
	var page string
	c := &cobra.Command{Use: "list", Short: "List the dead letters of a cell, with what they died of", Args: args(0, 0)}
	f.add(c)
	c.Flags().Int32Var(&limit, "limit", 100, "at most this many, up to 1000")
	c.Flags().StringVar(&page, "page", "", "go on where an earlier list ended")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		filter, err := f.filter(a.tenant)
		if err != nil {
			return err
		}
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.DeadLetters(ctx, &isobarv1.DeadLetterServiceListRequest{Filter: filter, Cell: f.cell, Limit: limit, PageToken: page})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			rows := [][]string{{"TASK", "FUNCTION", "LANE", "CAUSE", "ATTEMPTS", "REDRIVES", "DIED", "KEY", "CORRELATION", "REASON"}}
			for _, l := range res.GetLetters() {
				t := l.GetTask()
				rows = append(rows, []string{
					t.GetId(), t.GetFunction(), t.GetLane(), l.GetCause(), fmt.Sprint(t.GetAttempt()), fmt.Sprint(l.GetRedrives()),
					timestamp(t.GetEnded()), orDash(t.GetIdempotencyKey()), orDash(t.GetCorrelationId()), excerpt([]byte(t.GetReason())),
				})
			}
			table(a.stdout, rows)
			fmt.Fprintf(a.stderr, "%d shown, %d dead letters of that tenant, function and lane in %s\n", len(res.GetLetters()), res.GetTotal(), res.GetCell())
			if next := res.GetNextPageToken(); next != "" {
				fmt.Fprintf(a.stderr, "more with: --page '%s'\n", next)
			}
			return nil
		})
	}
	return c
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newDLQRedrive(a *app) *cobra.Command {
	var f letterFlags
	var all bool
	c := &cobra.Command{
		Use: "redrive [TASK...]", Short: "Give dead tasks new attempts under their own ids",
		Long: "Gives dead tasks new attempts under their own ids: those that are named, or those that the flags choose. Attempt\n" +
			"numbers go on, so an old holder stays fenced; keys stay theirs. Each task is on its own, and a repeat changes nothing.",
		Args: args(0, 1000),
	}
	f.add(c)
	c.Flags().BoolVar(&all, "all", false, "every dead letter of the tenant at the cell")
	c.RunE = func(cmd *cobra.Command, ids []string) error {
		filter, err := f.filter(a.tenant)
		if err != nil {
			return err
		}
		chosen := f.function+f.lane+f.cause+f.older+f.newer != "" || all
		switch {
		case len(ids) > 0 && chosen:
			return usage("both tasks and flags that choose some", "name tasks, or choose them by flags")
		case len(ids) == 0 && !chosen:
			return usage("no dead letter is chosen", "name tasks, choose by --function, --cause, --older-than or --newer-than, or give --all")
		}
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			req := &isobarv1.RedriveRequest{TaskIds: ids, Cell: f.cell}
			if len(ids) == 0 {
				req.Filter = filter
			}
			return a.redrive(ctx, c, req)
		})
	}
	return c
}

// redrive asks page by page and tells what became of each task.
func (a *app) redrive(ctx context.Context, c *client.Client, req *isobarv1.RedriveRequest) error {
	all := &isobarv1.RedriveResponse{}
	var cut error // after some pages
	for {
		res, err := c.Redrive(ctx, req)
		if err != nil && len(all.Results) == 0 {
			return err
		}
		if cut = err; cut != nil {
			break
		}
		all.Results = append(all.Results, res.GetResults()...)
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if a.json() {
		if err := a.printJSON(all); err != nil {
			return err
		}
	}
	var redriven, already, refused int
	for _, r := range all.GetResults() {
		switch {
		case r.GetError() != nil:
			refused++
			fmt.Fprintf(a.stderr, "%s: %s\n", r.GetTaskId(), r.GetError().GetMessage())
		case r.GetAlready():
			already++
		default:
			redriven++
			if !a.json() {
				fmt.Fprintln(a.stdout, r.GetTaskId())
			}
		}
	}
	fmt.Fprintf(a.stderr, "%d redriven", redriven)
	if already > 0 {
		fmt.Fprintf(a.stderr, ", %d were already", already)
	}
	if cut != nil {
		fmt.Fprintln(a.stderr, " before the error")
		return cut
	}
	fmt.Fprintln(a.stderr)
	if refused > 0 {
		return failed("each line above says why", "%d of %d tasks were not redriven", refused, len(all.GetResults()))
	}
	return nil
}
