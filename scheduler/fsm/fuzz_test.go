package fsm

import (
	"testing"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// populated is a cell with a task in every state and a guest in each.
func populated(t failer) *bench {
	b := booted(t)
	for _, id := range []string{"ready", "leased", "abroad", "paused", "done", "dead", "cancelled"} {
		b.must(submit(id, func(r *meshv1.TaskRecord) { r.PayloadRef, r.PayloadBytes = []byte(id), 10 }))
	}
	b.must(submit("deferred", func(r *meshv1.TaskRecord) { r.NotBeforeMs = wallBase + hour }))
	b.must(local("leased", 1, "w1"))
	b.must(abroad("abroad", 1, "us-east-1"))
	for _, end := range [][2]string{{"paused", "retry"}, {"dead", "failed"}} {
		b.must(local(end[0], 1, "w1"))
		b.must(failure(end[0], 1, end[1]))
	}
	b.must(local("done", 1, "w1"))
	b.must(done("done", 1))
	b.must(&meshv1.Cancel{TaskId: "cancelled"})
	for _, id := range []string{"waits", "runs", "ended"} {
		b.must(visitor(id, 1))
	}
	b.must(&meshv1.GuestStart{TaskId: "runs", Attempt: 1, Worker: "w1"})
	b.must(&meshv1.GuestEnd{TaskId: "ended", Attempt: 1, Ended: ended("refused")})
	return b
}

// FuzzApply: whatever bytes come as a command, the machine does not panic, is
// left as its records say, and does the same twice.
func FuzzApply(f *testing.F) {
	b := populated(f)
	for _, m := range []proto.Message{
		submit("new", nil), keyed("keyed", "k", "a"), local("ready", 1, "w1"), abroad("ready", 1, "us-east-1"),
		&meshv1.Extend{Items: []*meshv1.ExtendItem{{TaskId: "leased", Attempt: 1, Holder: worker("w1"), TtlMs: second, Started: true}}},
		done("leased", 1), failure("leased", 1, "retry"), failure("abroad", 1, "refused"), &meshv1.Cancel{TaskId: "paused"},
		&meshv1.Tick{Limit: 3, ExpireLeases: true}, visitor("guest", 1), &meshv1.GuestStart{TaskId: "waits", Attempt: 1, Worker: "w"},
		&meshv1.GuestEnd{TaskId: "runs", Attempt: 1, Ended: ended("done")}, &meshv1.GuestForget{TaskId: "ended", Attempt: 1},
		&meshv1.Trim{Topic: "acme/resize/standard", Ref: []byte("a"), Outside: true}, &meshv1.TrimTold{Topic: "acme/resize/standard", Ref: []byte("a")},
		&meshv1.Moved{TaskId: "ready", OldRef: []byte("ready"), NewRef: []byte("z")},
		&meshv1.Bootstrap{Cell: "c", Incarnation: "i"}, &meshv1.Block{TaskId: "ready", Constraint: "x"},
		&meshv1.Complete{TaskId: "leased", Attempt: 1}, &meshv1.Fail{TaskId: "leased", Attempt: 1}, &meshv1.GuestEnd{TaskId: "runs", Attempt: 1},
		&meshv1.Accept{}, &meshv1.GuestAccept{}, &meshv1.Extend{Items: []*meshv1.ExtendItem{{}}},
	} {
		f.Add(b.encode(m))
	}
	f.Add([]byte("garbage"))
	f.Fuzz(func(t *testing.T, body []byte) {
		one, two := mount(t, b.store.Clone()), mount(t, b.store.Clone())
		before := one.replica.Hash()
		_, err := one.raw(body)
		one.check()
		_, again := two.raw(body)
		if (err == nil) != (again == nil) || one.replica.Hash() != two.replica.Hash() {
			t.Fatalf("applied twice: %v and %v", err, again)
		}
		if err != nil && one.replica.Hash() != before {
			t.Fatalf("refused (%v), but the state changed", err)
		}
		// What it left must be fit to live on.
		if lease, wall := ReadClocks(one.reader()); lease < maxMs-2*day && wall < maxMs-2*day {
			one.lease, one.wall = lease+day, wall+day
			one.tick()
		}
	})
}
