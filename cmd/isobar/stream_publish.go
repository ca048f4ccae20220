package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

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
