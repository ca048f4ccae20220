package delay

import (
	"net"
	"os"
	"sync"
	"time"
)

// errDeadline is a net.Error whose Timeout is true.
var errDeadline = os.ErrDeadlineExceeded

// maxUnderway bounds the bytes under way in one direction.
const maxUnderway = 32 << 20

// line is one direction: bytes go in and come out a fixed time later, in order.
// It ends once, with an error that comes out behind the last byte.
type line struct {
	oneWay time.Duration

	mu      sync.Mutex
	chunks  []chunk // in order of due; the first may be partly read
	bytes   int
	end     error // not nil once ended
	endDue  time.Time
	dropped bool          // what is under way was thrown away
	changed chan struct{} // closed and replaced when any of the above changes
}

type chunk struct {
	data []byte
	due  time.Time
}

func newLine(oneWay time.Duration) *line {
	return &line{oneWay: oneWay, changed: make(chan struct{})}
}

// notify wakes all who wait. Called with mu held.
func (l *line) notify() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// put sends data, which must not change afterwards. It waits while too much is
// under way, until cancel is closed. Errors: the line's end, or
// errDeadline for cancel.
func (l *line) put(data []byte, cancel <-chan struct{}) error {
	for {
		l.mu.Lock()
		if l.end != nil {
			defer l.mu.Unlock()
			return l.end
		}
		// One chunk larger than the bound still passes, alone.
		if l.bytes == 0 || l.bytes+len(data) <= maxUnderway {
			l.chunks = append(l.chunks, chunk{data, time.Now().Add(l.oneWay)})
			l.bytes += len(data)
			l.notify()
			l.mu.Unlock()
			return nil
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-cancel:
			return errDeadline
		}
	}
}

// finish ends the line: err comes out one way after now, behind what is under
// way. The first end counts.
func (l *line) finish(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end == nil {
		l.end, l.endDue = err, time.Now().Add(l.oneWay)
		l.notify()
	}
}

// drop ends the line at once and throws away what is under way.
func (l *line) drop(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.chunks, l.bytes, l.dropped = nil, 0, true
	l.end, l.endDue = err, time.Time{}
	l.notify()
}

// read copies what has arrived into p and waits when nothing has, until cancel
// is closed. Errors: the line's end, or errDeadline for cancel.
func (l *line) read(p []byte, cancel <-chan struct{}) (int, error) {
	for {
		// A deadline that is past wins over bytes that have arrived.
		select {
		case <-cancel:
			return 0, errDeadline
		default:
		}
		l.mu.Lock()
		n, wait, err := l.arrived(p)
		changed := l.changed
		l.mu.Unlock()
		if n > 0 || err != nil {
			return n, err
		}
		if !pause(wait, changed, cancel) {
			return 0, errDeadline
		}
	}
}

// arrived takes what is due, or says how long until something will be; zero is
// until the line changes. Called with mu held.
func (l *line) arrived(p []byte) (n int, wait time.Duration, err error) {
	now := time.Now()
	for len(l.chunks) > 0 && n < len(p) {
		head := &l.chunks[0]
		if d := head.due.Sub(now); d > 0 {
			wait = d
			break
		}
		m := copy(p[n:], head.data)
		n += m
		if head.data = head.data[m:]; len(head.data) == 0 {
			l.chunks[0] = chunk{}
			l.chunks = l.chunks[1:]
		}
	}
	if n > 0 {
		l.bytes -= n
		l.notify()
		return n, 0, nil
	}
	if len(l.chunks) == 0 && l.end != nil {
		if wait = l.endDue.Sub(now); wait <= 0 {
			return 0, 0, l.end
		}
	}
	return 0, wait, nil
}

// next waits for the first chunk to arrive and takes it out whole. Its bytes
// stay counted as under way until done. The error is the line's end.
func (l *line) next() ([]byte, error) {
	for {
		l.mu.Lock()
		var wait time.Duration
		now := time.Now()
		switch {
		case len(l.chunks) > 0:
			head := l.chunks[0]
			if wait = head.due.Sub(now); wait <= 0 {
				l.chunks[0] = chunk{}
				l.chunks = l.chunks[1:]
				l.mu.Unlock()
				return head.data, nil
			}
		case l.end != nil:
			if wait = l.endDue.Sub(now); wait <= 0 {
				defer l.mu.Unlock()
				return nil, l.end
			}
		}
		changed := l.changed
		l.mu.Unlock()
		pause(wait, changed, nil)
	}
}

// done takes n bytes that next gave off the count.
func (l *line) done(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dropped {
		l.bytes -= n
	}
	l.notify()
}

// pause waits for the time given (zero: without limit) or until changed is
// closed, and is false when cancel is closed first.
func pause(wait time.Duration, changed, cancel <-chan struct{}) bool {
	var due <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-due:
	case <-changed:
	case <-cancel:
		return false
	}
	return true
}

// deadline is one of a connection's two deadlines: a channel that is closed
// while it is past.
type deadline struct {
	mu     sync.Mutex
	timer  *time.Timer
	passed chan struct{}
}

func newDeadline() *deadline { return &deadline{passed: make(chan struct{})} }

// past returns the channel that is closed when the deadline passes. A later
// deadline set meanwhile does not revive one that has passed.
func (d *deadline) past() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}

// set moves the deadline; the zero time is none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.passed // its function runs or ran: wait, so that it closes no later channel
	}
	d.timer = nil
	closed := false
	select {
	case <-d.passed:
		closed = true
	default:
	}
	if t.IsZero() || time.Until(t) > 0 {
		if closed {
			d.passed = make(chan struct{})
		}
		if !t.IsZero() {
			passed := d.passed
			d.timer = time.AfterFunc(time.Until(t), func() { close(passed) })
		}
		return
	}
	if !closed {
		close(d.passed)
	}
}

// closedError is what a closed connection answers, as package net does.
func closedError(op string, c net.Conn) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: net.ErrClosed}
}
