package stream_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/embedded"
	"github.com/isobar-mesh/isobar/consensus/locallog"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/stream"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// ledger is what consumers did, as they saw it.
type ledger struct {
	mu    sync.Mutex
	sent  map[string]int  // acknowledgements were sent up to, by key
	done  map[string]bool // acknowledged
	seen  map[string]int  // deliveries of each message
	order []string        // what went wrong
}

// receive takes note of a delivery: under strict order an acknowledgement of all
// before it in its key was sent, by somebody.
func (l *ledger) receive(key string, i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[fmt.Sprint(key, " ", i)]++
	if i > l.sent[key] {
		l.order = append(l.order, fmt.Sprintf("%s %d came when %d was next", key, i, l.sent[key]))
	}
}

func (l *ledger) sending(key string, i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent[key] = max(l.sent[key], i+1)
}

func (l *ledger) acknowledged(key string, i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done[fmt.Sprint(key, " ", i)] = true
}

// TestChaos: a log that loses answers and leadership, leaders that change,
// consumers that come, work, stall and crash. Every message is stored once and
// delivered, and the order of each key is kept.
func TestChaos(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { chaos(t, seed) })
		})
	}
}

func chaos(t *testing.T, seed uint64) {
	const keys, each, partitions = 7, 30, 4
	c := newCell(t, embedded.Options{}, locallog.Options{Seed: seed, Faults: locallog.Faults{Depose: 0.01, LostBefore: 0.02, LostAfter: 0.02, Late: 0.02}})
	defer c.stop()
	rec := &meshv1.StreamRecord{
		Tenant: orders.Tenant, Name: orders.Stream, Partitions: partitions, VisibilityMs: 5_000, MaxAgeMs: (24 * time.Hour).Milliseconds(),
	}
	if err := settle(t.Context(), func() error { _, _, err := c.Create(t.Context(), rec); return err }); err != nil {
		t.Fatal(err)
	}
	l := &ledger{sent: map[string]int{}, done: map[string]bool{}, seen: map[string]int{}}
	ctx, end := context.WithTimeout(t.Context(), time.Hour)
	defer end()

	var producers, rest sync.WaitGroup
	for k := range keys {
		producers.Go(func() {
			key := fmt.Sprint("key-", k)
			for i := range each {
				produce(ctx, t, c, key, i)
			}
		})
	}
	for s := range 3 {
		rest.Go(func() { consume(ctx, c, l, fmt.Sprint("s", s), rand.New(rand.NewPCG(seed, uint64(s)))) })
	}
	rest.Go(func() { // leaders change
		rng := rand.New(rand.NewPCG(seed, 99))
		for ctx.Err() == nil {
			sleep(ctx, time.Duration(5+rng.IntN(20))*time.Second)
			c.elect()
		}
	})
	producers.Wait()
	for ctx.Err() == nil {
		sleep(ctx, time.Second)
		l.mu.Lock()
		finished := len(l.done)
		l.mu.Unlock()
		if finished == keys*each {
			end()
		}
	}
	rest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, what := range l.order {
		t.Error(what)
	}
	if len(l.seen) != keys*each {
		t.Errorf("%d messages were seen, want %d; %d are done", len(l.seen), keys*each, len(l.done))
	}
	again := 0
	for _, n := range l.seen {
		again += n - 1
	}
	stored := uint64(0)
	for p := range uint32(partitions) {
		ext, err := c.Messages.Extent(t.Context(), broker.Partition{Tenant: orders.Tenant, Stream: orders.Stream, Number: p}, 0)
		if err != nil {
			t.Fatal(err)
		}
		stored += ext.Messages
	}
	if stored != keys*each {
		t.Errorf("%d messages are stored, %d were published", stored, keys*each)
	}
	if again == 0 {
		t.Error("nothing was delivered twice: the run was too tame")
	}
	t.Logf("%d messages, %d redeliveries", len(l.seen), again)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// produce publishes one message until it is answered for.
func produce(ctx context.Context, t *testing.T, c *cell, key string, i int) {
	err := settle(ctx, func() error {
		out, err := c.Publish(ctx, orders, fmt.Sprint(key, "/", i), []stream.Message{message(key, i)})
		if err == nil {
			err = out[0].Err
		}
		return err
	})
	if err != nil {
		t.Errorf("publish %s %d: %v", key, i, err)
	}
}

// consume works as a client does: it comes back after errors, and now and then
// stalls longer than the visibility timeout, or crashes and comes anew.
func consume(ctx context.Context, c *cell, l *ledger, name string, rng *rand.Rand) {
	session := name
	for n := 0; ctx.Err() == nil; n++ {
		b, err := c.Next(ctx, stream.Member{Group: group("g"), Session: session}, stream.Want{Max: 5, InFlight: 5, Wait: 2 * time.Second})
		if err != nil {
			sleep(ctx, 50*time.Millisecond)
			continue
		}
		for _, d := range b.Deliveries {
			l.receive(read(d))
		}
		for _, d := range b.Deliveries {
			key, i := read(d)
			switch rng.IntN(20) {
			case 0:
				sleep(ctx, 7*time.Second) // its time passes
			case 1:
				session = fmt.Sprint(name, "-", n) // what it held is nobody's now
			}
			l.sending(key, i)
			var v []groups.Verdict
			err := settle(ctx, func() (err error) { v, err = c.tryAck(ctx, "g", session, d); return err })
			if err == nil && v[0] != groups.Moved {
				l.acknowledged(key, i)
			}
		}
	}
}

func read(d stream.Delivery) (key string, i int) {
	_, _ = fmt.Sscanf(string(d.Payload), "%s %d", &key, &i) // as message made it
	return key, i
}
