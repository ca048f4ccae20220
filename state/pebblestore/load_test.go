package pebblestore

import (
	"context"
	"encoding/binary"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/isobar-mesh/isobar/state"
)

const memTable = 4 << 20

// loaded is a store whose memtables have grown to their full size, with one key
// that lies below all of them, on disk. Its cache for blocks is as small as a
// quarter of a memtable.
func loaded(tb testing.TB) *Store {
	tb.Helper()
	s, err := Open(tb.TempDir(), Options{MemTableBytes: memTable, CacheBytes: memTable / 4})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	if err := s.Commit([]state.Write{{Key: []byte("a"), Value: []byte("1")}}); err != nil {
		tb.Fatal(err)
	}
	for n := range uint64(5 * memTable / 4000) {
		v := binary.BigEndian.AppendUint64(make([]byte, 4000), n)
		if err := s.Commit([]state.Write{{Key: binary.BigEndian.AppendUint64([]byte("b"), n), Value: v}}); err != nil {
			tb.Fatal(err)
		}
	}
	if err := s.Sync(); err != nil {
		tb.Fatal(err)
	}
	return s
}

// TestBlocksKeepTheirCache: Pebble takes memtables out of the cache's budget, so
// a busy store could be left with no cache at all.
func TestBlocksKeepTheirCache(t *testing.T) {
	t.Parallel()
	s := loaded(t)
	before := s.live.db.Metrics().BlockCache
	const reads = 1000
	for range reads {
		if _, ok := s.Get([]byte("a")); !ok {
			t.Fatal("the key is gone")
		}
	}
	after := s.live.db.Metrics().BlockCache
	if missed := after.Misses - before.Misses; missed > reads/10 {
		t.Errorf("%d reads of one key missed the cache %d times, hit it %d times", reads, missed, after.Hits-before.Hits)
	}
}

// BenchmarkGetUnderLoad reads a key on disk of a store that is written to.
func BenchmarkGetUnderLoad(b *testing.B) {
	s := loaded(b)
	for b.Loop() {
		s.Get([]byte("a"))
	}
}

// stalled is a disk on which no table can be made until it is released.
type stalled struct {
	vfs.FS
	released chan struct{}
}

func (f stalled) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasSuffix(name, ".sst") {
		<-f.released
	}
	return f.FS.Create(name, c)
}

// onWarning calls itself with the first warning.
type onWarning func(string)

func (onWarning) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (f onWarning) Handle(_ context.Context, r slog.Record) error {
	f(r.Message)
	return nil
}
func (f onWarning) WithAttrs([]slog.Attr) slog.Handler { return f }
func (f onWarning) WithGroup(string) slog.Handler      { return f }

// TestCloseOnAStalledDisk: the log has what the flush would have saved, so a
// slow disk at the end is told, and is no failure.
func TestCloseOnAStalledDisk(t *testing.T) {
	t.Parallel()
	disk := stalled{FS: vfs.Default, released: make(chan struct{})}
	var once sync.Once
	told := ""
	log := slog.New(onWarning(func(text string) { once.Do(func() { told = text; close(disk.released) }) }))
	s, err := Open(t.TempDir(), Options{Logger: log, fs: disk, closeFlush: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, 1)
	if err := s.Close(); err != nil {
		t.Errorf("close on a slow disk: %v", err)
	}
	if !strings.Contains(told, "without its last flush") {
		t.Errorf("told %q", told)
	}
}
