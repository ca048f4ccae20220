package pulsar

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar/backoff"
)

// Bounds of the pause before Pulsar is asked again after a failure.
const (
	pauseFirst = 100 * time.Millisecond
	pauseMost  = 10 * time.Second
)

// pause is exponential back-off with full jitter: a pause is anything from
// nothing to the present bound, so that those who failed together do not come
// back together (Brooker, "Exponential Backoff and Jitter", AWS 2015). It is
// safe for concurrent use.
type pause struct {
	mu    sync.Mutex
	bound time.Duration
	last  time.Time // of Next
}

var _ backoff.Policy = (*pause)(nil)

// Next returns how long to wait and doubles the bound.
func (p *pause) Next() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
	p.bound = min(max(2*p.bound, pauseFirst), pauseMost)
	return time.Duration(rand.Int64N(int64(p.bound)))
}

// IsMaxBackoffReached reports whether the bound grows no more.
func (p *pause) IsMaxBackoffReached() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bound >= pauseMost
}

// Reset begins anew, but not soon after a failure: a broker that accepts a
// connection and drops it at once would be asked without pause.
func (p *pause) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.last) > pauseMost {
		p.bound = 0
	}
}

// policy makes a back-off that all reconnects of one producer or reader share:
// the client asks for a new one each time it is disconnected.
func policy() func() backoff.Policy {
	p := &pause{}
	return func() backoff.Policy { return p }
}

// gate keeps calls away from what has just failed.
type gate struct {
	pause pause
	until time.Time
	err   error
}

// shut notes a failure; calls before the pause has passed get the same error.
func (g *gate) shut(err error) {
	g.err, g.until = err, time.Now().Add(g.pause.Next())
}

// check returns the last failure while its pause lasts.
func (g *gate) check() error {
	if g.err != nil && time.Now().Before(g.until) {
		return g.err
	}
	return nil
}
