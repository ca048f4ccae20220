package stream_test

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/embedded"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/stream"
)

// unreadable keeps the messages of a broker that at times can't be read beyond a
// position.
type unreadable struct {
	broker.Streams
	from  atomic.Int64 // nothing at it or behind it can be read; negative: all can
	reads atomic.Int64
}

func (u *unreadable) Read(ctx context.Context, p broker.Partition, at broker.Position) iter.Seq2[*broker.StreamStored, error] {
	u.reads.Add(1)
	return func(yield func(*broker.StreamStored, error) bool) {
		from := u.from.Load()
		for msg, err := range u.Streams.Read(ctx, p, at) {
			if err == nil && from >= 0 && msg.Position >= broker.Position(from) {
				msg, err = nil, fmt.Errorf("read %s: %w", p, broker.ErrUnavailable)
			}
			if !yield(msg, err) || err != nil {
				return
			}
		}
	}
}

// failing makes the cell's messages unreadable on demand.
func (c *cell) failing() *unreadable {
	u := &unreadable{Streams: c.Messages}
	u.from.Store(-1)
	c.Messages = u
	return u
}

// While the broker can't be read, no delivery of a message that waits is counted:
// nobody has seen it.
func TestUnreadIsNotDelivered(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{MaxDeliveries: 3, VisibilityMs: 10_000}, embedded.Options{}, func(t *testing.T, c *cell) {
		messages := c.failing()
		c.publish("r", message("a", 0), message("b", 1), message("c", 2))
		b := c.next("g", "s", 10, time.Second)
		want(t, b, "a 0", "b 1", "c 2")
		var items []*meshv1.GroupAckItem
		for _, d := range b.Deliveries {
			items = append(items, &meshv1.GroupAckItem{Position: d.StreamStored.Position, Delivery: d.Number, Action: "retry"})
		}
		if _, err := c.Ack(t.Context(), group("g"), "s", items); err != nil {
			t.Fatal(err)
		}
		messages.from.Store(0)
		for range 60 { // a minute, in which the consumer asks again and again
			b, err := c.Next(t.Context(), stream.Member{Group: group("g"), Session: "s"}, stream.Want{Max: 10, InFlight: 10})
			if err == nil && len(b.Deliveries) > 0 {
				t.Fatalf("it is given %v", texts(b.Deliveries))
			}
			time.Sleep(time.Second)
		}
		messages.from.Store(int64(b.Deliveries[2].StreamStored.Position)) // two of three can be read
		b = c.next("g", "s", 10, time.Minute)
		want(t, b, "a 0", "b 1")
		messages.from.Store(-1)
		b.Deliveries = append(b.Deliveries, c.next("g", "s", 10, time.Minute).Deliveries...)
		want(t, b, "a 0", "b 1", "c 2")
		for _, d := range b.Deliveries {
			if d.Attempt != 2 {
				t.Errorf("%s was seen once before, and this is attempt %d", d.Payload, d.Attempt)
			}
		}
	})
}

// What is new is read once, and what comes again once.
func TestReadsOfADelivery(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{VisibilityMs: 10_000}, embedded.Options{}, func(t *testing.T, c *cell) {
		messages := c.failing()
		c.publish("r", message("a", 0), message("b", 1), message("a", 2))
		want(t, c.next("g", "s", 2, time.Second), "a 0", "b 1")
		if n := messages.reads.Swap(0); n != 1 {
			t.Errorf("two new messages took %d reads", n)
		}
		time.Sleep(11 * time.Second)
		messages.reads.Store(0)
		want(t, c.next("g", "s", 2, 0), "a 0", "b 1")
		if n := messages.reads.Load(); n != 1 {
			t.Errorf("two that came again took %d reads", n)
		}
	})
}
