package embedded_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/brokertest"
	"github.com/isobar-mesh/isobar/broker/embedded"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/state"
)

// cell is a log of groups and the replica that applies them, one server.
type cell struct {
	t       testing.TB
	options embedded.Options

	mu      sync.Mutex
	log     [][]byte
	term    uint64
	store   *state.Memory
	replica *state.Replica
	leader  *embedded.Broker

	slow atomic.Int64 // nanoseconds a commit takes
	hung atomic.Bool
}

func newCell(t testing.TB, o embedded.Options) *cell {
	c := &cell{t: t, options: o}
	c.store, c.replica = c.replay()
	return c
}

// replay applies the whole log to a new store.
func (c *cell) replay() (*state.Memory, *state.Replica) {
	store := state.NewMemory()
	r, err := state.NewReplica(store, map[state.MachineID]state.Machine{state.BrokerMachine: embedded.Machine{}}, state.Options{})
	if err != nil {
		c.t.Fatal(err)
	}
	for i, g := range c.log {
		r.Apply(consensus.Position{Index: uint64(i + 1), Term: 1}, [][]byte{g})
	}
	return store, r
}

func (c *cell) commit(commands ...[]byte) ([]any, error) {
	time.Sleep(time.Duration(c.slow.Load()))
	if c.hung.Load() {
		return nil, errNoMajority
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var group []state.Command
	for _, b := range commands {
		group = append(group, state.Command{Machine: state.BrokerMachine, Body: b})
	}
	c.log = append(c.log, state.EncodeGroup(group))
	out := c.replica.Apply(consensus.Position{Index: uint64(len(c.log)), Term: 1}, c.log[len(c.log)-1:])
	res := out[0].(state.GroupResult)
	return res.Results, res.Err
}

// elect starts the next leader on a state rebuilt from the log.
func (c *cell) elect() *embedded.Broker {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.term++
	return c.start()
}

// restart starts the same leader again.
func (c *cell) restart() *embedded.Broker {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.start()
}

func (c *cell) start() *embedded.Broker {
	if len(c.log) > 0 {
		before := c.replica.Hash()
		c.store, c.replica = c.replay()
		if c.replica.Hash() != before {
			c.t.Error("replaying the log gives another state")
		}
	}
	c.leader = embedded.New(c.replica.Reader(state.BrokerMachine), c.options)
	if err := c.leader.Lead(c.term); err != nil {
		c.t.Error(err)
	}
	return c.leader
}

func TestConformance(t *testing.T) {
	t.Parallel()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		brokertest.Run(t, func(t *testing.T, config brokertest.Config) *brokertest.Harness {
			c := newCell(t, embedded.Options{MaxBytes: config.MaxBytes})
			return &brokertest.Harness{
				Broker: c.elect(),
				Commit: func(commands ...[]byte) error { _, err := c.commit(commands...); return err },
				Crash:  func() broker.Broker { return c.elect() },
				Fault:  c.fault,
				Foreign: func(broker.Topic) error {
					if _, err := c.commit([]byte("no command")); err == nil {
						t.Error("garbage was committed")
					} else {
						return err
					}
					return nil
				},
			}
		})
		t.Run("streams", func(t *testing.T) { brokertest.RunStreams(t, streamHarness) })
	})
}

var errNoMajority = errors.New("no majority")

// fault is what the cell's log and state do that comes nearest: the servers start
// again, the log is slow or has no majority, the cell is another one.
func (c *cell) fault(f brokertest.Fault) func() broker.Broker {
	switch f {
	case brokertest.Unload: // the state is read from the log again, in the same term
		return func() broker.Broker { return c.restart() }
	case brokertest.Slow:
		c.slow.Store(int64(20 * time.Millisecond))
		return func() broker.Broker { c.slow.Store(0); return c.leader }
	case brokertest.Hang: // no answer; what was proposed commits once there is a majority
		c.hung.Store(true)
		return func() broker.Broker { c.hung.Store(false); return c.leader }
	case brokertest.Replace:
		return func() broker.Broker {
			c.mu.Lock()
			c.log = nil
			c.store, c.replica = c.replay()
			c.mu.Unlock()
			return c.elect()
		}
	default:
		return func() broker.Broker { return c.elect() }
	}
}

var topicF = broker.Topic{Tenant: "default", Function: "f", Lane: mesh.Standard}

func message(id string, payload []byte) broker.Message {
	return broker.Message{Topic: topicF, TaskID: mesh.TaskID(id), SHA256: sha256.Sum256(payload), Payload: payload}
}

func prepare(t testing.TB, b *embedded.Broker, msgs ...broker.Message) []broker.Prepared {
	t.Helper()
	p, err := b.Prepare(t.Context(), msgs)
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	return p
}

func TestPrepareNeedsLeadership(t *testing.T) {
	t.Parallel()
	c := newCell(t, embedded.Options{})
	b := embedded.New(c.replica.Reader(state.BrokerMachine), embedded.Options{})
	try := func() error {
		_, err := b.Prepare(t.Context(), []broker.Message{message("a", nil)})
		return err
	}
	if err := try(); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("Prepare before Lead has error %v, want ErrUnavailable", err)
	}
	if err := b.Lead(3); err != nil {
		t.Fatal(err)
	}
	first := prepare(t, b, message("a", nil))[0].Ref
	b.Resign()
	if err := try(); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("Prepare after Resign has error %v, want ErrUnavailable", err)
	}
	// The same term again goes on above what was given out and not committed.
	if err := b.Lead(3); err != nil {
		t.Fatal(err)
	}
	if second := prepare(t, b, message("a", nil))[0].Ref; bytes.Compare(first, second) >= 0 {
		t.Errorf("reference %x after resuming the term is not above %x", []byte(second), []byte(first))
	}
	if err := b.Lead(2); !errors.Is(err, embedded.ErrTermWentBack) {
		t.Errorf("Lead of a lower term has error %v, want ErrTermWentBack", err)
	}
}

// A new server in a term that the state has seen starts above it, and refuses
// one below.
func TestLeadLooksAtState(t *testing.T) {
	t.Parallel()
	c := newCell(t, embedded.Options{})
	b := embedded.New(c.replica.Reader(state.BrokerMachine), embedded.Options{})
	if err := b.Lead(5); err != nil {
		t.Fatal(err)
	}
	p := prepare(t, b, message("a", []byte("1")), message("b", []byte("2")))
	if _, err := c.commit(p[1].Command); err != nil {
		t.Fatal(err)
	}
	again := embedded.New(c.replica.Reader(state.BrokerMachine), embedded.Options{})
	if err := again.Lead(4); !errors.Is(err, embedded.ErrTermWentBack) {
		t.Errorf("Lead below the state's term has error %v, want ErrTermWentBack", err)
	}
	if err := again.Lead(5); err != nil {
		t.Fatal(err)
	}
	if q := prepare(t, again, message("c", nil)); bytes.Compare(q[0].Ref, p[1].Ref) <= 0 {
		t.Errorf("reference %x is not above the state's %x", []byte(q[0].Ref), []byte(p[1].Ref))
	}
}

func TestRefusedAppends(t *testing.T) {
	t.Parallel()
	c := newCell(t, embedded.Options{})
	b := c.elect()
	p := prepare(t, b, message("a", []byte("1")), message("b", []byte("2")), message("c", []byte("3")))

	// Two brokers in one term cannot be, and if they are, the second writer of
	// a reference is refused.
	twin := embedded.New(c.replica.Reader(state.BrokerMachine), embedded.Options{})
	if err := twin.Lead(c.term); err != nil {
		t.Fatal(err)
	}
	q := prepare(t, twin, message("z", []byte("other")))
	if !bytes.Equal(p[0].Ref, q[0].Ref) {
		t.Fatal("the twin gives out another reference")
	}
	if _, err := c.commit(p[0].Command); err != nil {
		t.Fatal(err)
	}
	if _, err := c.commit(q[0].Command); !errors.Is(err, embedded.ErrConflict) {
		t.Errorf("append over another message has error %v, want ErrConflict", err)
	}
	res, err := c.commit(p[0].Command)
	if err != nil || res[0] != (embedded.Appended{Duplicate: true}) {
		t.Errorf("append repeated gives %+v, error %v, want a duplicate", res, err)
	}

	// At the trimmed position only what is there already is accepted.
	trim, err := b.Trim(t.Context(), topicF, p[1].Ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.commit(trim); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if _, err := c.commit(p[i].Command); !errors.Is(err, embedded.ErrTrimmed) {
			t.Errorf("append %d at or below the position has error %v, want ErrTrimmed", i, err)
		}
	}
	if _, err := c.commit(p[2].Command); err != nil {
		t.Errorf("append above the position: %v", err)
	}
}

// A long backlog is hidden by one trim at once and deleted by several.
func TestTrimInBatches(t *testing.T) {
	t.Parallel()
	const n = 10_000
	c := newCell(t, embedded.Options{})
	b := c.elect()
	var refs []broker.Reference
	for i := 0; i < n; i += 500 {
		var msgs []broker.Message
		for j := range 500 {
			msgs = append(msgs, message(fmt.Sprint(i+j), []byte{1, 2, 3}))
		}
		var group [][]byte
		for _, p := range prepare(t, b, msgs...) {
			refs, group = append(refs, p.Ref), append(group, p.Command)
		}
		if _, err := c.commit(group...); err != nil {
			t.Fatal(err)
		}
	}
	trim, err := b.Trim(t.Context(), topicF, append(bytes.Clone(refs[n-1]), 0))
	if err != nil {
		t.Fatal(err)
	}
	var dropped, commands uint64
	for more := true; more; commands++ {
		res, err := c.commit(trim)
		if err != nil {
			t.Fatal(err)
		}
		dropped += res[0].(embedded.Trimmed).Dropped.Messages
		more = res[0].(embedded.Trimmed).More
		for m := range b.Read(t.Context(), topicF, nil) {
			t.Fatalf("message %s is read after the trim", m.TaskID)
		}
		if _, err := b.Fetch(t.Context(), topicF, refs[n-1]); !errors.Is(err, broker.ErrLost) {
			t.Fatalf("Fetch after the trim has error %v, want ErrLost", err)
		}
	}
	if dropped != n || commands != 3 {
		t.Errorf("dropped %d messages by %d commands, want %d by 3", dropped, commands, n)
	}
	if u, err := b.Bytes(); err != nil || u != (embedded.Usage{}) {
		t.Errorf("Bytes = %+v, error %v, want none", u, err)
	}
	if got := c.store.Len(); got != 3 {
		t.Errorf("the store keeps %d keys, want 3: position, totals, topic", got)
	}
}

// A message that was hidden by a trim and waits for deletion is not accepted
// again as a duplicate: its record would have no payload.
func TestHiddenIsNoDuplicate(t *testing.T) {
	t.Parallel()
	c := newCell(t, embedded.Options{})
	b := c.elect()
	var msgs []broker.Message
	for i := range 5000 {
		msgs = append(msgs, message(fmt.Sprint(i), []byte{7}))
	}
	ps := prepare(t, b, msgs...)
	var group [][]byte
	for _, p := range ps {
		group = append(group, p.Command)
	}
	if _, err := c.commit(group...); err != nil {
		t.Fatal(err)
	}
	trim, _ := b.Trim(t.Context(), topicF, ps[4999].Ref)
	if res, err := c.commit(trim); err != nil || !res[0].(embedded.Trimmed).More {
		t.Fatalf("trim gives %+v, error %v, want more", res, err)
	}
	if _, err := c.commit(ps[4998].Command); !errors.Is(err, embedded.ErrTrimmed) {
		t.Errorf("append of a hidden message has error %v, want ErrTrimmed", err)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	c := newCell(t, embedded.Options{})
	b := c.elect()
	other := broker.Topic{Tenant: "acme", Function: "g", Lane: mesh.Batch}
	m := message("b", make([]byte, 7))
	m.Topic = other
	for _, p := range prepare(t, b, message("a", make([]byte, 100)), m) {
		if _, err := c.commit(p.Command); err != nil {
			t.Fatal(err)
		}
	}
	want := map[broker.Topic]embedded.Usage{topicF: {Messages: 1, Bytes: 100}, other: {Messages: 1, Bytes: 7}}
	topics, err := b.Topics()
	if err != nil || len(topics) != len(want) {
		t.Fatalf("Topics = %+v, error %v", topics, err)
	}
	for _, got := range topics {
		if got.Usage != want[got.Topic] {
			t.Errorf("Topics has %+v of %s, want %+v", got.Usage, got.Topic, want[got.Topic])
		}
		if u, err := b.TopicBytes(got.Topic); err != nil || u != got.Usage {
			t.Errorf("TopicBytes(%s) = %+v, error %v, want %+v", got.Topic, u, err, got.Usage)
		}
	}
	if u, err := b.Bytes(); err != nil || u != (embedded.Usage{Messages: 2, Bytes: 107}) {
		t.Errorf("Bytes = %+v, error %v", u, err)
	}
}

// Bytes that change in the store are noticed, and so is a payload that goes
// missing behind its header.
func TestStoreDamage(t *testing.T) {
	t.Parallel()
	c := newCell(t, embedded.Options{})
	b := c.elect()
	secret := []byte("a payload that is easy to find")
	p := prepare(t, b, message("a", secret), message("b", []byte("sound")))
	for i := range p {
		if _, err := c.commit(p[i].Command); err != nil {
			t.Fatal(err)
		}
	}
	var key []byte
	for k, v := range c.store.Scan(nil, nil) {
		if bytes.Equal(v, secret) {
			key = k
		}
	}
	for _, tt := range []struct {
		name  string
		write state.Write
		want  error
	}{
		{"flipped", state.Write{Key: key, Value: append([]byte("A"), secret[1:]...)}, broker.ErrDamaged},
		{"cut", state.Write{Key: key, Value: secret[1:]}, broker.ErrDamaged},
		{"gone", state.Write{Key: key, Delete: true}, broker.ErrLost},
	} {
		if err := c.store.Commit([]state.Write{tt.write}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Fetch(t.Context(), topicF, p[0].Ref); !errors.Is(err, tt.want) {
			t.Errorf("%s: Fetch has error %v, want %v", tt.name, err, tt.want)
		}
		var errs []error
		for m, err := range b.Read(t.Context(), topicF, nil) {
			if err != nil {
				t.Fatal(err)
			}
			errs = append(errs, m.Err)
		}
		if len(errs) != 2 || !errors.Is(errs[0], tt.want) || errs[1] != nil {
			t.Errorf("%s: Read has errors %v, want %v and none", tt.name, errs, tt.want)
		}
	}
}

func BenchmarkAppendApply(b *testing.B) {
	for _, size := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			c := newCell(b, embedded.Options{})
			br := c.elect()
			payload := make([]byte, size)
			m := message("01jd9x6m2e8k6v8w1b4c5d6e7f-eu-north-1-k3f9ab", payload)
			b.SetBytes(int64(size))
			for b.Loop() {
				p, err := br.Prepare(b.Context(), []broker.Message{m})
				if err != nil {
					b.Fatal(err)
				}
				g := state.EncodeGroup([]state.Command{{Machine: state.BrokerMachine, Body: p[0].Command}})
				c.term++
				c.replica.Apply(consensus.Position{Index: c.term, Term: 1}, [][]byte{g})
			}
		})
	}
}

// The cap is exact, however what fits one by one was prepared.
func TestCapIsExact(t *testing.T) {
	t.Parallel()
	c := newCell(t, embedded.Options{MaxBytes: 1000})
	b := c.elect()
	put := func(p broker.Prepared) error { _, err := c.commit(p.Command); return err }
	for _, p := range prepare(t, b, message("a", make([]byte, 400)), message("b", make([]byte, 400))) {
		if err := put(p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Prepare(t.Context(), []broker.Message{message("c", make([]byte, 150)), message("d", make([]byte, 150))}); !errors.Is(err, broker.ErrFull) {
		t.Errorf("Prepare above the cap has error %v, want ErrFull", err)
	}
	first, second := prepare(t, b, message("e", make([]byte, 150))), prepare(t, b, message("f", make([]byte, 150)))
	if err := put(first[0]); err != nil {
		t.Error(err)
	}
	if err := put(second[0]); !errors.Is(err, broker.ErrFull) {
		t.Errorf("commit above the cap has error %v, want ErrFull", err)
	}
}

// A group with a command that is refused stores nothing.
func TestGroupIsAtomic(t *testing.T) {
	t.Parallel()
	c := newCell(t, embedded.Options{})
	b := c.elect()
	p := prepare(t, b, message("a", []byte("1")), message("b", []byte("2")))
	if _, err := c.commit(p[0].Command, []byte("no command"), p[1].Command); err == nil {
		t.Fatal("a group with garbage was committed")
	}
	for range b.Read(t.Context(), topicF, nil) {
		t.Fatal("a refused group left a message")
	}
	if _, err := c.commit(p[0].Command, p[1].Command); err != nil {
		t.Error(err)
	}
}
