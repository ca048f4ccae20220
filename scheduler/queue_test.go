package scheduler

import (
	"fmt"
	"testing"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// TestQueuesTakeTurns serves lanes of many queues and counts: lanes by weight,
// the queues of a lane alike, whatever else is busy.
func TestQueuesTakeTurns(t *testing.T) {
	t.Parallel()
	cases := map[string]map[mesh.Lane]int{ // queues in each lane
		"one lane":               {mesh.Standard: 7},
		"served every fifth":     {mesh.Interactive: 1, mesh.Standard: 5},
		"served every 21st":      {mesh.Critical: 2, mesh.Interactive: 3, mesh.Standard: 3},
		"all four, of all sizes": {mesh.Critical: 1, mesh.Interactive: 4, mesh.Standard: 17, mesh.Batch: 5},
	}
	for name, lanes := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDispatchSet()
			weights := 0
			for lane, n := range lanes {
				weights += lane.Weight()
				for i := range n {
					d.queue(queueKey{Queue: fsm.Queue{Tenant: "t", Function: fmt.Sprint(i), Lane: lane}}).more = true
				}
			}
			const rounds = 340 // whole turns of 17 queues
			served := map[queueKey]int{}
			for range rounds * weights {
				served[d.next().key]++
			}
			for lane, n := range lanes {
				want := float64(rounds*lane.Weight()) / float64(n)
				for i := range n {
					got := served[queueKey{Queue: fsm.Queue{Tenant: "t", Function: fmt.Sprint(i), Lane: lane}}]
					if float64(got) < want-1 || float64(got) > want+1 {
						t.Errorf("%s queue %d was served %d times, want %.1f", lane, i, got, want)
					}
				}
			}
		})
	}
}

func TestStuckAndEmptyQueuesArePassedOver(t *testing.T) {
	t.Parallel()
	d := newDispatchSet()
	key := func(f string) queueKey { return queueKey{Queue: fsm.Queue{Tenant: "t", Function: f, Lane: mesh.Batch}} }
	for _, f := range []string{"a", "b", "c"} {
		d.queue(key(f)).more = true
	}
	d.queue(key("a")).stuck = true
	d.queue(key("b")).more = false
	for range 3 {
		if q := d.next(); q == nil || q.key != key("c") {
			t.Fatalf("next is %v, want c", q)
		}
	}
	if d.queues[key("b")] != nil || len(d.lanes[mesh.Batch]) != 2 {
		t.Error("the empty queue is still there")
	}
	d.queue(key("c")).stuck = true
	if q := d.next(); q != nil {
		t.Errorf("next is %v, want none", q)
	}
	d.unstick()
	// The one that waited goes first.
	if q := d.next(); q == nil || q.key != key("a") {
		t.Errorf("next is %v, want a", q)
	}
}

// TestWindow adds to a window behind which the index holds more.
func TestWindow(t *testing.T) {
	t.Parallel()
	q := &queue{more: true}
	q.add(ref{task: "b"})
	if len(q.items) > 0 {
		t.Error("what lies behind an empty window came into it")
	}
	q.insert(ref{task: "b"}) // one that was set aside, and refill passes over
	q.add(ref{task: "c"})
	q.add(ref{task: "a"})
	q.add(ref{task: "a"})
	if len(q.items) != 2 || q.items[0].task != "a" || q.items[1].task != "b" {
		t.Errorf("the window holds %v, want a and b", q.items)
	}
	for i := range 2*window - 1 {
		q.insert(ref{task: fmt.Sprintf("d%04d", i)})
	}
	if len(q.items) != window || !q.more {
		t.Errorf("the window holds %d, more %v", len(q.items), q.more)
	}
}
