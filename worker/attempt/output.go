package attempt

import (
	"errors"
	"fmt"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// ErrTooLarge is what a Result answers to a write that does not fit.
var ErrTooLarge = errors.New("result too large")

// Result gathers a function's output up to a cap. It is not safe for
// concurrent use.
type Result struct {
	max      int
	onExcess func(*Kill)
	buf      []byte
	excess   bool
}

// NewResult returns a Result that holds up to limit bytes. The first write
// above it calls onExcess once, with the reason to kill the attempt for; that
// write and all later ones fail.
func NewResult(limit int, onExcess func(*Kill)) *Result {
	return &Result{max: limit, onExcess: onExcess}
}

// Write implements io.Writer.
func (r *Result) Write(p []byte) (int, error) {
	if r.excess {
		return 0, ErrTooLarge
	}
	if len(r.buf)+len(p) > r.max {
		r.excess, r.buf = true, nil
		r.onExcess(Excess(r.max))
		return 0, ErrTooLarge
	}
	r.buf = append(r.buf, p...)
	return len(p), nil
}

// Bytes returns what was written, never nil unless it was too large.
func (r *Result) Bytes() []byte {
	if r.buf == nil && !r.excess {
		return []byte{}
	}
	return r.buf
}

// Excess is the reason an attempt ends for whose result is above limit bytes.
func Excess(limit int) *Kill {
	return &Kill{TooLarge, fmt.Sprintf("result too large: more than %d bytes", limit)}
}

// Tail keeps the last mesh.MaxStderrTail bytes written to it and drops the
// rest. The zero value is ready. It is not safe for concurrent use.
type Tail struct {
	// buf holds up to twice what is kept, so that a flood of small writes
	// moves each byte once.
	buf []byte
}

// Write implements io.Writer; it never fails.
func (t *Tail) Write(p []byte) (int, error) {
	n := len(p)
	if len(p) > mesh.MaxStderrTail {
		p = p[len(p)-mesh.MaxStderrTail:]
		t.buf = t.buf[:0]
	}
	if len(t.buf)+len(p) > 2*mesh.MaxStderrTail {
		t.buf = append(t.buf[:0], t.last()...)
	}
	t.buf = append(t.buf, p...)
	return n, nil
}

// Bytes returns the tail; nil when nothing was written. It is the Tail's own
// until the next write.
func (t *Tail) Bytes() []byte { return t.last() }

func (t *Tail) last() []byte {
	return t.buf[max(0, len(t.buf)-mesh.MaxStderrTail):]
}
