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
