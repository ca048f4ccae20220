package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/renameio/v2"
	"golang.org/x/sync/singleflight"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

const (
	// maxModule is the largest module, in bytes; Deploy takes no larger one.
	maxModule = 64 << 20
	// fetchTimeout bounds the fetch of one module from one server.
	fetchTimeout = 30 * time.Second

	defaultCodeBytes = 1 << 30
)

// CodeOptions say where code is kept and where it comes from.
type CodeOptions struct {
	// Dir holds the modules, one file each; it is made if missing. Required.
	Dir string
	// Addresses are the API addresses of the cell's servers, as in Options.
	Addresses []string
	// MaxBytes bounds Dir; the modules used longest ago go first. Default 1
	// GiB. A module being fetched may pass it.
	MaxBytes int64
	// Logger and Transport as in Options.
	Logger    *slog.Logger
	Transport func(address string) connect.Transport
}

// Code is a cache of modules by digest, filled from the cell. It is an
// attempt.Code. Bytes are verified each time they are read: a damaged file is
// dropped and fetched again. Safe for concurrent use; one digest is fetched
// once at a time.
type Code struct {
	opts   CodeOptions
	flight singleflight.Group
}

// ErrDigest is wrapped by Open for a digest that is not "sha256:" and 64 lower
// case hexadecimal digits.
var ErrDigest = errors.New("not a sha256 digest")

// ErrNoCode is wrapped by Open when no server gave bytes with the digest.
var ErrNoCode = errors.New("no server has it")

// NewCode opens the cache.
func NewCode(opts CodeOptions) (*Code, error) {
	if opts.Dir == "" {
		return nil, fmt.Errorf("worker: check code directory: empty: %w", ErrOptions)
	}
	if err := checkAddresses(opts.Addresses); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("worker: make code directory: %w", err)
	}
	if opts.MaxBytes <= 0 {
		opts.MaxBytes = defaultCodeBytes
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Transport == nil {
		opts.Transport, _ = dialer()
	}
	return &Code{opts: opts}, nil
}

// Open returns the bytes of the digest, from disk or from the cell. The caller
// must not change them.
func (c *Code) Open(ctx context.Context, digest string) ([]byte, error) {
	name, ok := strings.CutPrefix(digest, "sha256:")
	if raw, err := hex.DecodeString(name); !ok || err != nil || len(raw) != sha256.Size || strings.ToLower(name) != name {
		return nil, fmt.Errorf("worker: open code %.80q: %w", digest, ErrDigest)
	}
	// The fetch is shared, so it must outlive the caller that began it.
	shared := context.WithoutCancel(ctx)
	got := c.flight.DoChan(name, func() (any, error) { return c.open(shared, name) })
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("worker: open code %s: %w", digest, context.Cause(ctx))
	case r := <-got:
		if r.Err != nil {
			return nil, fmt.Errorf("worker: open code %s: %w", digest, r.Err)
		}
		return r.Val.([]byte), nil
	}
}

func (c *Code) open(ctx context.Context, name string) ([]byte, error) {
	path := filepath.Join(c.opts.Dir, name)
	b, err := os.ReadFile(path)
	switch {
	case err == nil && digestIs(b, name):
		// The time of use decides what goes first; it is only that.
		now := time.Now()
		_ = os.Chtimes(path, now, now)
		return b, nil
	case err == nil:
		c.opts.Logger.Warn("code is damaged on disk, fetch again", "digest", name)
	case !errors.Is(err, fs.ErrNotExist):
		c.opts.Logger.Warn("read code", "digest", name, "error", err)
	}
	if b, err = c.fetch(ctx, name); err != nil {
		return nil, err
	}
	if err := renameio.WriteFile(path, b, 0o600); err != nil {
		// The attempt can run without the cache.
		c.opts.Logger.Warn("keep code", "digest", name, "error", err)
		return b, nil
	}
	c.evict(name)
	return b, nil
}

func digestIs(b []byte, name string) bool {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]) == name
}

// fetch asks the servers in turn until one gives bytes with the digest.
func (c *Code) fetch(ctx context.Context, name string) ([]byte, error) {
	var errs []error
	for _, a := range c.opts.Addresses {
		address, err := baseURL(a)
		if err != nil {
			return nil, err // NewCode checked it
		}
		b, err := c.fetchFrom(ctx, address, name)
		if err == nil {
			return b, nil
		}
		errs = append(errs, fmt.Errorf("from %s: %w", address, err))
	}
	return nil, fmt.Errorf("%w: %w", ErrNoCode, errors.Join(errs...))
}

func (c *Code) fetchFrom(ctx context.Context, address, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	calls := isobarv1.NewWorkerServiceClient(connect.NewClient(c.opts.Transport(address)))
	stream, err := calls.Code(ctx, &isobarv1.CodeRequest{Digest: "sha256:" + name})
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	var b []byte
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(b)+len(m.GetChunk()) > maxModule {
			return nil, fmt.Errorf("more than %d bytes", maxModule)
		}
		b = append(b, m.GetChunk()...)
	}
	if !digestIs(b, name) {
		return nil, fmt.Errorf("%d bytes with another digest", len(b))
	}
	return b, nil
}

// evict removes the modules used longest ago until Dir is within its bound.
// The one just stored stays.
func (c *Code) evict(keep string) {
	entries, err := os.ReadDir(c.opts.Dir)
	if err != nil {
		c.opts.Logger.Warn("list code", "error", err)
		return
	}
	var files []fs.FileInfo
	var total int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			files = append(files, info)
			total += info.Size()
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, f := range files {
		if total <= c.opts.MaxBytes {
			return
		}
		if f.Name() == keep {
			continue
		}
		if err := os.Remove(filepath.Join(c.opts.Dir, f.Name())); err == nil {
			total -= f.Size()
		}
	}
}
