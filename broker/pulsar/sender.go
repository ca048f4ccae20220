package pulsar

import (
	"context"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
)

// flushWithin bounds the flush before a producer is closed. The flush takes what
// lies in the client's queue and its open batch to what is pending, at once; that
// it is acknowledged need not be waited for.
const flushWithin = 250 * time.Millisecond

// sender is a producer that tells what became of each message, also when it is
// closed meanwhile. The client's own Close fails what is pending and forgets what
// it has not put on the wire yet, and the memory that it set aside for that.
type sender struct {
	producer pulsar.Producer

	mu     sync.RWMutex
	closed bool
}

// send calls f once, from any goroutine, and may block while the client's queue is
// full and ctx goes on.
func (s *sender) send(ctx context.Context, m *pulsar.ProducerMessage, f func(pulsar.MessageID, error)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		f(nil, errLost)
		return
	}
	s.producer.SendAsync(ctx, m, func(id pulsar.MessageID, _ *pulsar.ProducerMessage, err error) { f(id, err) })
}

// end closes the producer, beside: that waits for the cluster.
func (s *sender) end() {
	go func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), flushWithin)
		defer cancel()
		_ = s.producer.FlushWithCtx(ctx) // see flushWithin
		s.producer.Close()
	}()
}
