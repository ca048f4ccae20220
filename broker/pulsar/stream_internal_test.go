package pulsar

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/broker"
)

// Positions order as the places they are of, and come back to them; those of a
// topic made later lie above.
func TestPositions(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		made := positionsSince().Add(time.Duration(rapid.Int64Range(0, 30*365*86400).Draw(t, "made")) * time.Second)
		first := rapid.Int64Range(0, 1<<40).Draw(t, "first ledger")
		b := newBase(made, first)
		draw := func(name string) place {
			return place{
				ledger: first + rapid.Int64Range(0, 1<<20).Draw(t, name+" ledger"),
				entry:  rapid.Int64Range(0, 1<<entryBits-1).Draw(t, name+" entry"), batch: rapid.Int32Range(0, 1<<batchBits-1).Draw(t, name+" batch"),
			}
		}
		p, q := draw("p"), draw("q")
		at, err := b.position(p)
		other, err2 := b.position(q)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if b.place(at) != p {
			t.Fatalf("%+v comes back as %+v", p, b.place(at))
		}
		if (at < other) != p.less(q) {
			t.Fatalf("%+v is at %d, %+v at %d", p, at, q, other)
		}
		age := time.Duration((p.ledger-first)/ledgersPerSecond+1) * time.Second
		if again, err := newBase(made.Add(age), 0).position(place{}); err != nil || again <= at {
			t.Fatalf("made again %v later it begins at %d, which is not above %d; %v", age, again, at, err)
		}
	})
	for _, bad := range []place{{ledger: 1, entry: 1 << entryBits}, {ledger: 1, batch: 1 << batchBits}, {ledger: 1 << 32}} {
		if at, err := base(0).position(bad); err == nil {
			t.Errorf("%+v has position %d", bad, at)
		}
	}
}

// The index bounds what is searched for, whatever of it was dropped.
func TestIndex(t *testing.T) {
	t.Parallel()
	var x index
	var all []mark
	at := broker.Position(100)
	for i := range 3 * marksMost {
		at += broker.Position(1 + i%3)
		all = append(all, x.add(at, int64(i/7), i%5))
	}
	if len(x.marks) > marksMost || x.spacing < 2 {
		t.Fatalf("%d marks, spacing %d", len(x.marks), x.spacing)
	}
	x.forget(all[5000].at)
	for _, want := range []int{5000, 5001, 7777, len(all) - 1} {
		before, hit, sure := x.around(func(m mark) bool { return m.at >= all[want].at })
		if sure && hit != all[want] || before.at > all[want].at || hit.at < all[want].at {
			t.Errorf("message %d, %+v, is looked for between %+v and %+v", want, all[want], before, hit)
		}
	}
	if _, hit, _ := x.around(func(mark) bool { return false }); hit != x.end || hit.messages != uint64(len(all)) {
		t.Errorf("what is not there is at %+v", hit)
	}
}

// Of the newest messages the window knows the IDs, and no others.
func TestWindow(t *testing.T) {
	t.Parallel()
	w := newWindow()
	const n = 2*broker.DedupWindow + 17
	for i := range n {
		name := fmt.Sprint(i)
		if i%10 == 0 {
			name = "" // another's
		}
		w.read(broker.Position(i), name)
	}
	if len(w.order) != broker.DedupWindow || w.from(0) != n-broker.DedupWindow {
		t.Errorf("%d in order, from %d", len(w.order), w.from(0))
	}
	for i, want := range map[int]bool{n - 1: true, n - broker.DedupWindow + 4: true, n - broker.DedupWindow - 1: false, 1: false} {
		if got := w.ids[w.hash.id(fmt.Sprint(i))] != nil; got != want {
			t.Errorf("message %d is known: %t, want %t", i, got, want)
		}
	}
	if len(w.ids) > broker.DedupWindow {
		t.Errorf("%d IDs are known, at most %d", len(w.ids), broker.DedupWindow)
	}
}
