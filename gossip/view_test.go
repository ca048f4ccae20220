package gossip_test

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func merge(t *testing.T, v *gossip.View, d *meshv1.Digest, at time.Time) gossip.Outcome {
	t.Helper()
	out, err := v.Merge(d, at)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDeposedLeaderCannotOverwrite(t *testing.T) {
	t.Parallel()
	v := gossip.NewView()
	v.Accept("eu-north-1", "k3f9ab")
	for i, step := range []struct {
		term, sequence uint64
		want           gossip.Outcome
	}{
		{4, 100, gossip.Fresh},
		{4, 101, gossip.Fresh},
		{4, 100, gossip.Stale},
		{5, 1, gossip.Fresh},   // a new leader begins again at 1
		{4, 999, gossip.Stale}, // the old one goes on for a while
		{5, 2, gossip.Fresh},
	} {
		if got := merge(t, v, small("eu-north-1", step.term, step.sequence), start); got != step.want {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
	e, ok := v.Snapshot().Cell("eu-north-1")
	if !ok || e.Version() != (gossip.Version{Term: 5, Sequence: 2}) {
		t.Errorf("shown: %v", e.Version())
	}
}

func TestIncarnations(t *testing.T) {
	t.Parallel()
	v := gossip.NewView()
	old, restored := small("eu-north-1", 40, 7), small("eu-north-1", 1, 1)
	restored.Incarnation = "zzz999"

	if got := merge(t, v, old, start); got != gossip.Held {
		t.Fatalf("before Accept: %v", got)
	}
	if s := v.Snapshot(); len(s.Cells) != 0 || len(s.Held) != 1 || s.Held[0].Incarnation() != "k3f9ab" {
		t.Fatalf("an unverified incarnation is shown: %+v", s)
	}
	if !v.Accept("eu-north-1", "k3f9ab") || v.Accept("eu-north-1", "k3f9ab") || v.Accept("eu-north-1", "") {
		t.Fatal("Accept reports news wrongly")
	}
	if e, ok := v.Snapshot().Cell("eu-north-1"); !ok || e.Incarnation() != "k3f9ab" {
		t.Fatal("the held digest did not become the cell's")
	}
	// The restored cell is at term 1, the old incarnation was at 40.
	if got := merge(t, v, restored, start); got != gossip.Held {
		t.Fatalf("restored: %v", got)
	}
	if e, _ := v.Snapshot().Cell("eu-north-1"); e.Incarnation() != "k3f9ab" {
		t.Fatal("an unaccepted incarnation replaced the accepted one")
	}
	v.Accept("eu-north-1", "zzz999")
	if got := merge(t, v, old, start); got != gossip.Held {
		t.Fatalf("old after restore: %v", got)
	}
	e, ok := v.Snapshot().Cell("eu-north-1")
	if !ok || e.Incarnation() != "zzz999" || e.Version() != (gossip.Version{Term: 1, Sequence: 1}) {
		t.Fatalf("after restore: %v %v", e.Incarnation(), e.Version())
	}
	if inc, ok := v.Accepted("eu-north-1"); !ok || inc != "zzz999" {
		t.Errorf("accepted %q", inc)
	}
	if _, ok := v.Accepted("us-east-1"); ok {
		t.Error("an unknown cell has an incarnation")
	}
}

func TestHeldIsBounded(t *testing.T) {
	t.Parallel()
	v := gossip.NewView()
	for i := range 20 {
		d := small("eu-north-1", uint64(i+1), 1)
		d.Incarnation = fmt.Sprintf("inc%02d", i)
		merge(t, v, d, start)
	}
	held := v.Snapshot().Held
	if len(held) != 4 || held[0].Incarnation() != "inc16" {
		t.Errorf("held %d, first %q", len(held), held[0].Incarnation())
	}
}

func TestMergeKeepsTheEarliestReceipt(t *testing.T) {
	t.Parallel()
	v := gossip.NewView()
	v.Accept("eu-north-1", "k3f9ab")
	d := small("eu-north-1", 1, 1)
	merge(t, v, d, start.Add(2*time.Second))
	if got := merge(t, v, d, start); got != gossip.Stale {
		t.Errorf("the same digest again: %v", got)
	}
	merge(t, v, d, start.Add(9*time.Second))
	e, _ := v.Snapshot().Cell("eu-north-1")
	if got := e.Age(start.Add(10 * time.Second)); got != 10*time.Second {
		t.Errorf("age %v", got)
	}
	if got := e.Age(start.Add(-time.Hour)); got != 0 {
		t.Errorf("age by an earlier clock: %v", got)
	}
}

func TestMergeRefusesInvalid(t *testing.T) {
	t.Parallel()
	v := gossip.NewView()
	d := small("eu-north-1", 1, 1)
	d.Term = 0
	if _, err := v.Merge(d, start); !errors.Is(err, gossip.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if s := v.Snapshot(); len(s.Cells)+len(s.Held) != 0 {
		t.Error("it left a trace")
	}
}

// A digest that comes whole (in an offer's answer) and cut (by gossip) is one.
func TestMergeIsCanonical(t *testing.T) {
	t.Parallel()
	whole := fullest()
	b, _, err := gossip.Encode(whole)
	if err != nil {
		t.Fatal(err)
	}
	cut, err := gossip.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	v := gossip.NewView()
	v.Accept(mesh.CellID(whole.Cell), whole.Incarnation)
	if got := merge(t, v, whole, start); got != gossip.Fresh {
		t.Error(got)
	}
	if got := merge(t, v, cut, start); got != gossip.Stale {
		t.Errorf("the same digest, cut: %v", got)
	}
}

// The caller's message stays the caller's.
func TestMergeKeepsNothingOfTheArgument(t *testing.T) {
	t.Parallel()
	v := gossip.NewView()
	v.Accept("eu-north-1", "k3f9ab")
	d := small("eu-north-1", 1, 1)
	merge(t, v, d, start)
	d.Free.CpuMilli = 0
	if e, _ := v.Snapshot().Cell("eu-north-1"); e.Digest.Free.CpuMilli != 3000 {
		t.Error("the view changed with the argument")
	}
}

type receipt struct {
	digest *meshv1.Digest
	at     time.Time
}

// receipts draws digests from so few cells, incarnations and versions that
// they collide, some with equal version and other content.
func receipts(t *rapid.T) []receipt {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) receipt {
		d := small(rapid.SampledFrom([]string{"a-1", "b-1"}).Draw(t, "cell"),
			rapid.Uint64Range(1, 3).Draw(t, "term"), rapid.Uint64Range(1, 3).Draw(t, "sequence"))
		d.Incarnation = fmt.Sprint("i", rapid.IntRange(0, 6).Draw(t, "incarnation"))
		d.Leased = rapid.Uint64Range(0, 1).Draw(t, "leased")
		return receipt{d, start.Add(time.Duration(rapid.IntRange(0, 5).Draw(t, "at")) * time.Second)}
	}), 0, 24).Draw(t, "receipts")
}

type shown struct {
	cell, incarnation string
	version           gossip.Version
	encoded           string
	at                time.Time
}

func show(v *gossip.View) [2][]shown {
	var out [2][]shown
	s := v.Snapshot()
	for i, list := range [][]gossip.Entry{s.Cells, s.Held} {
		for _, e := range list {
			out[i] = append(out[i], shown{string(e.Cell()), e.Incarnation(), e.Version(), string(e.Encoded), e.At})
		}
	}
	return out
}

func viewOf(t *rapid.T, list ...[]receipt) *gossip.View {
	v := gossip.NewView()
	v.Accept("a-1", "i0")
	for _, l := range list {
		for _, r := range l {
			if _, err := v.Merge(r.digest, r.at); err != nil {
				t.Fatal(err)
			}
		}
	}
	return v
}

// relay makes a view of what another view shows, as a push/pull does.
func relay(t *rapid.T, into, from *gossip.View) {
	s := from.Snapshot()
	for _, e := range append(s.Cells, s.Held...) {
		if _, err := into.Merge(e.Digest, e.At); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMergeIsAJoin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := receipts(t), receipts(t), receipts(t)
		abc := viewOf(t, a, b, c)
		want := show(abc)

		if got := show(viewOf(t, c, a, b)); !reflect.DeepEqual(got, want) {
			t.Fatalf("not commutative:\n%v\n%v", want, got)
		}
		all := append(append(append([]receipt(nil), a...), b...), c...)
		if got := show(viewOf(t, rapid.Permutation(all).Draw(t, "order"))); !reflect.DeepEqual(got, want) {
			t.Fatalf("the order matters:\n%v\n%v", want, got)
		}
		// (a ⊔ b) ⊔ c = a ⊔ (b ⊔ c), each inner join made by another server.
		ab, bc := viewOf(t, a, b), viewOf(t, b, c)
		left, right := viewOf(t, c), viewOf(t, a)
		relay(t, left, ab)
		relay(t, right, bc)
		if l, r := show(left), show(right); !reflect.DeepEqual(l, want) || !reflect.DeepEqual(r, want) {
			t.Fatalf("not associative:\n%v\n%v\n%v", want, l, r)
		}
		relay(t, abc, abc)
		if got := show(abc); !reflect.DeepEqual(got, want) {
			t.Fatalf("not idempotent:\n%v\n%v", want, got)
		}
	})
}

// Whatever is received, the version shown never goes back.
func TestShownVersionsAreMonotone(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		v := viewOf(t)
		var last gossip.Version
		for _, r := range receipts(t) {
			out, err := v.Merge(r.digest, r.at)
			if err != nil {
				t.Fatal(err)
			}
			e, ok := v.Snapshot().Cell("a-1")
			if !ok {
				continue
			}
			if e.Version().Compare(last) < 0 {
				t.Fatalf("%v after %v", e.Version(), last)
			}
			last = e.Version()
			if out == gossip.Fresh && e.Cell() == mesh.CellID(r.digest.Cell) && !proto.Equal(e.Digest, r.digest) {
				t.Fatal("fresh, but another is shown")
			}
		}
	})
}
