package embedded_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/brokertest"
	"github.com/isobar-mesh/isobar/broker/embedded"
	"github.com/isobar-mesh/isobar/state"
)

// streamHarness is the suite's cell of streams.
func streamHarness(t *testing.T, config brokertest.Config) *brokertest.StreamHarness {
	c := newCell(t, embedded.Options{MaxBytes: config.MaxBytes})
	streams := func() broker.Streams {
		c.mu.Lock()
		defer c.mu.Unlock()
		return embedded.NewStreams(c.replica.Reader(state.BrokerMachine), c.options)
	}
	c.elect()
	return &brokertest.StreamHarness{
		Streams: streams(), Commit: c.commit,
		Crash: func() broker.Streams { c.elect(); return streams() },
		Fault: func(f brokertest.Fault) func() broker.Streams {
			end := c.fault(f)
			return func() broker.Streams { end(); return streams() }
		},
	}
}

// TestStreamTrimInBatches: a long trim takes effect at once, is carried out in
// several commands, and counts to nothing in the end; so is a drop.
func TestStreamTrimInBatches(t *testing.T) {
	t.Parallel()
	c := newCell(t, embedded.Options{})
	c.elect()
	s := embedded.NewStreams(c.replica.Reader(state.BrokerMachine), embedded.Options{})
	b := embedded.New(c.replica.Reader(state.BrokerMachine), embedded.Options{})
	p := broker.Partition{Tenant: "default", Stream: "long", Number: 3}
	const n = 9000
	for i := 0; i < n; i += 1000 {
		msgs := make([]broker.StreamMessage, 1000)
		for j := range msgs {
			msgs[j] = broker.StreamMessage{Partition: p, ID: fmt.Sprint(i + j), Payload: []byte("x"), Published: time.UnixMilli(1)}
		}
		prepared, err := s.Append(t.Context(), msgs)
		if err != nil {
			t.Fatal(err)
		}
		var commands [][]byte
		for _, p := range prepared {
			commands = append(commands, p.Command)
		}
		if _, err := c.commit(commands...); err != nil {
			t.Fatal(err)
		}
	}
	usage := func() embedded.Usage {
		u, err := b.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	rounds := func(prepare func() ([]byte, error)) int {
		for i := 1; ; i++ {
			command, err := prepare()
			if err != nil {
				t.Fatal(err)
			}
			res, err := c.commit(command)
			if err != nil {
				t.Fatal(err)
			}
			if ext, err := s.Extent(t.Context(), p, 0); err != nil || ext.Messages > 10 {
				t.Fatalf("after %d commands it shows %+v, error %v", i, ext, err)
			}
			if !res[0].(embedded.Trimmed).More {
				return i
			}
		}
	}
	if got := usage(); got.Messages != n {
		t.Fatalf("%+v", got)
	}
	if got := rounds(func() ([]byte, error) { return s.Trim(t.Context(), p, n-10) }); got != 3 {
		t.Errorf("a trim of %d took %d commands, want 3", n, got)
	}
	if got := usage(); got != (embedded.Usage{Messages: 10, Bytes: 10}) {
		t.Errorf("after the trim there is %+v", got)
	}
	if got := rounds(func() ([]byte, error) { return s.Drop(t.Context(), p) }); got < 2 {
		t.Errorf("a drop of %d ids took %d commands", n, got)
	}
	if got := usage(); got != (embedded.Usage{}) {
		t.Errorf("after the drop there is %+v", got)
	}
	for k := range c.replica.Reader(state.BrokerMachine).Scan(nil, nil) {
		if k[0] != 'a' {
			t.Errorf("the drop left key %q", k)
		}
	}
}
