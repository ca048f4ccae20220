package stream_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/embedded"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/stream"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// partly is a broker that fails for some partitions.
type partly struct {
	broker.Streams
	mu    sync.Mutex
	hangs map[string]chan struct{}    // appends to such a stream wait
	fails func(broker.Partition) bool // those that can't be measured or dropped
	asked map[broker.Partition]int
}

func (b *partly) Append(ctx context.Context, msgs []broker.StreamMessage) ([]broker.PreparedAppend, error) {
	if ch := b.hangs[msgs[0].Partition.Stream]; ch != nil {
		<-ch
	}
	return b.Streams.Append(ctx, msgs)
}

func (b *partly) ask(p broker.Partition) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked[p]++
	if b.fails != nil && b.fails(p) {
		return fmt.Errorf("reach %s: %w", p, broker.ErrUnavailable)
	}
	return nil
}

func (b *partly) Extent(ctx context.Context, p broker.Partition, from broker.Position) (broker.Extent, error) {
	if err := b.ask(p); err != nil {
		return broker.Extent{}, err
	}
	return b.Streams.Extent(ctx, p, from)
}

func (b *partly) Drop(ctx context.Context, p broker.Partition) ([]byte, error) {
	if err := b.ask(p); err != nil {
		return nil, err
	}
	return b.Streams.Drop(ctx, p)
}

// fail calls f with the broker's switches.
func (b *partly) fail(f func(broker.Partition) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fails = f
	clear(b.asked)
}

func (c *cell) partly() *partly {
	b := &partly{Streams: c.Messages, hangs: map[string]chan struct{}{}, asked: map[broker.Partition]int{}}
	c.Messages = b
	return b
}

func named(stream string) groups.Name { return groups.Name{Tenant: "default", Stream: stream} }

func (c *cell) createNamed(name string, partitions uint32, age time.Duration) {
	c.t.Helper()
	rec := &meshv1.StreamRecord{Tenant: "default", Name: name, Partitions: partitions, MaxAgeMs: age.Milliseconds(), VisibilityMs: 30_000}
	if _, _, err := c.Create(c.t.Context(), rec); err != nil {
		c.t.Fatal(err)
	}
}

// publishTo stores a message in each of the stream's partitions.
func (c *cell) publishTo(name string, partitions uint32, request string) {
	c.t.Helper()
	var msgs []stream.Message
	for p := range partitions {
		msgs = append(msgs, stream.Message{Partition: &p, Payload: []byte("text")})
	}
	out, err := c.Publish(c.t.Context(), named(name), request, msgs)
	for _, p := range out {
		err = errors.Join(err, p.Err)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cell) stored(name string) (n uint64) {
	c.t.Helper()
	d, err := c.Describe(c.t.Context(), named(name))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range d.Partitions {
		n += p.Messages
	}
	return n
}

// A Delete waits for the publishes of its stream, and holds up no other's; nor does
// one that fails, and is tried again and again.
func TestDeleteHoldsUpNoOther(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		b := c.partly()
		hangs := make(chan struct{})
		b.hangs["hangs"] = hangs
		for _, name := range []string{"hangs", "idle", "other"} {
			c.createNamed(name, 1, time.Hour)
		}
		var calls sync.WaitGroup
		var deleted error
		calls.Go(func() { // it found the stream, and is refused or dropped in the end
			_, _ = c.Publish(t.Context(), named("hangs"), "r", []stream.Message{message("k", 0)})
		})
		synctest.Wait()
		began := time.Now()
		if err := c.Delete(t.Context(), named("idle")); err != nil {
			t.Error(err)
		}
		gone := make(chan struct{})
		calls.Go(func() { deleted = c.Delete(t.Context(), named("hangs")); close(gone) })
		synctest.Wait()
		c.publishTo("other", 1, "r1")
		if waited := time.Since(began); waited > 0 {
			t.Errorf("they were held up for %v", waited)
		}
		time.Sleep(3 * c.RetainEvery) // the leader would finish the deletion
		c.publishTo("other", 1, "r2")
		select {
		case <-gone:
			t.Error("a Delete did not wait for a publish that may be stored yet")
		default:
		}
		close(hangs)
		calls.Wait()
		if deleted != nil {
			t.Error(deleted)
		}
		time.Sleep(2 * c.RetainEvery)
		c.createNamed("hangs", 1, time.Hour)
		if n := c.stored("hangs"); n != 0 {
			t.Errorf("a stream of that name begins with %d messages", n)
		}
	})
}

// Partitions that fail hold up retention neither of others nor of other streams, and
// are not asked in every round.
func TestRetentionPassesOverFailures(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		b := c.partly()
		const partitions = 12
		c.createNamed("a", partitions, time.Minute)
		c.createNamed("b", 1, time.Minute)
		c.createNamed("deleted", 1, time.Minute)
		c.publishTo("a", partitions, "r")
		c.publishTo("b", 1, "r")
		c.publishTo("deleted", 1, "r")
		b.fail(func(p broker.Partition) bool { return p.Stream == "deleted" || p.Stream == "a" && p.Number < 5 })
		if err := c.Delete(t.Context(), named("deleted")); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("the Delete ends with %v", err)
		}
		const passed = 20 * time.Minute
		time.Sleep(passed)
		b.mu.Lock()
		asked := b.asked[broker.Partition{Tenant: "default", Stream: "a"}]
		b.mu.Unlock()
		if rounds := int(passed / c.RetainEvery); asked == 0 || asked > rounds/10 {
			t.Errorf("in %d rounds a partition that fails was asked %d times", rounds, asked)
		}
		b.fail(nil)
		if n := c.stored("a"); n != 5 {
			t.Errorf("%d messages are left, of 5 partitions that fail", n)
		}
		if n := c.stored("b"); n != 0 {
			t.Errorf("%d messages of another stream are left", n)
		}
		time.Sleep(10 * time.Minute)
		if n := c.stored("a"); n != 0 {
			t.Errorf("%d messages are left when the partitions are back", n)
		}
		if _, ok := groups.Stream(c.State, named("deleted")); ok {
			t.Error("the deletion is not finished when the partition is back")
		}
	})
}

// A Delete and the leader's loop finish a deletion together; what is made under the
// name then stays.
func TestDeletedTwiceMadeAgain(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		b := c.partly()
		const partitions = 8
		c.elect()
		led := time.Now()
		for i := range 20 {
			c.createNamed("again", partitions, time.Hour)
			c.publishTo("again", partitions, fmt.Sprint("r", i))
			b.fail(func(broker.Partition) bool { return true })
			if err := c.Delete(t.Context(), named("again")); !errors.Is(err, broker.ErrUnavailable) {
				t.Fatal(err)
			}
			b.fail(nil)
			time.Sleep(c.RetainEvery - time.Since(led)%c.RetainEvery) // as the loop looks
			if err := c.Delete(t.Context(), named("again")); err != nil && !errors.Is(err, groups.ErrUnknownStream) {
				t.Fatal(err)
			}
			c.createNamed("again", partitions, time.Hour)
			synctest.Wait()
			if _, ok := c.Lookup(named("again")); !ok {
				t.Fatalf("round %d: the stream that was made again is gone", i)
			}
			if err := c.Delete(t.Context(), named("again")); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A stream that is made again under its name keeps its own retention, and nothing
// is remembered of names that are of no stream.
func TestNamesAreForgotten(t *testing.T) {
	bubble(t, &meshv1.StreamRecord{}, embedded.Options{}, func(t *testing.T, c *cell) {
		if err := c.Delete(t.Context(), orders); err != nil {
			t.Fatal(err)
		}
		before := c.Remembered()
		for i := range 3 {
			c.createNamed("again", 2, time.Minute)
			c.publishTo("again", 2, fmt.Sprint("r", i))
			m := stream.Member{Group: groups.Group{Name: named("again"), Group: "g"}, Session: "s"}
			if b, err := c.Next(t.Context(), m, stream.Want{Max: 2, InFlight: 2, Wait: time.Second}); err != nil || len(b.Deliveries) != 2 {
				t.Fatalf("%+v, %v", b, err)
			}
			time.Sleep(2 * time.Minute)
			if n := c.stored("again"); n != 0 {
				t.Errorf("round %d: %d messages are older than the stream keeps them", i, n)
			}
			if err := c.Delete(t.Context(), named("again")); err != nil {
				t.Fatal(err)
			}
			m.Group.Stream = fmt.Sprint("unknown-", i)
			if _, err := c.Next(t.Context(), m, stream.Want{Max: 1, InFlight: 1, Wait: time.Second}); !errors.Is(err, groups.ErrUnknownStream) {
				t.Errorf("of an unknown stream: %v", err)
			}
			if _, err := c.Publish(t.Context(), m.Group.Name, "r", []stream.Message{message("k", 0)}); !errors.Is(err, groups.ErrUnknownStream) {
				t.Errorf("to an unknown stream: %v", err)
			}
		}
		if n := c.Remembered(); n > before {
			t.Errorf("%d names are remembered, %d were", n, before)
		}
	})
}
