package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

func newStream(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use: "stream", Short: "Publish to streams and consume them in groups",
		Long: `A stream is an ordered, partitioned log of messages. Consumers read it in groups: each
message goes to every group, within a group to one consumer, at least once. It lives in
the cell that created it; any cell may be asked about it.`,
	}, a.streamCreate(), a.streamPublish(), a.streamConsume(), a.streamAck(), a.streamSeek(), a.streamList(), a.streamDescribe(), a.streamDelete())
}

// cellFlag is for names that are used in several cells.
func cellFlag(c *cobra.Command) *string {
	return c.Flags().String("cell", "", "the stream's home, when several cells have one of that name")
}

func (a *app) streamCreate() *cobra.Command {
	spec := &isobarv1.StreamSpec{Residency: &isobarv1.Residency{}}
	var age, visibility time.Duration
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a stream in the asked cell", Args: args(1, 1),
		Long: "Makes a stream in the asked cell, its home. Its settings never change; creating it again\nwith the same ones does nothing.",
	}
	flags := c.Flags()
	flags.Uint32Var(&spec.Partitions, "partitions", 1, "messages of one key share a partition; up to 256")
	flags.StringVar(&spec.Order, "order", "strict", "strict: of a key, nothing is delivered behind what is not acknowledged; or relaxed")
	flags.DurationVar(&age, "max-age", 7*24*time.Hour, "messages older than this are dropped")
	flags.Uint64Var(&spec.MaxBytes, "max-bytes", 0, "of each partition, the oldest messages above this are dropped; 0: no bound")
	flags.DurationVar(&visibility, "visibility", 30*time.Second, "what is not acknowledged for so long is delivered again")
	flags.Uint32Var(&spec.MaxDeliveries, "max-deliveries", 0, "of a message to a group, before it is a dead letter; 0: without end")
	flags.StringSliceVar(&spec.Residency.Allowed, "residency", nil, "only cells in one of these jurisdictions may hold it")
	flags.StringSliceVar(&spec.Residency.Denied, "not-in", nil, "no cell in one of these jurisdictions may hold it")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		spec.Tenant, spec.Name, spec.MaxAge, spec.Visibility = a.tenant, args[0], durationpb.New(age), durationpb.New(visibility)
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.CreateStream(ctx, &isobarv1.StreamServiceCreateRequest{Spec: spec})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			done := "is created"
			if res.GetExisted() {
				done = "was there already"
			}
			fmt.Fprintf(a.stderr, "stream %s %s in %s\n", args[0], done, res.GetStream().GetHome())
			return nil
		})
	}
	return c
}

func (a *app) streamList() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the streams of the asked cell", Args: args(0, 0)}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Streams(ctx, &isobarv1.StreamServiceListRequest{Tenant: a.tenant})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			rows := [][]string{{"STREAM", "TENANT", "PARTITIONS", "ORDER", "MAX AGE", "CREATED"}}
			for _, s := range res.GetStreams() {
				spec := s.GetSpec()
				rows = append(rows, []string{
					spec.GetName(), spec.GetTenant(), fmt.Sprint(spec.GetPartitions()), spec.GetOrder(), duration(spec.GetMaxAge()), timestamp(s.GetCreated()),
				})
			}
			table(a.stdout, rows)
			fmt.Fprintf(a.stderr, "%d streams of %s\n", len(res.GetStreams()), res.GetCell())
			return nil
		})
	}
	return c
}

func (a *app) streamDescribe() *cobra.Command {
	c := &cobra.Command{Use: "describe NAME", Short: "Show a stream, its partitions, and its groups with their lag", Args: args(1, 1)}
	cell := cellFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.DescribeStream(ctx, &isobarv1.StreamServiceDescribeRequest{Tenant: a.tenant, Stream: args[0], Cell: *cell})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			a.printStream(res)
			return nil
		})
	}
	return c
}

func (a *app) printStream(res *isobarv1.StreamServiceDescribeResponse) {
	spec := res.GetStream().GetSpec()
	size, deliveries := "", ""
	if spec.GetMaxBytes() > 0 {
		size = bytesText(spec.GetMaxBytes()) + " a partition"
	}
	if spec.GetMaxDeliveries() > 0 {
		deliveries = fmt.Sprint(spec.GetMaxDeliveries())
	}
	fields(a.stdout,
		"stream", spec.GetName(), "tenant", spec.GetTenant(), "home", res.GetStream().GetHome(), "order", spec.GetOrder(),
		"max age", duration(spec.GetMaxAge()), "max bytes", size, "visibility", duration(spec.GetVisibility()), "max deliveries", deliveries,
		"created", timestamp(res.GetStream().GetCreated()))
	fmt.Fprintln(a.stdout)
	rows := [][]string{{"PARTITION", "FIRST", "END", "MESSAGES", "BYTES"}}
	for _, p := range res.GetPartitions() {
		rows = append(rows, []string{fmt.Sprint(p.GetPartition()), fmt.Sprint(p.GetFirst()), fmt.Sprint(p.GetEnd()), fmt.Sprint(p.GetMessages()), bytesText(p.GetBytes())})
	}
	table(a.stdout, rows)
	printTopics(a.stdout, res.GetPartitions())
	for _, g := range res.GetGroups() {
		fmt.Fprintf(a.stdout, "\ngroup %s: %d members, lag %d, %d dead letters\n", g.GetName(), len(g.GetMembers()), g.GetLag(), g.GetDeadLetters())
		rows := [][]string{{"PARTITION", "POSITION", "LAG", "IN FLIGHT", "CONSUMER"}}
		names := map[string]string{}
		for _, m := range g.GetMembers() {
			if names[m.GetSession()] = m.GetConsumer(); m.GetConsumer() == "" {
				names[m.GetSession()] = m.GetSession()
			}
		}
		for _, p := range g.GetPartitions() {
			rows = append(rows, []string{fmt.Sprint(p.GetPartition()), fmt.Sprint(p.GetPosition()), fmt.Sprint(p.GetLag()), fmt.Sprint(p.GetInFlight()), names[p.GetSession()]})
		}
		table(a.stdout, rows)
		for _, d := range g.GetDead() {
			cause, _ := safeText([]byte(d.GetCause()))
			fmt.Fprintf(a.stdout, "dead %d:%d after %d deliveries: %s\n", d.GetPartition(), d.GetPosition(), d.GetAttempts(), cause)
		}
	}
}

// printTopics names the partitions for clients of the broker's own.
func printTopics(w io.Writer, partitions []*isobarv1.StreamPartition) {
	rows := [][]string{{"PARTITION", "TOPIC IN PULSAR"}}
	for _, p := range partitions {
		if topic, _ := safeText([]byte(p.GetTopic())); topic != "" {
			rows = append(rows, []string{fmt.Sprint(p.GetPartition()), topic})
		}
	}
	if len(rows) > 1 {
		fmt.Fprintln(w)
		table(w, rows)
	}
}

func (a *app) streamDelete() *cobra.Command {
	c := &cobra.Command{Use: "delete NAME", Short: "Drop a stream with its messages and groups", Args: args(1, 1)}
	cell := cellFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.DeleteStream(ctx, &isobarv1.StreamServiceDeleteRequest{Tenant: a.tenant, Stream: args[0], Cell: *cell})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			fmt.Fprintf(a.stderr, "%s is deleted\n", args[0])
			return nil
		})
	}
	return c
}
