package state

import (
	"bytes"
	"iter"
	"sync"

	"github.com/google/btree"
)

// Memory is a Store in memory, for transcripts, tests and simulation. It
// forgets everything when the process ends; a Checkpoint is one file. The zero
// value is not usable; see NewMemory.
type Memory struct {
	mu   sync.RWMutex
	live *btree.BTreeG[Write]
	// frozen is a copy-on-write clone of live for scans, made when first asked
	// for after a commit; it is never written.
	frozen *btree.BTreeG[Write]
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{live: btree.NewG(32, byKey)} }

// Clone returns an independent store with the same content; it costs nothing
// until one of them is written. A simulated crash goes back to a clone.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Memory{live: m.live.Clone()}
}

// Len is the number of keys.
func (m *Memory) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.live.Len()
}

// Get returns the newest committed value.
func (m *Memory) Get(key []byte) ([]byte, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	w, ok := m.live.Get(Write{Key: key})
	return w.Value, ok
}

func (m *Memory) freeze() frozen {
	m.mu.RLock()
	tree := m.frozen
	m.mu.RUnlock()
	if tree != nil {
		return frozen{tree}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen == nil {
		m.frozen = m.live.Clone()
	}
	return frozen{m.frozen}
}

// Scan yields the state as of its start.
func (m *Memory) Scan(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) { m.freeze().Scan(from, to)(yield) }
}

// View calls fn with the state as of the call.
func (m *Memory) View(fn func(Reader)) { fn(m.freeze()) }

// Commit makes the writes take effect at once. It never fails.
func (m *Memory) Commit(writes []Write) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.frozen = nil
	for _, w := range writes {
		if w.Delete {
			m.live.Delete(w)
			continue
		}
		m.live.ReplaceOrInsert(Write{Key: bytes.Clone(w.Key), Value: bytes.Clone(w.Value)})
	}
	return nil
}

// Close does nothing.
func (m *Memory) Close() error { return nil }

// frozen reads a tree that is no longer written.
type frozen struct{ tree *btree.BTreeG[Write] }

func (f frozen) Get(key []byte) ([]byte, bool) {
	w, ok := f.tree.Get(Write{Key: key})
	return w.Value, ok
}

func (f frozen) Scan(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		f.tree.AscendGreaterOrEqual(Write{Key: from}, func(w Write) bool {
			if to != nil && bytes.Compare(w.Key, to) >= 0 {
				return false
			}
			return yield(w.Key, w.Value)
		})
	}
}
