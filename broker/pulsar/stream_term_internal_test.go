package pulsar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"

	"github.com/isobar-mesh/isobar/broker"
)

// oneReader is a client whose readers are all the same.
type oneReader struct {
	pulsar.Client
	reader pulsar.Reader
}

func (c oneReader) CreateReader(pulsar.ReaderOptions) (pulsar.Reader, error) { return c.reader, nil }
func (c oneReader) Close()                                                   {}

// emptyReader reads a topic without messages. It says so when it is let to.
type emptyReader struct {
	pulsar.Reader
	asked  chan struct{} // told when it is asked for the end
	let    chan struct{} // closed when it may answer
	closed chan struct{}
	once   sync.Once
}

func (r *emptyReader) Next(ctx context.Context) (pulsar.Message, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (r *emptyReader) GetLastMessageID() (pulsar.MessageID, error) {
	select {
	case r.asked <- struct{}{}:
	default:
	}
	<-r.let
	return pulsar.NewMessageID(1, -1, -1, -1), nil
}

func (r *emptyReader) Close() { r.once.Do(func() { close(r.closed) }) }

// A partition that is being opened as the term ends is not followed after it: what
// was read of it then, another leader may have trimmed when this server leads again.
func TestOpeningEndsWithItsTerm(t *testing.T) {
	t.Parallel()
	var trimmed atomic.Int64
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/properties"):
			fmt.Fprintf(w, `{"isobar-base":"0","isobar-trim":"%d","isobar-from":"%[1]d"}`, trimmed.Load())
		case strings.HasSuffix(r.URL.Path, "/internalStats"):
			fmt.Fprint(w, `{"cursors":{"isobar":{"markDeletePosition":"1:-1"}}}`)
		default:
			fmt.Fprint(w, `{"properties":{"isobar-epoch":"5"}}`)
		}
	}))
	t.Cleanup(admin.Close)
	log := &oneTask{}
	log.need(nil)
	b, err := Open(Options{
		Service: "pulsar://127.0.0.1:1", Admin: admin.URL, Cell: "eu-1", Server: "s1", Timeout: time.Minute,
		Log: log, Logger: slog.New(slog.DiscardHandler), CheckEvery: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	b.client.Close()
	r := &emptyReader{asked: make(chan struct{}, 1), let: make(chan struct{}), closed: make(chan struct{})}
	b.client = oneReader{reader: r}
	p := broker.Partition{Tenant: "default", Stream: "orders"}
	if err := b.Lead(1); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() {
		_, err := b.Streams().Extent(context.WithoutCancel(t.Context()), p, 0)
		opened <- err
	}()
	<-r.asked
	b.Resign()
	trimmed.Store(1 << 32) // by who leads meanwhile
	if err := b.Lead(3); err != nil {
		t.Fatal(err)
	}
	close(r.let)
	if err := <-opened; !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("the call of the old term ends with %v", err)
	}
	select {
	case <-r.closed:
	case <-time.After(10 * time.Second):
		t.Error("its reader is not closed")
	}
	tail, err := b.Streams().tail(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, state := tail.shown(); state.trimmed != 1<<32 {
		t.Errorf("the new term takes the partition to be trimmed up to %d", state.trimmed)
	}
	b.Resign()
	if _, err := b.Streams().Extent(t.Context(), p, 0); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("outside a term a partition is opened: %v", err)
	}
}
