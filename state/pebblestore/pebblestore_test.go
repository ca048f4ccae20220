package pebblestore

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/state"
)

func mustOpen(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{MemTableBytes: 1 << 20, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// commit writes the number under two keys, so that half a batch would show.
func commit(t *testing.T, s *Store, n uint64) {
	t.Helper()
	v := binary.BigEndian.AppendUint64(make([]byte, 2000), n)
	if err := s.Commit([]state.Write{{Key: []byte("a"), Value: v}, {Key: []byte("b"), Value: v}}); err != nil {
		t.Fatal(err)
	}
}

func number(t *testing.T, s *Store, key string) uint64 {
	t.Helper()
	v, ok := s.Get([]byte(key))
	if !ok {
		return 0
	}
	return binary.BigEndian.Uint64(v[2000:])
}

// TestCrashKeepsWholeBatches copies the directory of a running store, which is
// what a crash leaves, again and again.
func TestCrashKeepsWholeBatches(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpen(t, filepath.Join(dir, "live"))
	defer s.Close()
	synced := uint64(0)
	for n := uint64(1); n <= 1500; n++ {
		commit(t, s, n)
		if n%400 == 0 {
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			synced = n
		}
		if n%500 != 0 {
			continue
		}
		crashed := filepath.Join(dir, "crashed")
		copyLive(t, filepath.Join(dir, "live"), crashed)
		after := mustOpen(t, crashed)
		a, b := number(t, after, "a"), number(t, after, "b")
		if a != b || a < synced || a > n {
			t.Errorf("after a crash at %d, synced at %d: a is %d, b is %d", n, synced, a, b)
		}
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// copyLive copies a directory that is in use. A compaction may remove a file
// between the listing and the copy: no crash leaves that, so the copy is made
// again.
func copyLive(t *testing.T, from, to string) {
	t.Helper()
	for {
		err := errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from)))
		switch {
		case err == nil:
			return
		case !errors.Is(err, fs.ErrNotExist):
			t.Fatal(err)
		}
	}
}

func TestCloseKeepsEverything(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpen(t, dir)
	commit(t, s, 7)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("commit after close: %v", err)
	}
	s = mustOpen(t, dir)
	if n := number(t, s, "b"); n != 7 {
		t.Errorf("after a restart: %d", n)
	}
	if s.DiskBytes() == 0 {
		t.Error("no bytes on disk")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestInterruptedInstall leaves what a crash before, and after, the switch
// would leave.
func TestInterruptedInstall(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root := filepath.Join(dir, "store")
	s := mustOpen(t, root)
	commit(t, s, 1)
	checkpoint := filepath.Join(dir, "checkpoint")
	if err := s.Checkpoint(checkpoint); err != nil {
		t.Fatal(err)
	}
	commit(t, s, 2)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	next := filepath.Join(root, generationName(2))
	if err := linkTree(checkpoint, next); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, root) // before the switch: the old state
	if n := number(t, s, "a"); n != 2 {
		t.Errorf("before the switch: %d, want the old state", n)
	}
	if _, err := os.Stat(next); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished install was left: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	if err := errors.Join(linkTree(checkpoint, next), writeCurrent(root, generationName(2))); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, root) // after the switch: the new
	if n := number(t, s, "a"); n != 1 {
		t.Errorf("after the switch: %d, want the new state", n)
	}
	if _, err := os.Stat(filepath.Join(root, generationName(1))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old state was left: %v", err)
	}

	// Installing a second time from the same checkpoint, and using it, leaves
	// the checkpoint as it was.
	commit(t, s, 9)
	if err := errors.Join(s.Sync(), s.Install(checkpoint)); err != nil {
		t.Fatal(err)
	}
	if n := number(t, s, "a"); n != 1 {
		t.Errorf("installed again: %d", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestScanOutlivesInstall holds a scan open over a switch.
func TestScanOutlivesInstall(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root := filepath.Join(dir, "store")
	s := mustOpen(t, root)
	commit(t, s, 1)
	checkpoint := filepath.Join(dir, "checkpoint")
	if err := s.Checkpoint(checkpoint); err != nil {
		t.Fatal(err)
	}
	commit(t, s, 2)
	old := filepath.Join(root, generationName(1))
	for k, v := range s.Scan(nil, nil) {
		if string(k) == "a" {
			if err := s.Install(checkpoint); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(old); err != nil {
				t.Errorf("the old state was removed under a scan: %v", err)
			}
		}
		if n := binary.BigEndian.Uint64(v[2000:]); n != 2 {
			t.Errorf("the scan saw %d at %s", n, k)
		}
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old state was left: %v", err)
	}
	if n := number(t, s, "a"); n != 1 {
		t.Errorf("after the install: %d", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCloseWaitsForReaders closes while a view goes on.
func TestCloseWaitsForReaders(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, t.TempDir())
	commit(t, s, 1)
	closed := make(chan error, 1)
	s.View(func(r state.Reader) {
		go func() { closed <- s.Close() }()
		for { // until Close has begun
			s.mu.RLock()
			begun := s.closed
			s.mu.RUnlock()
			if begun {
				break
			}
			select {
			case err := <-closed:
				t.Errorf("closed under a reader: %v", err)
			case <-time.After(time.Millisecond):
			}
		}
		if _, ok := r.Get([]byte("a")); !ok {
			t.Error("the view lost its data")
		}
	})
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestOptionsAndDamagedPointer(t *testing.T) {
	t.Parallel()
	if _, err := Open(t.TempDir(), Options{MemTableBytes: 5}); !errors.Is(err, ErrOptions) {
		t.Errorf("got %v, want ErrOptions", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, currentFile), []byte("../elsewhere\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil {
		t.Error("a damaged pointer was followed")
	}
}
