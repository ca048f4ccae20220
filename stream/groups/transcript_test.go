package groups_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// TestTranscripts plays testdata/transcripts: a line a command, and what came of it.
// `go test ./stream/groups -rewrite` writes the answers anew: read the diff.
//
//	create partitions=2 [relaxed] [max=3]     publish 0 a b a
//	join g s1 [start …]   leave g s1          renew g s1
//	deliver g s1 0 MAX [away]                 at 30s (lease time), with a tick
//	ack|cumulative|retry|extend g s1 0:POSITION:NUMBER …
//	seek g 0 POSITION     trim 0 FIRST        delete  sweep  show g
func TestTranscripts(t *testing.T) {
	t.Parallel()
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		c := newCell(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			c.t = t
			var out strings.Builder
			for line := range strings.Lines(d.Input) {
				words := strings.Fields(line)
				if len(words) == 0 {
					continue
				}
				got, err := c.play(words[0], words[1:])
				if err != nil {
					got = "error: " + rootOf(err) + "\n"
				}
				fmt.Fprintf(&out, "%s", got)
				c.audit()
			}
			if out.Len() == 0 {
				return "ok\n"
			}
			return out.String()
		})
		if c.replay().Hash() != c.replica.Hash() {
			t.Errorf("%s: a replay in other entries gives another state", path)
		}
	})
}

// rootOf is the sentinel of an error: names around it are free to change.
func rootOf(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func (c *cell) play(verb string, args []string) (string, error) {
	var err error
	switch verb {
	case "create":
		return c.playCreate(args)
	case "publish":
		p := uint32(number(args[0]))
		c.keys[p] = append(c.keys[p], args[1:]...)
		return "", nil
	case "join":
		var start []uint64
		for _, s := range args[2:] {
			start = append(start, number(s))
		}
		_, err = c.join(args[0], args[1], start...)
	case "leave":
		_, err = c.leave(args[0], args[1])
	case "renew":
		res, err := c.renew(args[0], args[1:]...)
		if err == nil && len(res.Lost) > 0 {
			return fmt.Sprintf("lost %v\n", res.Lost), nil
		}
		return "", err
	case "deliver":
		c.unread = 0
		if len(args) > 4 { // nothing that waits can be read
			c.unread = groups.MaxPending
		}
		list, err := c.deliver(args[0], args[1], uint32(number(args[2])), int(number(args[3])))
		return deliveries(c, uint32(number(args[2])), list), err
	case "at":
		if c.lease, err = time.ParseDuration(args[0]); err == nil {
			_, err = c.tick()
		}
	case "ack", "cumulative", "retry", "extend":
		return c.playAck(verb, args)
	case "seek":
		err = c.seek(args[0], uint32(number(args[1])), number(args[2]))
	case "trim":
		err = c.trim(uint32(number(args[0])), number(args[1]))
	case "delete":
		_, err = c.apply(&meshv1.StreamCommand{Command: &meshv1.StreamCommand_Delete{Delete: &meshv1.StreamDelete{Name: orders.Message()}}})
	case "sweep":
		res, err := c.apply(&meshv1.StreamCommand{Command: &meshv1.StreamCommand_Sweep{Sweep: &meshv1.StreamSweep{Name: orders.Message(), Limit: 2}}})
		if err == nil && res.More {
			return "more\n", nil
		}
		return "", err
	case "keys":
		n := 0
		for range c.state().Scan(nil, nil) {
			n++
		}
		return fmt.Sprintf("%d keys\n", n), nil
	case "show":
		return c.show(args[0]), nil
	default:
		return "", fmt.Errorf("no verb %q", verb)
	}
	return "", err
}

func (c *cell) playCreate(args []string) (string, error) {
	rec := &meshv1.StreamRecord{}
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		switch key {
		case "partitions":
			rec.Partitions = uint32(number(value))
		case "relaxed":
			rec.Relaxed = true
		case "max":
			rec.MaxDeliveries = uint32(number(value))
		}
	}
	res, err := c.create(rec)
	if err == nil && res.Existed {
		return "existed\n", nil
	}
	return "", err
}

func (c *cell) playAck(verb string, args []string) (string, error) {
	var items []*meshv1.GroupAckItem
	for _, a := range args[2:] {
		f := strings.Split(a, ":")
		it := &meshv1.GroupAckItem{Partition: uint32(number(f[0])), Position: number(f[1]), Delivery: number(f[2]), Action: verb}
		if verb == "cumulative" {
			it.Action, it.Cumulative = "ack", true
		}
		items = append(items, it)
	}
	verdicts, err := c.ack(args[0], args[1], items...)
	if err != nil {
		return "", err
	}
	return fmt.Sprintln(verdicts), nil
}

func deliveries(c *cell, p uint32, list []groups.Delivery) string {
	if len(list) == 0 {
		return "nothing\n"
	}
	var b strings.Builder
	for i, d := range list {
		if i > 0 {
			b.WriteString(" ")
		}
		fmt.Fprintf(&b, "%d%s#%d", d.Position, c.keys[p][d.Position], d.Number)
		if d.Attempt > 1 {
			fmt.Fprintf(&b, "(%d)", d.Attempt)
		}
	}
	return b.String() + "\n"
}
