package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

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
