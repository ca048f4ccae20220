package groups_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// place is a message of the stream.
type place struct {
	p  uint32
	at uint64
}

// given is a delivery that some session has, or had.
type given struct {
	place
	number  uint64
	session string
}

// world drives a group as consumers and leaders do, and keeps its own account
// of what each message has been through.
type world struct {
	*cell
	rec       *meshv1.StreamRecord
	sessions  []string
	given     []given
	newest    map[place]given
	delivered map[place]int
	done      map[place]bool // acknowledged or dead
	next      int            // of the names of sessions
}

func (w *world) settled(at place) bool { return w.done[at] || at.at < w.first[at.p] }

// take delivers and checks the order that the stream declares.
func (w *world) take(session string, p uint32, limit int) {
	list, err := w.deliver("g", session, p, limit)
	if err != nil {
		return // not its partition, or the former owner still holds some
	}
	ahead := -1
	for _, d := range list {
		at := place{p, d.Position}
		key := w.keys[p][d.Position]
		if w.done[at] {
			w.t.Fatalf("%v was settled, and is delivered again", at)
		}
		if int(d.Position) <= ahead {
			w.t.Fatalf("%v is delivered behind %d", at, ahead)
		}
		ahead = int(d.Position)
		for q := w.first[p]; q < d.Position && !w.rec.Relaxed; q++ {
			if w.keys[p][q] == key && !w.settled(place{p, q}) {
				w.t.Fatalf("strict: %v of key %s is delivered before %d is acknowledged", at, key, q)
			}
		}
		if w.delivered[at]++; int(d.Attempt) != w.delivered[at] {
			w.t.Fatalf("%v: attempt %d, it was delivered %d times", at, d.Attempt, w.delivered[at])
		}
		if limit := int(w.rec.MaxDeliveries); limit > 0 && w.delivered[at] > limit {
			w.t.Fatalf("%v was delivered %d times", at, w.delivered[at])
		}
		g := given{at, d.Number, session}
		if old := w.newest[at]; old.number >= d.Number {
			w.t.Fatalf("%v: delivery %d after %d", at, d.Number, old.number)
		}
		w.newest[at] = g
		w.given = append(w.given, g)
	}
}

func (w *world) acknowledge(g given, action string, cumulative bool) {
	inHand := slices.ContainsFunc(groups.ReadCursor(w.state(), group("g"), g.p).Pending, func(m groups.Pending) bool {
		return m.Position == g.at && m.UntilLeaseMs > 0
	})
	verdicts, err := w.ack("g", g.session, &meshv1.GroupAckItem{Partition: g.p, Position: g.at, Delivery: g.number, Action: action, Cumulative: cumulative})
	if err != nil {
		w.t.Fatal(err)
	}
	counts := w.newest[g.place] == g && !w.settled(g.place) && (action != "extend" || inHand)
	if (verdicts[0] == groups.Accepted) != counts {
		w.t.Fatalf("%s of %+v is %s; its newest is %+v, settled %v", action, g, verdicts[0], w.newest[g.place], w.settled(g.place))
	}
	if counts && action == "ack" {
		w.done[g.place] = true
		for at, of := range w.newest {
			if cumulative && at.p == g.p && at.at <= g.at && of.session == g.session {
				w.done[at] = true
			}
		}
	}
	w.bury()
}

func (w *world) dead() map[place]bool {
	out := map[place]bool{}
	for d := range groups.DeadLetters(w.state(), group("g")) {
		out[place{d.Partition, d.Position}] = true
	}
	return out
}

// bury takes note of dead letters, which must have had all their deliveries.
func (w *world) bury() {
	for at := range w.dead() {
		if !w.done[at] && w.delivered[at] != int(w.rec.MaxDeliveries) {
			w.t.Fatalf("%v is dead after %d deliveries of %d", at, w.delivered[at], w.rec.MaxDeliveries)
		}
		w.done[at] = true
	}
}

func (w *world) step(t *rapid.T) {
	p := uint32(rapid.IntRange(0, int(w.rec.Partitions)-1).Draw(t, "partition"))
	switch verb := rapid.SampledFrom([]string{"publish", "join", "leave", "deliver", "deliver", "deliver", "ack", "ack", "cumulative", "retry", "extend", "time", "trim", "renew"}).Draw(t, "verb"); verb {
	case "publish":
		for range rapid.IntRange(1, 8).Draw(t, "n") {
			w.keys[p] = append(w.keys[p], rapid.SampledFrom([]string{"a", "b", "c", ""}).Draw(t, "key"))
		}
	case "join":
		if len(w.sessions) < 6 {
			w.next++
			w.enter(fmt.Sprint("s", w.next))
		}
	case "leave":
		if len(w.sessions) > 0 {
			s := rapid.SampledFrom(w.sessions).Draw(t, "session")
			if _, err := w.leave("g", s); err != nil {
				w.t.Fatal(err)
			}
			w.sessions = slices.DeleteFunc(w.sessions, func(x string) bool { return x == s })
			w.bury()
		}
	case "deliver":
		if len(w.sessions) > 0 {
			w.unread = max(0, rapid.IntRange(-3, 3).Draw(t, "unread"))
			w.take(rapid.SampledFrom(w.sessions).Draw(t, "session"), p, rapid.IntRange(1, 5).Draw(t, "max"))
			w.unread = 0
		}
	case "ack", "cumulative", "retry", "extend":
		if len(w.given) > 0 {
			g := rapid.SampledFrom(w.given).Draw(t, "delivery")
			if verb == "cumulative" {
				w.acknowledge(g, "ack", true)
			} else {
				w.acknowledge(g, verb, false)
			}
		}
	case "renew":
		if len(w.sessions) > 0 {
			if _, err := w.renew("g", w.sessions...); err != nil {
				w.t.Fatal(err)
			}
		}
	case "time":
		w.pass(time.Duration(rapid.IntRange(1, 20_000).Draw(t, "ms")) * time.Millisecond)
	case "trim":
		if end := len(w.keys[p]); end > 0 && rapid.IntRange(0, 3).Draw(t, "really") == 0 {
			if err := w.trim(p, uint64(rapid.IntRange(0, end).Draw(t, "first"))); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.audit()
}

func (w *world) enter(session string) {
	if _, err := w.join("g", session); err != nil {
		w.t.Fatal(err)
	}
	w.sessions = append(w.sessions, session)
}

// pass lets lease time pass: sessions and visibility timeouts end.
func (w *world) pass(d time.Duration) {
	w.lease += d
	if _, err := w.tick(); err != nil {
		w.t.Fatal(err)
	}
	w.sessions = nil
	if grp, ok := groups.ReadGroup(w.state(), group("g")); ok {
		for _, m := range grp.Members {
			w.sessions = append(w.sessions, m.Session)
		}
	}
	w.bury()
}

// drain is a consumer that works: what is left is delivered and acknowledged.
func (w *world) drain() {
	w.pass(time.Minute) // all who held something are gone
	w.enter("last")
	for range 10_000 {
		progress := false
		for p := range w.rec.Partitions {
			before := len(w.given)
			w.take("last", p, 7)
			for _, g := range w.given[before:] {
				w.acknowledge(g, "ack", false)
				progress = true
			}
		}
		if _, err := w.renew("g", "last"); err != nil {
			w.t.Fatal(err)
		}
		w.pass(time.Second) // pauses pass
		if !progress && w.open() == 0 {
			return
		}
	}
	w.t.Fatalf("%d messages were never settled", w.open())
}

// open counts the messages kept that the group has not settled.
func (w *world) open() int {
	n := 0
	for p, keys := range w.keys {
		for at := range keys {
			if !w.settled(place{p, uint64(at)}) {
				n++
			}
		}
	}
	return n
}

// TestAnySequence: whatever consumers, leaders and time do, every message that
// is kept is delivered, in the declared order, until it is acknowledged or dead.
func TestAnySequence(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := &world{cell: newCell(t), newest: map[place]given{}, delivered: map[place]int{}, done: map[place]bool{}}
		w.rec = &meshv1.StreamRecord{
			Partitions: uint32(rapid.IntRange(1, 3).Draw(t, "partitions")), Relaxed: rapid.Bool().Draw(t, "relaxed"),
			MaxDeliveries: uint32(rapid.SampledFrom([]int{0, 0, 1, 3}).Draw(t, "max")), VisibilityMs: 5_000,
		}
		if _, err := w.create(w.rec); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(5, 80).Draw(t, "steps") {
			w.step(t)
		}
		w.drain()
		for p, keys := range w.keys {
			for at := int(w.first[p]); at < len(keys); at++ {
				if w.delivered[place{p, uint64(at)}] == 0 {
					t.Fatalf("%d/%d was never delivered", p, at)
				}
			}
		}
		if w.replay().Hash() != w.replica.Hash() {
			t.Fatal("a replay in other entries gives another state")
		}
	})
}

// TestAssign: shares differ by one at most, and no other choice moves fewer
// partitions.
func TestAssign(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var sessions, before []string
		for i := range rapid.IntRange(0, 5).Draw(t, "members") {
			sessions = append(sessions, fmt.Sprint("s", i))
		}
		for range rapid.IntRange(1, 6).Draw(t, "partitions") {
			before = append(before, rapid.SampledFrom([]string{"", "gone", "s0", "s1", "s2", "s3", "s4"}).Draw(t, "owner"))
		}
		got := groups.Assign(sessions, before)
		if len(sessions) == 0 {
			if !slices.Equal(got, make([]string, len(before))) {
				t.Fatalf("nobody has %v", got)
			}
			return
		}
		if !balanced(sessions, got) {
			t.Fatalf("%v have %v", sessions, got)
		}
		best := len(before) + 1
		eachShare(sessions, len(before), func(owners []string) {
			if balanced(sessions, owners) {
				best = min(best, moves(before, owners))
			}
		})
		if moves(before, got) != best {
			t.Fatalf("from %v to %v moves %d, %d would do", before, got, moves(before, got), best)
		}
	})
}

func balanced(sessions, owners []string) bool {
	n := map[string]int{}
	for _, o := range owners {
		n[o]++
	}
	low := slices.MinFunc(sessions, func(a, b string) int { return cmp.Compare(n[a], n[b]) })
	high := slices.MaxFunc(sessions, func(a, b string) int { return cmp.Compare(n[a], n[b]) })
	return n[high]-n[low] <= 1
}

func moves(before, after []string) int {
	n := 0
	for i := range before {
		if before[i] != after[i] {
			n++
		}
	}
	return n
}

// eachShare calls f with every way to give n partitions to the sessions.
func eachShare(sessions []string, n int, f func([]string)) {
	owners := make([]string, n)
	var fill func(int)
	fill = func(i int) {
		if i == n {
			f(owners)
			return
		}
		for _, s := range sessions {
			owners[i] = s
			fill(i + 1)
		}
	}
	fill(0)
}

// FuzzApply: no bytes make the machine panic or leave half a command.
func FuzzApply(f *testing.F) {
	c := newCell(f)
	if _, err := c.create(&meshv1.StreamRecord{Partitions: 2}); err != nil {
		f.Fatal(err)
	}
	if _, err := c.join("g", "s1"); err != nil {
		f.Fatal(err)
	}
	for _, g := range c.log {
		f.Add(g[3:])
	}
	f.Fuzz(func(t *testing.T, command []byte) {
		c := newCell(t)
		if _, err := c.create(&meshv1.StreamRecord{Partitions: 2}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.join("g", "s1"); err != nil {
			t.Fatal(err)
		}
		before := c.replica.Hash()
		if _, err := c.raw(command); err != nil && c.replica.Hash() != before {
			t.Fatal("a refused command changed the state")
		}
		c.audit()
	})
}
