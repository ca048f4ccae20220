package state

import (
	"bytes"
	"iter"
)

// Write is one change of a batch.
type Write struct {
	Key    []byte
	Value  []byte
	Delete bool // Value is ignored
}

// Store keeps the whole state: an ordered map of bytes with atomic batches.
// Get, Scan and View may be called at any time from any goroutine, also while
// Commit or Install goes on; the other methods are called by one goroutine at
// a time. A store need not keep what was committed since the last Checkpoint
// through a crash, but what it keeps must be the state after some Commit, not
// between two.
//
// A store that can no longer read what it holds panics: a state machine that
// went on without an answer would diverge from its peers.
type Store interface {
	Reader
	// View calls fn with the state as of the call: every read of fn sees the
	// same. The Reader is valid until fn returns.
	View(fn func(Reader))
	// Commit makes all the writes take effect at once. Keys are distinct and
	// ascending. It keeps none of the slices. After an error the store is
	// unusable.
	Commit(writes []Write) error
	// Checkpoint writes the state as of the last Commit into dir, which does
	// not exist, and syncs it.
	Checkpoint(dir string) error
	// Install replaces the state by the checkpoint in dir, atomically also in
	// a crash, and does not use dir after. On error the old state stays.
	Install(dir string) error
	// Close waits for reads under way, and releases what the store holds.
	// Nothing may be called after it.
	Close() error
}

// section shows the keys of one machine, without their first byte.
type section struct {
	of Reader
	id MachineID
}

func (s section) key(key []byte) []byte {
	k := make([]byte, 1+len(key))
	k[0] = byte(s.id)
	copy(k[1:], key)
	return k
}

// end is the first key of the store behind the section's key to.
func (s section) end(to []byte) []byte {
	if to != nil {
		return s.key(to)
	}
	if s.id == 0xff {
		return nil
	}
	return []byte{byte(s.id) + 1}
}

func (s section) Get(key []byte) ([]byte, bool) { return s.of.Get(s.key(key)) }

func (s section) Scan(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for k, v := range s.of.Scan(s.key(from), s.end(to)) {
			if !yield(k[1:], v) {
				return
			}
		}
	}
}

// machineTx is a section of an overlay.
type machineTx struct {
	section
	over *overlay
}

func (t machineTx) Set(key, value []byte) {
	t.over.put(Write{Key: t.key(key), Value: bytes.Clone(value)})
}

func (t machineTx) Delete(key []byte) {
	t.over.put(Write{Key: t.key(key), Delete: true})
}
