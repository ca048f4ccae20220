package pulsar

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"

	"github.com/isobar-mesh/isobar/broker"
)

// ledger is a partition of entries with one message, as a reader that was opened at
// its beginning or later brings them.
type ledger struct {
	names  []string // of the messages; "" is another producer's
	opened atomic.Int64
	told   atomic.Int64 // messages that readers have brought
}

func (l *ledger) message(i int) read {
	return read{id: receipt{pulsar.NewMessageID(7, int64(i), 0, -1), 1}, name: l.names[i], payload: fmt.Sprint(i), at: time.UnixMilli(1000)}
}

type ledgerReader struct {
	pulsar.Reader
	of   *ledger
	next int
	end  *atomic.Int64 // how many messages there are now
}

func (r *ledgerReader) Next(ctx context.Context) (pulsar.Message, error) {
	for int64(r.next) >= r.end.Load() {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	r.next++
	r.of.told.Add(1)
	return r.of.message(r.next - 1), nil
}

func (r *ledgerReader) GetLastMessageID() (pulsar.MessageID, error) {
	return pulsar.NewMessageID(7, r.end.Load()-1, -1, -1), nil
}
func (r *ledgerReader) Close() {}

// ledgerClient opens readers of one ledger.
type ledgerClient struct {
	pulsar.Client
	of  *ledger
	end *atomic.Int64
}

func (c ledgerClient) CreateReader(o pulsar.ReaderOptions) (pulsar.Reader, error) {
	c.of.opened.Add(1)
	return &ledgerReader{of: c.of, next: int(o.StartMessageID.EntryID()), end: c.end}, nil
}

// While only this server writes, what it sent is not read back; what another
// producer puts between is shown soon.
func TestReaderRests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const theirs, all = 15_000, 16_000 // the rest is sent in less time than restMost
		l := &ledger{names: make([]string, all)}
		for i := range l.names {
			if i != theirs {
				l.names[i] = fmt.Sprint("r/", i)
			}
		}
		var end atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		b := &Broker{ctx: ctx, client: ledgerClient{of: l, end: &end}, options: Options{Timeout: time.Second, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}}
		x := &tail{s: &Streams{b: b, tails: map[broker.Partition]*tail{}}, window: newWindow(), gap: make(chan struct{}, 1), end: cancel}
		x.reader = &ledgerReader{of: l, end: &end}
		ended := make(chan struct{})
		go func() { defer close(ended); x.follow(ctx) }()
		send := func(from, to int) {
			for i := from; i < to; i++ {
				m := l.message(i)
				c := &claim{StreamMessage: stored(m), name: x.window.hash.id(m.name)}
				if m.name != "" {
					x.mu.Lock()
					x.claim(c, &sending{settled: make(chan struct{}), left: 1})
					x.mu.Unlock()
				}
				end.Store(int64(i) + 1)
				if m.name != "" {
					x.settle(c, m.id, nil)
				}
				if i%10 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		}
		known := func(n int, why string) {
			t.Helper()
			x.mu.Lock()
			defer x.mu.Unlock()
			if x.index.end.messages != uint64(n) || x.err != nil {
				t.Fatalf("%s: %d messages are known of %d, %v", why, x.index.end.messages, n, x.err)
			}
		}
		send(0, theirs)
		if n := l.told.Load(); n > 3*restAfter || n < restAfter {
			t.Errorf("%d of %d messages were read back", n, theirs)
		}
		known(theirs, "alone")
		send(theirs, all)
		time.Sleep(3 * restLook) // less than restMost after the last that could be heard of
		known(all, "with another's between")
		if l.opened.Load() == 0 {
			t.Error("nobody has read what another producer wrote")
		}
		time.Sleep(2 * restMost) // nothing is sent: it reads again
		cancel()
		<-ended
	})
}
