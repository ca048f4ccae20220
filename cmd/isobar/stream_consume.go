package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// forever is longer than any consumer runs.
const forever = 10 * 365 * 24 * time.Hour

func (a *app) streamConsume() *cobra.Command {
	req := &isobarv1.ConsumeRequest{}
	var limit int
	var idle time.Duration
	var keep bool
	c := &cobra.Command{
		Use: "consume NAME --group GROUP", Short: "Join a group, print its messages and acknowledge them", Args: args(1, 1),
		Long: `Joins a group and prints the payload of each message as a line, or with -o json the whole
delivery, and then acknowledges it. It runs until it is stopped, or --max or --idle ends it.
Several consumers of a group share its partitions.`,
	}
	flags := c.Flags()
	flags.StringVar(&req.Group, "group", "", "the group; required")
	flags.StringVar(&req.Session, "session", "", "of this consumer, kept when it comes back (default: a new one)")
	flags.StringVar(&req.Consumer, "consumer", "", "a name that describe shows")
	flags.Uint32Var(&req.MaxInFlight, "in-flight", 64, "messages it may hold unacknowledged, up to 1000")
	flags.StringVar(&req.Start, "start", "earliest", "where a new group begins: earliest or latest")
	flags.IntVar(&limit, "max", 0, "end after so many messages; 0: never")
	flags.DurationVar(&idle, "idle", 0, "end when nothing came for so long; 0: never")
	flags.BoolVar(&keep, "no-ack", false, "leave the messages unacknowledged, and stay in the group, for isobar stream ack")
	cell := cellFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		req.Tenant, req.Stream, req.Cell = a.tenant, args[0], *cell
		if req.Group == "" {
			return usage("consume needs a group", "isobar stream consume "+args[0]+" --group GROUP")
		}
		if req.Session == "" {
			req.Session = uuid.NewString()
		}
		return a.call(cmd, forever, func(ctx context.Context, c *client.Client) error {
			in := &consumer{app: a, client: c, request: req, limit: limit, keep: keep}
			err := in.run(ctx, idle)
			if !keep {
				in.leave(ctx)
			}
			return err
		})
	}
	return c
}

// consumer is one run of `isobar stream consume`.
type consumer struct {
	*app
	client      *client.Client
	request     *isobarv1.ConsumeRequest
	limit, seen int
	keep        bool
	generation  uint64 // of the share that was shown
}

func (c *consumer) run(ctx context.Context, idle time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var quiet *time.Timer
	if idle > 0 {
		quiet = time.AfterFunc(idle, cancel)
		defer quiet.Stop()
	}
	given := func(share *isobarv1.StreamAssignment, list []*isobarv1.StreamDelivery) error {
		c.showShare(share)
		if len(list) == 0 {
			return nil
		}
		if quiet != nil {
			quiet.Reset(idle)
		}
		return c.take(ctx, list)
	}
	if c.limit > 0 {
		return c.fetch(ctx, given)
	}
	return c.client.Consume(ctx, c.request, func(res *isobarv1.ConsumeResponse) error { return given(res.GetAssignment(), res.GetMessages()) })
}

// fetchWait is how long one Fetch waits.
const fetchWait = 5 * time.Second

// fetch asks for as many messages as it will show: what else it was given would
// come again with one delivery less to go.
func (c *consumer) fetch(ctx context.Context, given func(*isobarv1.StreamAssignment, []*isobarv1.StreamDelivery) error) error {
	r := c.request
	req := &isobarv1.FetchRequest{
		Tenant: r.Tenant, Stream: r.Stream, Cell: r.Cell, Group: r.Group, Session: r.Session, Consumer: r.Consumer, MaxInFlight: r.MaxInFlight, Start: r.Start,
	}
	for c.seen < c.limit {
		req.Max = uint32(min(c.limit-c.seen, 1000))
		res, err := c.client.Fetch(ctx, req)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was stopped, or is idle
		}
		if err == nil {
			err = given(res.GetAssignment(), res.GetMessages())
		}
		if err != nil {
			return err
		}
		req.Wait = durationpb.New(fetchWait)
	}
	return nil
}

// showShare says when a new share is nothing.
func (c *consumer) showShare(share *isobarv1.StreamAssignment) {
	if share.GetWaiting() && share.GetGeneration() != c.generation {
		fmt.Fprintf(c.stderr, "waiting: the group has %d members and no partition left for this one\n", share.GetMembers())
	}
	if share != nil {
		c.generation = share.GetGeneration()
	}
}

// take prints messages and acknowledges them, in that order: what is not shown
// comes again.
func (c *consumer) take(ctx context.Context, list []*isobarv1.StreamDelivery) error {
	ack := &isobarv1.AckRequest{
		Tenant: c.request.Tenant, Stream: c.request.Stream, Cell: c.request.Cell, Group: c.request.Group, Session: c.request.Session,
	}
	for _, m := range list {
		if err := c.show(m); err != nil {
			return err
		}
		c.seen++
		ack.Items = append(ack.Items, &isobarv1.AckItem{Partition: m.Partition, Position: m.Position, Delivery: m.Delivery})
	}
	if !c.keep && len(ack.Items) > 0 {
		res, err := c.client.Ack(ctx, ack)
		if err != nil && !errors.Is(err, &client.Error{Reason: "delivery_moved"}) {
			return err
		}
		for _, r := range res.GetResults() {
			if r.GetError() != nil {
				fmt.Fprintf(c.stderr, "%d:%d: %s\n", r.GetPartition(), r.GetPosition(), r.GetError().GetMessage())
			}
		}
	}
	return nil
}

func (c *consumer) show(m *isobarv1.StreamDelivery) error {
	if c.json() {
		return c.printJSON(m)
	}
	if c.keep {
		fmt.Fprintf(c.stderr, "%d:%d:%d of session %s\n", m.GetPartition(), m.GetPosition(), m.GetDelivery(), c.request.Session)
	}
	_, err := c.stdout.Write(append(bytes.TrimSuffix(m.GetPayload(), []byte("\n")), '\n'))
	return err
}

// leave hands the partitions to others at once.
func (c *consumer) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	r := c.request
	if _, err := c.client.Leave(ctx, &isobarv1.LeaveRequest{Tenant: r.Tenant, Stream: r.Stream, Cell: r.Cell, Group: r.Group, Session: r.Session}); err != nil {
		fmt.Fprintf(c.stderr, "the group was not told of the end; it forgets this session after its lease: %v\n", err)
	}
}
