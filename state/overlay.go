package state

import (
	"bytes"
	"iter"
	"slices"

	"github.com/google/btree"
)

// overlay is the writes of one entry over the committed state. Writes of the
// group being applied are journaled, so that a rejected group leaves nothing;
// a group that is rejected before it wrote costs nothing.
type overlay struct {
	base    Reader
	tree    *btree.BTreeG[Write]
	journal []undo
}

// undo is how the overlay was at a key before the group wrote it.
type undo struct {
	before Write
	had    bool
}

func byKey(a, b Write) bool { return bytes.Compare(a.Key, b.Key) < 0 }

func newOverlay(base Reader) *overlay {
	return &overlay{base: base, tree: btree.NewG(32, byKey)}
}

func (o *overlay) put(w Write) {
	before, had := o.tree.ReplaceOrInsert(w)
	if !had {
		before.Key = w.Key
	}
	o.journal = append(o.journal, undo{before: before, had: had})
}

// keep ends a group: its writes stay.
func (o *overlay) keep() { o.journal = o.journal[:0] }

// rollback ends a group: its writes go.
func (o *overlay) rollback() {
	for _, v := range slices.Backward(o.journal) {
		if u := v; u.had {
			o.tree.ReplaceOrInsert(u.before)
		} else {
			o.tree.Delete(u.before)
		}
	}
	clear(o.journal)
	o.journal = o.journal[:0]
}

// drain appends the writes in key order to dst and empties the overlay.
func (o *overlay) drain(dst []Write) []Write {
	o.tree.Ascend(func(w Write) bool {
		dst = append(dst, w)
		return true
	})
	o.tree.Clear(true)
	clear(o.journal[:cap(o.journal)])
	o.journal = o.journal[:0]
	return dst
}

func (o *overlay) Get(key []byte) ([]byte, bool) {
	if w, ok := o.tree.Get(Write{Key: key}); ok {
		return w.Value, !w.Delete
	}
	return o.base.Get(key)
}

// from is the overlay's first write at or behind key, below to.
func (o *overlay) from(key, to []byte) (w Write, ok bool) {
	o.tree.AscendGreaterOrEqual(Write{Key: key}, func(found Write) bool {
		w, ok = found, to == nil || bytes.Compare(found.Key, to) < 0
		return false
	})
	return w, ok
}

// after is the overlay's first write behind key, below to.
func (o *overlay) after(key, to []byte) (Write, bool) {
	return o.from(append(bytes.Clone(key), 0), to)
}

// Scan merges the overlay into a scan of the base. It looks for the overlay's
// next write as it goes, so a scan that stops early costs what it read.
func (o *overlay) Scan(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		w, ok := o.from(from, to)
		for k, v := range o.base.Scan(from, to) {
			for ok && bytes.Compare(w.Key, k) < 0 {
				if !w.Delete && !yield(w.Key, w.Value) {
					return
				}
				w, ok = o.after(w.Key, to)
			}
			if ok && bytes.Equal(w.Key, k) {
				hidden := w
				w, ok = o.after(w.Key, to)
				if hidden.Delete {
					continue
				}
				v = hidden.Value
			}
			if !yield(k, v) {
				return
			}
		}
		for ok {
			if !w.Delete && !yield(w.Key, w.Value) {
				return
			}
			w, ok = o.after(w.Key, to)
		}
	}
}
