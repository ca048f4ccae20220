package process

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/worker/attempt"
)

const (
	// watchEvery is how often memory is looked at, unless looking takes so
	// long that it would cost more than 1/watchShare of a core.
	watchEvery = 50 * time.Millisecond
	watchShare = 20
)

// watcher looks at the memory of all running groups at once, while there are
// any, and ends those above their limit.
type watcher struct {
	mu     sync.Mutex
	groups map[int]*group // by number of the group
	active bool           // the loop runs
	loops  sync.WaitGroup
}

type group struct {
	pgid   int
	limit  int64 // bytes; 0: none
	peak   int64 // bytes, under watcher.mu
	cancel context.CancelCauseFunc
}

func newWatcher() *watcher { return &watcher{groups: map[int]*group{}} }

// add starts to watch a group; cancel is called when it is above limit bytes.
func (w *watcher) add(pgid int, limit int64, cancel context.CancelCauseFunc) *group {
	g := &group{pgid: pgid, limit: limit, cancel: cancel}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.groups[pgid] = g
	if !w.active {
		w.active = true
		w.loops.Go(w.loop)
	}
	return g
}

// remove ends the watch and returns the most memory seen, in bytes; 0 when the
// group ended before the first look.
func (w *watcher) remove(g *group) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.groups[g.pgid] == g {
		delete(w.groups, g.pgid)
	}
	return g.peak
}

// close waits for the last look; every group must be removed.
func (w *watcher) close() { w.loops.Wait() }

// loop looks until no group is left.
func (w *watcher) loop() {
	pause := time.NewTimer(watchEvery)
	defer pause.Stop()
	for {
		<-pause.C
		began := time.Now()
		if !w.look() {
			return
		}
		pause.Reset(max(watchEvery, watchShare*time.Since(began)))
	}
}

// look takes one sample; it reports whether any group is left to watch.
func (w *watcher) look() bool {
	w.mu.Lock()
	if len(w.groups) == 0 {
		w.active = false
		w.mu.Unlock()
		return false
	}
	want := make(map[int]bool, len(w.groups))
	for pgid := range w.groups {
		want[pgid] = true
	}
	w.mu.Unlock()

	used, err := groupMemory(want)
	if err != nil {
		return true // The next look may do better; the limits of the kernel stand.
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for pgid, size := range used {
		g, ok := w.groups[pgid]
		if !ok {
			continue
		}
		g.peak = max(g.peak, size)
		if g.limit > 0 && size > g.limit {
			g.cancel(&attempt.Kill{
				Reason:  attempt.Memory,
				Message: fmt.Sprintf("used %d MiB of memory, more than its limit of %d MiB", size>>20, g.limit>>20),
			})
		}
	}
	return true
}

// parsePS adds up, by group, a table of "group KiB" lines.
func parsePS(table []byte, want map[int]bool) map[int]int64 {
	sum := make(map[int]int64, len(want))
	for lines := bufio.NewScanner(bytes.NewReader(table)); lines.Scan(); {
		var pgid int
		var kib int64
		if _, err := fmt.Sscan(lines.Text(), &pgid, &kib); err == nil && want[pgid] {
			sum[pgid] += kib << 10
		}
	}
	return sum
}
