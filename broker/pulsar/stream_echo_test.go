package pulsar

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/broker"
)

// read is a message as Pulsar's reader brings it.
type read struct {
	pulsar.Message
	id      pulsar.MessageID
	name    string // of one of ours
	at      time.Time
	payload string
}

func (r read) ID() pulsar.MessageID   { return r.id }
func (r read) Key() string            { return "" }
func (r read) Payload() []byte        { return []byte(r.payload) }
func (r read) PublishTime() time.Time { return r.at }
func (r read) EventTime() time.Time   { return r.at }
func (r read) Properties() map[string]string {
	if r.name == "" {
		return nil
	}
	return map[string]string{idProperty: r.name}
}

// receipt is an ID with the size of its batch.
type receipt struct {
	pulsar.MessageID
	size int32
}

func (r receipt) BatchSize() int32 { return r.size }

// A partition is the same whatever of it was read and heard of, in whichever
// order: all of it, once, as it lies there.
func TestEchoesAndReads(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		x := &tail{s: &Streams{}, window: newWindow(), gap: make(chan struct{}, 1)}
		log, entries := drawLog(t)
		sent := map[string]*claim{}
		for _, e := range entries {
			for _, m := range e {
				if m.name != "" {
					sent[m.name] = &claim{StreamMessage: stored(m), name: x.window.hash.id(m.name)}
					x.claim(sent[m.name], &sending{settled: make(chan struct{})})
				}
			}
		}
		reader, told := 0, 0 // of log, of entries
		hear := func() {
			e := entries[told]
			told++
			if len(e) == 0 || e[0].name == "" {
				return
			}
			var err error
			if rapid.IntRange(0, 9).Draw(t, "lost") == 0 {
				err = errors.New("lost")
			}
			for _, m := range e {
				x.settle(sent[m.name], m.id, err)
			}
		}
		for told < len(entries) || reader < len(log) {
			switch what := rapid.IntRange(0, 2).Draw(t, "what"); {
			case what == 0 && told < len(entries):
				hear()
			case what == 1 && reader < len(log):
				if ours, err := x.take(log[reader]); err != nil || ours && log[reader].name == "" {
					t.Fatalf("message %d: ours %t, %v", reader, ours, err)
				}
				reader++
			case what == 2: // it rested, and begins again at the entry that was last
				for reader < len(log) && x.index.end.messages > 0 && placeOf(0, log[reader].id).less(place{ledger: x.last.ledger, entry: x.last.entry}) {
					reader++
				}
			}
		}
		blocks, _, complete := x.snapshot(0)
		var got []string
		for _, b := range blocks {
			for _, m := range b {
				at, err := x.base.position(placeOf(0, log[min(len(got), len(log)-1)].id))
				if err != nil || m.Position != at {
					t.Fatalf("message %d is at %d, want %d; %v", len(got), m.Position, at, err)
				}
				got = append(got, string(m.Payload))
			}
		}
		if !complete || len(got) != len(log) || x.index.end.messages != uint64(len(log)) {
			t.Fatalf("%d of %d messages, %d counted, complete %t", len(got), len(log), x.index.end.messages, complete)
		}
		for i, m := range log {
			if got[i] != m.payload {
				t.Fatalf("message %d is %s, want %s", i, got[i], m.payload)
			}
		}
		if x.unread != 0 || x.echoes.waits() {
			t.Fatalf("%d bytes not read, %d entries waiting", x.unread, len(x.echoes.list))
		}
	})
}

func stored(m read) broker.StreamMessage {
	return broker.StreamMessage{ID: m.name, Payload: []byte(m.payload), Published: m.at}
}

// drawLog draws what lies in a partition: entries of ours, of others, and such as
// have no message, in ledgers.
func drawLog(t *rapid.T) (log []read, entries [][]read) {
	at := place{ledger: 7}
	for i := range rapid.IntRange(1, 20).Draw(t, "entries") {
		var e []read
		kind := rapid.SampledFrom([]string{"ours", "ours", "ours", "others", "marker"}).Draw(t, "kind")
		if n := rapid.Int32Range(1, 4).Draw(t, "messages"); kind != "marker" {
			for j := range n {
				m := read{id: receipt{pulsar.NewMessageID(at.ledger, at.entry, j, -1), n}, payload: fmt.Sprintf("%d/%d", i, j), at: time.UnixMilli(1000)}
				if kind == "ours" {
					m.name = "r/" + m.payload
				}
				e = append(e, m)
			}
		}
		log, entries = append(log, e...), append(entries, e)
		if at.entry++; rapid.IntRange(0, 9).Draw(t, "ledger ends") == 0 {
			at = place{ledger: at.ledger + 1}
		}
	}
	return log, entries
}
