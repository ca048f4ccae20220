package stream_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/embedded"
	"github.com/isobar-mesh/isobar/consensus/locallog"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/stream"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// apart is a broker of its own beside the log, as far as marks go.
type apart struct {
	broker.Streams
	mark   broker.Mark
	err    error
	append func()
}

func (a *apart) Open(context.Context, string, string, uint32) (broker.Mark, error) {
	return a.mark, a.err
}

func (a *apart) Append(ctx context.Context, msgs []broker.StreamMessage) ([]broker.PreparedAppend, error) {
	a.append()
	return a.Streams.Append(ctx, msgs)
}

func (a *apart) Drop(ctx context.Context, p broker.Partition) ([]byte, error) {
	if a.err != nil {
		return nil, a.err
	}
	return a.Streams.Drop(ctx, p)
}

// A stream's record has the broker's mark before anything is appended, also when
// its Create did not get that far; a stream that is being deleted needs no broker.
func TestMarkBeforeAppend(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCell(t, embedded.Options{}, locallog.Options{})
		c.stop()
		reader := c.replica.Reader(state.StreamMachine)
		a := &apart{Streams: embedded.NewStreams(c.replica.Reader(state.BrokerMachine), embedded.Options{}), mark: broker.Mark("5"), err: broker.ErrUnavailable}
		a.append = func() {
			if rec, _ := groups.Stream(reader, orders); string(rec.Mark) != "5" {
				t.Errorf("an append to a stream with the mark %q", rec.Mark)
			}
		}
		c.Streams = stream.New(stream.Options{Log: c.log, State: reader, Logger: slog.New(slog.DiscardHandler), Messages: a})
		c.Lead()
		defer c.stop()

		rec := &meshv1.StreamRecord{Tenant: orders.Tenant, Name: orders.Stream, Partitions: 1, MaxAgeMs: 1000, VisibilityMs: 1000}
		if _, _, err := c.Create(t.Context(), rec); !errors.Is(err, broker.ErrUnavailable) {
			t.Fatalf("Create without its broker: %v", err)
		}
		if n, needed := groups.Needed(reader, nil, nil); needed {
			t.Errorf("%s needs a broker, and has never been in one", n)
		}
		publish := func() error {
			_, err := c.Publish(t.Context(), orders, "r", []stream.Message{{Payload: []byte("x")}})
			return err
		}
		if err := publish(); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("Publish without the broker: %v", err)
		}
		a.err = nil
		if err := publish(); err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			low, high string
			needed    bool
		}{{"5", "6", false}, {"4", "5", true}, {"6", "7", true}, {"", "", true}} {
			if n, needed := groups.Needed(reader, []byte(tc.low), []byte(tc.high)); needed != tc.needed || needed && n != orders {
				t.Errorf("outside [%q, %q): %v, %t", tc.low, tc.high, n, needed)
			}
		}
		if again, existed, err := c.Create(t.Context(), rec); err != nil || !existed || string(again.Mark) != "5" {
			t.Errorf("created again: %v, %t, %v", again, existed, err)
		}

		// In another broker nothing is appended, and the mark stays.
		a.mark = broker.Mark("6")
		if _, _, err := c.Create(t.Context(), rec); !errors.Is(err, groups.ErrBadCommand) {
			t.Errorf("created again in another broker: %v", err)
		}
		a.err = broker.ErrReplaced
		if err := c.Delete(t.Context(), orders); !errors.Is(err, broker.ErrReplaced) {
			t.Errorf("deleted in another broker: %v", err)
		}
		if n, needed := groups.Needed(reader, nil, nil); needed {
			t.Errorf("%s is being deleted, and needs a broker", n)
		}
	})
}
