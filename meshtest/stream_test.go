package meshtest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/broker/pulsar/pulsartest"
	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// TestStream kills the leader of a stream's home while producers of two regions
// publish and consumers of two regions work: every message is stored once and
// consumed, those of each key in order, at most some of them twice. Then a
// consumer is gone without a word, and its partitions move.
func TestStream(t *testing.T) {
	whole(t)
	t.Run("embedded", func(t *testing.T) { testStream(t, nil) })
	t.Run("pulsar", func(t *testing.T) {
		p := pulsartest.Shared(t)
		testStream(t, []string{"--broker", "eu-north=" + p.Service + "," + p.Admin})
	})
}

func testStream(t *testing.T, args []string) {
	began := time.Now()
	const home, away, keys, each = "eu-north", "us-east", 8, 60
	m := start(t, options{servers: 3, args: args})
	_, err := m.client(t, home).CreateStream(t.Context(), &isobarv1.StreamServiceCreateRequest{Spec: &isobarv1.StreamSpec{
		Name: "orders", Partitions: 4, Visibility: durationpb.New(5 * time.Second),
	}})
	if err != nil {
		t.Fatal(err)
	}
	l := &streamLedger{sent: map[string]int{}, done: map[string]bool{}, seen: map[string]int{}}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var consumers, producers sync.WaitGroup
	for i, region := range []string{home, home, away} {
		c := m.client(t, region)
		consumers.Go(func() { l.consume(ctx, t, c, fmt.Sprint("s-", i)) })
	}
	for k := range keys {
		c := m.client(t, []string{home, away}[k%2])
		producers.Go(func() { produce(t, c, fmt.Sprint("key-", k), each) })
	}
	eventually(t, time.Minute, "a fifth of the messages", func(context.Context) error { return l.reached(keys * each / 5) })
	victim := m.leader(t, home)
	kill(t, victim.pid)
	producers.Wait()
	eventually(t, 2*time.Minute, "the end of all messages", func(context.Context) error { return l.reached(keys * each) })

	d := describeStream(t, m.client(t, home))
	stored := uint64(0)
	for _, p := range d.GetPartitions() {
		stored += p.GetMessages()
	}
	g := d.GetGroups()[0]
	if stored != keys*each || g.GetLag() != 0 || g.GetDeadLetters() != 0 {
		t.Errorf("%d messages are stored of %d published, lag is %d, %d are dead", stored, keys*each, g.GetLag(), g.GetDeadLetters())
	}
	if len(g.GetMembers()) != 3 {
		t.Errorf("after the kill the group has %v", g.GetMembers())
	}
	again := l.check(t, keys*each)

	// Consumers that end without a word are forgotten after their lease, and a
	// new one gets all.
	end()
	consumers.Wait()
	eventually(t, 30*time.Second, "end of the sessions", func(ctx context.Context) error {
		res, err := m.client(t, away).Fetch(ctx, &isobarv1.FetchRequest{Stream: "orders", Group: "g", Session: "s-9"})
		if err == nil && len(res.GetAssignment().GetPartitions()) != 4 {
			err = fmt.Errorf("the new one has %v", res.GetAssignment())
		}
		return err
	})
	m.restart(t, victim)
	checkReplay(t, m, keys*each)
	fmt.Printf("stream run victim=%s messages=%d redelivered=%d seconds=%.1f\n", victim.id(), keys*each, again, time.Since(began).Seconds())
}

func describeStream(t *testing.T, c *client.Client) *isobarv1.StreamServiceDescribeResponse {
	t.Helper()
	d, err := c.DescribeStream(t.Context(), &isobarv1.StreamServiceDescribeRequest{Stream: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// checkReplay reads the whole stream again from the start, from a region that
// has had no part in it.
func checkReplay(t *testing.T, m *mesh, want int) {
	t.Helper()
	c := m.client(t, "ap-south")
	if _, err := c.Seek(t.Context(), &isobarv1.SeekRequest{Stream: "orders", Group: "g", To: &isobarv1.SeekRequest_Start{Start: true}}); err != nil {
		t.Fatal(err)
	}
	if lag := describeStream(t, c).GetGroups()[0].GetLag(); lag != uint64(want) {
		t.Errorf("after a seek to the start the lag is %d, want %d", lag, want)
	}
	next := map[string]int{}
	eventually(t, time.Minute, "the whole stream again", func(ctx context.Context) error {
		res, err := c.Fetch(ctx, &isobarv1.FetchRequest{Stream: "orders", Group: "g", Session: "s-9", Max: 500, MaxInFlight: 500, Wait: durationpb.New(time.Second)})
		if err != nil {
			return err
		}
		ack := &isobarv1.AckRequest{Stream: "orders", Group: "g", Session: "s-9"}
		for _, d := range res.GetMessages() {
			key, i := readMessage(d)
			if i == next[key] {
				next[key]++
			} else if i > next[key] {
				t.Errorf("replayed: %s %d came when %d was next", key, i, next[key])
			}
			ack.Items = append(ack.Items, &isobarv1.AckItem{Partition: d.GetPartition(), Position: d.GetPosition(), Delivery: d.GetDelivery()})
		}
		if len(ack.Items) > 0 {
			if _, err := c.Ack(ctx, ack); err != nil {
				return err
			}
		}
		n := 0
		for _, v := range next {
			n += v
		}
		if n != want {
			return fmt.Errorf("%d of %d", n, want)
		}
		return nil
	})
}

// produce publishes the messages of one key, each once the one before it was
// answered for.
func produce(t *testing.T, c *client.Client, key string, n int) {
	for i := range n {
		req := &isobarv1.PublishRequest{Stream: "orders", RequestId: fmt.Sprint(key, "/", i), Messages: []*isobarv1.StreamMessage{{
			Key: key, Input: &isobarv1.StreamMessage_Text{Text: fmt.Sprint(key, " ", i)},
		}}}
		deadline := time.Now().Add(time.Minute)
		for {
			_, err := c.Publish(t.Context(), req)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("publish %s %d: %v", key, i, err)
				return
			}
		}
	}
}

func readMessage(d *isobarv1.StreamDelivery) (key string, i int) {
	_, _ = fmt.Sscanf(string(d.GetPayload()), "%s %d", &key, &i) // as produce made it
	return key, i
}

// streamLedger is what consumers did, as they saw it.
type streamLedger struct {
	mu     sync.Mutex
	sent   map[string]int  // acknowledgements were sent up to, by key
	done   map[string]bool // acknowledged
	seen   map[string]int  // deliveries
	faults []string
}

// receive checks the order: all before it in its key were acknowledged, as far
// as any consumer knows.
func (l *streamLedger) receive(d *isobarv1.StreamDelivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key, i := readMessage(d)
	l.seen[string(d.GetPayload())]++
	if i > l.sent[key] {
		l.faults = append(l.faults, fmt.Sprintf("%s %d came when %d was next", key, i, l.sent[key]))
	}
}

// consume works through what it is given, and acknowledges each.
func (l *streamLedger) consume(ctx context.Context, t *testing.T, c *client.Client, session string) {
	req := &isobarv1.ConsumeRequest{Stream: "orders", Group: "g", Session: session, Consumer: session, MaxInFlight: 16}
	err := c.Consume(ctx, req, func(res *isobarv1.ConsumeResponse) error {
		for _, d := range res.GetMessages() {
			l.receive(d)
		}
		for _, d := range res.GetMessages() {
			key, i := readMessage(d)
			l.mu.Lock()
			l.sent[key] = max(l.sent[key], i+1)
			l.mu.Unlock()
			_, err := c.Ack(ctx, &isobarv1.AckRequest{Stream: "orders", Group: "g", Session: session, Items: []*isobarv1.AckItem{{
				Partition: d.GetPartition(), Position: d.GetPosition(), Delivery: d.GetDelivery(),
			}}})
			switch {
			case err == nil:
				l.mu.Lock()
				l.done[string(d.GetPayload())] = true
				l.mu.Unlock()
			case ctx.Err() == nil && !errors.Is(err, &client.Error{Reason: "delivery_moved"}):
				t.Logf("acknowledge %s: %v", string(d.GetPayload()), err) // it comes again
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("consumer %s: %v", session, err)
	}
}

func (l *streamLedger) reached(n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.done) < n {
		return fmt.Errorf("%d of %d are acknowledged", len(l.done), n)
	}
	return nil
}

// check reports what was out of order or lost, and returns how many deliveries
// were not the first of their message.
func (l *streamLedger) check(t *testing.T, want int) (again int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.faults {
		t.Error(f)
	}
	if len(l.seen) != want {
		t.Errorf("%d messages were seen of %d", len(l.seen), want)
	}
	for _, n := range l.seen {
		again += n - 1
	}
	return again
}
