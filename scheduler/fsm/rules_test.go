package fsm

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/consensus"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/state"
)

// One test for each safety rule that the state machine alone can show. What a
// leader must add to keep a rule is shown by the simulation in internal/sim.

func withRef(id, ref string) *meshv1.Accept {
	return submit(id, func(r *meshv1.TaskRecord) { r.PayloadRef = []byte(ref) })
}

// Rule 1: a record below the trim position is refused, a live one holds the
// position back, and a payload that cannot be read ends its task as dead.
func TestRule01TrimStaysBelowLiveRecords(t *testing.T) {
	t.Parallel()
	b := booted(t)
	topic := "acme/resize/standard"
	b.must(withRef("t1", "10"))
	b.must(withRef("t2", "20"))
	b.refused(&meshv1.Trim{Topic: topic, Ref: []byte("11")}, ErrLive)
	b.must(&meshv1.Trim{Topic: topic, Ref: []byte("10")})
	b.refused(withRef("t3", "09"), ErrTrimmed)
	b.refused(withRef("t3", "20"), ErrBadCommand) // t2's payload

	b.must(&meshv1.Moved{TaskId: "t1", OldRef: []byte("10"), NewRef: []byte("30")})
	b.refused(&meshv1.Moved{TaskId: "t1", OldRef: []byte("10"), NewRef: []byte("40")}, ErrStale)
	b.must(&meshv1.Trim{Topic: topic, Ref: []byte("20")})
	b.refused(&meshv1.Moved{TaskId: "t1", OldRef: []byte("30"), NewRef: []byte("15")}, ErrTrimmed)
	// The position never goes back.
	b.must(&meshv1.Trim{Topic: topic, Ref: []byte("05")})
	b.refused(withRef("t3", "15"), ErrTrimmed)

	b.must(local("t1", 1, "w1"))
	b.verdict(failure("t1", 1, "payload_lost"), Accepted)
	if rec := b.inState("t1", dead); rec.Reason != "payload_lost" {
		t.Fatalf("reason %q", rec.Reason)
	}
	b.must(&meshv1.Cancel{TaskId: "t2"})
	b.must(&meshv1.Trim{Topic: topic, Ref: []byte("99")})
}

// Rule 2: a number goes to one holder; only attempts that started are retries,
// and a crash is one of them.
func TestRule02Attempts(t *testing.T) {
	t.Parallel()
	b := booted(t)
	b.must(submit("t1", func(r *meshv1.TaskRecord) { r.MaxAttempts = 2 }))
	b.refused(local("t1", 2, "w1"), ErrStale)
	b.must(abroad("t1", 1, "us-east-1"))
	b.refused(abroad("t1", 1, "ap-south-1"), ErrStale)
	b.refused(local("t1", 2, "w1"), ErrStale)
	b.extended(&meshv1.ExtendItem{TaskId: "t1", Attempt: 1, Holder: cell("ap-south-1"), Started: true}, Fenced)

	b.verdict(failure("t1", 1, "refused"), Accepted)
	b.must(abroad("t1", 2, "us-east-1"))
	b.verdict(failure("t1", 2, "undelivered"), Accepted)
	b.must(abroad("t1", 3, "us-east-1"))
	b.after(10 * second).tick() // lost, but it never said it started
	if rec := b.inState("t1", ready); rec.Counted != 0 {
		t.Fatalf("%d attempts counted before any started", rec.Counted)
	}

	b.must(local("t1", 4, "w1"))
	b.after(10 * second).tick() // a crash
	b.inState("t1", deferred)
	b.after(2 * second).tick()
	b.must(abroad("t1", 5, "us-east-1"))
	b.extended(&meshv1.ExtendItem{TaskId: "t1", Attempt: 5, Holder: cell("us-east-1"), Started: true, TtlMs: second}, Accepted)
	b.verdict(failure("t1", 5, "lost"), Accepted)
	if rec := b.inState("t1", dead); rec.Counted != 2 || rec.Attempt != 5 {
		t.Fatalf("dead with %d counted of %d", rec.Counted, rec.Attempt)
	}
}

// Rule 2, at the guest: an offer is taken once, and starts once.
func TestRule02GuestStartsOnce(t *testing.T) {
	t.Parallel()
	b := booted(t)
	b.verdict(visitor("t1", 1), Accepted)
	once := b.replica.Hash()
	if res := b.verdict(visitor("t1", 1), Accepted); len(res.Effects) != 0 {
		t.Fatalf("a repeated offer has effects: %v", res.Effects)
	}
	if b.replica.Hash() != once {
		t.Fatal("a repeated offer changed the state")
	}
	b.must(&meshv1.GuestStart{TaskId: "t1", Attempt: 1, Worker: "w1", Session: "s1"})
	b.refused(&meshv1.GuestStart{TaskId: "t1", Attempt: 1, Worker: "w2", Session: "s2"}, ErrStale)
	b.refused(&meshv1.GuestStart{TaskId: "t1", Attempt: 1, Worker: "w1", Session: "s1"}, ErrStale)
	b.verdict(visitor("t1", 1), Accepted)
	b.refused(&meshv1.GuestStart{TaskId: "t1", Attempt: 1, Worker: "w2", Session: "s2"}, ErrStale)
	b.verdict(&meshv1.GuestEnd{TaskId: "t1", Attempt: 1, Ended: ended("done")}, Accepted)
	b.verdict(&meshv1.GuestEnd{TaskId: "t1", Attempt: 1, Ended: ended("lost")}, Fenced)
	b.refused(&meshv1.GuestStart{TaskId: "t1", Attempt: 1, Worker: "w2", Session: "s2"}, ErrStale)
}

// Rule 3: a completion counts while its number is the highest granted and the
// task has not ended, whatever became of the lease.
func TestRule03Completion(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		before  func(b *bench)
		attempt uint64
		want    Verdict
		final   isobarv1.TaskState
	}{
		{"while leased", func(*bench) {}, 1, Accepted, completed},
		{"after the lease ran out", func(b *bench) { b.after(hour) }, 1, Accepted, completed},
		{"after it was given up", func(b *bench) { b.after(10 * second).tick() }, 1, Accepted, completed},
		{"after its pause", func(b *bench) { b.after(10 * second).tick(); b.after(5 * second).tick() }, 1, Accepted, completed},
		{"after the next grant", regranted, 1, Fenced, leased},
		{"of the next grant", regranted, 2, Accepted, completed},
		{"never granted", func(*bench) {}, 2, Fenced, leased},
		{"after cancel", func(b *bench) { b.must(&meshv1.Cancel{TaskId: "t1"}) }, 1, Cancelled, cancelled},
		{"after its lifetime", func(b *bench) { b.wall += 8 * day; b.tick() }, 1, Expired, expired},
		{"forgotten", func(b *bench) { b.after(8 * day).tick(); b.after(2 * hour).tick() }, 1, Unknown, 0},
		{"after it died", func(b *bench) { b.must(failure("t1", 1, "failed")) }, 1, Terminal, dead},
		{"repeated", func(b *bench) { b.must(done("t1", 1)) }, 1, Accepted, completed},
		{"other than the accepted", func(b *bench) { b.must(done("t1", 1)) }, 2, Fenced, completed},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := booted(t)
			b.must(submit("t1", nil))
			b.must(local("t1", 1, "w1"))
			test.before(b)
			b.verdict(done("t1", test.attempt), test.want)
			if test.final != 0 {
				b.inState("t1", test.final)
			}
		})
	}
}

func regranted(b *bench) {
	b.after(10 * second).tick()
	b.after(5 * second).tick()
	b.must(local("t1", 2, "w2"))
}

// Rule 4: cancel and deadline end a task at once in every state; the first in
// the log wins and the loser is told.
func TestRule04CancelAndDeadlineInEveryState(t *testing.T) {
	t.Parallel()
	for _, state := range []struct {
		name  string
		reach func(b *bench)
		ends  bool // the state is an end already
	}{
		{"deferred", func(b *bench) { b.must(local("t1", 1, "w1")); b.must(failure("t1", 1, "retry")) }, false},
		{"ready", func(*bench) {}, false},
		{"leased to a worker", func(b *bench) { b.must(local("t1", 1, "w1")) }, false},
		{"leased to a cell", func(b *bench) { b.must(abroad("t1", 1, "us-east-1")) }, false},
		{"completed", func(b *bench) { b.must(local("t1", 1, "w1")); b.must(done("t1", 1)) }, true},
		{"dead", func(b *bench) { b.must(local("t1", 1, "w1")); b.must(failure("t1", 1, "failed")) }, true},
	} {
		t.Run(state.name, func(t *testing.T) {
			t.Parallel()
			for _, winner := range []isobarv1.TaskState{cancelled, expired} {
				b := booted(t)
				b.must(submit("t1", func(r *meshv1.TaskRecord) { r.DeadlineMs, r.BackoffMs = wallBase+10*second, minute }))
				state.reach(b)
				before := b.task("t1")
				if winner == cancelled {
					want := Accepted
					if state.ends {
						want = Terminal
					}
					b.verdict(&meshv1.Cancel{TaskId: "t1"}, want)
				} else {
					b.after(10 * second).must(&meshv1.Tick{})
				}
				if state.ends {
					if !proto.Equal(before, b.task("t1")) {
						t.Fatalf("an end changed: %v", b.task("t1"))
					}
					continue
				}
				b.inState("t1", winner)
				told := endedVerdict(winner)
				b.verdict(&meshv1.Cancel{TaskId: "t1"}, Terminal)
				if before.Attempt == 1 {
					b.verdict(done("t1", 1), told)
					b.verdict(failure("t1", 1, "retry"), told)
					b.extended(&meshv1.ExtendItem{TaskId: "t1", Attempt: 1, Holder: before.Lease.GetHolder()}, told)
				}
				b.refused(local("t1", before.Attempt+1, "w2"), ErrStale)
				b.inState("t1", winner)
			}
		})
	}
}

// Rule 5: nothing waits for ever. Left alone but for its ticks, every state
// comes to an end, and after its retention nothing is left.
func TestRule05NothingWaitsForEver(t *testing.T) {
	t.Parallel()
	b := booted(t)
	b.must(submit("ready", nil))
	b.must(submit("blocked", nil))
	b.must(&meshv1.Block{TaskId: "blocked", Constraint: "residency"})
	b.must(submit("deferred", func(r *meshv1.TaskRecord) { r.NotBeforeMs = wallBase + 30*day }))
	b.must(submit("local", nil))
	b.must(local("local", 1, "w1"))
	b.must(submit("abroad", nil))
	b.must(abroad("abroad", 1, "us-east-1"))
	b.must(submit("paused", func(r *meshv1.TaskRecord) { r.MaxAttempts = 9 }))
	b.must(local("paused", 1, "w1"))
	b.must(&meshv1.Fail{TaskId: "paused", Attempt: 1, Ended: &meshv1.Ended{Status: "retry", RetryAfterMs: 1 << 62}})
	b.must(visitor("waits", 1))
	b.must(visitor("runs", 1))
	b.must(&meshv1.GuestStart{TaskId: "runs", Attempt: 1, Worker: "w1"})
	b.must(visitor("ended", 1))
	b.must(&meshv1.GuestEnd{TaskId: "ended", Attempt: 1, Ended: ended("refused")})

	// No lease is granted for a span that is none.
	b.must(submit("long", nil))
	for _, span := range []int64{-1, maxMs + 1, math.MaxInt64, math.MinInt64} {
		b.refused(&meshv1.Grant{TaskId: "long", Attempt: 1, Holder: worker("w1"), TtlMs: span, Started: true}, ErrBadCommand)
		b.refused(&meshv1.Grant{TaskId: "long", Attempt: 1, Holder: cell("us-east-1"), TtlMs: second, StartWithinMs: span}, ErrBadCommand)
	}

	// A holder that extends for ever comes to the function's timeout.
	for range 100 {
		b.must(&meshv1.Extend{Items: []*meshv1.ExtendItem{
			{TaskId: "local", Attempt: 1, Holder: worker("w1"), TtlMs: 10 * second},
			{TaskId: "abroad", Attempt: 1, Holder: cell("us-east-1"), TtlMs: 10 * second},
		}})
		b.after(second).tick()
	}
	b.inState("local", ready) // its attempt timed out, its pause is over
	b.inState("abroad", ready)
	if g, _ := Guest(b.reader(), "waits", 1); g.Ended.GetStatus() != "refused" {
		t.Fatalf("a guest without a worker is %v", g)
	}

	b.wall = wallBase + 7*day
	b.tick()
	for rec := range Tasks(b.reader(), "") {
		if State(rec) != expired {
			t.Errorf("%s is %s after its lifetime", rec.Id, State(rec))
		}
	}
	b.wall += 2 * day
	b.tick()
	if keys := b.keys(); len(keys) != 0 {
		t.Fatalf("left behind: %v", keys)
	}
	if NextDue(b.reader()) != 0 {
		t.Fatal("something is due for ever")
	}
}

// Rule 6: groups of an entry are independent, each all or nothing; a command
// decided on another attempt or state is refused.
func TestRule06GroupsAreAtomicAndIndependent(t *testing.T) {
	t.Parallel()
	b := booted(t)
	b.must(submit("t1", nil))
	b.must(submit("t2", nil))
	command := func(m proto.Message) state.Command {
		return state.Command{Machine: state.SchedulerMachine, Body: b.encode(m)}
	}
	b.index++
	out := b.replica.Apply(consensus.Position{Index: b.index, Term: 1}, [][]byte{
		// The second command of the first group is decided on a stale state.
		state.EncodeGroup([]state.Command{command(local("t1", 1, "w1")), command(local("t1", 1, "w2"))}),
		state.EncodeGroup([]state.Command{command(local("t2", 1, "w1"))}),
		state.EncodeGroup([]state.Command{command(local("t2", 2, "w1"))}),
		state.EncodeGroup([]state.Command{command(local("t1", 1, "w3"))}),
	})
	b.check()
	for i, want := range []error{ErrStale, nil, ErrStale, nil} {
		if got := out[i].(state.GroupResult).Err; !errors.Is(got, want) {
			t.Errorf("group %d: %v, want %v", i, got, want)
		}
	}
	if h := b.inState("t1", leased).Lease.Holder.Worker; h != "w3" {
		t.Errorf("t1 went to %s, want w3", h)
	}
	b.refused(&meshv1.Block{TaskId: "t1", Attempt: 1, Constraint: "x"}, ErrStale)
	b.refused(&meshv1.Grant{TaskId: "t1", Attempt: 2, Holder: worker("w"), TtlMs: 1}, ErrStale)
}

// Rule 7: what must happen outside is derivable from the state. A leader that
// follows the effects and one that reads the state anew know the same.
func TestRule07DueSetIsDerivable(t *testing.T) {
	t.Parallel()
	b := booted(t)
	d := due{}
	step := func(m proto.Message) { d.follow(b.must(m)) }
	for i := range 6 {
		step(submit(fmt.Sprintf("t%d", i), nil))
		step(visitor(fmt.Sprintf("g%d", i), 1))
	}
	step(local("t1", 1, "w1"))
	step(abroad("t2", 1, "us-east-1"))
	step(local("t3", 1, "w1"))
	step(failure("t3", 1, "retry"))
	step(&meshv1.Cancel{TaskId: "t4"})
	step(&meshv1.GuestStart{TaskId: "g1", Attempt: 1, Worker: "w1"})
	step(&meshv1.GuestStart{TaskId: "g2", Attempt: 1, Worker: "w1"})
	step(&meshv1.GuestEnd{TaskId: "g2", Attempt: 1, Ended: ended("done")})
	step(&meshv1.GuestForget{TaskId: "g3", Attempt: 1})
	for range 4 {
		again := mount(t, b.store.Clone())
		if want := derive(again.reader()); !slices.Equal(d.list(), want) {
			t.Fatalf("effects say %v\nthe state says %v", d.list(), want)
		}
		b.after(7 * second)
		step(&meshv1.Tick{ExpireLeases: true})
	}
}

// Rule 8: neither clock goes back; lease time alone ends leases; no lease ends
// in the interval after an election.
func TestRule08Clocks(t *testing.T) {
	t.Parallel()
	b := booted(t)
	b.must(submit("t1", func(r *meshv1.TaskRecord) { r.DeadlineMs = wallBase + hour }))
	b.must(local("t1", 1, "w1"))
	b.lease, b.wall = 5*second, wallBase+30*minute
	b.must(&meshv1.Tick{})

	b.lease, b.wall = 0, wallBase-day // a leader with a worse clock
	b.tick()
	if lease, wall := ReadClocks(b.reader()); lease != 5*second || wall != wallBase+30*minute {
		t.Fatalf("clocks went back to lease %d, wall %d", lease, wall-wallBase)
	}
	b.lease, b.wall = 5*second, wallBase+50*minute // no leader for twenty minutes
	b.tick()
	b.inState("t1", leased)
	b.lease = hour
	b.must(&meshv1.Tick{ExpireLeases: false})
	b.inState("t1", leased)
	b.wall = wallBase + hour // the calendar does not wait
	b.must(&meshv1.Tick{ExpireLeases: false})
	b.inState("t1", expired)

	b.lease = 1 << 60
	b.refused(submit("t2", nil), ErrBadCommand)
}

// Rule 9: one submit, one task: by request id, and by idempotency key for as
// long as the task is kept after its end.
func TestRule09SubmitOnce(t *testing.T) {
	t.Parallel()
	b := booted(t)
	b.must(keyed("t1", "k", "a"))
	duplicate := func(c *meshv1.Accept, byKey bool) {
		t.Helper()
		_, err := b.do(c)
		var dup *DuplicateError
		if !errors.As(err, &dup) || dup.ID != "t1" || dup.ByKey != byKey {
			t.Fatalf("error %v, want a duplicate of t1", err)
		}
	}
	repeat := keyed("t9", "k", "other")
	repeat.Task.RequestId = "r-t1"
	conflict := func() {
		t.Helper()
		_, err := b.do(keyed("t3", "k", "b"))
		var c *ConflictError
		if !errors.As(err, &c) || c.ID != "t1" {
			t.Fatalf("error %v, want a conflict with t1", err)
		}
	}
	known := func() {
		t.Helper()
		duplicate(keyed("t2", "k", "a"), true)
		duplicate(repeat, false)
		conflict()
	}
	known()
	b.after(2 * hour) // longer than the retention, but it has not ended
	b.tick()
	known()
	b.must(local("t1", 1, "w1"))
	b.must(done("t1", 1))
	b.after(hour - 1).tick()
	known()
	b.after(1).tick()
	b.must(keyed("t3", "k", "b"))
	// Another tenant's names are its own.
	other := keyed("t4", "k", "z")
	other.Task.Tenant, other.Task.RequestId = "umbrella", "r-t3"
	b.must(other)
}

// Rule 10: the leases of a call can be found again by session and request id;
// one never delivered is ready again, uncounted.
func TestRule10LeasesSurviveLostAnswers(t *testing.T) {
	t.Parallel()
	b := booted(t)
	asked := &meshv1.Holder{Worker: "w1", Session: "s1", RequestId: "q7"}
	for _, id := range []string{"t1", "t2", "t3"} {
		b.must(submit(id, nil))
	}
	for _, id := range []string{"t1", "t2"} {
		b.must(&meshv1.Grant{TaskId: id, Attempt: 1, Holder: asked, TtlMs: 10 * second, StartWithinMs: 10 * second})
	}
	b.must(local("t3", 1, "w1"))
	var found []string
	for rec := range Leases(mount(t, b.store.Clone()).reader()) { // as a new leader reads it
		if proto.Equal(rec.Lease.Holder, asked) {
			found = append(found, rec.Id)
		}
	}
	if !slices.Equal(found, []string{"t1", "t2"}) {
		t.Fatalf("a repeat would return %v", found)
	}
	for _, id := range []string{"t1", "t3"} {
		b.verdict(failure(id, 1, "undelivered"), Accepted)
		if rec := b.inState(id, ready); rec.Counted != 0 {
			t.Fatalf("%s: counted %d", id, rec.Counted)
		}
	}
}

// Rule 11: the residency stamped at accept stays with the record, at home and
// at the guest, whatever happens to the task.
func TestRule11ResidencyStaysWithTheRecord(t *testing.T) {
	t.Parallel()
	b := booted(t)
	b.must(submit("t1", func(r *meshv1.TaskRecord) { r.Allowed, r.Denied = []string{"eu"}, []string{"fr"} }))
	bound := func(allowed, denied []string) {
		t.Helper()
		if !slices.Equal(allowed, []string{"eu"}) || !slices.Equal(denied, []string{"fr"}) {
			t.Fatalf("bound to %v, not %v", allowed, denied)
		}
	}
	for _, step := range []proto.Message{
		abroad("t1", 1, "eu-west-1"), failure("t1", 1, "refused"), local("t1", 2, "w1"), done("t1", 2),
	} {
		b.must(step)
		bound(b.task("t1").Allowed, b.task("t1").Denied)
	}
	v := visitor("g1", 1)
	v.Guest.Allowed, v.Guest.Denied = []string{"eu"}, []string{"fr"}
	b.must(v)
	b.must(visitor("g1", 1)) // a repeat without it changes nothing
	b.must(&meshv1.GuestStart{TaskId: "g1", Attempt: 1, Worker: "w1"})
	b.must(&meshv1.GuestEnd{TaskId: "g1", Attempt: 1, Ended: ended("done")})
	g, _ := Guest(b.reader(), "g1", 1)
	bound(g.Allowed, g.Denied)
}

// Rule 12: the incarnation is minted once, and nothing is accepted before.
func TestRule12OneIncarnation(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.refused(submit("t1", nil), ErrNotBootstrapped)
	b.refused(visitor("g1", 1), ErrNotBootstrapped)
	b.refused(&meshv1.Bootstrap{Cell: "eu-north-1"}, ErrBadCommand)
	b.must(&meshv1.Bootstrap{Cell: "eu-north-1", Incarnation: "first"})
	b.must(&meshv1.Bootstrap{Cell: "eu-north-1", Incarnation: "second"})
	if got := Incarnation(b.reader()); got != "first" {
		t.Fatalf("incarnation %q", got)
	}
	b.must(submit("t1", nil))
}

// Rule 18: the last three decisions are kept, the one that binds with its
// lease.
func TestRule18ThreeDecisions(t *testing.T) {
	t.Parallel()
	b := booted(t)
	b.must(submit("t1", func(r *meshv1.TaskRecord) { r.Decisions = [][]byte{[]byte("provisional")} }))
	for n := uint64(1); n <= 4; n++ {
		g := abroad("t1", n, "us-east-1")
		g.Decision = fmt.Append(nil, "d", n)
		b.must(g)
		b.must(failure("t1", n, "refused"))
	}
	if got := fmt.Sprintf("%s", b.task("t1").Decisions); got != "[d2 d3 d4]" {
		t.Fatalf("kept %s", got)
	}
}
