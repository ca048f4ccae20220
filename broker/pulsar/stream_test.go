package pulsar_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	client "github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/log"
	"golang.org/x/sync/errgroup"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/brokertest"
	"github.com/isobar-mesh/isobar/broker/pulsar"
	"github.com/isobar-mesh/isobar/broker/pulsar/pulsartest"
	"github.com/isobar-mesh/isobar/broker/pulsar/standalone"
)

// streamHarness is the suite's cell of streams, on a cluster that own is, if it is
// one that may be broken.
func streamHarness(t *testing.T, config brokertest.Config, cluster pulsartest.Cluster, own *standalone.Instance) *brokertest.StreamHarness {
	c := newCell(t, cluster)
	c.options.Quota = int64(config.MaxBytes)
	return &brokertest.StreamHarness{
		Streams: c.elect().Streams(),
		Crash: func() broker.Streams {
			// A process that is killed takes its connections with it.
			_ = c.leader.Close()
			return c.elect().Streams()
		},
		Fault: func(f brokertest.Fault) func() broker.Streams {
			if f == brokertest.Unload {
				name, err := c.leader.Streams().TopicName(context.Background(), "default", "f")
				if err != nil {
					t.Fatal(err)
				}
				c.unload(name + "-partition-0")
				return func() broker.Streams { return c.leader.Streams() }
			}
			end := c.fault(f, own)
			return func() broker.Streams { return end().(*pulsar.Broker).Streams() }
		},
	}
}

// streams is a cell's streams on the shared cluster, with one stream of them.
func streams(t *testing.T, partitions uint32) (*cell, *pulsar.Streams) {
	t.Helper()
	c := newCell(t, pulsartest.Shared(t))
	s := c.elect().Streams()
	if _, err := s.Open(t.Context(), "default", "orders", partitions); err != nil {
		t.Fatal(err)
	}
	return c, s
}

func orders(n uint32) broker.Partition {
	return broker.Partition{Tenant: "default", Stream: "orders", Number: n}
}

func streamMessage(n uint32, id, key, payload string) broker.StreamMessage {
	return broker.StreamMessage{
		Partition: orders(n), ID: id, Key: key, Payload: []byte(payload), Published: time.Now().Truncate(time.Millisecond),
		Attributes: map[string]string{"kind": "new", "isobar-id": "a user's"},
	}
}

// Pulsar's own programs publish to a stream and consume it.
func TestStreamSharedWithPulsar(t *testing.T) {
	t.Parallel()
	c, s := streams(t, 2)
	topic, err := s.TopicName(t.Context(), "default", "orders")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(t.Context(), []broker.StreamMessage{streamMessage(0, "r/0", "key-a", "ours 0"), streamMessage(1, "r/1", "key-b", "ours 1")}); err != nil {
		t.Fatal(err)
	}
	c.client(t, "produce", "-m", "theirs 0,theirs 1,theirs 2", "-s", ",", "-k", "key-c", "-p", "colour=green", topic)

	var got []string
	for n := range uint32(2) {
		// The end is known when the partition was measured.
		ext, err := s.Extent(t.Context(), orders(n), 0)
		if err != nil {
			t.Fatal(err)
		}
		count := uint64(0)
		for m, err := range s.Read(t.Context(), orders(n), 0) {
			if err != nil {
				t.Fatal(err)
			}
			count++
			got = append(got, fmt.Sprintf("%s %s %s%s", m.Key, m.Payload, m.Attributes["kind"], m.Attributes["colour"]))
			if late := time.Since(m.Published); late < 0 || late > time.Minute {
				t.Errorf("message %q was published at %v", m.Payload, m.Published)
			}
		}
		if ext.Messages != count {
			t.Errorf("partition %d has %+v, and %d messages are read", n, ext, count)
		}
	}
	slices.Sort(got)
	want := []string{"key-a ours 0 new", "key-b ours 1 new", "key-c theirs 0 green", "key-c theirs 1 green", "key-c theirs 2 green"}
	if !slices.Equal(got, want) {
		t.Errorf("the stream holds %q, want %q", got, want)
	}

	out := c.client(t, "consume", "-s", "theirs", "-p", "Earliest", "-n", "5", topic)
	for _, text := range []string{"ours 0", "ours 1", "theirs 0", "theirs 1", "theirs 2", "key-a", "kind=new"} {
		if !strings.Contains(out, text) {
			t.Errorf("Pulsar's own consumer has not got %q: %s", text, out)
		}
	}
}

// client runs bin/pulsar-client.
func (c *cell) client(t *testing.T, args ...string) string {
	t.Helper()
	d, err := standalone.Find()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI requires Pulsar's own client: %v", err)
		}
		t.Skipf("Pulsar's own client: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.Tool("pulsar-client"), append([]string{"--url", c.cluster.Service}, args...)...)
	cmd.Env = append(os.Environ(), "PULSAR_MEM=-Xmx256m", "PULSAR_GC=-XX:+UseSerialGC", "PULSAR_GC_LOG=-Xlog:disable", "PULSAR_LOG_DIR="+t.TempDir())
	cmd.Dir = t.TempDir()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("pulsar-client %s: %v: %s", args[0], err, &out)
	}
	return out.String()
}

// A cluster that was emptied, or is another one, is not written to as long as the
// cell has a stream elsewhere: nothing begins anew by itself.
func TestStreamsReplaced(t *testing.T) {
	t.Parallel()
	c := newCell(t, pulsartest.Shared(t))
	s := c.elect().Streams()
	mark, err := s.Open(t.Context(), "default", "orders", 1)
	if err != nil || len(mark) == 0 {
		t.Fatalf("Open: %x, %v", mark, err)
	}
	c.log.need(broker.Reference(mark))
	before, err := s.Append(t.Context(), []broker.StreamMessage{streamMessage(0, "r/0", "", "before")})
	if err != nil {
		t.Fatal(err)
	}
	ext, err := s.Extent(t.Context(), orders(0), 0)
	name, nerr := s.TopicName(t.Context(), "default", "orders")
	if err != nil || nerr != nil || ext.Topic != name+"-partition-0" {
		t.Errorf("it is in %q, want %q; %v, %v", ext.Topic, name+"-partition-0", err, nerr)
	}

	_ = c.leader.Close()
	c.delete()
	s = c.elect().Streams()
	for what, call := range map[string]func() error{
		"Append": func() error {
			_, err := s.Append(t.Context(), []broker.StreamMessage{streamMessage(0, "r/1", "", "after")})
			return err
		},
		"Open":   func() error { _, err := s.Open(t.Context(), "default", "orders", 1); return err },
		"Extent": func() error { _, err := s.Extent(t.Context(), orders(0), 0); return err },
		"Find":   func() error { _, err := s.Find(t.Context(), orders(0), broker.Search{Bytes: 1}); return err },
		"Trim":   func() error { _, err := s.Trim(t.Context(), orders(0), before[0].Position); return err },
		"Read": func() error {
			for _, err := range s.Read(t.Context(), orders(0), 0) {
				return err
			}
			return nil
		},
	} {
		if err := call(); !errors.Is(err, broker.ErrReplaced) || !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("%s in an emptied cluster: %v, want ErrReplaced", what, err)
		}
	}
	if !c.leader.Stats().Strange {
		t.Error("no alarm")
	}

	// The stream was deleted, and is made anew.
	c.log.need(nil)
	if _, err := s.Drop(t.Context(), orders(0)); err != nil {
		t.Errorf("Drop: %v", err)
	}
	if again, err := s.Open(t.Context(), "default", "orders", 1); err != nil || bytes.Equal(again, mark) {
		t.Errorf("Open: %x, before it was %x, %v", again, mark, err)
	}
	if c.leader.Stats().Strange {
		t.Error("the alarm stays on")
	}
}

// What others drop in Pulsar (a TTL, a cleared backlog) is an alarm, and the
// partition stays readable: what is left, its end, and what comes; also when
// Pulsar has deleted the ledger, and when nothing is left.
func TestStreamDroppedByOthers(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		skip    int
		deleted bool // Pulsar has deleted the ledger before it is noticed
	}{"all": {3, false}, "some": {2, false}, "all, deleted": {3, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			skip := tc.skip
			c, s := streams(t, 1)
			var at []broker.Position
			for i := range 3 { // each an entry of its own
				got, err := s.Append(t.Context(), []broker.StreamMessage{streamMessage(0, fmt.Sprint("r/", i), "", fmt.Sprint("m", i))})
				if err != nil {
					t.Fatal(err)
				}
				at = append(at, got[0].Position)
			}
			topic, err := s.TopicName(t.Context(), "default", "orders")
			if err != nil {
				t.Fatal(err)
			}
			path := strings.Replace(topic, "://", "/", 1) + "-partition-0"
			if status := c.admin(http.MethodPost, "/"+path+"/subscription/isobar/skip/"+fmt.Sprint(skip), "", nil); status/100 != 2 {
				t.Fatalf("skip: status %d", status)
			}
			for i := range 2 {
				_ = c.leader.Close()
				unload := i > 0
				if unload || tc.deleted {
					c.unload(topic + "-partition-0") // a ledger ends, and goes if nobody needs it
				}
				time.Sleep(time.Second)
				s = c.elect().Streams()
				ext, err := s.Extent(t.Context(), orders(0), 0)
				if want := uint64(3 - skip); err != nil || ext.Messages != want || ext.First <= at[skip-1] || ext.End <= at[2] {
					t.Fatalf("unloaded %t: it has %+v, error %v, want %d messages", unload, ext, err, want)
				}
				if lost := c.leader.Stats().Lost; lost != 1 && !unload || lost != 0 && unload {
					t.Errorf("unloaded %t: %d ranges are lost", unload, lost)
				}
			}
			after, err := s.Append(t.Context(), []broker.StreamMessage{streamMessage(0, "r/9", "", "m9")})
			if err != nil || after[0].Position <= at[2] {
				t.Fatalf("Append: %+v, %v", after, err)
			}
			var got []string
			for m, err := range s.Read(t.Context(), orders(0), 0) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, string(m.Payload))
			}
			if want := []string{"m0", "m1", "m2", "m9"}[skip:]; !slices.Equal(got, want) {
				t.Errorf("it holds %q, want %q", got, want)
			}
		})
	}
}

// The leader finds it by itself; its own trims, and ledgers that end, are none.
func TestStreamDroppedWhileLed(t *testing.T) {
	t.Parallel()
	c := newCell(t, pulsartest.Shared(t))
	c.options.CheckEvery = 100 * time.Millisecond
	s := c.elect().Streams()
	if _, err := s.Open(t.Context(), "default", "orders", 1); err != nil {
		t.Fatal(err)
	}
	var at []broker.Position
	put := func(id string) {
		for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			got, err := s.Append(t.Context(), []broker.StreamMessage{streamMessage(0, id, "", id)})
			if err == nil {
				at = append(at, got[0].Position)
				return
			}
			if time.Now().After(end) {
				t.Fatalf("append %s: %v", id, err)
			}
		}
	}
	put("m0")
	put("m1")
	put("m2")
	topic, err := s.TopicName(t.Context(), "default", "orders")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Trim(t.Context(), orders(0), at[1]); err != nil {
		t.Fatal(err)
	}
	c.unload(topic + "-partition-0")
	put("m3")
	time.Sleep(10 * c.options.CheckEvery) // time for a wrong alarm
	if lost := c.leader.Stats().Lost; lost != 0 {
		t.Errorf("a trim of ours counts as %d losses", lost)
	}

	path := strings.Replace(topic, "://", "/", 1) + "-partition-0"
	if status := c.admin(http.MethodPost, "/"+path+"/subscription/isobar/skip_all", "", nil); status/100 != 2 {
		t.Fatalf("skip all: status %d", status)
	}
	var ext broker.Extent
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		ext, err = s.Extent(t.Context(), orders(0), 0)
		if lost := c.leader.Stats().Lost; err == nil && ext.Messages == 0 && ext.End > at[3] && lost == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it has %+v, error %v, %+v", ext, err, c.leader.Stats())
		}
	}
	put("m4")
	for m, err := range s.Read(t.Context(), orders(0), 0) {
		if err != nil || string(m.Payload) != "m4" {
			t.Errorf("it holds %q, error %v", m.Payload, err)
		}
	}
}

// A topic that was deleted under us is made again, and its positions lie above
// those of before.
func TestStreamTopicDeleted(t *testing.T) {
	t.Parallel()
	c, s := streams(t, 1)
	before, err := s.Append(t.Context(), []broker.StreamMessage{streamMessage(0, "r/0", "", "before")})
	if err != nil {
		t.Fatal(err)
	}
	topic, err := s.TopicName(t.Context(), "default", "orders")
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // positions are counted from the second the topic was made
	if status := c.admin(http.MethodDelete, "/"+strings.Replace(topic, "://", "/", 1)+"/partitions?force=true", "", nil); status/100 != 2 {
		t.Fatalf("delete the topic: status %d", status)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var after []broker.PreparedAppend
	for {
		after, err = s.Append(ctx, []broker.StreamMessage{streamMessage(0, "r/1", "", "after")})
		if err == nil || ctx.Err() != nil {
			break
		}
		if !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("append to a topic that was deleted: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil || after[0].Position <= before[0].Position {
		t.Fatalf("before %+v, after %+v, %v", before, after, err)
	}
	var got []string
	for m, err := range s.Read(ctx, orders(0), before[0].Position+1) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(m.Payload))
	}
	if !slices.Equal(got, []string{"after"}) {
		t.Errorf("it holds %q", got)
	}
}

// A former leader that still runs and was not told keeps the next one out only
// until its producer is gone, and cannot append beside it.
func TestStreamOneWriter(t *testing.T) {
	t.Parallel()
	c, s := streams(t, 1)
	if _, err := s.Append(t.Context(), []broker.StreamMessage{streamMessage(0, "r/0", "", "old")}); err != nil {
		t.Fatal(err)
	}
	old := c.leader
	c.options.Timeout = 2 * time.Second
	next := c.elect().Streams()
	if _, err := next.Append(t.Context(), []broker.StreamMessage{streamMessage(0, "r/1", "", "new")}); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("beside a former leader's producer: %v", err)
	}
	old.Resign()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := next.Append(ctx, []broker.StreamMessage{streamMessage(0, "r/1", "", "new")})
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if _, err := s.Append(t.Context(), []broker.StreamMessage{streamMessage(0, "r/2", "", "late")}); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("a leader that resigned appends: %v", err)
	}
}

// While the cell writes so much that it does not read back what it has sent, others
// write too: all is shown soon, in Pulsar's order.
func TestStreamOthersBetween(t *testing.T) {
	t.Parallel()
	c, s := streams(t, 1)
	topic, err := s.TopicName(t.Context(), "default", "orders")
	if err != nil {
		t.Fatal(err)
	}
	own, err := client.NewClient(client.ClientOptions{URL: c.cluster.Service, Logger: log.DefaultNopLogger()})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	others, err := own.CreateProducer(client.ProducerOptions{Topic: topic + "-partition-0"})
	if err != nil {
		t.Fatal(err)
	}
	sent, end := 0, make(chan struct{})
	var ours errgroup.Group
	ours.Go(func() error {
		for n := 0; ; n++ {
			select {
			case <-end:
				return nil
			default:
			}
			msgs := make([]broker.StreamMessage, 200)
			for i := range msgs {
				msgs[i] = streamMessage(0, fmt.Sprintf("%d/%d", n, i), "key", fmt.Sprintf("ours %d/%d", n, i))
			}
			if _, err := s.Append(t.Context(), msgs); err != nil {
				return err
			}
			sent += len(msgs)
		}
	})
	// The first ones come while the reader reads, the last while it may rest.
	at := broker.Position(0)
	for i := range 6 {
		text := fmt.Sprintf("theirs %d", i)
		if _, err := others.Send(t.Context(), &client.ProducerMessage{Payload: []byte(text)}); err != nil {
			t.Fatal(err)
		}
		for found, until := false, time.Now().Add(30*time.Second); !found; {
			for m, err := range s.Read(t.Context(), orders(0), at) {
				if err != nil {
					t.Fatal(err)
				}
				if at = m.Position + 1; string(m.Payload) == text {
					found = true
				}
			}
			if time.Now().After(until) {
				t.Fatalf("%q is not shown", text)
			}
		}
		time.Sleep(300 * time.Millisecond)
	}
	close(end)
	if err := ours.Wait(); err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for m, err := range s.Read(t.Context(), orders(0), 0) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(m.Payload))
	}
	reader, err := own.CreateReader(client.ReaderOptions{Topic: topic + "-partition-0", StartMessageID: client.EarliestMessageID()})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for range sent + 6 {
		m, err := reader.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, string(m.Payload()))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d messages are shown, which are not the %d that Pulsar has, in its order", len(got), len(want))
	}
}
