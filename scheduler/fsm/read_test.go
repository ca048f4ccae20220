package fsm

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

func TestReadersGoOnFromAnID(t *testing.T) {
	t.Parallel()
	b := booted(t)
	for _, id := range []string{"t1", "t2", "t3", "t30"} {
		b.must(submit(id, nil))
	}
	q := Queue{Tenant: "acme", Function: "resize", Lane: mesh.Standard}
	for from, want := range map[string][]string{
		"": {"t1", "t2", "t3", "t30"}, "t2": {"t3", "t30"}, "t3": {"t30"}, "t30": nil,
	} {
		if got := slices.Collect(Ready(b.reader(), q, from)); !slices.Equal(got, want) {
			t.Errorf("ready after %q: %v, want %v", from, got, want)
		}
		var tasks []string
		for rec := range Tasks(b.reader(), from) {
			tasks = append(tasks, rec.Id)
		}
		if !slices.Equal(tasks, want) {
			t.Errorf("tasks after %q: %v, want %v", from, tasks, want)
		}
	}
	for range Tasks(b.reader(), "") {
		break // a reader may stop
	}
	for range Ready(b.reader(), q, "") {
		break
	}
	for range Queues(b.reader()) {
		break
	}
}

// A payload outside a range is needed until its task has ended, whichever side it
// lies on; a dead letter's is not.
func TestNeeded(t *testing.T) {
	t.Parallel()
	b := booted(t)
	for id, ref := range map[string]string{"t1": "5a", "t2": "7a"} {
		b.must(submit(id, func(r *meshv1.TaskRecord) { r.PayloadRef = []byte(ref) }))
	}
	check := func(low, high, want string) {
		t.Helper()
		id, topic, ok := Needed(b.reader(), []byte(low), []byte(high))
		if ok != (want != "") || id != want || ok && topic != "acme/resize/standard" {
			t.Errorf("outside [%s, %s) %q of %q is needed, want %q", low, high, id, topic, want)
		}
	}
	check("", "", "t1")
	check("5", "8", "")
	check("5", "6", "t2")
	check("6", "8", "t1")
	b.must(local("t1", 1, "w1"))
	check("6", "8", "t1")
	b.must(failure("t1", 1, "failed"))
	b.inState("t1", dead)
	check("6", "8", "")
	check("", "", "t2")
}

// A queue whose names begin another's is not mixed with it.
func TestQueuesKeepApart(t *testing.T) {
	t.Parallel()
	b := booted(t)
	for i, names := range [][2]string{{"a", "bc"}, {"ab", "c"}, {"a", "b"}, {"a", "b/c"}, {"a", ""}} {
		b.must(submit("t"+string(rune('0'+i)), func(r *meshv1.TaskRecord) {
			r.Tenant, r.Function, r.PayloadRef = names[0], names[1], []byte("1")
		}))
	}
	topics := map[string]bool{}
	for q := range Queues(b.reader()) {
		if ids := slices.Collect(Ready(b.reader(), q, "")); len(ids) != 1 {
			t.Errorf("queue %s holds %v", q, ids)
		}
		topics[q.String()] = true
		if back, ok := ParseTopic(q.String()); !ok || back != q {
			t.Errorf("topic %s is read as %v", q, back)
		}
		if id, ok := PayloadOwner(b.reader(), q.String(), []byte("1")); !ok || QueueOf(b.task(id)) != q {
			t.Errorf("the payload of queue %s is %s's", q, id)
		}
	}
	if len(topics) != 5 {
		t.Errorf("five queues have the topics %v", topics)
	}
	b.refused(submit("t9", func(r *meshv1.TaskRecord) { r.Tenant = "a/b" }), ErrBadCommand)
	b.refused(submit("t9", func(r *meshv1.TaskRecord) { r.Tenant = "a\x00b" }), ErrBadCommand)
	b.refused(submit("t9", func(r *meshv1.TaskRecord) { r.Function = "a\x00b" }), ErrBadCommand)
	b.refused(submit("t9", func(r *meshv1.TaskRecord) { r.Lane = 4 }), ErrBadCommand)
}

// Due says no only when a tick would do nothing.
func TestDueForesees(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		b := booted(t)
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			jump(t, b)
			_, _ = b.do(anyCommand(t, b))
			expire := rapid.Bool().Draw(t, "expire")
			b.lease, b.wall = ReadClocks(b.reader())
			due := Due(b.reader(), b.lease, b.wall, expire)
			first, leases := FirstLeaseEnd(b.reader())
			if ended := expire && leases && first <= b.lease; due != (ended || DueByCalendar(b.reader(), b.wall)) {
				t.Fatalf("due %v; by leases %v", due, ended)
			}
			before := b.replica.Hash()
			b.must(&meshv1.Tick{ExpireLeases: expire})
			if changed := b.replica.Hash() != before; changed != due {
				t.Fatalf("due %v, but the tick changed something: %v", due, changed)
			}
			out := false
			for _, k := range b.keys() {
				out = out || k[1] == 'l' || k[1] == 'm'
			}
			if out && !leases {
				t.Fatal("a lease is out, and FirstLeaseEnd does not say so")
			}
		}
	})
}
