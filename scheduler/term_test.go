package scheduler

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// A call that a term left behind must not commit in a later one: its clock went
// on while nobody led.
func TestACallOfAnEarlierTermCommitsNothing(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		slow := &slowBroker{hold: make(chan struct{})}
		c := w.cell("eu-1", func(o *Options) { slow.Broker = o.Broker; o.Broker = slow })
		var err error
		w.go_(func() { _, err = c.trySubmit("work") })
		synctest.Wait()
		c.log.Depose()
		time.Sleep(time.Minute) // without a leader
		c.log.Elect()
		synctest.Wait()
		before, _ := fsm.ReadClocks(c.State)
		close(slow.hold)
		synctest.Wait()
		if !errors.Is(err, ErrNotLeader) {
			t.Errorf("submit: %v", err)
		}
		if after, _ := fsm.ReadClocks(c.State); after-before > 1000 {
			t.Errorf("lease time went on by %d ms while nobody led", after-before)
		}
	})
}

// slowBroker holds every Prepare until it is let go.
type slowBroker struct {
	broker.Broker
	hold chan struct{}
}

func (b *slowBroker) Prepare(ctx context.Context, msgs []broker.Message) ([]broker.Prepared, error) {
	<-b.hold
	return b.Broker.Prepare(ctx, msgs)
}

// A server that was elected holds old state until its barrier: before, it leads
// nothing, answers nothing and hands out nothing.
func TestNothingIsDoneBeforeTheBarrier(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(1, "wasm"), nil)
		wk.vanish()
		id := c.submit("work")
		hold := make(chan struct{})
		c.late.behind(hold)
		c.log.Depose()
		synctest.Wait()
		c.log.Elect()
		time.Sleep(time.Minute)
		if c.Leading() {
			t.Error("it leads")
		}
		if _, err := c.trySubmit("work"); !errors.Is(err, ErrNotLeader) {
			t.Errorf("submit: %v", err)
		}
		if _, err := c.Get(w.ctx, id); !errors.Is(err, ErrNotLeader) {
			t.Errorf("get: %v", err)
		}
		if rec := c.record(id); rec.Attempt != 0 {
			t.Errorf("attempt %d was granted", rec.Attempt)
		}
		close(hold)
		synctest.Wait()
		if !c.Leading() {
			t.Error("it does not lead after its barrier")
		}
	})
}
