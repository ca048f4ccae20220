package scheduler

import (
	"fmt"
	"testing"
)

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
