package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// failingBroker answers Prepare with the error while it has one.
type failingBroker struct {
	broker.Broker
	mu    sync.Mutex
	err   error
	left  int // times that it fails; -1: until another is set
	asked int
}

// fail makes the next n calls fail, all when n is -1.
func (b *failingBroker) fail(n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left, b.err, b.asked = n, err, 0
}

func (b *failingBroker) calls() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

func (b *failingBroker) Prepare(ctx context.Context, msgs []broker.Message) ([]broker.Prepared, error) {
	b.mu.Lock()
	b.asked++
	if b.left != 0 {
		b.left = max(b.left-1, -1)
		defer b.mu.Unlock()
		return nil, b.err
	}
	b.mu.Unlock()
	return b.Broker.Prepare(ctx, msgs)
}

// A Submit waits out what passes in a moment, and nothing that does not.
func TestSubmitWaitsOutABrokersMoment(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		b := &failingBroker{}
		c := w.cell("eu-1", func(o *Options) { b.Broker, o.Broker = o.Broker, b })
		away := fmt.Errorf("connection lost: %w", broker.ErrUnavailable)
		submit := func() (time.Duration, error) {
			began := time.Now()
			_, err := c.trySubmit("work")
			return time.Since(began), err
		}
		b.fail(3, away)
		if took, err := submit(); err != nil || b.calls() != 4 || took > time.Second {
			t.Errorf("a moment: after %v and %d calls %v", took, b.calls(), err)
		}
		for _, err := range []error{broker.ErrFull, fmt.Errorf("%w: %w", broker.ErrReplaced, broker.ErrUnavailable), fmt.Errorf("%w: %w", broker.ErrDenied, broker.ErrUnavailable)} {
			b.fail(1, err)
			if took, got := submit(); got == nil || b.calls() != 1 || took > 0 {
				t.Errorf("%v: after %v and %d calls %v", err, took, b.calls(), got)
			}
		}
		// An outage: the first wait for its end, the later are told at once.
		b.fail(-1, away)
		took, err := submit()
		r := wantRefusal(t, "an outage", err, Unavailable)
		if r.RetryAfter == 0 || r.Unknown || took < brokerPatience/2 || took > brokerPatience || b.calls() < 4 {
			t.Errorf("an outage: after %v and %d calls %+v", took, b.calls(), r)
		}
		time.Sleep(brokerPatience)
		b.fail(-1, away)
		if took, err := submit(); b.calls() != 1 || took > 0 {
			t.Errorf("later in an outage: after %v and %d calls %v", took, b.calls(), err)
		}
		b.fail(0, nil)
		if _, err := submit(); err != nil {
			t.Errorf("after the outage: %v", err)
		}
		b.fail(2, away)
		if _, err := submit(); err != nil || b.calls() != 3 {
			t.Errorf("a moment after an outage: after %d calls %v", b.calls(), err)
		}
		// Nor does it wait longer than its caller.
		b.fail(-1, away)
		ctx, cancel := context.WithTimeout(w.ctx, 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, err = c.Submit(ctx, Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work"}})
		if took := time.Since(began); err == nil || took > 100*time.Millisecond || !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("a caller who leaves: after %v %v", took, err)
		}
		b.fail(0, nil)
	})
}
