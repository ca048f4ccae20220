// Package pebblestore keeps a cell's state on disk, in Pebble.
//
// Pebble's write-ahead log is switched off: the cell's log is it. After a
// crash the store holds the state after some earlier commit, never between
// two, and the log applies the rest again. A checkpoint is a flush and hard
// links; installing one fills a new directory and switches a pointer file, so
// that a crash leaves either the old state or the new.
//
// The package owns its directory:
//
//	current       the name of the generation in use
//	gen-00000001  a Pebble database
//
// It never knows what the keys mean. A disk that fails a read or a write stops
// the process by a panic: going on would let this server diverge.
package pebblestore

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/isobar-mesh/isobar/state"
)

// Options of a Store. The zero value is valid.
type Options struct {
	// Logger gets Pebble's messages: errors as errors, the rest as debug.
	// Default: none.
	Logger *slog.Logger
	// MemTableBytes is what a flush writes at most, and bounds how far the
	// disk is behind memory. Default 32 MiB; from 1 MiB to 1 GiB.
	MemTableBytes int
	// CacheBytes is the least that is left for blocks read from disk, whatever
	// memtables take. Default 64 MiB; from 0.
	CacheBytes int64

	fs         vfs.FS        // of tests; nil is the disk
	closeFlush time.Duration // of tests
}

// ErrOptions: an option is out of its range.
var ErrOptions = errors.New("bad options")

// ErrClosed: Commit, Checkpoint or Install after Close.
var ErrClosed = errors.New("store is closed")

// format is the on-disk format this version writes. It is named, not "newest",
// so that a new version of Pebble does not change it unseen: a follower of the
// old version must be able to install a checkpoint of the new.
const format = pebble.FormatTableFormatV6

// memTables may be in memory at once.
const memTables = 4

// Store is a state.Store in Pebble.
type Store struct {
	dir  string
	opts Options

	mu     sync.RWMutex // guards live and closed
	live   *generation
	closed bool
}

var _ state.Store = (*Store)(nil)

// generation is one open database. It is closed, and its directory removed if
// it was replaced, when the last reader lets go of it.
type generation struct {
	db      *pebble.DB
	dir     string
	refs    atomic.Int64
	discard atomic.Bool
	done    chan struct{}
	err     error // of the close; read after done
}

func (g *generation) release() {
	if g.refs.Add(-1) > 0 {
		return
	}
	g.err = g.db.Close()
	if g.discard.Load() {
		g.err = errors.Join(g.err, os.RemoveAll(g.dir))
	}
	close(g.done)
}

// Open opens the store in dir, which is made when missing, and removes what an
// interrupted Install left. One process at a time may hold it.
func Open(dir string, opts Options) (*Store, error) {
	if opts.MemTableBytes == 0 {
		opts.MemTableBytes = 32 << 20
	}
	if opts.CacheBytes == 0 {
		opts.CacheBytes = 64 << 20
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.MemTableBytes < 1<<20 || opts.MemTableBytes > 1<<30 || opts.CacheBytes < 0 {
		return nil, fmt.Errorf("pebblestore: open %s: memtable %d, cache %d: %w", dir, opts.MemTableBytes, opts.CacheBytes, ErrOptions)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("pebblestore: open: %w", err)
	}
	s := &Store{dir: dir, opts: opts}
	name, err := readCurrent(dir)
	if err != nil {
		return nil, fmt.Errorf("pebblestore: open %s: %w", dir, err)
	}
	if err := removeOthers(dir, name); err != nil {
		return nil, fmt.Errorf("pebblestore: open %s: %w", dir, err)
	}
	fresh := name == ""
	if fresh {
		name = generationName(1)
	}
	if s.live, err = s.openGeneration(name); err != nil {
		return nil, fmt.Errorf("pebblestore: open %s: %w", dir, err)
	}
	if fresh {
		if err := writeCurrent(dir, name); err != nil {
			s.live.release()
			return nil, fmt.Errorf("pebblestore: open %s: %w", dir, err)
		}
	}
	return s, nil
}

func (s *Store) openGeneration(name string) (*generation, error) {
	g := &generation{dir: filepath.Join(s.dir, name), done: make(chan struct{})}
	g.refs.Store(1)
	o := &pebble.Options{
		FS:                 s.opts.fs, // nil: the disk
		DisableWAL:         true,
		FormatMajorVersion: format,
		MemTableSize:       uint64(s.opts.MemTableBytes),
		// Pebble takes memtables out of the cache's budget. Were it no larger than
		// the blocks' part, busy writers would leave blocks nothing, and each read
		// would go to the disk.
		CacheSize:    s.opts.CacheBytes + memTables*int64(s.opts.MemTableBytes),
		Logger:       logger{s.opts.Logger},
		MaxOpenFiles: 1000,
		// A stall would hold up the cell's log: all but the one written to may wait.
		MemTableStopWritesThreshold: memTables,
	}
	for i := range o.Levels {
		// Most reads are of one key by its exact name.
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].FilterType = pebble.TableFilter
	}
	db, err := pebble.Open(g.dir, o)
	if err != nil {
		return nil, err
	}
	g.db = db
	return g, nil
}

// acquire pins the live generation for a read.
func (s *Store) acquire() *generation {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		panic("pebblestore: read: " + ErrClosed.Error())
	}
	s.live.refs.Add(1)
	return s.live
}

// Get returns the newest committed value.
func (s *Store) Get(key []byte) ([]byte, bool) {
	g := s.acquire()
	defer g.release()
	return get(g.db, key)
}

// Scan yields the state as of its start. The database stays open for as long
// as the scan goes on, also through an Install.
func (s *Store) Scan(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		g := s.acquire()
		defer g.release()
		scan(g.db, from, to, yield)
	}
}

// View calls fn with the state as of the call.
func (s *Store) View(fn func(state.Reader)) {
	g := s.acquire()
	defer g.release()
	snap := g.db.NewSnapshot()
	defer func() { must("close snapshot", snap.Close()) }()
	fn(view{snap})
}

// view reads one snapshot.
type view struct{ snap *pebble.Snapshot }

func (v view) Get(key []byte) ([]byte, bool) { return get(v.snap, key) }

func (v view) Scan(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) { scan(v.snap, from, to, yield) }
}

func get(r pebble.Reader, key []byte) ([]byte, bool) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false
	}
	must("get", err)
	out := append(make([]byte, 0, len(v)), v...)
	must("get", closer.Close())
	return out, true
}

func scan(r pebble.Reader, from, to []byte, yield func(k, v []byte) bool) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	must("scan", err)
	defer func() { must("scan", it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		must("scan", err)
		k := it.Key()
		both := append(append(make([]byte, 0, len(k)+len(v)), k...), v...)
		if !yield(both[:len(k):len(k)], both[len(k):]) {
			return
		}
	}
	must("scan", it.Error())
}

// must stops the process on a failing disk; see the package doc.
func must(action string, err error) {
	if err != nil {
		panic(fmt.Sprintf("pebblestore: %s: %v", action, err))
	}
}

// Commit makes the writes take effect at once, in memory; they reach the disk
// with a later flush.
func (s *Store) Commit(writes []state.Write) error {
	g, err := s.writer()
	if err != nil {
		return fmt.Errorf("pebblestore: commit: %w", err)
	}
	size := 64
	for _, w := range writes {
		size += len(w.Key) + len(w.Value) + 16
	}
	b := g.db.NewBatchWithSize(size)
	for _, w := range writes {
		if w.Delete {
			err = b.Delete(w.Key, nil)
		} else {
			err = b.Set(w.Key, w.Value, nil)
		}
		if err != nil {
			return fmt.Errorf("pebblestore: commit: %w", errors.Join(err, b.Close()))
		}
	}
	if err := errors.Join(b.Commit(pebble.NoSync), b.Close()); err != nil {
		return fmt.Errorf("pebblestore: commit: %w", err)
	}
	return nil
}

// writer is the live generation for the one goroutine that also installs, so
// that it needs no pin.
func (s *Store) writer() (*generation, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	return s.live, nil
}

// Checkpoint flushes memory and hard-links the tables into dir, which must be
// on the same file system to cost nothing, and is synced.
func (s *Store) Checkpoint(dir string) error {
	g, err := s.writer()
	if err != nil {
		return fmt.Errorf("pebblestore: checkpoint: %w", err)
	}
	if err := g.db.Flush(); err != nil {
		return fmt.Errorf("pebblestore: checkpoint: flush: %w", err)
	}
	if err := g.db.Checkpoint(dir); err != nil {
		return fmt.Errorf("pebblestore: checkpoint: %w", err)
	}
	return nil
}

// Sync flushes memory to disk: a crash after it loses nothing committed before.
func (s *Store) Sync() error {
	g, err := s.writer()
	if err == nil {
		err = g.db.Flush()
	}
	if err != nil {
		return fmt.Errorf("pebblestore: sync: %w", err)
	}
	return nil
}

// Install fills a new generation from the checkpoint, by hard links where it
// can, opens it, and switches. Reads under way end on the old one, which is
// removed after the last of them.
func (s *Store) Install(dir string) error {
	old, err := s.writer()
	if err != nil {
		return fmt.Errorf("pebblestore: install: %w", err)
	}
	number, err := generationNumber(filepath.Base(old.dir))
	if err != nil {
		return fmt.Errorf("pebblestore: install: %w", err)
	}
	name := generationName(number + 1)
	if err := linkTree(dir, filepath.Join(s.dir, name)); err != nil {
		return fmt.Errorf("pebblestore: install %s: %w", dir, errors.Join(err, os.RemoveAll(filepath.Join(s.dir, name))))
	}
	fresh, err := s.openGeneration(name)
	if err != nil {
		return fmt.Errorf("pebblestore: install %s: %w", dir, errors.Join(err, os.RemoveAll(filepath.Join(s.dir, name))))
	}
	if err := writeCurrent(s.dir, name); err != nil {
		// Which of the two the pointer names now is not known, so neither may
		// be removed; Open will.
		fresh.release()
		return fmt.Errorf("pebblestore: install %s: %w", dir, err)
	}
	s.mu.Lock()
	s.live = fresh
	s.mu.Unlock()
	old.discard.Store(true)
	old.release()
	return nil
}

// DiskBytes is what the database takes on disk, tables waiting for removal
// included. It does not read the disk.
func (s *Store) DiskBytes() uint64 {
	g := s.acquire()
	defer g.release()
	return g.db.Metrics().DiskSpaceUsage()
}

// Close flushes, so that the next start has nothing to apply again, waits for
// reads under way, and closes. A disk that takes longer than 20 s for it is not
// waited for: the next start then applies more. A second call returns nil.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	g := s.live
	s.mu.Unlock()

	flushed := s.flushWithin(g.db, cmp.Or(s.opts.closeFlush, closeFlush))
	g.release()
	<-g.done
	if err := errors.Join(flushed, g.err); err != nil {
		return fmt.Errorf("pebblestore: close: %w", err)
	}
	return nil
}

// closeFlush is how long Close waits for its flush.
const closeFlush = 20 * time.Second

// flushWithin gives up on a disk that stalls or fails: Pebble tries for ever.
// Nothing is lost by it, the log has all of it; so that is told, and no error.
func (s *Store) flushWithin(db *pebble.DB, limit time.Duration) error {
	done, err := db.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-done:
	case <-time.After(limit): //nolint:forbidigo // a backend, not a pure room
		s.opts.Logger.Warn("closed without its last flush: the disk is slow or fails; the next start applies the log's tail again", "waited", limit)
	}
	return nil
}

// logger hands Pebble's messages to slog.
type logger struct{ to *slog.Logger }

func (l logger) Infof(format string, args ...any)  { l.to.Debug(fmt.Sprintf(format, args...)) }
func (l logger) Errorf(format string, args ...any) { l.to.Error(fmt.Sprintf(format, args...)) }

// Fatalf must not return: Pebble calls it when going on would lose data.
func (l logger) Fatalf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	l.to.Error(text)
	panic("pebblestore: " + text)
}
