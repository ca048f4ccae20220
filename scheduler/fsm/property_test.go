package fsm

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/state"
)

// TestAnySequence drives three machines with one random sequence of commands,
// valid and not, over a few tasks and with clocks that jump. After each command
// the state must be what its records say (audit), no record may change in a way
// it must not (watch), effects must tell what the state tells (due), and all
// machines must be equal, also the one that starts midway from a copy.
func TestAnySequence(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := booted(t), booted(t)
		var late *bench
		d := due{}
		tally := tally{}
		for range rapid.IntRange(1, 120).Draw(t, "commands") {
			jump(t, a)
			command := anyCommand(t, a)
			body := a.encode(command)
			res, err := a.raw(body)
			a.check()
			again, errAgain := b.raw(body)
			if (err == nil) != (errAgain == nil) || (err != nil && err.Error() != errAgain.Error()) {
				t.Fatalf("%T: %v here, %v there", command, err, errAgain)
			}
			if err == nil {
				sameResult(t, res, again)
				d.follow(res)
				tally.see(t, command, res)
			}
			if got := derive(a.reader()); !slices.Equal(got, d.list()) {
				t.Fatalf("%T: effects say %v\nthe state says %v", command, d.list(), got)
			}
			if late != nil {
				_, _ = late.raw(body)
			} else if rapid.IntRange(0, 20).Draw(t, "copy") == 0 {
				late = mount(t, a.store.Clone())
			}
		}
		if a.replica.Hash() != b.replica.Hash() {
			t.Fatal("equal commands gave other states")
		}
		if late != nil && a.replica.Hash() != late.replica.Hash() {
			t.Fatal("a copied machine went another way")
		}
		a.drains(t)
	})
}

// drains lets time pass until all is over: nothing may be left.
func (b *bench) drains(t *rapid.T) {
	b.lease, b.wall = ReadClocks(b.reader())
	for range 40 {
		b.after(day)
		for b.must(&meshv1.Tick{Limit: 7, ExpireLeases: true}).More {
			continue
		}
	}
	for _, k := range b.keys() {
		// Trim positions, pauses and paces outlive tasks; audit sees to the rest.
		if !strings.ContainsRune("TnoQsP", rune(k[1])) {
			t.Fatalf("left behind: %v", b.keys())
		}
	}
}

func sameResult(t *rapid.T, a, b *Result) {
	same := a.Verdict == b.Verdict && a.More == b.More && a.Count == b.Count && proto.Equal(a.Pause, b.Pause) && slices.Equal(a.Items, b.Items) &&
		proto.Equal(a.Task, b.Task) && proto.Equal(a.Guest, b.Guest) &&
		slices.EqualFunc(a.Effects, b.Effects, func(x, y Effect) bool {
			messages := proto.Equal(x.Holder, y.Holder) && proto.Equal(x.Task, y.Task)
			x.Holder, y.Holder, x.Task, y.Task = nil, nil, nil, nil
			return messages && x == y
		})
	if !same {
		t.Fatalf("equal commands gave other results:\n%v\n%v", a, b)
	}
}

// tally counts what may happen once only: by task (or guest and attempt), as
// long as it is known.
type tally map[string]map[string]string

func (c tally) once(t *rapid.T, of, what, by string) {
	if c[of] == nil {
		c[of] = map[string]string{}
	}
	if old, ok := c[of][what]; ok {
		t.Fatalf("%s: %s by %s, after by %s", of, what, by, old)
	}
	c[of][what] = by
}

func (c tally) see(t *rapid.T, command proto.Message, res *Result) {
	switch m := command.(type) {
	case *meshv1.Accept:
		delete(c, m.Task.Id)
	case *meshv1.Grant:
		c.once(t, m.TaskId, fmt.Sprintf("attempt %d granted", m.Attempt), m.Holder.String())
	case *meshv1.GuestStart:
		c.once(t, fmt.Sprintf("guest %s/%d", m.TaskId, m.Attempt), "started", m.Worker)
	case *meshv1.Redrive:
		if res.Count > 0 {
			delete(c[m.TaskId], "ended") // it may end once more
		}
	case *meshv1.Complete:
		if res.Verdict == Accepted && (State(res.Task) != completed || res.Task.FinalAttempt != m.Attempt) {
			t.Fatalf("completion of attempt %d accepted, but the task is %v", m.Attempt, res.Task)
		}
	}
	for _, e := range res.Effects {
		switch e.Kind {
		case TaskEnded:
			c.once(t, e.TaskID, "ended", e.State.String())
		case GuestEnded:
			c.once(t, fmt.Sprintf("guest %s/%d", e.TaskID, e.Attempt), "ended", "")
		case GuestGone:
			delete(c, fmt.Sprintf("guest %s/%d", e.TaskID, e.Attempt)) // it may be offered anew
		}
	}
}

// jump moves the clocks: mostly a little, now and then far, or back.
func jump(t *rapid.T, b *bench) {
	step := func(name string) int64 {
		switch rapid.IntRange(0, 9).Draw(t, name) {
		case 0:
			return rapid.Int64Range(-hour, 0).Draw(t, name)
		case 1:
			return rapid.Int64Range(0, 3*day).Draw(t, name)
		case 2, 3, 4:
			return rapid.Int64Range(0, 20*second).Draw(t, name)
		default:
			return 0
		}
	}
	b.lease += step("lease")
	b.wall += step("wall")
	b.lease, b.wall = max(b.lease, 0), max(b.wall, 0)
}

// anyCommand draws one command. Numbers are drawn near what the state holds, so
// that many of them are taken.
func anyCommand(t *rapid.T, b *bench) proto.Message {
	id := rapid.SampledFrom([]string{"t0", "t1", "t2", "t3"}).Draw(t, "id")
	attempt := nearAttempt(t, b.reader(), id)
	number := func(name string, limit int64) int64 { return rapid.Int64Range(0, limit).Draw(t, name) }
	switch rapid.IntRange(0, 27).Draw(t, "verb") {
	case 0, 1, 2, 3:
		return anySubmit(t, b, id)
	case 4, 5, 6, 7:
		return &meshv1.Grant{
			TaskId: id, Attempt: attempt, Holder: anyHolder(t, b, id), TtlMs: number("ttl", 20*second),
			Started: rapid.Bool().Draw(t, "started"), StartWithinMs: number("within", 30*second), Decision: []byte{1},
		}
	case 8, 9:
		return &meshv1.Extend{Items: []*meshv1.ExtendItem{
			{TaskId: id, Attempt: attempt, Holder: anyHolder(t, b, id), TtlMs: number("ttl", 20*second), Started: rapid.Bool().Draw(t, "started")},
			{TaskId: "t0", Attempt: 1, Holder: worker("w1"), TtlMs: rapid.Int64().Draw(t, "odd ttl")},
		}}
	case 10, 11:
		return &meshv1.Complete{TaskId: id, Attempt: attempt, Ended: anyEnd(t)}
	case 12, 13:
		return &meshv1.Fail{TaskId: id, Attempt: attempt, Ended: anyEnd(t)}
	case 14:
		return &meshv1.Cancel{TaskId: id}
	case 15, 16:
		return &meshv1.Tick{Limit: uint32(number("limit", 4)), ExpireLeases: rapid.Bool().Draw(t, "expire")}
	case 17:
		v := visitor(id, uint64(number("guest", 3)))
		v.Guest.StartWithinMs = number("within", 30*second)
		return v
	case 18:
		return &meshv1.GuestStart{TaskId: id, Attempt: uint64(number("guest", 3)), Worker: "w1"}
	case 19:
		return &meshv1.GuestEnd{TaskId: id, Attempt: uint64(number("guest", 3)), Ended: anyEnd(t)}
	case 21, 22, 23:
		return anyDefer(t, b, id, attempt)
	case 20:
		return &meshv1.GuestForget{TaskId: id, Attempt: uint64(number("guest", 3))}
	case 24, 25, 26:
		return anyQueueCommand(t, b, id, attempt)
	default:
		return anyPayloadCommand(t, b, id, attempt)
	}
}

func anyQueueCommand(t *rapid.T, b *bench, id string, attempt uint64) proto.Message {
	number := func(name string, limit int64) uint32 { return uint32(rapid.Int64Range(0, limit).Draw(t, name)) }
	switch rapid.IntRange(0, 4).Draw(t, "queue verb") {
	case 4:
		seen := Pace(b.reader(), "acme", "resize")
		seen.Drift += uint64(number("seen", 1))
		return &meshv1.ForgetPace{Tenant: "acme", Function: "resize", Seen: seen}
	case 3:
		return &meshv1.Slow{
			Tenant: "acme", Function: "resize", RateMilli: rapid.Int64Range(-1, 3).Draw(t, "rate"), Drift: uint64(number("drift", 2)),
			ReportId: rapid.SampledFrom([]string{"", "r1", "r2"}).Draw(t, "report"),
		}
	case 0:
		return &meshv1.Redrive{TaskId: id, Attempt: attempt, Cap: &meshv1.QueueCap{Count: uint64(number("cap", 3)), Cost: &isobarv1.Cost{Tokens: 12}}}
	case 1:
		return &meshv1.PauseQueue{Tenant: "acme", Function: "resize", Lane: number("lane", 4), Paused: rapid.IntRange(0, 3).Draw(t, "pause") == 0}
	default:
		return &meshv1.Purge{
			Tenant: "acme", Function: "resize", Lane: number("lane", 3), Limit: number("limit", 2),
			BeforeId: rapid.SampledFrom([]string{"", "t1", "t2", "u"}).Draw(t, "before"),
		}
	}
}

func anyPayloadCommand(t *rapid.T, b *bench, id string, attempt uint64) proto.Message {
	old := anyRef(t)
	if rec, ok := Task(b.reader(), id); ok && rapid.Bool().Draw(t, "right") {
		old = rec.PayloadRef
	}
	switch rapid.IntRange(0, 3).Draw(t, "payload verb") {
	case 0:
		return &meshv1.Trim{Topic: "acme/resize/standard", Ref: anyRef(t), Outside: rapid.Bool().Draw(t, "outside")}
	case 3:
		return &meshv1.TrimTold{Topic: "acme/resize/standard", Ref: anyRef(t)}
	case 1:
		return &meshv1.Moved{TaskId: id, OldRef: old, NewRef: anyRef(t)}
	default:
		return &meshv1.Block{TaskId: id, Attempt: attempt, Constraint: rapid.SampledFrom([]string{"residency", "residency", ""}).Draw(t, "constraint")}
	}
}

// anyDefer draws a plan that is mostly taken by a task that may be put off.
func anyDefer(t *rapid.T, b *bench, id string, attempt uint64) *meshv1.Defer {
	c := &meshv1.Defer{
		TaskId: id, Attempt: attempt, Plans: rapid.Uint32Range(0, 3).Draw(t, "plans"), Decision: []byte{2},
		UntilMs: b.wall + rapid.Int64Range(-10*second, 60*second).Draw(t, "until"),
	}
	if rec, ok := Task(b.reader(), id); ok && rapid.IntRange(0, 4).Draw(t, "right plan") > 0 {
		c.Attempt, c.Plans = rec.Attempt, rec.Plans
		c.UntilMs = min(c.UntilMs, StartBy(rec), expiry(rec)-1)
	}
	return c
}

func anyRef(t *rapid.T) []byte {
	n := rapid.IntRange(0, 12).Draw(t, "ref")
	if n == 0 {
		return []byte{}
	}
	return []byte{byte(n)}
}

func nearAttempt(t *rapid.T, r state.Reader, id string) uint64 {
	n := rapid.Uint64Range(0, 4).Draw(t, "attempt")
	rec, ok := Task(r, id)
	switch {
	case !ok || rapid.IntRange(0, 5).Draw(t, "wrong") == 0:
		return n
	case State(rec) == ready:
		return rec.Attempt + 1
	default:
		return rec.Attempt
	}
}

func anyHolder(t *rapid.T, b *bench, id string) *meshv1.Holder {
	if rec, ok := Task(b.reader(), id); ok && rec.Lease != nil && rapid.IntRange(0, 4).Draw(t, "right holder") > 0 {
		return rec.Lease.Holder
	}
	return rapid.SampledFrom([]*meshv1.Holder{worker("w1"), worker("w2"), cell("us-east-1"), cell("ap-south-1"), {}, nil}).Draw(t, "holder")
}

func anyEnd(t *rapid.T) *meshv1.Ended {
	status := rapid.SampledFrom([]string{"done", "retry", "failed", "timeout", "lost", "refused", "undelivered", "payload_lost", "", "odd"}).Draw(t, "status")
	if status == "" {
		return nil
	}
	return &meshv1.Ended{
		Status: status, Result: []byte(status), Started: rapid.Bool().Draw(t, "ran"),
		RetryAfterMs: rapid.SampledFrom([]int64{0, 0, 0, 5 * second, 1 << 62, -1}).Draw(t, "retry after"),
	}
}

func anySubmit(t *rapid.T, b *bench, id string) *meshv1.Accept {
	pick := func(name string, of ...int64) int64 { return rapid.SampledFrom(of).Draw(t, name) }
	c := submit(id, func(r *meshv1.TaskRecord) {
		r.RequestId = rapid.SampledFrom([]string{"", "r1", "r2", "r-" + id}).Draw(t, "request")
		r.PayloadRef = anyRef(t)
		r.PayloadBytes = uint64(pick("bytes", 0, 10, 1<<62))
		r.LifetimeMs = b.wall + pick("lifetime", 0, hour, 7*day)
		r.DeadlineMs = pick("deadline", 0, 0, 1) * (b.wall + pick("due in", -second, 20*second, hour))
		r.NotBeforeMs = pick("not before", 0, 0, b.wall+10*second)
		r.MaxDelayMs = pick("max delay", 0, 30*second, day)
		r.RetentionMs = pick("retention", 0, hour, day)
		r.MaxAttempts = uint32(pick("attempts", 0, 1, 3))
		r.Lane = uint32(pick("lane", 2, 2, 2, 0, 3, 4, 300))
		// What only the machine may say.
		r.State, r.Counted, r.FinalAttempt, r.PutOff, r.Plans, r.PlanMs, r.ReadyMs, r.BlockedMs = 3, 9, 9, true, 9, 9, 9, 9
		r.Attempts = []*meshv1.AttemptRecord{{Number: 9}}
	})
	if rapid.Bool().Draw(t, "ordered") {
		c.Task.OrderingKey = rapid.SampledFrom([]string{"o1", "o1", "o2"}).Draw(t, "ordering key")
		c.Task.OrderRelaxed, c.Task.OrderBlocks = pick("relaxed", 0, 0, 1) == 1, pick("blocks", 0, 1) == 1
		c.Task.OrderSeq, c.Task.Held = 9, true
	}
	if rapid.Bool().Draw(t, "keyed") {
		k := keyed(id, rapid.SampledFrom([]string{"k1", "k2"}).Draw(t, "key"), rapid.SampledFrom([]string{"a", "b"}).Draw(t, "content"))
		c.Task.IdempotencyKey, c.Task.IdempotencyHash = k.Task.IdempotencyKey, k.Task.IdempotencyHash
	}
	c.Task.Cost = CostMessage(mesh.Cost{Tokens: pick("tokens", 0, 0, 4, 4, 9, 9, -1), AcceleratorMiB: pick("accelerator", 0, 5)})
	c.Cap = &meshv1.QueueCap{
		Count: uint64(pick("cap", 0, 3)), Bytes: uint64(pick("cap bytes", 0, 25)), Cost: &isobarv1.Cost{Tokens: pick("cap tokens", 0, 12)},
	}
	return c
}
