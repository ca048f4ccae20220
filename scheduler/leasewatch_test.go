package scheduler

import (
	"encoding/binary"
	"iter"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/state"
)

// leaseEnds is a state in which nothing is but leases that end then, and counts
// who goes over them.
type leaseEnds struct {
	state.Reader
	at    []int64
	scans int
}

func (r *leaseEnds) Scan(from, _ []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		if from[0] != 'l' {
			return
		}
		r.scans++
		slices.Sort(r.at)
		for _, at := range r.at {
			if !yield(binary.BigEndian.AppendUint64([]byte{'l'}, uint64(at)), nil) {
				return
			}
		}
	}
}

// TestLeaseWatch: a lease that ended is due at most `every` later, none is due
// before it ends, and a lease that is far ahead is not looked for each time.
func TestLeaseWatch(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		start := time.Unix(1_000, 0)
		r := &leaseEnds{}
		w := leaseWatch{every: 500 * time.Millisecond}
		for ms := int64(0); ms < 20_000; ms += 100 {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0: // granted
				r.at = append(r.at, ms+rapid.Int64Range(1_000, 9_000).Draw(t, "lease"))
			case 1: // completed
				if len(r.at) > 0 {
					r.at = slices.Delete(r.at, 0, 1)
				}
			}
			due, _ := w.look(r, start.Add(time.Duration(ms)*time.Millisecond), ms)
			ended := slices.ContainsFunc(r.at, func(at int64) bool { return at <= ms })
			late := slices.ContainsFunc(r.at, func(at int64) bool { return at+500 <= ms })
			if due && !ended || late && !due {
				t.Fatalf("at %d: due %v; leases end at %v", ms, due, r.at)
			}
			if due { // the Tick
				r.at = slices.DeleteFunc(r.at, func(at int64) bool { return at <= ms })
			}
		}
	})
	r, w := &leaseEnds{at: []int64{60_000}}, leaseWatch{every: 500 * time.Millisecond}
	for ms := int64(0); ms < 10_000; ms += 100 {
		w.look(r, time.Unix(0, ms*1e6), ms)
	}
	if r.scans != 20 {
		t.Errorf("%d looks in 10 s for a lease that is far ahead, want 20", r.scans)
	}
}
