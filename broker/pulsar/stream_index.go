package pulsar

import (
	"sort"

	"github.com/isobar-mesh/isobar/broker"
)

// mark says what lies before a message.
type mark struct {
	at       broker.Position
	ms       int64 // when it was published; never less than the mark before
	messages uint64
	bytes    uint64 // of payload
}

// index knows a partition's sums, at every spacing-th message. It is not safe
// for concurrent use.
type index struct {
	marks   []mark
	spacing uint64
	end     mark // behind the newest message
}

// marksMost bounds the marks; with more of them every other one is dropped.
const marksMost = 4096

// add appends a message and returns its mark.
func (x *index) add(at broker.Position, ms int64, size int) mark {
	m := mark{at: at, ms: max(ms, x.end.ms), messages: x.end.messages, bytes: x.end.bytes}
	x.spacing = max(x.spacing, 1)
	if m.messages%x.spacing == 0 {
		if len(x.marks) == marksMost {
			x.spacing *= 2
			kept := x.marks[:0]
			for _, k := range x.marks {
				if k.messages%x.spacing == 0 {
					kept = append(kept, k)
				}
			}
			x.marks = kept
		}
		if m.messages%x.spacing == 0 {
			x.marks = append(x.marks, m)
		}
	}
	x.end = mark{at: at + 1, ms: m.ms, messages: m.messages + 1, bytes: m.bytes + uint64(size)}
	return m
}

// forget drops the marks that are not needed to find what lies at the position
// and behind it.
func (x *index) forget(below broker.Position) {
	n := sort.Search(len(x.marks), func(i int) bool { return x.marks[i].at > below })
	if n > 1 {
		x.marks = append([]mark(nil), x.marks[n-1:]...)
	}
}

// around looks for the first message for which holds is true, which it stays for
// all behind it. With sure, that is hit, or the end. Otherwise it is one of the
// messages behind before, or the end.
func (x *index) around(holds func(mark) bool) (before, hit mark, sure bool) {
	n := sort.Search(len(x.marks), func(i int) bool { return holds(x.marks[i]) })
	hit = x.end
	if n < len(x.marks) {
		hit = x.marks[n]
	}
	if n == 0 || x.spacing <= 1 {
		return mark{}, hit, true
	}
	return x.marks[n-1], hit, false
}
