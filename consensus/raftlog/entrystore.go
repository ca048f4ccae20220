package raftlog

import (
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

// chunkBytes is how finely the bytes of the log are counted.
const chunkBytes = 64 << 10

// entryOverhead is what an entry takes beside its data, about.
const entryOverhead = 32

// minTrailing entries are kept behind a snapshot however large they are.
const minTrailing = 64

// entryStore is the log and the votes on disk, and counts bytes, which raft
// does not: snapshots and trimming go by them. It must stay a
// raft.MonotonicLogStore, or raft leaves gaps that the store refuses.
type entryStore struct {
	*wal.WAL

	mu     sync.Mutex
	chunks []chunk // ascending
	total  int64
	recent [recentEntries]raft.Log // by index modulo their number; Index 0 is none
}

// The newest entries are kept in memory, but for large ones: raft reads each from
// its store to send it to the followers, and there once more to apply it.
const (
	recentEntries = 256
	recentBytes   = 64 << 10 // of one entry at most
)

// chunk is a run of entries.
type chunk struct {
	first, last uint64
	bytes       int64
}

var (
	_ raft.LogStore          = (*entryStore)(nil)
	_ raft.StableStore       = (*entryStore)(nil)
	_ raft.MonotonicLogStore = (*entryStore)(nil)
)

func newEntryStore(w *wal.WAL) *entryStore { return &entryStore{WAL: w} }

// load counts what is on disk. It reads the log once.
func (s *entryStore) load() error {
	first, last, err := s.bounds()
	if err != nil || last == 0 {
		return err
	}
	for i := first; i <= last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			return fmt.Errorf("read entry %d: %w", i, err)
		}
		s.count(&l)
	}
	return nil
}

func (s *entryStore) bounds() (first, last uint64, err error) {
	if first, err = s.FirstIndex(); err == nil {
		last, err = s.LastIndex()
	}
	return first, last, err
}

func (s *entryStore) count(l *raft.Log) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := int64(len(l.Data) + len(l.Extensions) + entryOverhead)
	s.total += n
	if k := len(s.chunks); k > 0 && s.chunks[k-1].bytes < chunkBytes {
		s.chunks[k-1].last = l.Index
		s.chunks[k-1].bytes += n
		return
	}
	s.chunks = append(s.chunks, chunk{first: l.Index, last: l.Index, bytes: n})
}

// GetLog reads one entry. The log below would still find entries that were
// trimmed, while they are in its last file; that depends on where files end,
// so such entries are refused here.
func (s *entryStore) GetLog(index uint64, l *raft.Log) error {
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	if index < first {
		return raft.ErrLogNotFound
	}
	if s.remembers(index, l) {
		return nil
	}
	return s.WAL.GetLog(index, l)
}

func (s *entryStore) remembers(index uint64, l *raft.Log) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.recent[index%recentEntries]
	if r.Index != index || index == 0 {
		return false
	}
	*l = *r
	return true
}

func (s *entryStore) remember(l *raft.Log) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.recent[l.Index%recentEntries]
	if *r = *l; len(l.Data)+len(l.Extensions) > recentBytes {
		*r = raft.Log{}
	}
}

func (s *entryStore) forget(lo, hi uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.recent {
		if r := &s.recent[i]; lo <= r.Index && r.Index <= hi {
			*r = raft.Log{}
		}
	}
}

// StoreLog appends one entry.
func (s *entryStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries, durably.
func (s *entryStore) StoreLogs(logs []*raft.Log) error {
	if err := s.WAL.StoreLogs(logs); err != nil {
		return err
	}
	for _, l := range logs {
		s.count(l)
		s.remember(l)
	}
	return nil
}

// DeleteRange removes the head or the tail of the log.
func (s *entryStore) DeleteRange(lo, hi uint64) error {
	s.forget(lo, hi)
	if err := s.WAL.DeleteRange(lo, hi); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.chunks[:0:0]
	s.total = 0
	for _, c := range s.chunks {
		if c = c.without(lo, hi); c.bytes > 0 {
			kept = append(kept, c)
			s.total += c.bytes
		}
	}
	s.chunks = kept
	return nil
}

// without returns the chunk less the entries from lo to hi, its bytes in
// proportion. hi or lo is always outside the chunk.
func (c chunk) without(lo, hi uint64) chunk {
	cutLo, cutHi := max(lo, c.first), min(hi, c.last)
	if cutLo > cutHi {
		return c
	}
	n, cut := c.last-c.first+1, cutHi-cutLo+1
	if cut == n {
		return chunk{}
	}
	c.bytes -= c.bytes * int64(cut) / int64(n)
	if cutLo == c.first {
		c.first = cutHi + 1
	} else {
		c.last = cutLo - 1
	}
	return c
}

// bytes is the size of the log.
func (s *entryStore) bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// since is the size of the entries behind index, to a chunk.
func (s *entryStore) since(index uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int64
	for i := len(s.chunks) - 1; i >= 0 && s.chunks[i].last > index; i-- {
		n += s.chunks[i].bytes
	}
	return n
}

// trailing is how many entries at the end take up to the bytes, to a chunk,
// and at least minTrailing.
func (s *entryStore) trailing(bytes int64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var entries uint64
	for _, v := range slices.Backward(s.chunks) {
		if bytes -= v.bytes; bytes < 0 {
			break
		}
		entries += v.last - v.first + 1
	}
	return max(entries, minTrailing)
}
