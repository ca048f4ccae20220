package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/internal/mesh"
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

func (a *app) streamPublish() *cobra.Command {
	var key, request string
	var attributes map[string]string
	var partition int64
	var asJSON, lines bool
	c := &cobra.Command{
		Use: "publish NAME [PAYLOAD]", Short: "Publish a message, or each line of standard input", Args: args(1, 2),
		Long: "Publishes a message: text as it stands, @FILE, or - for standard input. With --lines each\nline of standard input is a message. Prints partition:position of each.",
	}
	flags := c.Flags()
	flags.StringVar(&key, "key", "", "messages of one key are kept in order")
	flags.StringToStringVar(&attributes, "attribute", nil, "name=value, carried with the message")
	flags.Int64Var(&partition, "partition", -1, "instead of the one that the key gives")
	flags.BoolVar(&asJSON, "json", false, "the payload is JSON, kept in one line")
	flags.BoolVar(&lines, "lines", false, "publish each line of standard input")
	flags.StringVar(&request, "request-id", "", "repeat an earlier publish: what it stored is not stored again")
	cell := cellFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		publish := func(ctx context.Context, c *client.Client, request string, msgs []*isobarv1.StreamMessage) error {
			for _, m := range msgs {
				m.Key, m.Attributes = key, attributes
				if partition >= 0 {
					p := uint32(min(partition, 1<<32-1))
					m.Partition = &p
				}
			}
			res, err := c.Publish(ctx, &isobarv1.PublishRequest{Tenant: a.tenant, Stream: args[0], Cell: *cell, RequestId: request, Messages: msgs})
			if err != nil {
				return err
			}
			return a.printPublished(res)
		}
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			if lines {
				if len(args) == 2 || asJSON {
					return usage("--lines takes its messages from standard input, as text", "see `isobar stream publish --help`")
				}
				return a.eachLines(func(i int, msgs []*isobarv1.StreamMessage) error {
					id := request
					if id != "" {
						id += "/" + strconv.Itoa(i)
					}
					return publish(ctx, c, id, msgs)
				})
			}
			arg := ""
			if len(args) == 2 {
				arg = args[1]
			}
			p, err := a.readPayload(arg, asJSON)
			if err != nil {
				return err
			}
			return publish(ctx, c, request, []*isobarv1.StreamMessage{messageOf(p)})
		})
	}
	return c
}

func messageOf(p payload) *isobarv1.StreamMessage {
	switch {
	case p.json != nil:
		return &isobarv1.StreamMessage{Input: &isobarv1.StreamMessage_Json{Json: p.json}}
	case p.text != nil:
		return &isobarv1.StreamMessage{Input: &isobarv1.StreamMessage_Text{Text: *p.text}}
	default:
		return &isobarv1.StreamMessage{Input: &isobarv1.StreamMessage_Payload{Payload: p.bytes}}
	}
}

// eachLines hands over the lines of standard input, some hundreds at a time.
func (a *app) eachLines(publish func(i int, msgs []*isobarv1.StreamMessage) error) error {
	if a.stdin == nil {
		return usage("--lines without standard input", "pipe lines into it")
	}
	in := bufio.NewScanner(a.stdin)
	in.Buffer(nil, mesh.MaxPayload+1)
	const batch, batchBytes = 500, 4 << 20
	var msgs []*isobarv1.StreamMessage
	size, i := 0, 0
	flush := func() error {
		if len(msgs) == 0 {
			return nil
		}
		err := publish(i, msgs)
		msgs, size, i = nil, 0, i+1
		return err
	}
	for in.Scan() {
		msgs = append(msgs, &isobarv1.StreamMessage{Input: &isobarv1.StreamMessage_Payload{Payload: bytes.Clone(in.Bytes())}})
		if size += len(in.Bytes()); len(msgs) == batch || size > batchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := in.Err(); err != nil {
		return hinted(exitUsage, fmt.Errorf("read lines: %w", err), "a message is at most 1 MiB")
	}
	return flush()
}

func (a *app) printPublished(res *isobarv1.PublishResponse) error {
	if a.json() {
		if err := a.printJSON(res); err != nil {
			return err
		}
	}
	bad := 0
	var first *isobarv1.TaskError
	for _, r := range res.GetResults() {
		if r.GetError() != nil {
			if bad++; first == nil {
				first = r.GetError()
			}
			continue
		}
		if !a.json() {
			fmt.Fprintf(a.stdout, "%d:%d\n", r.GetPartition(), r.GetPosition())
		}
		if r.GetDuplicate() {
			fmt.Fprintf(a.stderr, "%d:%d was stored before\n", r.GetPartition(), r.GetPosition())
		}
	}
	if bad > 0 {
		return failed(first.GetHint(), "%d of %d messages were not published: %s", bad, len(res.GetResults()), first.GetMessage())
	}
	return nil
}

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
	flags.BoolVar(&keep, "no-ack", false, "leave the messages unacknowledged, and stay in the group, for `isobar stream ack`")
	cell := cellFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		req.Tenant, req.Stream, req.Cell = a.tenant, args[0], *cell
		if req.Group == "" {
			return usage("consume needs a group", "isobar stream consume "+args[0]+" --group GROUP")
		}
		if limit > 0 {
			req.MaxInFlight = min(req.MaxInFlight, uint32(min(limit, 1000)))
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
}

// errEnough ends a consumer that has what it was asked for.
var errEnough = errors.New("enough")

func (c *consumer) run(ctx context.Context, idle time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var quiet *time.Timer
	if idle > 0 {
		quiet = time.AfterFunc(idle, cancel)
		defer quiet.Stop()
	}
	err := c.client.Consume(ctx, c.request, func(res *isobarv1.ConsumeResponse) error {
		if asg := res.GetAssignment(); asg.GetWaiting() {
			fmt.Fprintf(c.stderr, "waiting: the group has %d members and no partition left for this one\n", asg.GetMembers())
		}
		if len(res.GetMessages()) == 0 {
			return nil
		}
		if quiet != nil {
			quiet.Reset(idle)
		}
		return c.take(ctx, res.GetMessages())
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// take prints messages and acknowledges them, in that order: what is not shown
// comes again.
func (c *consumer) take(ctx context.Context, list []*isobarv1.StreamDelivery) error {
	ack := &isobarv1.AckRequest{
		Tenant: c.request.Tenant, Stream: c.request.Stream, Cell: c.request.Cell, Group: c.request.Group, Session: c.request.Session,
	}
	for _, m := range list {
		if c.limit > 0 && c.seen == c.limit {
			break
		}
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
	if c.limit > 0 && c.seen == c.limit {
		return errEnough
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

func (a *app) streamAck() *cobra.Command {
	req := &isobarv1.AckRequest{}
	var cumulative, retry, extend bool
	var reason string
	c := &cobra.Command{
		Use: "ack NAME DELIVERY... --group GROUP --session SESSION", Short: "Acknowledge deliveries", Args: args(2, 1001),
		Long: "Acknowledges deliveries that a consumer with --no-ack, or a Fetch, was given. A delivery reads\npartition:position:number.",
	}
	flags := c.Flags()
	flags.StringVar(&req.Group, "group", "", "the group; required")
	flags.StringVar(&req.Session, "session", "", "the session that was given them; required")
	flags.BoolVar(&cumulative, "cumulative", false, "and everything before them in their partitions that the session was given")
	flags.BoolVar(&retry, "retry", false, "deliver them again instead, after a pause")
	flags.BoolVar(&extend, "extend", false, "begin the visibility timeout anew instead")
	flags.StringVar(&reason, "reason", "", "with --retry: kept with the dead letter")
	cell := cellFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		req.Tenant, req.Stream, req.Cell = a.tenant, args[0], *cell
		action := "ack"
		switch {
		case req.Group == "" || req.Session == "":
			return usage("ack needs --group and --session", "see `isobar stream ack --help`")
		case retry && extend || (retry || extend) && cumulative:
			return usage("--cumulative, --retry and --extend exclude each other", "see `isobar stream ack --help`")
		case retry:
			action = "retry"
		case extend:
			action = "extend"
		}
		for _, arg := range args[1:] {
			item, err := delivery(arg)
			if err != nil {
				return err
			}
			item.Action, item.Cumulative, item.Reason = action, cumulative, reason
			req.Items = append(req.Items, item)
		}
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Ack(ctx, req)
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			moved := 0
			for _, r := range res.GetResults() {
				fmt.Fprintf(a.stdout, "%d:%d %s\n", r.GetPartition(), r.GetPosition(), r.GetVerdict())
				if r.GetError() != nil {
					moved++
				}
			}
			if moved > 0 {
				return failed("they are delivered again; acknowledge within the visibility timeout, or extend it", "%d deliveries had moved on", moved)
			}
			return nil
		})
	}
	return c
}

// delivery reads partition:position:number.
func delivery(s string) (*isobarv1.AckItem, error) {
	parts := strings.Split(s, ":")
	item := &isobarv1.AckItem{}
	if len(parts) == 3 {
		p, err1 := strconv.ParseUint(parts[0], 10, 32)
		at, err2 := strconv.ParseUint(parts[1], 10, 64)
		n, err3 := strconv.ParseUint(parts[2], 10, 64)
		if errors.Join(err1, err2, err3) == nil {
			item.Partition, item.Position, item.Delivery = uint32(p), at, n
			return item, nil
		}
	}
	return nil, usage(fmt.Sprintf("%q is no delivery", s), "write partition:position:number, as consume --no-ack shows them")
}

func (a *app) streamSeek() *cobra.Command {
	req := &isobarv1.SeekRequest{}
	var partition, position int64
	var when string
	var start, end bool
	c := &cobra.Command{
		Use: "seek NAME --group GROUP", Short: "Move a group to a position, a time, the start or the end", Args: args(1, 1),
		Long: "Moves a group: it goes on from there, and what it has in hand counts for nothing. Messages\nbehind the place are delivered again, those before it are not.",
	}
	flags := c.Flags()
	flags.StringVar(&req.Group, "group", "", "the group; required")
	flags.Int64Var(&partition, "partition", -1, "only this partition (default: all)")
	flags.Int64Var(&position, "position", -1, "to this position")
	flags.StringVar(&when, "time", "", "to the first message published then or later: 2026-01-02T15:04:05Z, or 10m for ten minutes ago")
	flags.BoolVar(&start, "to-start", false, "to the oldest message kept")
	flags.BoolVar(&end, "to-end", false, "behind the newest message")
	cell := cellFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		req.Tenant, req.Stream, req.Cell = a.tenant, args[0], *cell
		if partition >= 0 {
			p := uint32(min(partition, 1<<32-1))
			req.Partition = &p
		}
		targets := 0
		if position >= 0 {
			targets, req.To = targets+1, &isobarv1.SeekRequest_Position{Position: uint64(position)}
		}
		if when != "" {
			at, err := ago(when)
			if err != nil {
				return err
			}
			targets, req.To = targets+1, &isobarv1.SeekRequest_Time{Time: timestamppb.New(at)}
		}
		if start {
			targets, req.To = targets+1, &isobarv1.SeekRequest_Start{Start: true}
		}
		if end {
			targets, req.To = targets+1, &isobarv1.SeekRequest_End{End: true}
		}
		if req.Group == "" || targets != 1 {
			return usage("seek needs --group and one of --position, --time, --to-start, --to-end", "see `isobar stream seek --help`")
		}
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Seek(ctx, req)
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			for _, p := range res.GetPositions() {
				fmt.Fprintf(a.stdout, "%d:%d\n", p.GetPartition(), p.GetPosition())
			}
			return nil
		})
	}
	return c
}

// ago reads a moment, or how long ago it was.
func ago(s string) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return at, usage(fmt.Sprintf("%q is no time", s), "write 2026-01-02T15:04:05Z, or 10m for ten minutes ago")
	}
	return at, nil
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
