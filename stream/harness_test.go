package stream_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker/embedded"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/consensus/locallog"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/stream"
	"github.com/isobar-mesh/isobar/stream/groups"
)

var orders = groups.Name{Tenant: "default", Stream: "orders"}

func group(name string) groups.Group { return groups.Group{Name: orders, Group: name} }

// cell is one server with the log of one node.
type cell struct {
	*stream.Streams
	t       testing.TB
	replica *state.Replica
	log     *locallog.Log
	options embedded.Options
}

func newCell(t testing.TB, o embedded.Options, l locallog.Options) *cell {
	t.Helper()
	c := &cell{t: t, options: o}
	var err error
	c.replica, err = state.NewReplica(state.NewMemory(), map[state.MachineID]state.Machine{
		state.BrokerMachine: embedded.Machine{}, state.StreamMachine: groups.Machine{},
	}, state.Options{OnApply: func(_ consensus.Position, results []state.GroupResult) {
		if c.Streams != nil {
			c.Observe(results)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if c.log, err = locallog.Open(&locallog.Disk{}, c.replica, l); err != nil {
		t.Fatal(err)
	}
	c.Streams = stream.New(stream.Options{
		Log: c.log, State: c.replica.Reader(state.StreamMachine), Logger: slog.New(slog.DiscardHandler),
		Messages: embedded.NewStreams(c.replica.Reader(state.BrokerMachine), o),
	})
	c.Lead()
	return c
}

// stop ends the term, so that the bubble can end.
func (c *cell) stop() { c.Resign() }

// elect is a change of leader: all of the old one's memory is gone.
func (c *cell) elect() {
	c.Resign()
	c.Lead()
}

func (c *cell) create(rec *meshv1.StreamRecord) {
	c.t.Helper()
	rec.Tenant, rec.Name = orders.Tenant, orders.Stream
	if rec.Partitions == 0 {
		rec.Partitions = 1
	}
	if rec.MaxAgeMs == 0 {
		rec.MaxAgeMs = (24 * time.Hour).Milliseconds()
	}
	if rec.VisibilityMs == 0 {
		rec.VisibilityMs = 30_000
	}
	if _, _, err := c.Create(c.t.Context(), rec); err != nil {
		c.t.Fatal(err)
	}
}

func message(key string, i int) stream.Message {
	return stream.Message{Key: key, Payload: fmt.Appendf(nil, "%s %d", key, i)}
}

func (c *cell) publish(request string, msgs ...stream.Message) []stream.Published {
	c.t.Helper()
	out, err := c.Publish(c.t.Context(), orders, request, msgs)
	if err != nil {
		c.t.Fatal(err)
	}
	for i, p := range out {
		if p.Err != nil {
			c.t.Fatalf("message %d: %v", i, p.Err)
		}
	}
	return out
}

func (c *cell) next(g, session string, limit int, wait time.Duration) *stream.Batch {
	c.t.Helper()
	b, err := c.Next(c.t.Context(), stream.Member{Group: group(g), Session: session}, stream.Want{Max: limit, InFlight: 1000, Wait: wait})
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

func (c *cell) ack(g, session string, list ...stream.Delivery) []groups.Verdict {
	c.t.Helper()
	v, err := c.tryAck(c.t.Context(), g, session, list...)
	if err != nil {
		c.t.Fatal(err)
	}
	return v
}

func (c *cell) tryAck(ctx context.Context, g, session string, list ...stream.Delivery) ([]groups.Verdict, error) {
	var items []*meshv1.GroupAckItem
	for _, d := range list {
		items = append(items, &meshv1.GroupAckItem{Partition: d.Partition.Number, Position: d.StreamStored.Position, Delivery: d.Number})
	}
	return c.Ack(ctx, group(g), session, items)
}

func texts(list []stream.Delivery) []string {
	var out []string
	for _, d := range list {
		out = append(out, string(d.Payload))
	}
	return out
}

func want(t testing.TB, got *stream.Batch, texts_ ...string) {
	t.Helper()
	if g := fmt.Sprint(texts(got.Deliveries)); g != fmt.Sprint(texts_) {
		t.Fatalf("got %s, want %v", g, texts_)
	}
}

// settle repeats what a client repeats: calls that a leader did not answer.
func settle(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil || !errors.Is(err, consensus.ErrNotLeader) && !errors.Is(err, consensus.ErrOutcomeUnknown) || ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
