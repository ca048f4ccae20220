// Package code keeps modules on disk by the digest of their bytes.
//
// A module is written to a temporary file, synced, and renamed into place, so
// that a crash leaves the whole of it or nothing. It is checked against its
// digest when it is first read after a start, when the file has changed since,
// and on demand; a damaged one is removed. What is missing or was removed is
// fetched from the sources, one after the other, until one has the right
// bytes: wrong ones never come into the store. Any number of callers that miss
// the same module wait for one fetch.
//
// The package knows no network and no peers: sources are functions. It never
// decides what to keep; [Store.Keep] is told.
package code

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/registry/digest"
)

// Errors of a Store.
var (
	// ErrMissing: the module is not here and no source had it.
	ErrMissing = errors.New("module is missing")
	// ErrDamaged: the bytes on disk did not match the digest; the file was
	// removed.
	ErrDamaged = errors.New("module is damaged")
	// ErrWrongBytes: what was handed in is not what the digest names.
	ErrWrongBytes = errors.New("bytes do not match the digest")
	// ErrTooLarge: the module is above Options.MaxBytes.
	ErrTooLarge = errors.New("module is too large")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store is closed")
)

// Fetcher gets a module's bytes from elsewhere. Opening and reading must end
// soon after ctx does. The store closes the reader and checks the bytes.
type Fetcher func(ctx context.Context, digest string) (io.ReadCloser, error)

// Source is a place to fetch modules from.
type Source struct {
	Name  string // for errors and the log: a cell or a server
	Fetch Fetcher
}

// Options of a Store. The zero value is valid: a store without sources.
type Options struct {
	// Sources is asked for each fetch; they are tried in order.
	Sources func() []Source
	// MaxBytes is the largest module; default 64 MiB.
	MaxBytes int64
	// FetchTimeout bounds the fetch from one source; default 1 min.
	FetchTimeout time.Duration
	// Log gets a line for each damaged module and each source that failed;
	// default slog.DiscardHandler.
	Log *slog.Logger
}

// Store is a directory of modules. All methods are safe for concurrent use.
// One Store at a time owns the directory.
type Store struct {
	dir     string
	options Options
	log     *slog.Logger
	closing context.Context //nolint:containedctx // ends fetches
	close   context.CancelFunc
	running sync.WaitGroup // fetches

	// files is held while a name appears or disappears, so that a damaged
	// file's remover cannot remove its replacement.
	files sync.Mutex

	mu       sync.Mutex
	verified map[string]fingerprint // by digest
	flights  map[string]*flight     // by digest
}

// fingerprint tells whether a file has changed since it was verified.
type fingerprint struct {
	size    int64
	changed time.Time
}

const temporary = "tmp-"

// New opens the store in dir, which it makes if it is not there, and removes
// what unfinished writes left.
func New(dir string, o Options) (*Store, error) {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 64 << 20
	}
	if o.FetchTimeout <= 0 {
		o.FetchTimeout = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("code: open store: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, temporary+"*"))
	if err != nil {
		return nil, fmt.Errorf("code: open store: %w", err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("code: open store: %w", err)
		}
	}
	closing, stop := context.WithCancel(context.Background())
	return &Store{
		dir: dir, options: o, log: o.Log, closing: closing, close: stop,
		verified: make(map[string]fingerprint), flights: make(map[string]*flight),
	}, nil
}

// Close ends the fetches under way and waits for them. Files that were handed
// out stay open. A second call returns nil.
func (s *Store) Close() error {
	s.mu.Lock()
	s.close()
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// Put stores a module and returns its digest; when it returns, the module is
// durable. Storing what is there already makes it new for Keep.
func (s *Store) Put(module io.Reader) (string, error) {
	d, err := s.write("", module)
	if err != nil {
		return "", fmt.Errorf("code: put module: %w", err)
	}
	return d, nil
}

// PutAs is Put for bytes that claim to be a certain module: ErrWrongBytes when
// they are not, with nothing stored.
func (s *Store) PutAs(d string, module io.Reader) error {
	if _, err := s.write(d, module); err != nil {
		return fmt.Errorf("code: put %.80s: %w", d, err)
	}
	return nil
}

// Has reports whether the module lies here; it may be damaged. It reads
// nothing and asks no source.
func (s *Store) Has(d string) bool {
	path, err := s.path(d)
	if err != nil {
		return false
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// Renew reports whether the module lies here, as Has does, and makes it as young as
// one that was just put: a Keep that is under way does not remove it.
func (s *Store) Renew(d string) bool {
	s.files.Lock()
	defer s.files.Unlock()
	path, err := s.path(d)
	if err != nil || !s.Has(d) {
		return false
	}
	now := time.Now()
	return os.Chtimes(path, now, now) == nil
}

// Open opens the module for reading, checked, and fetches it first if it is
// missing or damaged. The caller closes it. Errors: ErrMissing with what each
// source said, ErrClosed, that of ctx.
func (s *Store) Open(ctx context.Context, d string) (io.ReadSeekCloser, error) {
	f, err := s.open(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("code: open %.80s: %w", d, err)
	}
	return f, nil
}

func (s *Store) open(ctx context.Context, d string) (*os.File, error) {
	f, err := s.openVerified(d, false)
	if err == nil || (!errors.Is(err, ErrMissing) && !errors.Is(err, ErrDamaged)) {
		return f, err
	}
	if err := s.fetch(ctx, d); err != nil {
		return nil, err
	}
	return s.openVerified(d, false)
}

// Read is Open for all the bytes.
func (s *Store) Read(ctx context.Context, d string) ([]byte, error) {
	f, err := s.open(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("code: read %.80s: %w", d, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("code: read %.80s: %w", d, err)
	}
	return b, nil
}

// Ensure returns when the module is here and sound, and fetches it if need be.
// Errors as Open.
func (s *Store) Ensure(ctx context.Context, d string) error {
	f, err := s.open(ctx, d)
	if err != nil {
		return fmt.Errorf("code: ensure %.80s: %w", d, err)
	}
	return f.Close()
}

// Verify reads the module and compares it with its digest, whether or not it
// was checked before. ErrMissing, or ErrDamaged after removing it; the next
// Open fetches it again.
func (s *Store) Verify(d string) error {
	f, err := s.openVerified(d, true)
	if err != nil {
		return fmt.Errorf("code: verify %.80s: %w", d, err)
	}
	return f.Close()
}

// path is where a module lies. Only a digest makes one, so that no name leads
// out of the directory.
func (s *Store) path(d string) (string, error) {
	if _, err := digest.Parse(d); err != nil {
		return "", err
	}
	return filepath.Join(s.dir, strings.TrimPrefix(d, digest.Prefix)), nil
}

// openVerified opens the file and checks it, unless it was checked since it
// changed and again is not set. A damaged file is removed.
func (s *Store) openVerified(d string, again bool) (*os.File, error) {
	path, err := s.path(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	seen := fingerprint{size: info.Size(), changed: info.ModTime()}
	s.mu.Lock()
	known, ok := s.verified[d]
	s.mu.Unlock()
	if ok && known == seen && !again {
		return f, nil
	}
	if err := s.check(f, d); err != nil {
		if errors.Is(err, ErrDamaged) {
			s.log.Warn("module is damaged, removing it", "digest", d, "path", path)
			err = errors.Join(err, s.removeSame(d, path, info))
		}
		return nil, errors.Join(err, f.Close())
	}
	s.mu.Lock()
	s.verified[d] = seen
	s.mu.Unlock()
	return f, nil
}

// check reads the file and leaves it at its beginning.
func (s *Store) check(f *os.File, d string) error {
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if digest.Name([sha256.Size]byte(h.Sum(nil))) != d {
		return ErrDamaged
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// removeSame removes the file if it is still the one that was looked at.
func (s *Store) removeSame(d, path string, seen fs.FileInfo) error {
	s.files.Lock()
	defer s.files.Unlock()
	now, err := os.Stat(path)
	if err != nil || !os.SameFile(seen, now) {
		return ignoreMissing(err)
	}
	s.forget(d)
	return ignoreMissing(os.Remove(path))
}

func (s *Store) forget(d string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.verified, d)
}

// write stores a module under its digest, which must be want unless that is
// empty.
func (s *Store) write(want string, module io.Reader) (d string, err error) {
	if want != "" {
		if _, err := digest.Parse(want); err != nil {
			return "", err
		}
	}
	if s.closing.Err() != nil {
		return "", ErrClosed
	}
	f, err := os.CreateTemp(s.dir, temporary)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(f.Name())))
		}
	}()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(module, s.options.MaxBytes+1))
	d = digest.Name([sha256.Size]byte(h.Sum(nil)))
	switch {
	case err != nil:
	case n > s.options.MaxBytes:
		err = fmt.Errorf("above %d bytes: %w", s.options.MaxBytes, ErrTooLarge)
	case want != "" && d != want:
		err = fmt.Errorf("%d bytes with %s: %w", n, d, ErrWrongBytes)
	default:
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	return d, s.rename(f.Name(), d)
}

func (s *Store) rename(from, d string) error {
	path, err := s.path(d)
	if err != nil {
		return err
	}
	s.files.Lock()
	defer s.files.Unlock()
	// What was just hashed on its way to the file counts as unverified: what
	// counts is what the disk gives back.
	s.forget(d)
	if err := os.Rename(from, path); err != nil {
		return err
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
