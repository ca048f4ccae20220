package worker

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry/code"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

const (
	defaultCodeBytes = 1 << 30
	// fresh modules are never evicted: a fetch and its first use are not one
	// step.
	fresh = time.Minute
)

// CodeOptions say where code is kept and where it comes from.
type CodeOptions struct {
	// Dir holds the modules; it is made if missing and is this process's
	// alone. Required.
	Dir string
	// Addresses are the API addresses of the cell's servers, as in Options.
	Addresses []string
	// MaxBytes bounds Dir; above it the modules used longest ago go, but none
	// stored within the last minute. Default 1 GiB.
	MaxBytes int64
	// Logger and Transport as in Options.
	Logger    *slog.Logger
	Transport func(address string) connect.Transport
}

// Code keeps modules by digest, filled from the cell and verified: a damaged
// file is dropped and fetched again. It is an attempt.Code, safe for concurrent
// use. Close it when the runtimes that read from it are closed.
type Code struct {
	store     *code.Store
	maxBytes  int64
	log       *slog.Logger
	closeIdle func()

	mu   sync.Mutex
	used map[string]use
}

// use is a module's size and when it was opened last; the zero time for what
// was found at the start.
type use struct {
	bytes int64
	last  time.Time
}

var _ attempt.Code = (*Code)(nil)

// NewCode opens the cache.
func NewCode(opts CodeOptions) (*Code, error) {
	if opts.Dir == "" {
		return nil, fmt.Errorf("worker: check code directory: empty: %w", ErrOptions)
	}
	if err := checkAddresses(opts.Addresses); err != nil {
		return nil, err
	}
	c := &Code{maxBytes: opts.MaxBytes, log: opts.Logger, closeIdle: func() {}, used: map[string]use{}}
	if c.maxBytes <= 0 {
		c.maxBytes = defaultCodeBytes
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	transport := opts.Transport
	if transport == nil {
		transport, c.closeIdle = dialer()
	}
	var sources []code.Source
	for _, a := range opts.Addresses {
		address, err := baseURL(a)
		if err != nil {
			return nil, fmt.Errorf("worker: check addresses: %w: %w", err, ErrOptions)
		}
		calls := isobarv1.NewWorkerServiceClient(connect.NewClient(transport(address)))
		sources = append(sources, code.Source{Name: address, Fetch: func(ctx context.Context, digest string) (io.ReadCloser, error) {
			s, err := calls.Code(ctx, &isobarv1.CodeRequest{Digest: digest})
			if err != nil {
				return nil, fmt.Errorf("worker: ask for code: %w", err)
			}
			return &codeReader{stream: s}, nil
		}})
	}
	var err error
	c.store, err = code.New(opts.Dir, code.Options{Sources: func() []code.Source { return sources }, Log: c.log})
	if err != nil {
		return nil, fmt.Errorf("worker: open code: %w", err)
	}
	return c, nil
}

// Open returns the bytes of the digest, from disk or from the cell. The caller
// must not change them. Errors wrap digest.ErrMalformed, or code.ErrMissing
// with what each server said.
func (c *Code) Open(ctx context.Context, digest string) ([]byte, error) {
	b, err := c.store.Read(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("worker: open code: %w", err)
	}
	if c.note(digest, int64(len(b))) {
		c.evict(digest)
	}
	return b, nil
}

// Close ends the fetches under way and lets go of connections.
func (c *Code) Close() error {
	defer c.closeIdle()
	if err := c.store.Close(); err != nil {
		return fmt.Errorf("worker: close code: %w", err)
	}
	return nil
}

// note records a use; it reports whether it is the first one.
func (c *Code) note(digest string, size int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, known := c.used[digest]
	c.used[digest] = use{size, time.Now()}
	return !known || before.last.IsZero()
}

// evict removes what was used longest ago until the rest is within the bound.
func (c *Code) evict(keep string) {
	all, err := c.store.List()
	if err != nil {
		c.log.Warn("list code", "error", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	set := make(map[string]struct{}, len(all))
	var total int64
	for _, d := range all {
		u, known := c.used[d]
		if !known {
			u = use{bytes: c.sizeOf(d)}
			c.used[d] = u
		}
		set[d] = struct{}{}
		total += u.bytes
	}
	slices.SortFunc(all, func(a, b string) int {
		return cmp.Or(c.used[a].last.Compare(c.used[b].last), cmp.Compare(a, b))
	})
	for _, d := range all {
		if total <= c.maxBytes {
			break
		}
		if d != keep {
			delete(set, d)
			total -= c.used[d].bytes
			delete(c.used, d)
		}
	}
	if len(set) == len(all) {
		return
	}
	if _, err := c.store.Keep(set, time.Now().Add(-fresh)); err != nil {
		c.log.Warn("evict code", "error", err)
	}
}

// sizeOf reads the size of a module on disk; 0 when it is not there, or not
// sound, and so will be fetched when it is needed.
func (c *Code) sizeOf(digest string) int64 {
	nobody, cancel := context.WithCancel(context.Background())
	cancel()
	f, err := c.store.Open(nobody, digest)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0
	}
	return n
}

// codeReader reads a module from its stream. The store bounds and checks it.
type codeReader struct {
	stream isobarv1.WorkerServiceCodeClientStream
	chunk  bytes.Reader
}

func (r *codeReader) Read(p []byte) (int, error) {
	for r.chunk.Len() == 0 {
		m, err := r.stream.Receive()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, err
		}
		r.chunk.Reset(m.GetChunk())
	}
	return r.chunk.Read(p)
}

func (r *codeReader) Close() error { return r.stream.Close() }
