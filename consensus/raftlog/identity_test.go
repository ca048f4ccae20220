package raftlog

import (
	"os"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/consensus"
)

// A server whose directories were emptied is a new one, and has no part in what
// the old one at its address had promised: were it taken for that one, it would
// vote again, and a majority could be made that lacks what was committed.
func TestAnEmptiedServerDoesNotVoteForTheOldOne(t *testing.T) {
	c := newCluster(t, 3, memoryRecorder, nil)
	a := c.leader()
	rest := c.others(a)
	b, late := rest[0], rest[1]
	c.propose("first")
	c.await(late, 1)
	c.net.isolate(late.opts.ServerID)
	c.propose("kept") // by a and b, a majority

	// One server's data is lost: a minority.
	c.kill(b)
	for _, dir := range []string{b.opts.Dir, b.machDir} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	id, err := LoadServerID(b.opts.Dir)
	if err != nil {
		t.Fatal(err)
	}
	b.opts.ServerID, b.opts.Bootstrap, b.opts.Dial = id, false, c.net.dialer(id)
	// Another one is away for a moment, and the third is back.
	c.net.isolate(a.opts.ServerID)
	c.net.heal(late.opts.ServerID)
	c.start(b)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if late.Status().Role == consensus.Leader && late.Barrier(ctxFor(t)) == nil {
			t.Fatalf("a server that lacks what was committed leads, by the vote of one that was emptied: it has %q", late.m.Payloads())
		}
	}
	c.net.heal(a.opts.ServerID)
	c.await(late, 2)
	if got := string(late.m.Payloads()[1]); got != "kept" {
		t.Fatalf("the second payload is %q, want the one that was committed", got)
	}
}
