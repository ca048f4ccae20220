package scheduler

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker"
)

// untrimmable is a broker outside the log that trims no topic of one function.
type untrimmable struct {
	broker.Broker
	mu   sync.Mutex
	told map[string]int
}

func (b *untrimmable) Trim(context.Context, broker.Topic, broker.Reference) ([]byte, error) {
	return nil, nil
}

func (b *untrimmable) Trimmed(_ context.Context, t broker.Topic, _ broker.Reference) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told[t.Function]++
	if t.Function == "bad" {
		return fmt.Errorf("this topic: %w", broker.ErrUnavailable)
	}
	return nil
}

// A topic that cannot be trimmed keeps none behind it from being trimmed.
func TestATopicThatIsNotTrimmedHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		b := &untrimmable{told: map[string]int{}}
		c := w.cell("eu-1", func(o *Options) { b.Broker = o.Broker; o.Broker = b })
		for _, f := range []string{"bad", "good"} { // told of in the order of their names
			w.registry.add(f, variant("only", "wasm"))
		}
		c.worker("w1", offering(4, "wasm"), completes)
		for range 10 {
			c.submit("bad")
			c.submit("good")
		}
		time.Sleep(10 * time.Minute)
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.told["good"] == 0 || b.told["bad"] < 2 || b.told["bad"] > 10 {
			t.Errorf("in ten minutes told of trims: %v", b.told)
		}
	})
}

// forgetful has lost some payloads.
type forgetful struct {
	broker.Broker
	mu    sync.Mutex
	lost  map[string]bool
	reads int
}

func (b *forgetful) Fetch(ctx context.Context, t broker.Topic, r broker.Reference) (broker.Stored, error) {
	b.mu.Lock()
	lost := b.lost[string(r)]
	if lost {
		b.reads++
	}
	b.mu.Unlock()
	if lost {
		return broker.Stored{}, broker.ErrLost
	}
	return b.Broker.Fetch(ctx, t, r)
}

// Payloads that are lost keep none behind them from being moved, and are not read
// again and again.
func TestPayloadsBehindLostOnesAreMoved(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		const lost = moveAtOnce + 10
		b := &forgetful{lost: map[string]bool{}}
		c := w.cell("eu-1", func(o *Options) { b.Broker = o.Broker; o.Broker = b })
		for range lost {
			b.lost[string(c.record(c.submit("work")).PayloadRef)] = true
		}
		id := c.submit("work")
		was := string(c.record(id).PayloadRef)
		time.Sleep(moveAfter + 2*time.Minute)
		if string(c.record(id).PayloadRef) == was {
			t.Error("not moved")
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.reads != lost {
			t.Errorf("%d reads of %d lost payloads", b.reads, lost)
		}
	})
}
