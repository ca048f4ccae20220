package raftlog

import "testing"

// TestAskedBeforeRaftRuns: peers dial a server that starts again as soon as its
// port is open, which is before raft runs.
func TestAskedBeforeRaftRuns(t *testing.T) {
	t.Parallel()
	l := &Log{opts: Options{ServerID: "s"}}
	if id, applied := l.progress(); id != "s" || applied != 0 {
		t.Errorf("before raft runs: %s at %d", id, applied)
	}
}
