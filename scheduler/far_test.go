package scheduler

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// farBroker is a broker outside the log: a payload is durable when Prepare
// returns, and one fetch costs more than many messages read in order.
type farBroker struct {
	mu       sync.Mutex
	messages map[broker.Topic][]broker.Stored
	next     uint64
	away     error // answers everything while set
	reads    int
	fetches  int
	// told is called by Trimmed before it acts.
	told func(broker.Topic, broker.Reference) error
}

const farFetch = 40 * time.Millisecond

func newFarBroker() *farBroker {
	return &farBroker{messages: map[broker.Topic][]broker.Stored{}, told: func(broker.Topic, broker.Reference) error { return nil }}
}

func (b *farBroker) leave(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = err
}

func (b *farBroker) Prepare(_ context.Context, msgs []broker.Message) ([]broker.Prepared, error) {
	time.Sleep(2 * time.Millisecond)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away != nil {
		return nil, b.away
	}
	var out []broker.Prepared
	for _, m := range msgs {
		b.next++
		ref := binary.BigEndian.AppendUint64(nil, b.next)
		b.messages[m.Topic] = append(b.messages[m.Topic], broker.Stored{Message: m, Ref: ref})
		out = append(out, broker.Prepared{Ref: ref})
	}
	return out, nil
}

func (b *farBroker) Read(_ context.Context, t broker.Topic, from broker.Reference) iter.Seq2[broker.Stored, error] {
	return func(yield func(broker.Stored, error) bool) {
		time.Sleep(farFetch)
		b.mu.Lock()
		b.reads++
		all, away := slices.Clone(b.messages[t]), b.away
		b.mu.Unlock()
		if away != nil {
			yield(broker.Stored{}, away)
			return
		}
		for _, m := range all {
			if bytes.Compare(m.Ref, from) >= 0 && !yield(m, nil) {
				return
			}
		}
	}
}

func (b *farBroker) Fetch(_ context.Context, t broker.Topic, ref broker.Reference) (broker.Stored, error) {
	time.Sleep(farFetch)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fetches++
	if b.away != nil {
		return broker.Stored{}, b.away
	}
	for _, m := range b.messages[t] {
		if bytes.Equal(m.Ref, ref) {
			return m, m.Err
		}
	}
	return broker.Stored{}, broker.ErrLost
}

func (b *farBroker) Trim(context.Context, broker.Topic, broker.Reference) ([]byte, error) {
	return nil, nil
}

func (b *farBroker) Trimmed(_ context.Context, t broker.Topic, ref broker.Reference) error {
	if err := b.told(t, ref); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.messages[t] = slices.DeleteFunc(b.messages[t], func(m broker.Stored) bool { return bytes.Compare(m.Ref, ref) < 0 })
	return nil
}

func (b *farBroker) Close() error { return nil }

func (b *farBroker) kept() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, m := range b.messages {
		n += len(m)
	}
	return n
}

func (b *farBroker) counts() (reads, fetches int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reads, b.fetches
}

// far gives a cell the broker.
func far(b *farBroker) func(*Options) {
	return func(o *Options) { o.Broker, o.PayloadCache = b, 1<<20 }
}

// Payloads go from accept to lease through the leader's memory; a new leader
// fills it by reading on, not one by one.
func TestAFarBrokerIsReadInOrder(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		b := newFarBroker()
		c := w.cell("eu-1", far(b))
		w.registry.add("native", variant("only", "exec"))
		var ids []string
		for range 20 {
			ids = append(ids, c.submit("work"))
		}
		c.worker("w1", offering(4, "wasm"), completes)
		for _, id := range ids {
			c.awaitState(time.Minute, id, completed)
		}
		if reads, fetches := b.counts(); reads != 0 || fetches != 0 {
			t.Errorf("%d reads and %d fetches of what was just accepted, want none", reads, fetches)
		}
		for range 280 {
			ids = append(ids, c.submit("native"))
		}
		c.changeLeader()
		c.worker("w2", offering(4, "exec"), completes)
		for _, id := range ids {
			c.awaitState(time.Minute, id, completed)
		}
		reads, fetches := b.counts()
		if fetches > 4 {
			t.Errorf("%d payloads were fetched one by one, want hardly any", fetches)
		}
		if reads == 0 || reads > 12 {
			t.Errorf("%d reads for a backlog of 280, want a few", reads)
		}
		w.await(time.Minute, "everything trimmed", func() bool { return b.kept() == 0 })
		c.wantIdle()
	})
}

// A lease may be on its way before the accept is answered: the payload is in
// memory by then.
func TestPayloadsAreKeptBeforeTheLease(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		b := newFarBroker()
		c := w.cell("eu-1", far(b))
		c.worker("w1", offering(4, "wasm"), completes)
		c.late.tell(5 * time.Millisecond)
		for range 10 {
			c.awaitState(time.Minute, c.submit("work"), completed)
		}
		c.late.tell(0)
		if reads, fetches := b.counts(); reads != 0 || fetches != 0 {
			t.Errorf("%d reads and %d fetches of what was just accepted, want none", reads, fetches)
		}
		w.await(time.Minute, "nothing kept of what ended", func() bool {
			l := c.current()
			l.payloads.mu.Lock()
			defer l.payloads.mu.Unlock()
			return len(l.payloads.tasks) == 0 && l.payloads.bytes == 0
		})
		time.Sleep(time.Second) // the last answers
	})
}

// The broker is told of a trim only once that is committed, and until it has
// answered: by the next leader if need be.
func TestTrimsAreToldOnceCommitted(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		b := newFarBroker()
		c := w.cell("eu-1", far(b))
		var told atomic.Int64
		var away atomic.Bool
		away.Store(true)
		b.told = func(topic broker.Topic, ref broker.Reference) error {
			q := fsm.Queue{Tenant: topic.Tenant, Function: topic.Function, Lane: topic.Lane}
			if at := fsm.TrimPosition(c.State, q.String()); bytes.Compare(ref, at) > 0 {
				t.Errorf("told of a trim to %x, committed is %x", ref, at)
			}
			told.Add(1)
			if away.Load() {
				return broker.ErrUnavailable
			}
			return nil
		}
		c.worker("w1", offering(1, "wasm"), completes)
		id := c.submit("work")
		c.awaitState(time.Minute, id, completed)
		w.await(time.Minute, "told", func() bool { return told.Load() > 0 })
		if b.kept() != 1 {
			t.Error("a broker that did not answer dropped the payload")
		}
		c.changeLeader()
		away.Store(false)
		w.await(time.Minute, "told by the next leader", func() bool { return b.kept() == 0 })
		w.await(time.Minute, "closed", func() bool {
			for range fsm.TrimsToTell(c.State) {
				return false
			}
			return true
		})
		was := told.Load()
		time.Sleep(3 * trimEvery)
		synctest.Wait()
		if now := told.Load(); now != was {
			t.Errorf("told %d times more after it had answered", now-was)
		}
	})
}

// A broker that is away: what is submitted is refused for certain and at once,
// what was accepted runs when it is back, and no attempt is used up.
func TestAFarBrokerAway(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		b := newFarBroker()
		c := w.cell("eu-1", far(b))
		id := c.submit("work")
		c.changeLeader() // its memory is gone
		b.leave(fmt.Errorf("no route: %w", broker.ErrUnavailable))
		for _, err := range []error{broker.ErrUnavailable, context.DeadlineExceeded, broker.ErrFull} {
			b.leave(err)
			_, got := c.trySubmit("work")
			var r *Refusal
			if !errors.As(got, &r) || r.Unknown || r.RetryAfter == 0 {
				t.Errorf("%v: refusal %v, want one that is certain and says when to try again", err, got)
			} else if want := map[bool]Reason{true: DiskFull, false: Unavailable}[errors.Is(err, broker.ErrFull)]; r.Reason != want {
				t.Errorf("%v: reason %s, want %s", err, r.Reason, want)
			}
		}
		b.leave(broker.ErrUnavailable)
		c.worker("w1", offering(1, "wasm"), completes)
		time.Sleep(20 * time.Second)
		if rec := c.wantState(id, ready); rec.Attempt != 0 {
			t.Fatalf("a broker that is away used up %d attempts", rec.Attempt)
		}
		b.leave(nil)
		c.awaitState(10*time.Second, id, completed)
	})
}

// A leader that ends between the two writes leaves an orphan and no task, or the
// task; the orphan falls under a trim.
func TestACrashBetweenPayloadAndRecord(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		b := newFarBroker()
		c := w.cell("eu-1", far(b))
		first := c.submit("work")
		c.late.fail(1, 7)
		_, err := c.trySubmit("work")
		if err == nil {
			t.Fatal("accepted by a leader that ended")
		}
		c.late.fail(0, 0)
		synctest.Wait()
		c.log.Elect()
		synctest.Wait()
		if b.kept() != 2 {
			t.Fatalf("the broker keeps %d payloads, want 2: one without an answer", b.kept())
		}
		last := c.submit("work")
		c.worker("w1", offering(1, "wasm"), completes)
		c.awaitState(time.Minute, first, completed)
		c.awaitState(time.Minute, last, completed)
		w.await(time.Minute, "the orphan trimmed", func() bool { return b.kept() == 0 })
	})
}

// Payloads that are needed for long are moved, however many.
func TestManyPayloadsAreMoved(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		b := newFarBroker()
		c := w.cell("eu-1", far(b))
		w.registry.add("native", variant("only", "exec"))
		var ids []string
		before := map[string]string{}
		for range 300 {
			id := c.submit("native")
			ids = append(ids, id)
			before[id] = string(c.record(id).PayloadRef)
		}
		time.Sleep(moveAfter + 2*time.Minute)
		synctest.Wait()
		for _, id := range ids {
			if string(c.record(id).PayloadRef) == before[id] {
				t.Fatalf("%s is not moved", id)
			}
		}
		if b.kept() != len(ids) {
			t.Errorf("the broker keeps %d payloads, want %d: the old places are trimmed", b.kept(), len(ids))
		}
		c.worker("w1", offering(4, "exec"), completes)
		c.awaitState(time.Minute, ids[299], completed)
		if got := string(c.Result(ids[299])); got != "result of payload of native" {
			t.Fatalf("result %q", got)
		}
	})
}

// What the leader's memory is asked, it answers within its bound.
func TestPayloadsInMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newFarBroker()
		topic := broker.Topic{Tenant: "default", Function: "f", Lane: mesh.Standard}
		var recs []*meshv1.TaskRecord
		owners := map[string]string{}
		for i := range 2000 {
			payload := bytes.Repeat([]byte{byte(i)}, 1000)
			rec := &meshv1.TaskRecord{Id: fmt.Sprintf("t%04d", i), Tenant: "default", Function: "f", Lane: uint32(mesh.Standard), PayloadSha256: hashOf(payload)}
			p, err := b.Prepare(t.Context(), []broker.Message{{Topic: topic, TaskID: mesh.TaskID(rec.Id), SHA256: [32]byte(rec.PayloadSha256), Payload: payload}})
			if err != nil {
				t.Fatal(err)
			}
			rec.PayloadRef = p[0].Ref
			owners[string(p[0].Ref)] = rec.Id
			recs = append(recs, rec)
		}
		const most = 1 << 20
		p := newPayloads(t.Context(), b, most, func(_ string, ref []byte) (string, bool) { id, ok := owners[string(ref)]; return id, ok })
		for i, rec := range recs {
			got, err := p.get(t.Context(), rec)
			if err != nil || len(got) != 1000 || got[0] != byte(i) {
				t.Fatalf("payload %d: %d bytes, %v", i, len(got), err)
			}
			p.mu.Lock()
			kept := p.bytes
			p.mu.Unlock()
			if kept > most {
				t.Fatalf("%d bytes are kept, at most %d", kept, most)
			}
		}
		synctest.Wait()
		if reads, fetches := b.counts(); fetches != 0 || reads > 50 {
			t.Errorf("%d reads and %d fetches for 2000 payloads in order", reads, fetches)
		}
		// Together and out of order; one asked for twice.
		var wg sync.WaitGroup
		for i := range 64 {
			rec := recs[(i*37)%1000+i%2]
			wg.Go(func() {
				if got, err := p.get(t.Context(), rec); err != nil || len(got) != 1000 {
					t.Errorf("payload of %s: %d bytes, %v", rec.Id, len(got), err)
				}
			})
		}
		wg.Wait()
		// Another's message, and none.
		wrong := &meshv1.TaskRecord{Id: "other", Tenant: "default", Function: "f", Lane: uint32(mesh.Standard), PayloadRef: recs[3].PayloadRef}
		none := &meshv1.TaskRecord{Id: "none", Tenant: "default", Function: "f", Lane: uint32(mesh.Standard), PayloadRef: []byte{0xff}}
		changed := proto.CloneOf(recs[7]) // the place holds another payload than was accepted
		changed.PayloadSha256 = hashOf([]byte("another"))
		p.forget(changed.Id)
		for _, rec := range []*meshv1.TaskRecord{wrong, none, changed} {
			if _, err := p.get(t.Context(), rec); !errors.Is(err, broker.ErrLost) {
				t.Errorf("payload of %s: %v, want ErrLost", rec.Id, err)
			}
		}
		b.leave(broker.ErrUnavailable)
		p.forget(recs[5].Id)
		if _, err := p.get(t.Context(), recs[5]); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("a broker that is away: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.get(ctx, recs[5]); err == nil {
			t.Error("a cancelled question is answered")
		}
		time.Sleep(time.Second) // the reader ends
	})
}

func hashOf(b []byte) []byte { s := sha256.Sum256(b); return s[:] }
