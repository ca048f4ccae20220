package stream_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/embedded"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/consensus/locallog"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/stream"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// bubble runs a test in virtual time on a cell of one server.
func bubble(t *testing.T, rec *meshv1.StreamRecord, o embedded.Options, f func(*testing.T, *cell)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCell(t, o, locallog.Options{})
		defer c.stop()
		c.create(rec)
		f(t, c)
	})
}

func TestPublishOnce(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{Partitions: 4}, embedded.Options{}, func(t *testing.T, c *cell) {
		var msgs []stream.Message
		for i := range 200 { // more than one group of the log
			m := message(fmt.Sprint("key-", i%5), i)
			m.Payload = append(m.Payload, make([]byte, 10<<10)...)
			msgs = append(msgs, m)
		}
		first := c.publish("r1", msgs...)
		last := map[uint32]uint64{}
		of := map[string]uint32{}
		for i, p := range first {
			if p.Duplicate {
				t.Errorf("message %d is a duplicate", i)
			}
			if at, ok := last[p.Partition]; ok && p.Position != at+1 {
				t.Errorf("message %d is at %d, the one before it at %d", i, p.Position, at)
			}
			if at, ok := of[msgs[i].Key]; ok && at != p.Partition {
				t.Errorf("key %s is in partitions %d and %d", msgs[i].Key, at, p.Partition)
			}
			last[p.Partition], of[msgs[i].Key] = p.Position, p.Partition
		}
		for i, p := range c.publish("r1", msgs...) {
			if !p.Duplicate || p.Position != first[i].Position || p.Partition != first[i].Partition {
				t.Errorf("the repeat of message %d is %+v, want %+v", i, p, first[i])
			}
		}
		if p := c.publish("r2", msgs[0])[0]; p.Duplicate {
			t.Error("another request is taken for a repeat")
		}
	})
}

func TestPublishRefused(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{MaxBytes: 100}, func(t *testing.T, c *cell) {
		ctx := t.Context()
		if _, err := c.Publish(ctx, groups.Name{Tenant: "default", Stream: "none"}, "r", []stream.Message{message("a", 0)}); !errors.Is(err, groups.ErrUnknownStream) {
			t.Errorf("to an unknown stream: %v", err)
		}
		nine := uint32(9)
		if _, err := c.Publish(ctx, orders, "r", []stream.Message{{Partition: &nine}}); !errors.Is(err, groups.ErrUnknownPartition) {
			t.Errorf("to partition 9 of 1: %v", err)
		}
		out, err := c.Publish(ctx, orders, "full", []stream.Message{{Payload: make([]byte, 60)}, {Payload: make([]byte, 60)}})
		if err != nil || !errors.Is(out[0].Err, broker.ErrFull) || !errors.Is(out[1].Err, broker.ErrFull) {
			t.Errorf("above the cap: %+v, %v", out, err)
		}
		c.publish("fits", stream.Message{Payload: make([]byte, 60)})
		c.Resign()
		if _, err := c.Publish(ctx, orders, "r", []stream.Message{message("a", 0)}); !errors.Is(err, consensus.ErrNotLeader) {
			t.Errorf("without a leader: %v", err)
		}
	})
}

func TestStrictAndRelaxed(t *testing.T) {
	for _, relaxed := range []bool{false, true} {
		t.Run(fmt.Sprint("relaxed=", relaxed), func(t *testing.T) {
			bubble(t, &meshv1.StreamRecord{Relaxed: relaxed}, embedded.Options{}, func(t *testing.T, c *cell) {
				c.publish("r", message("a", 0), message("a", 1), message("b", 0), message("a", 2))
				b := c.next("g", "s1", 10, 0)
				if relaxed {
					want(t, b, "a 0", "a 1", "b 0", "a 2")
					return
				}
				want(t, b, "a 0", "b 0")
				c.ack("g", "s1", b.Deliveries...)
				b = c.next("g", "s1", 10, 0)
				want(t, b, "a 1")
				want(t, c.next("g", "s1", 10, time.Second)) // until it is acknowledged
				c.ack("g", "s1", b.Deliveries...)
				want(t, c.next("g", "s1", 10, 0), "a 2")
			})
		})
	}
}

// TestLeaderChange: what was delivered and not acknowledged comes again after
// its visibility timeout, in order; an acknowledgement from before counts.
func TestLeaderChange(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		c.publish("r", message("a", 0), message("b", 0), message("a", 1), message("b", 1))
		before := c.next("g", "s1", 10, 0)
		want(t, before, "a 0", "b 0")
		c.elect()
		if v := c.ack("g", "s1", before.Deliveries[1]); v[0] != groups.Accepted {
			t.Errorf("an acknowledgement after the change is %s", v[0])
		}
		b := c.next("g", "s1", 10, 0)
		want(t, b, "b 1")
		c.ack("g", "s1", b.Deliveries...)
		began := time.Now()
		again := c.next("g", "s1", 10, time.Minute)
		want(t, again, "a 0")
		if after := time.Since(began); after < 25*time.Second || after > 35*time.Second || again.Deliveries[0].Attempt != 2 {
			t.Errorf("it came again after %v, attempt %d", after, again.Deliveries[0].Attempt)
		}
		if v := c.ack("g", "s1", before.Deliveries[0]); v[0] != groups.Moved {
			t.Errorf("an acknowledgement of the first delivery is %s", v[0])
		}
		c.ack("g", "s1", again.Deliveries...)
		want(t, c.next("g", "s1", 10, 0), "a 1")
	})
}

// TestMembers: a session is kept while a call is under way and a lease longer;
// who has no partition is told, and gets one when another leaves.
func TestMembers(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		if a := c.next("g", "s1", 1, 0).Assignment; a.Waiting || len(a.Partitions) != 1 {
			t.Errorf("the first has %+v", a)
		}
		second := make(chan *stream.Batch)
		go func() {
			m := stream.Member{Group: group("g"), Session: "s2"}
			b, err := c.Next(t.Context(), m, stream.Want{Max: 1, InFlight: 1})
			if err != nil || !b.Assignment.Waiting || b.Assignment.Members != 2 {
				t.Errorf("the second has %+v, error %v", b, err)
			}
			b, err = c.Next(t.Context(), m, stream.Want{Max: 1, InFlight: 1, Wait: time.Hour, Generation: b.Assignment.Generation})
			if err != nil {
				t.Error(err)
			}
			second <- b
		}()
		began := time.Now()
		c.next("g", "s1", 1, time.Minute) // longer than a lease
		select {
		case b := <-second:
			t.Fatalf("the second got %+v beside the first", b)
		default:
		}
		b := <-second // the first is not heard of any more
		if took := time.Since(began); b.Assignment.Waiting || took < 65*time.Second || took > 75*time.Second {
			t.Errorf("after %v the second has %+v", took, b.Assignment)
		}
		if err := c.Leave(t.Context(), group("g"), "s2"); err != nil {
			t.Fatal(err)
		}
		if a := c.next("g", "s3", 1, 0).Assignment; a.Members != 1 || a.Waiting {
			t.Errorf("after it left the third has %+v", a)
		}
	})
}

// TestNewLeaderKeepsMembers: a new leader ends no lease before sessions could
// come back.
func TestNewLeaderKeepsMembers(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		c.next("g", "s1", 1, 0)
		time.Sleep(9500 * time.Millisecond) // half a second of its lease is left
		c.elect()
		time.Sleep(3 * time.Second)
		if d, err := c.Describe(t.Context(), orders); err != nil || len(d.Groups[0].Record.Members) != 1 {
			t.Errorf("after 3 s: %+v, %v", d, err)
		}
		time.Sleep(3 * time.Second)
		if d, err := c.Describe(t.Context(), orders); err != nil || len(d.Groups[0].Record.Members) != 0 {
			t.Errorf("after 6 s: %+v, %v", d, err)
		}
	})
}

// TestHeldSessionStays: one that takes its time with what it was given is not lost.
func TestHeldSessionStays(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		c.next("g", "s1", 1, 0)
		release := c.Hold(stream.Member{Group: group("g"), Session: "s1"})
		members := func() int {
			d, err := c.Describe(t.Context(), orders)
			if err != nil {
				t.Fatal(err)
			}
			return len(d.Groups[0].Record.Members)
		}
		time.Sleep(40 * time.Second)
		if n := members(); n != 1 {
			t.Errorf("while it is held the group has %d members", n)
		}
		release()
		release()
		time.Sleep(20 * time.Second)
		if n := members(); n != 0 {
			t.Errorf("once it is released the group has %d members", n)
		}
	})
}

// TestCredits: a session never holds more than it asked to, over all its
// partitions, and gets more as it acknowledges.
func TestCredits(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{Partitions: 3, Relaxed: true}, embedded.Options{}, func(t *testing.T, c *cell) {
		var msgs []stream.Message
		for i := range 100 {
			msgs = append(msgs, message(fmt.Sprint(i), i))
		}
		c.publish("r", msgs...)
		m := stream.Member{Group: group("g"), Session: "s1"}
		get := func() []stream.Delivery {
			b, err := c.Next(t.Context(), m, stream.Want{Max: 100, InFlight: 7})
			if err != nil {
				t.Fatal(err)
			}
			return b.Deliveries
		}
		held := get()
		if len(held) != 7 || len(get()) != 0 {
			t.Fatalf("it was given %d with 7 in flight", len(held))
		}
		c.ack("g", "s1", held[:3]...)
		if n := len(get()); n != 3 {
			t.Errorf("after 3 acknowledgements it was given %d", n)
		}
	})
}

func TestRetention(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{MaxAgeMs: 60_000, MaxBytes: 30}, embedded.Options{}, func(t *testing.T, c *cell) {
		began := time.Now()
		c.publish("r0", message("a", 0))
		c.next("lag", "s0", 0, 0)
		time.Sleep(40 * time.Second)
		c.publish("r1", message("a", 1), message("a", 2))
		time.Sleep(30 * time.Second) // the first is older than a minute
		d, err := c.Describe(t.Context(), orders)
		if err != nil || d.Partitions[0].First != 1 || d.Partitions[0].Messages != 2 {
			t.Fatalf("%+v, %v", d, err)
		}
		c.publish("r2", stream.Message{Payload: make([]byte, 28)}) // above 30 bytes with the others
		time.Sleep(6 * time.Second)
		d, err = c.Describe(t.Context(), orders)
		if err != nil || d.Partitions[0].First != 3 || d.Groups[0].Cursors[0].Lag != 1 {
			t.Fatalf("%+v, %v", d, err)
		}
		for _, to := range []stream.Target{{Position: new(uint64)}, {Time: began}} {
			var at *stream.PositionError
			if _, err := c.Seek(t.Context(), group("lag"), nil, to); !errors.As(err, &at) || !at.Dropped || at.First != 3 {
				t.Errorf("a seek to %+v before retention: %v", to, err)
			}
		}
		b := c.next("lag", "s0", 10, 0)
		if len(b.Deliveries) != 1 || b.Deliveries[0].StreamStored.Position != 3 {
			t.Errorf("behind retention it is given %v", b.Deliveries)
		}
	})
}

func TestSeek(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{Partitions: 2, Relaxed: true}, embedded.Options{}, func(t *testing.T, c *cell) {
		zero, one := uint32(0), uint32(1)
		var times []time.Time
		for i := range 5 {
			times = append(times, time.Now())
			c.publish(fmt.Sprint("r", i), stream.Message{Partition: &zero, Payload: fmt.Append(nil, i)}, stream.Message{Partition: &one, Payload: fmt.Append(nil, 10+i)})
			time.Sleep(time.Minute)
		}
		first := c.next("g", "s1", 100, 0)
		if len(first.Deliveries) != 10 {
			t.Fatalf("%v", texts(first.Deliveries))
		}
		seek := func(only *uint32, to stream.Target) map[uint32]uint64 {
			at, err := c.Seek(t.Context(), group("g"), only, to)
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		read := func() []string {
			list := texts(c.next("g", "s1", 100, 0).Deliveries)
			slices.Sort(list)
			return list
		}
		if at := seek(nil, stream.Target{Time: times[3]}); at[0] != 3 || at[1] != 3 {
			t.Errorf("by time it is %v", at)
		}
		if v := c.ack("g", "s1", first.Deliveries[9]); v[0] != groups.Moved {
			t.Errorf("a delivery of before the seek is %s", v[0])
		}
		if got := read(); !slices.Equal(got, []string{"13", "14", "3", "4"}) {
			t.Errorf("after it come %v", got)
		}
		three := uint64(2)
		seek(&one, stream.Target{Position: &three})
		if got := read(); !slices.Equal(got, []string{"12", "13", "14"}) {
			t.Errorf("by position come %v", got)
		}
		seek(nil, stream.Target{End: true})
		if got := read(); len(got) != 0 {
			t.Errorf("from the end come %v", got)
		}
		seek(nil, stream.Target{Start: true})
		if got := read(); len(got) != 10 {
			t.Errorf("from the start come %v", got)
		}
		six := uint64(6)
		var at *stream.PositionError
		if _, err := c.Seek(t.Context(), group("g"), &one, stream.Target{Position: &six}); !errors.As(err, &at) || at.Dropped || at.End != 5 {
			t.Errorf("behind the end: %v", err)
		}
		two := uint32(2)
		if _, err := c.Seek(t.Context(), group("g"), &two, stream.Target{Start: true}); !errors.Is(err, groups.ErrUnknownPartition) {
			t.Errorf("in partition 2 of 2: %v", err)
		}
		if _, err := c.Seek(t.Context(), group("none"), nil, stream.Target{Start: true}); !errors.Is(err, groups.ErrUnknownGroup) {
			t.Errorf("of an unknown group: %v", err)
		}
	})
}

func TestLatest(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		c.publish("r0", message("a", 0))
		m := stream.Member{Group: group("g"), Session: "s1", Latest: true}
		if b, err := c.Next(t.Context(), m, stream.Want{Max: 1, InFlight: 1}); err != nil || len(b.Deliveries) != 0 {
			t.Errorf("%+v, %v", b, err)
		}
		c.publish("r1", message("a", 1))
		if b, err := c.Next(t.Context(), m, stream.Want{Max: 1, InFlight: 1}); err != nil || len(b.Deliveries) != 1 {
			t.Errorf("%+v, %v", b, err)
		}
	})
}

func TestLag(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{Relaxed: true}, embedded.Options{}, func(t *testing.T, c *cell) {
		for i := range 10 {
			c.publish(fmt.Sprint("r", i), message("a", i))
		}
		b := c.next("g", "s1", 6, 0)
		c.ack("g", "s1", b.Deliveries[0], b.Deliveries[3])
		d, err := c.Describe(t.Context(), orders)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Groups[0].Cursors[0]; got != (stream.CursorDescription{Position: 1, Lag: 8, InFlight: 4}) {
			t.Errorf("10 published, 6 delivered, 2 acknowledged: %+v", got)
		}
	})
}

// TestDeadLetter: deliveries are counted whatever ends them, over changes of
// leader.
func TestDeadLetter(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{MaxDeliveries: 3}, embedded.Options{}, func(t *testing.T, c *cell) {
		c.publish("r", message("poison", 0), message("poison", 1))
		for i := range 3 {
			b := c.next("g", fmt.Sprint("s", i), 1, time.Minute)
			want(t, b, "poison 0")
			if b.Deliveries[0].Attempt != uint32(i+1) {
				t.Errorf("attempt %d is called %d", i+1, b.Deliveries[0].Attempt)
			}
			c.elect() // and the consumer is never heard of again
		}
		want(t, c.next("g", "s9", 1, time.Minute), "poison 1")
		d, err := c.Describe(t.Context(), orders)
		if err != nil || len(d.Groups[0].Dead) != 1 || d.Groups[0].Record.Dead != 1 {
			t.Fatalf("%+v, %v", d, err)
		}
		if dead := d.Groups[0].Dead[0]; dead.Position != 0 || dead.Attempts != 3 || dead.Cause != "its consumer was lost" || dead.Key != "poison" {
			t.Errorf("the dead letter is %+v", dead)
		}
	})
}

func TestDelete(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{Partitions: 3}, embedded.Options{}, func(t *testing.T, c *cell) {
		for i := range 20 {
			c.publish(fmt.Sprint("r", i), message(fmt.Sprint(i), i))
		}
		c.next("g", "s1", 5, 0)
		c.next("h", "s1", 5, 0)
		if err := c.Delete(t.Context(), orders); err != nil {
			t.Fatal(err)
		}
		for _, id := range []state.MachineID{state.BrokerMachine, state.StreamMachine} {
			for k := range c.replica.Reader(id).Scan(nil, nil) {
				if s := string(k); s != "a" && s != "c" { // counts of the broker, clocks
					t.Errorf("it left %q of machine %c", s, id)
				}
			}
		}
		_, err := c.Next(t.Context(), stream.Member{Group: group("g"), Session: "s1"}, stream.Want{Max: 1, InFlight: 1})
		if !errors.Is(err, groups.ErrUnknownStream) {
			t.Errorf("a consumer of it gets %v", err)
		}
		c.create(&meshv1.StreamRecord{})
		if p := c.publish("r1", message("1", 1))[0]; p.Duplicate || p.Position != 0 {
			t.Errorf("the first message of the new one is %+v", p)
		}
	})
}

// TestWaiters are let go when the caller goes, or the term ends.
func TestWaiters(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan error, 2)
		wait := func(ctx context.Context, s string) {
			_, err := c.Next(ctx, stream.Member{Group: group("g"), Session: s}, stream.Want{Max: 1, InFlight: 1, Wait: time.Hour})
			got <- err
		}
		go wait(ctx, "s1")
		synctest.Wait()
		cancel()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Errorf("a caller that went away gets %v", err)
		}
		go wait(t.Context(), "s2")
		synctest.Wait()
		c.Resign()
		if err := <-got; !errors.Is(err, consensus.ErrNotLeader) {
			t.Errorf("at the end of the term it gets %v", err)
		}
	})
}

// A leader that trims a backend without commands and ends before it told the
// groups leaves them with messages that are gone; the next one tells them.
func TestTrimmedAndNotTold(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		var msgs []stream.Message
		for i := range 5 {
			msgs = append(msgs, message(fmt.Sprint("key-", i), i))
		}
		at := c.publish("r", msgs...)
		c.next("g", "s", 5, time.Second)
		c.Resign()
		p := broker.Partition{Tenant: orders.Tenant, Stream: orders.Stream}
		command, err := c.Messages.Trim(t.Context(), p, at[3].Position)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.log.Propose(t.Context(), state.EncodeGroup([]state.Command{{Machine: state.BrokerMachine, Body: command}})); err != nil {
			t.Fatal(err)
		}
		c.Lead()
		time.Sleep(2 * c.RetainEvery)
		cursor := groups.ReadCursor(c.State, group("g"), 0)
		if len(cursor.Pending) != 2 {
			t.Errorf("the group holds %d messages, want the 2 that are kept", len(cursor.Pending))
		}
	})
}

// What a leader stamps is its server's calendar, which the watch over clocks
// compares: it must not be another one.
func TestCalendar(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		const ahead = 90 * time.Minute
		c.Wall = func() time.Time { return time.Now().Add(ahead) }
		c.elect()
		c.publish("r", message("key", 0))
		got := c.next("g", "s", 1, time.Second).Deliveries
		if len(got) != 1 || time.Until(got[0].Published).Round(time.Minute) != ahead {
			t.Errorf("a message of a server whose calendar is %v ahead is of %+v, now is %v", ahead, got, time.Now())
		}
	})
}

// Of the messages behind others of their key so many are held as DESIGN.md says,
// and no search for more is in vain when the first is acknowledged.
func TestManyOfOneKey(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		const hot = 600
		var msgs []stream.Message
		for i := range hot {
			msgs = append(msgs, message("hot", i))
		}
		c.publish("r", append(msgs, message("cold", 0))...)
		for i := range hot {
			got := c.next("g", "s", 100, time.Second).Deliveries
			if len(got) == 0 || string(got[0].Payload) != fmt.Sprint("hot ", i) {
				t.Fatalf("%d acknowledged: got %v", i, texts(got))
			}
			if again := c.next("g", "s", 100, 0).Deliveries; len(again) > 0 {
				t.Fatalf("%d in hand: got %v", i, texts(again))
			}
			behind := len(groups.ReadCursor(c.State, group("g"), 0).Pending) - len(got)
			if behind > 256 {
				t.Fatalf("%d acknowledged: %d wait behind their key, at most 256 may", i, behind)
			}
			c.ack("g", "s", got...)
		}
		want(t, c.next("g", "s", 100, time.Second))
	})
}

// What a session is given lies apart in the partition when others of its keys are
// not acknowledged: near together, and far.
func TestDeliveriesApart(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		const keys = 60
		var msgs []stream.Message
		for i := range 3 * keys {
			msgs = append(msgs, message(fmt.Sprint("k", i%keys), i))
		}
		c.publish("r", msgs...)
		first := c.next("g", "s", 500, time.Second).Deliveries
		if len(first) != keys {
			t.Fatalf("%d of %d keys are delivered", len(first), keys)
		}
		var acked []stream.Delivery
		var next []string
		for i, d := range first {
			if i < 3 || i == 10 || i > 50 {
				acked = append(acked, d)
				next = append(next, fmt.Sprintf("k%d %d", i, keys+i))
			}
		}
		c.ack("g", "s", acked...)
		want(t, c.next("g", "s", 500, time.Second), next...)
	})
}
