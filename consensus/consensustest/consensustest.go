// Package consensustest is the conformance suite of consensus.Log: what a
// caller may rely on, whichever backend a cell runs. Each backend's own tests
// call Run. It is for tests only.
package consensustest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/consensus"
)

// Patience bounds every wait of the suite: far longer than any backend needs,
// so that only a log that hangs meets it.
const Patience = 20 * time.Second

// Machine is a consensus.Machine that the suite can look into: it keeps the
// payloads of the groups applied, in order.
type Machine interface {
	consensus.Machine
	// Encode makes a group that carries the payload.
	Encode(payload []byte) []byte
	// Payloads returns what was applied; safe for concurrent use.
	Payloads() [][]byte
	// Ordinal reads a group's result: it was the n-th applied, from 1.
	Ordinal(result any) (n int, err error)
}

// Backend opens one-server logs. A Machine that is an io.Closer is closed by
// the suite after its log.
type Backend struct {
	// Open starts the server kept in dir, which exists and is empty at first.
	// It comes to lead by itself.
	Open func(t testing.TB, dir string, m consensus.Machine) consensus.Log
	// Follower starts a server that will not lead.
	Follower func(t testing.TB, dir string, m consensus.Machine) consensus.Log
	// Checkpoint makes the log take a checkpoint now and forget entries.
	Checkpoint func(t testing.TB, log consensus.Log)
	// Machine opens the machine kept in dir, which exists, as it is after a
	// restart: it may be behind the log. Nil: a Ledger, which is empty then.
	Machine func(t testing.TB, dir string) Machine
}

// Run runs the suite.
func Run(t *testing.T, b Backend) {
	if b.Machine == nil {
		b.Machine = func(testing.TB, string) Machine { return new(Ledger) }
	}
	for _, c := range []struct {
		name string
		test func(*testing.T, Backend)
	}{
		{"Order", testOrder},
		{"Concurrent", testConcurrent},
		{"Large", testLarge},
		{"TooLarge", testTooLarge},
		{"NotLeader", testNotLeader},
		{"BarrierAndVerify", testBarrierAndVerify},
		{"Cancelled", testCancelled},
		{"Status", testStatus},
		{"Restart", testRestart},
		{"Checkpoint", testCheckpoint},
		{"Close", testClose},
		{"CloseUnderLoad", testCloseUnderLoad},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, b)
		})
	}
}

// rig is one server and its machine.
type rig struct {
	t       *testing.T
	b       Backend
	dir     string
	machDir string
	m       Machine
	log     consensus.Log
}

func open(t *testing.T, b Backend) *rig {
	t.Helper()
	r := &rig{t: t, b: b, dir: t.TempDir(), machDir: t.TempDir()}
	r.start()
	t.Cleanup(r.stop)
	return r
}

func (r *rig) start() {
	r.t.Helper()
	r.m = r.b.Machine(r.t, r.machDir)
	r.log = r.b.Open(r.t, r.dir, &serial{t: r.t, Machine: r.m})
	AwaitLeader(r.t, r.log)
}

func (r *rig) stop() {
	if err := r.log.Close(); err != nil {
		r.t.Errorf("close: %v", err)
	}
	closeMachine(r.t, r.m)
}

func closeMachine(t *testing.T, m Machine) {
	if c, ok := m.(io.Closer); ok {
		if err := c.Close(); err != nil {
			t.Errorf("close machine: %v", err)
		}
	}
}

func (r *rig) propose(ctx context.Context, payload string) (int, error) {
	result, err := r.log.Propose(ctx, r.m.Encode([]byte(payload)))
	if err != nil {
		return 0, err
	}
	return r.m.Ordinal(result)
}

func (r *rig) mustPropose(payload string) int {
	r.t.Helper()
	n, err := r.propose(timeout(r.t), payload)
	if err != nil {
		r.t.Fatalf("propose %.20q: %v", payload, err)
	}
	return n
}

func (r *rig) mustBarrier() {
	r.t.Helper()
	if err := r.log.Barrier(timeout(r.t)); err != nil {
		r.t.Fatalf("barrier: %v", err)
	}
}

func (r *rig) wantPayloads(want ...string) {
	r.t.Helper()
	got := r.m.Payloads()
	if len(got) != len(want) {
		r.t.Fatalf("%d payloads applied, want %d", len(got), len(want))
	}
	for i := range want {
		if string(got[i]) != want[i] {
			r.t.Fatalf("payload %d is %.20q, want %.20q", i, got[i], want[i])
		}
	}
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// AwaitLeader returns once the log leads and everything committed before is
// applied.
func AwaitLeader(t testing.TB, log consensus.Log) {
	t.Helper()
	ctx := timeout(t)
	for {
		if log.Status().Role == consensus.Leader {
			err := log.Barrier(ctx)
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				t.Fatalf("barrier of a new leader: %v", err)
			}
			continue
		}
		select {
		case <-log.Changes():
		case <-ctx.Done():
			t.Fatalf("no leader after %v: %+v", Patience, log.Status())
		}
	}
}

// serial fails the test when a log breaks the rules of consensus.Machine: one
// call at a time, positions ascending.
type serial struct {
	Machine
	t    *testing.T
	busy sync.Mutex
	last consensus.Position
}

func (s *serial) enter() func() {
	if !s.busy.TryLock() {
		s.t.Error("two calls of the machine at a time")
		return func() {}
	}
	return s.busy.Unlock
}

func (s *serial) Apply(at consensus.Position, groups [][]byte) []any {
	defer s.enter()()
	if at.Index <= s.last.Index || at.Term < s.last.Term {
		s.t.Errorf("entry at %v after %v", at, s.last)
	}
	s.last = at
	return s.Machine.Apply(at, groups)
}

func (s *serial) Applied() consensus.Position {
	defer s.enter()()
	return s.Machine.Applied()
}

func (s *serial) Checkpoint(dir string) (consensus.Position, error) {
	defer s.enter()()
	return s.Machine.Checkpoint(dir)
}

func (s *serial) Install(dir string) error {
	defer s.enter()()
	err := s.Machine.Install(dir)
	s.last = s.Machine.Applied()
	return err
}

func testOrder(t *testing.T, b Backend) {
	r := open(t, b)
	var want []string
	for i := range 50 {
		want = append(want, fmt.Sprintf("payload %d", i))
		if n := r.mustPropose(want[i]); n != i+1 {
			t.Fatalf("proposal %d was applied as number %d", i, n)
		}
	}
	r.wantPayloads(want...)
}

func testConcurrent(t *testing.T, b Backend) {
	r := open(t, b)
	const proposers = 500
	ordinals := make([]int, proposers)
	var wg sync.WaitGroup
	for i := range proposers {
		wg.Go(func() {
			n, err := r.propose(timeout(t), fmt.Sprintf("proposer %d", i))
			if err != nil {
				t.Errorf("proposer %d: %v", i, err)
			}
			ordinals[i] = n
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	got := r.m.Payloads()
	if len(got) != proposers {
		t.Fatalf("%d payloads applied, want %d", len(got), proposers)
	}
	for i, n := range ordinals {
		if n < 1 || n > proposers || string(got[n-1]) != fmt.Sprintf("proposer %d", i) {
			t.Fatalf("proposer %d got the result of another: number %d", i, n)
		}
	}
}

// payloadFor is a payload whose group has the size.
func payloadFor(m Machine, size int) []byte {
	p := bytes.Repeat([]byte{'x'}, size)
	return p[:2*size-len(m.Encode(p))]
}

func testLarge(t *testing.T, b Backend) {
	r := open(t, b)
	var want []string
	for _, size := range []int{consensus.MaxGroup, 512 << 10, 100, 512<<10 - 1, consensus.MaxGroup - 1} {
		p := string(payloadFor(r.m, size))
		want = append(want, p)
		r.mustPropose(p)
	}
	r.wantPayloads(want...)

	var wg sync.WaitGroup
	for range 6 { // together they do not fit one entry
		wg.Go(func() {
			if _, err := r.propose(timeout(t), want[1]); err != nil {
				t.Errorf("large proposals at once: %v", err)
			}
		})
	}
	wg.Wait()
}

func testTooLarge(t *testing.T, b Backend) {
	r := open(t, b)
	if _, err := r.log.Propose(timeout(t), make([]byte, consensus.MaxGroup+1)); !errors.Is(err, consensus.ErrTooLarge) {
		t.Fatalf("got %v, want ErrTooLarge", err)
	}
	r.mustPropose("after")
	r.wantPayloads("after")
}

func testNotLeader(t *testing.T, b Backend) {
	m := b.Machine(t, t.TempDir())
	log := b.Follower(t, t.TempDir(), m)
	t.Cleanup(func() {
		if err := log.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		closeMachine(t, m)
	})
	if s := log.Status(); s.Role == consensus.Leader {
		t.Fatalf("a follower says %+v", s)
	}
	_, err := log.Propose(timeout(t), m.Encode([]byte("no")))
	for call, err := range map[string]error{
		"propose": err, "barrier": log.Barrier(timeout(t)), "verify": log.Verify(timeout(t)),
	} {
		if !errors.Is(err, consensus.ErrNotLeader) || errors.Is(err, consensus.ErrOutcomeUnknown) {
			t.Errorf("%s: got %v, want ErrNotLeader", call, err)
		}
	}
	if n := len(m.Payloads()); n != 0 {
		t.Errorf("%d payloads applied", n)
	}
}

func testBarrierAndVerify(t *testing.T, b Backend) {
	r := open(t, b)
	for i := range 3 {
		r.mustPropose(fmt.Sprint(i))
		r.mustBarrier()
		if err := r.log.Verify(timeout(t)); err != nil {
			t.Fatalf("verify: %v", err)
		}
	}
	r.wantPayloads("0", "1", "2")
}

func testCancelled(t *testing.T, b Backend) {
	r := open(t, b)
	reason := errors.New("changed my mind")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(reason)
	_, err := r.propose(ctx, "cancelled")
	if !errors.Is(err, consensus.ErrOutcomeUnknown) || !errors.Is(err, reason) {
		t.Fatalf("got %v, want ErrOutcomeUnknown and the cause", err)
	}
	r.mustPropose("next")
	r.mustBarrier()
	got := r.m.Payloads()
	switch {
	case len(got) == 1 && string(got[0]) == "next":
	case len(got) == 2 && string(got[0]) == "cancelled" && string(got[1]) == "next":
	default:
		t.Fatalf("applied %q", got)
	}
}

func testStatus(t *testing.T, b Backend) {
	r := open(t, b)
	s := r.log.Status()
	if s.Role != consensus.Leader || s.Term == 0 || s.Leader.ID == "" {
		t.Fatalf("status of a leader: %+v", s)
	}
	if err := r.log.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.log.Changes():
	case <-time.After(Patience):
		t.Error("no signal after close")
	}
	if s := r.log.Status(); s.Role != consensus.Stopped {
		t.Errorf("status of a closed log: %+v", s)
	}
}

// restart closes the log and opens it on a machine as after a restart.
func (r *rig) restart() {
	r.t.Helper()
	term := r.log.Status().Term
	r.stop()
	r.start()
	if now := r.log.Status().Term; now <= term {
		r.t.Errorf("term %d after a restart, was %d", now, term)
	}
}

func testRestart(t *testing.T, b Backend) {
	r := open(t, b)
	var want []string
	for round := range 3 {
		for i := range 10 {
			want = append(want, fmt.Sprintf("%d/%d", round, i))
			if n := r.mustPropose(want[len(want)-1]); n != len(want) {
				t.Fatalf("applied as number %d, want %d", n, len(want))
			}
		}
		r.restart()
		r.wantPayloads(want...)
	}
}

func testCheckpoint(t *testing.T, b Backend) {
	r := open(t, b)
	var want []string
	for round := range 3 {
		for i := range 10 {
			want = append(want, fmt.Sprintf("%d/%d", round, i))
			r.mustPropose(want[len(want)-1])
			if i == 6 {
				b.Checkpoint(t, r.log)
			}
		}
		r.restart()
		r.wantPayloads(want...)
	}
	b.Checkpoint(t, r.log)
	b.Checkpoint(t, r.log) // nothing new
	r.restart()
	r.wantPayloads(want...)
}

func testClose(t *testing.T, b Backend) {
	r := open(t, b)
	r.mustPropose("one")
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := r.log.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	wg.Wait()
	if err := r.log.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
	_, err := r.log.Propose(timeout(t), r.m.Encode([]byte("two")))
	for call, err := range map[string]error{
		"propose": err, "barrier": r.log.Barrier(timeout(t)), "verify": r.log.Verify(timeout(t)),
	} {
		if !errors.Is(err, consensus.ErrClosed) {
			t.Errorf("%s after close: got %v, want ErrClosed", call, err)
		}
	}
	r.wantPayloads("one")
}

// testCloseUnderLoad wants every proposer answered, and what was answered with
// a result to be there after a restart, once.
func testCloseUnderLoad(t *testing.T, b Backend) {
	r := open(t, b)
	const proposers = 40
	started := make(chan struct{}, proposers)
	var mu sync.Mutex
	accepted, unknown := map[string]bool{}, map[string]bool{}
	var wg sync.WaitGroup
	for i := range proposers {
		wg.Go(func() {
			for j := 0; ; j++ {
				p := fmt.Sprintf("%d/%d", i, j)
				_, err := r.propose(timeout(t), p)
				mu.Lock()
				accepted[p] = err == nil
				unknown[p] = errors.Is(err, consensus.ErrOutcomeUnknown)
				mu.Unlock()
				if j == 0 {
					started <- struct{}{}
				}
				if err == nil {
					continue
				}
				if !errors.Is(err, consensus.ErrOutcomeUnknown) && !errors.Is(err, consensus.ErrClosed) && !errors.Is(err, consensus.ErrNotLeader) {
					t.Errorf("propose while closing: %v", err)
				}
				return
			}
		})
	}
	for range proposers {
		<-started
	}
	if err := r.log.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	wg.Wait()
	r.restart()
	seen := map[string]int{}
	for _, p := range r.m.Payloads() {
		seen[string(p)]++
	}
	for p, ok := range accepted {
		if n := seen[p]; n > 1 || ok && n != 1 || !ok && !unknown[p] && n != 0 {
			t.Errorf("%s: accepted %v, unknown %v, applied %d times", p, ok, unknown[p], n)
		}
	}
}
