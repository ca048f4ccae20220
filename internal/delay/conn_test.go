package delay_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/isobar-mesh/isobar/internal/delay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const oneWay = 100 * time.Millisecond

// pair is a delayed connection and the far end, which is not delayed itself.
func pair() (near, far net.Conn) {
	a, b := net.Pipe()
	return delay.Conn(a, oneWay), b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pass lets virtual time go by.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// end closes connections inside a bubble and lets what is under way arrive, for
// a bubble's time stands still once its test has returned.
func end(t *testing.T, conns ...net.Conn) {
	t.Helper()
	for _, c := range conns {
		must(t, c.Close())
	}
	pass(time.Minute)
}

// readExactly reads len(want) bytes and fails when they differ.
func readExactly(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b, err, want)
	}
}

func TestBothDirectionsTakeOneWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := pair()
		start := time.Now()
		_, err := near.Write([]byte("ping"))
		must(t, err)
		if d := time.Since(start); d != 0 {
			t.Errorf("Write took %v", d)
		}
		readExactly(t, far, "ping")
		if d := time.Since(start); d != oneWay {
			t.Errorf("outgoing took %v", d)
		}
		_, err = far.Write([]byte("pong"))
		must(t, err)
		readExactly(t, near, "pong")
		if d := time.Since(start); d != 2*oneWay {
			t.Errorf("round trip took %v", d)
		}
		end(t, near, far)
	})
}

// Writes are pipelined: a hundred of them arrive together, not after a hundred
// delays, and in order.
func TestPipelinedInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := pair()
		start := time.Now()
		var want []byte
		for i := range 100 {
			b := bytes.Repeat([]byte{byte(i)}, i+1)
			want = append(want, b...)
			_, err := near.Write(b)
			must(t, err)
			clear(b) // the buffer is the caller's again
		}
		readExactly(t, far, string(want))
		if d := time.Since(start); d != oneWay {
			t.Errorf("took %v", d)
		}
		end(t, near, far)
	})
}

func TestReadDeadlineLosesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := pair()
		go func() { _, _ = far.Write([]byte("late")) }()
		must(t, near.SetReadDeadline(time.Now().Add(oneWay/2)))
		start := time.Now()
		_, err := near.Read(make([]byte, 4))
		var timeout net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Fatalf("%v", err)
		}
		if d := time.Since(start); d != oneWay/2 {
			t.Errorf("after %v", d)
		}
		if _, err := near.Read(make([]byte, 4)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a past deadline stays past: %v", err)
		}
		must(t, near.SetDeadline(time.Time{}))
		readExactly(t, near, "late")
		end(t, near, far)
	})
}

// A deadline set while a Read waits holds for that Read, earlier or later.
func TestDeadlineMovesUnderARead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := pair()
		must(t, near.SetReadDeadline(time.Now().Add(time.Minute)))
		start := time.Now()
		time.AfterFunc(time.Second, func() { _ = near.SetReadDeadline(time.Now().Add(time.Hour)) })
		time.AfterFunc(2*time.Minute, func() { _ = near.SetReadDeadline(time.Unix(1, 0)) })
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 2*time.Minute {
			t.Errorf("after %v", d)
		}
		end(t, near, far)
	})
}

// A peer that does not read stops the writer, in bytes, until its deadline.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := pair()
		must(t, near.SetWriteDeadline(time.Now().Add(time.Minute)))
		b := make([]byte, 1<<20)
		var n int
		var err error
		for err == nil {
			var m int
			m, err = near.Write(b)
			n += m
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || n != 32<<20 {
			t.Fatalf("%d bytes, %v", n, err)
		}
		// The peer reads again, so the writer goes on.
		must(t, near.SetWriteDeadline(time.Time{}))
		got := make(chan int64)
		go func() {
			n, _ := io.Copy(io.Discard, far)
			got <- n
		}()
		_, err = near.Write(b)
		must(t, err)
		must(t, near.Close())
		if n := <-got; n != 33<<20 {
			t.Errorf("%d bytes arrived", n)
		}
		end(t, far)
	})
}

func TestCloseDeliversWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := pair()
		_, err := near.Write([]byte("last words"))
		must(t, err)
		start := time.Now()
		must(t, near.Close())
		if d := time.Since(start); d != 0 {
			t.Errorf("Close took %v", d)
		}
		for name, err := range map[string]error{
			"close": near.Close(), "deadline": near.SetDeadline(time.Time{}),
			"read":  second(near.Read(make([]byte, 1))),
			"write": second(near.Write([]byte("x"))),
		} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s after close: %v", name, err)
			}
		}
		all, err := io.ReadAll(far)
		if string(all) != "last words" || err != nil || time.Since(start) != oneWay {
			t.Errorf("%q, %v, after %v", all, err, time.Since(start))
		}
		end(t, far)
	})
}

func second(_ int, err error) error { return err }

// A peer that never reads holds a closed connection for the linger at most;
// the bubble fails the test if a goroutine stays.
func TestCloseWithADeafPeer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := pair()
		_, err := near.Write([]byte("nobody listens"))
		must(t, err)
		must(t, near.Close())
		pass(10 * time.Second)
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("far end: %v", err)
		}
		must(t, far.Close())
	})
}

func TestCloseEndsBlockedCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := pair()
		errs := make(chan error, 2)
		go func() { errs <- second(near.Read(make([]byte, 1))) }()
		go func() {
			_, err := near.Write(make([]byte, 32<<20))
			if err == nil {
				_, err = near.Write([]byte("more"))
			}
			errs <- err
		}()
		synctest.Wait()
		must(t, near.Close())
		for range 2 {
			if err := <-errs; !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
		end(t, far)
	})
}

// The end of the stream arrives late too, behind the last byte.
func TestEndIsDelayed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := pair()
		start := time.Now()
		_, err := far.Write([]byte("bye"))
		must(t, err)
		must(t, far.Close())
		all, err := io.ReadAll(near)
		if string(all) != "bye" || err != nil || time.Since(start) != oneWay {
			t.Errorf("%q, %v, after %v", all, err, time.Since(start))
		}
		// Writing to a peer that is gone fails, one way later.
		_, _ = near.Write([]byte("x"))
		pass(oneWay)
		if _, err := near.Write([]byte("x")); err == nil {
			t.Error("no error from a closed peer")
		}
		end(t, near)
	})
}

func TestNoDelayIsTheConnectionItself(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	defer func() {
		_ = a.Close()
		_ = b.Close()
	}()
	if delay.Conn(a, 0) != a || delay.Conn(a, -1) != a {
		t.Error("wrapped")
	}
}

func TestDialerTakesARoundTrip(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		dial := delay.Dialer(
			func(context.Context, string, string) (net.Conn, error) { return a, nil },
			func(address string) time.Duration {
				if address == "far:1" {
					return oneWay
				}
				return 0
			})
		start := time.Now()
		c, err := dial(t.Context(), "tcp", "far:1")
		must(t, err)
		if d := time.Since(start); d != 2*oneWay {
			t.Errorf("dial took %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), oneWay)
		defer cancel()
		if _, err := dial(ctx, "tcp", "far:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial with half the time: %v", err)
		}
		if near, err := dial(t.Context(), "tcp", "near:1"); err != nil || near != a {
			t.Errorf("%v, %v", near, err)
		}
		end(t, c, b)
	})
}

func TestQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var got []int
		start := time.Now()
		var at []time.Duration
		q := delay.NewQueue(func(n int) {
			got = append(got, n)
			at = append(at, time.Since(start))
		})
		for i := range 5 {
			q.Push(i, 3*time.Second)
			q.Push(10+i, time.Second)
		}
		q.Push(99, time.Hour)
		pass(time.Minute)
		q.Close()
		if q.Push(1, 0) {
			t.Error("a closed queue takes messages")
		}
		if want := []int{10, 11, 12, 13, 14, 0, 1, 2, 3, 4}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		if at[0] != time.Second || at[9] != 3*time.Second {
			t.Errorf("at %v", at)
		}
	})
}

// loopback is a real TCP connection, delayed at the dialing side.
func loopback(t *testing.T, oneWay time.Duration) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = ln.Close() }()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			accepted <- c
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	near, far = delay.Conn(c, oneWay), <-accepted
	t.Cleanup(func() {
		_ = near.Close()
		_ = far.Close()
	})
	return near, far
}

func TestLoopbackRoundTrip(t *testing.T) {
	t.Parallel()
	const oneWay = 20 * time.Millisecond
	near, far := loopback(t, oneWay)
	go func() { _, _ = io.Copy(far, far) }()
	var rtts []time.Duration
	b := make([]byte, 64)
	for range 11 {
		start := time.Now()
		_, err := near.Write(b)
		must(t, err)
		_, err = io.ReadFull(near, b)
		must(t, err)
		rtts = append(rtts, time.Since(start))
	}
	slices.Sort(rtts)
	t.Logf("round trip at %v one way: median %v, least %v, most %v", oneWay, rtts[5], rtts[0], rtts[10])
	// The upper bound only catches a delay counted twice: the machine is shared.
	if rtts[0] < 2*oneWay || rtts[5] > 4*oneWay {
		t.Errorf("median %v, least %v", rtts[5], rtts[0])
	}
}

// Both directions at once must not collapse to a window per round trip.
func TestLoopbackThroughput(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 256 MiB")
	}
	near, far := loopback(t, oneWay)
	const size = 128 << 20
	start := time.Now()
	var wg sync.WaitGroup
	for _, dir := range [][2]net.Conn{{near, far}, {far, near}} {
		wg.Go(func() {
			b := make([]byte, 256<<10)
			for range size / len(b) {
				if _, err := dir[0].Write(b); err != nil {
					t.Error(err)
					return
				}
			}
		})
		wg.Go(func() {
			if n, err := io.CopyN(io.Discard, dir[1], size); err != nil {
				t.Errorf("%d bytes: %v", n, err)
			}
		})
	}
	wg.Wait()
	rate := float64(size) / time.Since(start).Seconds() / 1e6
	t.Logf("%.0f MB/s each way at %v one way", rate, oneWay)
	if rate < 20 { // a window of 64 KiB per round trip would be 0.3 MB/s
		t.Errorf("%.1f MB/s each way", rate)
	}
}

func TestLoopbackContent(t *testing.T) {
	t.Parallel()
	near, far := loopback(t, 5*time.Millisecond)
	sent, got := sha256.New(), sha256.New()
	go func() {
		b := make([]byte, 7919)
		for i := range 2000 {
			for j := range b {
				b[j] = byte(i * j)
			}
			sent.Write(b)
			_, _ = far.Write(b)
		}
		_ = far.Close()
	}()
	_, err := io.Copy(got, near)
	must(t, err)
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Error("bytes differ")
	}
}
