package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

func newQueue(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use: "queue", Short: "Show, pause, resume, purge and look into queues",
		Long: "Shows and steers queues. A queue is the tasks of one function in one lane, at the cell that accepted them.",
	}, newQueueList(a), newQueuePause(a), newQueueResume(a), newQueuePurge(a), newQueuePeek(a))
}

// queueFlags choose queues of a function at a cell.
type queueFlags struct{ lane, cell string }

func (f *queueFlags) add(c *cobra.Command, lanes string) {
	c.Flags().StringVar(&f.lane, "lane", "", "critical, interactive, standard or batch; "+lanes)
	f.addCell(c)
}

func (f *queueFlags) addCell(c *cobra.Command) {
	c.Flags().StringVar(&f.cell, "cell", "", "home cell, such as us-east-1; the asked one when left out")
}

func newQueueList(a *app) *cobra.Command {
	var f queueFlags
	var limit int32
	var page string
	c := &cobra.Command{
		Use: "list [FUNCTION]", Short: "List the queues of a cell with exact counts", Args: args(0, 1),
	}
	f.addCell(c)
	c.Flags().Int32Var(&limit, "limit", 100, "at most this many, up to 1000")
	c.Flags().StringVar(&page, "page", "", "go on where an earlier list ended")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		req := &isobarv1.QueueServiceListRequest{Tenant: a.tenant, Cell: f.cell, Limit: limit, PageToken: page}
		if len(args) > 0 {
			req.Function = args[0]
		}
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Queues(ctx, req)
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			a.printQueues(res.GetQueues())
			fmt.Fprintf(a.stderr, "%d queues of %s\n", len(res.GetQueues()), res.GetCell())
			if next := res.GetNextPageToken(); next != "" {
				fmt.Fprintf(a.stderr, "more with: --page %s\n", next)
			}
			return nil
		})
	}
	return c
}

func (a *app) printQueues(list []*isobarv1.Queue) {
	rows := [][]string{{"TENANT", "FUNCTION", "LANE", "READY", "DEFERRED", "LEASED", "DEAD", "BYTES", "OLDEST", "WAITS FOR"}}
	for _, q := range list {
		oldest := ""
		if q.GetOldest() != nil {
			oldest = ms(time.Since(q.GetOldest().AsTime()))
		}
		rows = append(rows, []string{
			q.GetTenant(), q.GetFunction(), q.GetLane(), fmt.Sprint(q.GetReady()), fmt.Sprint(q.GetDeferred()), fmt.Sprint(q.GetLeased()),
			fmt.Sprint(q.GetDead()), fmt.Sprint(q.GetBytes()), oldest, q.GetBlockedBy(),
		})
	}
	table(a.stdout, rows)
}

func newQueuePause(a *app) *cobra.Command {
	var f queueFlags
	var reason string
	c := &cobra.Command{
		Use: "pause FUNCTION", Short: "Stop dispatch until resume: tasks are accepted and wait, what runs goes on", Args: args(1, 1),
	}
	f.add(c, "all lanes when left out")
	c.Flags().StringVar(&reason, "reason", "", "shown while it is paused")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Pause(ctx, &isobarv1.PauseRequest{Tenant: a.tenant, Function: args[0], Lane: f.lane, Cell: f.cell, Reason: reason})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			a.told(res.GetChanged(), len(res.GetQueues()), "paused")
			return nil
		})
	}
	return c
}

// told says how many queues were changed, and how many were so before.
func (a *app) told(changed uint32, all int, what string) {
	fmt.Fprintf(a.stderr, "%d queues %s", changed, what)
	if already := all - int(changed); already > 0 {
		fmt.Fprintf(a.stderr, ", %d were so already", already)
	}
	fmt.Fprintln(a.stderr)
}

func newQueueResume(a *app) *cobra.Command {
	var f queueFlags
	c := &cobra.Command{Use: "resume FUNCTION", Short: "Let a paused queue go on", Args: args(1, 1)}
	f.add(c, "all lanes when left out")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Resume(ctx, &isobarv1.ResumeRequest{Tenant: a.tenant, Function: args[0], Lane: f.lane, Cell: f.cell})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			a.told(res.GetChanged(), len(res.GetQueues()), "resumed")
			return nil
		})
	}
	return c
}

func newQueuePurge(a *app) *cobra.Command {
	var f queueFlags
	var reason string
	c := &cobra.Command{
		Use: "purge FUNCTION", Short: "Cancel every task that waits; what runs goes on",
		Long: "Cancels every task of the function that waits, ready or deferred, and was accepted before now. What runs goes on,\n" +
			"dead letters stay. A purge that is cut short is repeated.",
		Args: args(1, 1),
	}
	f.add(c, "all lanes when left out")
	c.Flags().StringVar(&reason, "reason", "", "kept with each task")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			n, err := c.Purge(ctx, &isobarv1.PurgeRequest{Tenant: a.tenant, Function: args[0], Lane: f.lane, Cell: f.cell, Reason: reason})
			if err == nil && a.json() {
				return a.printJSON(&isobarv1.PurgeResponse{Cancelled: n})
			}
			if err == nil || n > 0 {
				fmt.Fprintf(a.stderr, "%d tasks cancelled\n", n)
			}
			return err
		})
	}
	return c
}

func newQueuePeek(a *app) *cobra.Command {
	var f queueFlags
	var limit int32
	c := &cobra.Command{Use: "peek FUNCTION", Short: "Show the tasks that are next, with their payloads", Args: args(1, 1)}
	f.add(c, "standard when left out")
	c.Flags().Int32Var(&limit, "limit", 10, "at most this many, up to 100")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Peek(ctx, &isobarv1.PeekRequest{Tenant: a.tenant, Function: args[0], Lane: f.lane, Cell: f.cell, Limit: limit})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			rows := [][]string{{"TASK", "SUBMITTED", "ATTEMPTS", "BYTES", "PAYLOAD"}}
			for _, t := range res.GetTasks() {
				size, payload := fmt.Sprint(len(t.GetPayload())), excerpt(t.GetPayload())
				if t.GetPayloadLost() {
					size, payload = "?", "(lost by the broker)"
				}
				rows = append(rows, []string{t.GetTask().GetId(), timestamp(t.GetTask().GetSubmitted()), fmt.Sprint(t.GetTask().GetAttempt()), size, payload})
			}
			table(a.stdout, rows)
			return nil
		})
	}
	return c
}

// excerpt is the beginning of a payload in one line.
func excerpt(b []byte) string {
	const most = 60
	text, ok := safeText(b)
	if !ok {
		return "(no text)"
	}
	runes := []rune(text)
	for i, r := range runes {
		if r == '\n' || r == '\t' {
			runes[i] = ' '
		}
	}
	if len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return string(runes)
}
