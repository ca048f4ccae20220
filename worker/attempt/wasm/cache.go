package wasm

import (
	"container/list"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/isobar-mesh/isobar/worker/attempt"
)

// cache keeps compiled modules by digest, the latest used first, within a
// budget of bytes of module. A module is compiled once however many attempts
// ask for it, and is freed when it is neither kept nor used.
type cache struct {
	budget  int64
	loads   *sync.WaitGroup // counts the loads that go on
	compile func(ctx context.Context, digest string) (wazero.CompiledModule, int64, error)

	mu      sync.Mutex
	modules map[string]*entry
	recent  *list.List // of *entry that compiled, the latest used first
	bytes   int64      // of recent
}

// entry is one compiled module, or one that is being compiled.
type entry struct {
	digest string
	ready  chan struct{} // closed when the fields below are set
	err    error
	code   wazero.CompiledModule
	min    uint64 // bytes of memory it starts with
	size   int64

	// Under cache.mu.
	users int
	place *list.Element // nil when it is not kept
}

func newCache(budget int64, loads *sync.WaitGroup, compile func(context.Context, string) (wazero.CompiledModule, int64, error)) *cache {
	return &cache{budget: budget, loads: loads, compile: compile, modules: map[string]*entry{}, recent: list.New()}
}

// acquire returns the module, which stays usable until release. cold is how
// long the caller waited for it to be fetched and compiled; 0 when it was
// ready.
func (c *cache) acquire(ctx context.Context, digest string) (m *entry, cold time.Duration, err error) {
	began := time.Now()
	c.mu.Lock()
	m, found := c.modules[digest]
	if !found {
		m = &entry{digest: digest, ready: make(chan struct{})}
		c.modules[digest] = m
		// Others may wait for the same module, so the end of this caller's
		// context does not stop it.
		c.loads.Go(func() { c.load(context.WithoutCancel(ctx), m) })
	}
	m.users++
	if m.place != nil {
		c.recent.MoveToFront(m.place)
	}
	c.mu.Unlock()

	select {
	case <-m.ready:
		if m.err != nil {
			c.release(m)
			return nil, 0, m.err
		}
		return m, 0, nil
	default:
	}
	select {
	case <-m.ready:
	case <-ctx.Done():
		c.release(m)
		return nil, 0, attempt.KillOf(ctx)
	}
	if m.err != nil {
		c.release(m)
		return nil, 0, m.err
	}
	return m, time.Since(began), nil
}

// load fetches and compiles. A module that fails is forgotten, so that the
// next attempt tries again.
func (c *cache) load(ctx context.Context, m *entry) {
	code, size, err := c.compile(ctx, m.digest)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		m.err = err
		delete(c.modules, m.digest)
		close(m.ready)
		return
	}
	m.code, m.size = code, size
	m.min = uint64(code.ExportedMemories()[memoryName].Min()) * pageSize
	m.place = c.recent.PushFront(m)
	c.bytes += size
	close(m.ready)
	c.evict()
}

// evict lets go of the modules that were not used for longest until the rest
// fits the budget; the latest always stays. c.mu is held.
func (c *cache) evict() {
	for c.bytes > c.budget && c.recent.Len() > 1 {
		c.drop(c.recent.Back().Value.(*entry))
	}
}

// drop stops keeping a module. c.mu is held.
func (c *cache) drop(m *entry) {
	c.recent.Remove(m.place)
	m.place = nil
	c.bytes -= m.size
	delete(c.modules, m.digest)
	c.free(m)
}

// release ends the use of a module.
func (c *cache) release(m *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.users--
	c.free(m)
}

// free closes a module that is neither kept nor used. c.mu is held.
func (c *cache) free(m *entry) {
	if m.users == 0 && m.place == nil && m.code != nil {
		_ = m.code.Close(context.Background()) // Never fails: it only unlinks.
		m.code = nil
	}
}

// digests lists what is kept, sorted.
func (c *cache) digests() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for e := c.recent.Front(); e != nil; e = e.Next() {
		out = append(out, e.Value.(*entry).digest)
	}
	slices.Sort(out)
	return out
}

// fits checks the memory a module starts with against a limit in bytes.
func (m *entry) fits(limit uint64) error {
	if m.min <= limit {
		return nil
	}
	return &ModuleError{
		Problem: fmt.Sprintf("starts with %d MiB of memory, more than its limit of %d MiB", (m.min+1<<20-1)>>20, limit>>20),
		Hint:    "raise memory_mib",
	}
}
