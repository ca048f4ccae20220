package delay

import (
	"net"
	"sync"
	"time"
)

// linger is how long after Close a peer that does not read may hold the bytes
// that were still under way.
const linger = 5 * time.Second

// Conn returns a connection on which bytes arrive oneWay later than on c, in
// both directions: what is written reaches c that much later, what c received
// is read that much later, and so are the end of the stream and errors. It
// takes c over; oneWay of zero or less returns c itself.
//
// Deadlines hold for the caller's Read and Write, not for c: a Read that ran
// into one lost nothing, and one set again lets it go on. Write returns when
// the bytes are under way and blocks while 32 MiB are; an error of c shows on a
// later Write. Close returns at once: a blocked Read or Write ends with
// net.ErrClosed, bytes under way to the peer are delivered in their time, as
// TCP does, and then c is closed, at the latest 5 s after their time. Bytes
// under way to the caller are dropped.
func Conn(c net.Conn, oneWay time.Duration) net.Conn {
	if oneWay <= 0 {
		return c
	}
	d := &conn{
		Conn: c, oneWay: oneWay,
		out: newLine(oneWay), in: newLine(oneWay),
		readBy: newDeadline(), writeBy: newDeadline(),
		closed: make(chan struct{}),
	}
	go d.send()
	go d.receive()
	return d
}

type conn struct {
	net.Conn
	oneWay          time.Duration
	out, in         *line
	readBy, writeBy *deadline

	closing sync.Once
	closed  chan struct{}
}

// send carries bytes from the outgoing line to the connection, and closes it
// behind the last of them.
func (d *conn) send() {
	defer func() { _ = d.Conn.Close() }() // nobody is left to tell
	for {
		b, err := d.out.next()
		if err != nil {
			return // ended by Close
		}
		_, err = d.Conn.Write(b)
		d.out.done(len(b))
		if err != nil {
			d.out.drop(err)
			<-d.closed // there may be something to read still
			return
		}
	}
}

// receive carries bytes from the connection to the incoming line.
func (d *conn) receive() {
	buf := make([]byte, 64<<10)
	for {
		n, err := d.Conn.Read(buf)
		if n > 0 {
			b := append([]byte(nil), buf[:n]...)
			if d.in.put(b, nil) != nil {
				return // closed
			}
		}
		if err != nil {
			d.in.finish(err)
			return
		}
	}
}

// Read implements net.Conn.
func (d *conn) Read(p []byte) (int, error) {
	select {
	case <-d.closed:
		return 0, closedError("read", d.Conn)
	default:
	}
	if len(p) == 0 {
		return 0, nil
	}
	return d.in.read(p, d.readBy.past())
}

// Write implements net.Conn. Calls at the same time do not mix their bytes.
func (d *conn) Write(p []byte) (int, error) {
	by := d.writeBy.past()
	select {
	case <-d.closed:
		return 0, closedError("write", d.Conn)
	case <-by:
		return 0, errDeadline
	default:
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := d.out.put(append([]byte(nil), p...), by); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close implements net.Conn; see Conn.
func (d *conn) Close() error {
	err := closedError("close", d.Conn)
	d.closing.Do(func() {
		err = nil
		close(d.closed)
		d.in.drop(closedError("read", d.Conn))
		d.out.finish(closedError("write", d.Conn))
		// Ends the reader now and a stuck writer in time. A connection that
		// knows no deadlines ends both when it is closed.
		_ = d.Conn.SetReadDeadline(time.Unix(1, 0))
		_ = d.Conn.SetWriteDeadline(time.Now().Add(d.oneWay + linger))
	})
	return err
}

// SetDeadline implements net.Conn.
func (d *conn) SetDeadline(t time.Time) error {
	if err := d.SetReadDeadline(t); err != nil {
		return err
	}
	return d.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (d *conn) SetReadDeadline(t time.Time) error { return d.move(d.readBy, t) }

// SetWriteDeadline implements net.Conn.
func (d *conn) SetWriteDeadline(t time.Time) error { return d.move(d.writeBy, t) }

func (d *conn) move(by *deadline, t time.Time) error {
	select {
	case <-d.closed:
		return closedError("set", d.Conn)
	default:
		by.set(t)
		return nil
	}
}
