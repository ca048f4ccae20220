package stream

import (
	"sync"

	"github.com/isobar-mesh/isobar/stream/groups"
)

// underway counts the publishes of each stream that are under way, so that a drop
// waits for those of its stream and holds up no other's. It is safe for concurrent
// use.
type underway struct {
	mu sync.Mutex
	of map[groups.Name]*publishes
}

type publishes struct {
	n    int
	over chan struct{} // closed when n is 0 again
}

// enter counts a publish until leave is called.
func (u *underway) enter(n groups.Name) (leave func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.of[n]
	if p == nil {
		p = &publishes{over: make(chan struct{})}
		u.of[n] = p
	}
	p.n++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if p.n--; p.n == 0 {
			close(p.over)
			delete(u.of, n)
		}
	}
}

// over is closed when the publishes that are under way now have ended; nil when
// there are none.
func (u *underway) over(n groups.Name) <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	if p := u.of[n]; p != nil {
		return p.over
	}
	return nil
}
