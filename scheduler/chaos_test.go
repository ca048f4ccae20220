package scheduler

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// stubborn is a worker that always comes back and repeats every result until it
// has a verdict, as the real one does.
type stubborn struct {
	c     *testCell
	name  string
	takes time.Duration // each attempt

	mu   sync.Mutex
	held map[ref]*isobarv1.LeaseRef
	runs map[ref]int
	rng  *rand.Rand // nil: nothing breaks
}

// breaks reports whether the connection breaks now.
func (s *stubborn) breaks() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng != nil && s.rng.IntN(40) == 0
}

func (s *stubborn) wild(rng *rand.Rand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rng = rng
}

func (c *testCell) stubborn(name string, takes time.Duration) *stubborn {
	s := &stubborn{c: c, name: name, takes: takes, held: map[ref]*isobarv1.LeaseRef{}, runs: map[ref]int{}}
	c.w.go_(func() {
		for c.w.ctx.Err() == nil {
			s.session()
			time.Sleep(200 * time.Millisecond)
		}
	})
	return s
}

func (s *stubborn) leases() (out []*isobarv1.LeaseRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		out = append(out, h)
	}
	return out
}

func (s *stubborn) session() {
	door, err := s.c.Open(&isobarv1.Hello{Worker: s.name, Session: s.name, Offer: offering(4, "wasm"), Held: s.leases()})
	if err != nil {
		return
	}
	defer door.Close()
	done := make(chan struct{})
	defer close(done)
	s.c.w.go_(func() {
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			_ = door.Receive(s.c.w.ctx, &isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Extend{Extend: &isobarv1.ExtendRequest{Leases: s.leases()}}})
		}
	})
	for {
		m, err := door.Next(s.c.w.ctx)
		if err != nil || s.breaks() {
			return // with what was taken lost on its way
		}
		s.receive(m)
	}
}

func (s *stubborn) receive(m *isobarv1.WorkResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	drop := func(l *isobarv1.LeaseRef) { delete(s.held, ref{l.TaskId, l.Attempt}) }
	switch m := m.Message.(type) {
	case *isobarv1.WorkResponse_Welcome:
		for _, l := range m.Welcome.Stop {
			drop(l)
		}
	case *isobarv1.WorkResponse_Stop:
		drop(m.Stop)
	case *isobarv1.WorkResponse_Extended:
		for _, r := range m.Extended.Results {
			if !r.Confirmed {
				drop(r.Lease)
			}
		}
	case *isobarv1.WorkResponse_Assign:
		at := ref{m.Assign.TaskId, m.Assign.Attempt}
		s.runs[at]++
		s.held[at] = &isobarv1.LeaseRef{TaskId: at.task, Attempt: at.attempt}
		s.c.w.go_(func() { s.run(at) })
	}
}

// run takes its time, then completes until there is a verdict or the lease is
// gone.
func (s *stubborn) run(at ref) {
	time.Sleep(s.takes)
	for {
		s.mu.Lock()
		lease := s.held[at]
		s.mu.Unlock()
		if lease == nil || s.c.w.ctx.Err() != nil {
			return
		}
		res, err := s.c.Complete(s.c.w.ctx, &isobarv1.CompleteRequest{
			Worker: s.name, Session: s.name, Lease: lease,
			Outcome: &isobarv1.Outcome{Result: fmt.Appendf(nil, "by attempt %d", at.attempt), RunTime: durationpb.New(s.takes)},
		})
		if err == nil && res.Verdict != "" {
			s.mu.Lock()
			delete(s.held, at)
			s.mu.Unlock()
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// Whatever the log and the network between two cells do: once they heal, every
// task that was accepted ends, by one of its attempts, no number ran twice, and
// nothing is left behind.
func TestEveryTaskEndsWhateverFails(t *testing.T) {
	t.Parallel()
	var seen wildness
	t.Run("seeds", func(t *testing.T) {
		for seed := range uint64(6) {
			t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
				t.Parallel()
				inWorld(t, func(w *world) { chaos(w, seed, &seen) })
			})
		}
	})
	if t.Logf("%+v", seen.counts); seen.again == 0 || seen.there == 0 || seen.lostHere == 0 || seen.lostThere == 0 {
		t.Error("too tame to mean anything")
	}
}

// wildness counts what must have happened for the test to mean anything.
type wildness struct {
	sync.Mutex
	counts
}

type counts struct{ tasks, again, there, lostHere, lostThere int }

func chaos(w *world, seed uint64, seen *wildness) {
	w.registry.functions["work"].Spec.Retry.MaxAttempts = 50
	home, other := w.cell("eu-1"), w.cell("us-1", func(o *Options) { o.Prices.CPUHour = 0.001 })
	rng := rand.New(rand.NewPCG(seed, 1)) // as repeatable as goroutines are
	w.faults(func(string, mesh.CellID, mesh.CellID) fault {
		return []fault{passes, passes, passes, passes, lostBefore, lostAfter}[rng.IntN(6)]
	})
	for i, c := range []*testCell{home, other} {
		c.late.fail(0.05, seed+uint64(i))
		w.go_(c.reelect)
	}
	workers := []*stubborn{
		home.stubborn("w1", 300*time.Millisecond), other.stubborn("w2", 300*time.Millisecond),
		other.stubborn("w3", 700*time.Millisecond),
	}
	for i, s := range workers {
		s.wild(rand.New(rand.NewPCG(seed, uint64(9+i)))) // as repeatable as goroutines are
	}
	w.meet()
	var ids []string
	for range 150 {
		time.Sleep(100 * time.Millisecond)
		r, err := home.trySubmit("work")
		if err == nil {
			ids = append(ids, r.TaskID)
		}
	}
	w.faults(func(string, mesh.CellID, mesh.CellID) fault { return passes })
	for _, c := range []*testCell{home, other} {
		c.late.fail(0, 0)
	}
	for _, s := range workers {
		s.wild(nil)
	}
	if len(ids) < 20 {
		w.t.Fatalf("only %d accepted: too wild", len(ids))
	}
	open := func() []string { return home.open(ids) }
	for end := time.Now().Add(3 * time.Minute); len(open()) > 0; time.Sleep(time.Second) {
		if time.Now().After(end) {
			w.t.Fatalf("never ended:\n%s\n%s\n%s", strings.Join(open(), "\n"), home.memory(), other.memory())
		}
	}
	synctest.Wait()
	for _, id := range ids {
		home.wantState(id, completed)
		if got, want := string(home.Result(id)), fmt.Sprintf("by attempt %d", home.record(id).FinalAttempt); got != want {
			w.t.Errorf("%s: result %q of another attempt: %q", id, got, want)
		}
	}
	w.forgotten(other)
	time.Sleep(20 * time.Second)
	home.wantIdle()
	other.wantIdle()
	seen.Lock()
	seen.tasks += len(ids)
	seen.lostHere += home.late.lost
	seen.lostThere += other.late.lost
	for _, id := range ids {
		rec := home.record(id)
		if rec.Attempt > 1 {
			seen.again++
		}
		if last := rec.Attempts[len(rec.Attempts)-1]; last.Cell == "us-1" {
			seen.there++
		}
	}
	seen.Unlock()
	ran := map[ref]int{}
	for _, s := range workers {
		s.mu.Lock()
		for at, n := range s.runs {
			ran[at] += n
		}
		s.mu.Unlock()
	}
	for at, n := range ran {
		if n > 1 {
			w.t.Errorf("attempt %d of %s was started %d times", at.attempt, at.task, n)
		}
	}
}

// open describes the tasks that have not ended.
func (c *testCell) open(ids []string) (out []string) {
	for _, id := range ids {
		if rec, ok := fsm.Task(c.State, id); !ok || !fsm.Ended(fsm.State(rec)) {
			out = append(out, fmt.Sprintf("%s: %s, attempt %d, lease %v, blocked %q, attempts %v", id, fsm.State(rec), rec.Attempt, rec.Lease, rec.Blocked, rec.Attempts))
		}
	}
	return out
}

// memory describes what the leader remembers.
func (c *testCell) memory() string {
	l := c.current()
	if l == nil {
		return string(c.Cell.ID) + ": no leader"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%s: term %d, granting %v, parked %d, placed %d, avoid %v, withheld %+v\n", c.Cell.ID, l.term, l.granting, len(l.parked), len(l.placed), l.avoid, l.withheld)
	for k, q := range l.waiting.queues {
		fmt.Fprintf(&b, "  queue %v guest %t: %v, more %t, waits for %q\n", k.Queue, k.guest, q.items, q.more, q.why)
	}
	for r, run := range l.running {
		fmt.Fprintf(&b, "  running %v on %s, handed %t, guest %t\n", r, run.session.id, run.handed, run.guest)
	}
	for r, g := range l.guests {
		fmt.Fprintf(&b, "  guest %v until %v, queued %t, started %t, ended %t\n", r, time.Until(g.until), g.queued, g.started, g.ended)
	}
	for id, s := range l.sessions {
		fmt.Fprintf(&b, "  session %s: free %v of %v, connected %t, seen %s ago\n", id, s.free, s.total, s.out != nil, time.Since(s.seen))
	}
	return b.String()
}

// reelect gives leadership back a little after it was lost.
func (c *testCell) reelect() {
	for {
		select {
		case <-c.w.ctx.Done():
			return
		case <-time.After(300 * time.Millisecond):
			c.log.Elect()
		}
	}
}
