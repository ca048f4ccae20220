package groups

import (
	"reflect"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// A cursor comes back as it was stored.
func TestCursorColumns(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := &Cursor{Next: rapid.Uint64().Draw(t, "next"), Deliveries: rapid.Uint64().Draw(t, "deliveries"), dueLeaseMs: rapid.Int64Min(0).Draw(t, "due")}
		at := rapid.Uint64Max(1<<62).Draw(t, "first")
		for range rapid.IntRange(0, 20).Draw(t, "pending") {
			c.Pending = append(c.Pending, Pending{
				Read:     Read{Position: at, Key: rapid.StringN(0, 5, 20).Draw(t, "key"), Size: rapid.Uint64().Draw(t, "size")},
				Delivery: rapid.Uint64().Draw(t, "delivery"), Attempts: rapid.Uint32().Draw(t, "attempts"),
				Session:      rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "session"),
				UntilLeaseMs: rapid.Int64Min(0).Draw(t, "until"), NotBeforeLeaseMs: rapid.Int64Min(0).Draw(t, "not before"),
			})
			at += rapid.Uint64Range(1, 1<<50).Draw(t, "on")
		}
		b, err := proto.Marshal(c.record())
		if err != nil {
			t.Fatal(err)
		}
		if got := parseCursor(nil, b); !reflect.DeepEqual(got, c) {
			t.Fatalf("%+v comes back as %+v", c, got)
		}
	})
}

// What no leader has written is refused, and breaks nothing.
func TestBadColumns(t *testing.T) {
	t.Parallel()
	good := func() *meshv1.StreamReads { return Columns([]Read{{1, "a", 2}, {3, "bc", 4}}) }
	for name, spoil := range map[string]func(*meshv1.StreamReads){
		"a size less":       func(c *meshv1.StreamReads) { c.Sizes = c.Sizes[1:] },
		"a length less":     func(c *meshv1.StreamReads) { c.KeyLengths = c.KeyLengths[1:] },
		"a position less":   func(c *meshv1.StreamReads) { c.Positions = c.Positions[1:] },
		"keys left over":    func(c *meshv1.StreamReads) { c.Keys += "d" },
		"keys too short":    func(c *meshv1.StreamReads) { c.Keys = "a" },
		"a long key":        func(c *meshv1.StreamReads) { c.KeyLengths[0] = 1 << 31 },
		"the same position": func(c *meshv1.StreamReads) { c.Positions[1] = 0 },
		"a position beyond": func(c *meshv1.StreamReads) { c.Positions[1] = 1<<64 - 1 },
	} {
		c := good()
		if reads, ok := rows(c); !ok || len(reads) != 2 || reads[1] != (Read{3, "bc", 4}) {
			t.Fatalf("%+v, %t", reads, ok)
		}
		spoil(c)
		if reads, ok := rows(c); ok {
			t.Errorf("%s: taken as %+v", name, reads)
		}
	}
	for name, spoil := range map[string]func(*meshv1.CursorRecord){
		"a delivery less":     func(c *meshv1.CursorRecord) { c.Delivery = nil },
		"attempts less":       func(c *meshv1.CursorRecord) { c.Attempts = nil },
		"a session less":      func(c *meshv1.CursorRecord) { c.Session = nil },
		"an unknown session":  func(c *meshv1.CursorRecord) { c.Session[0] = 2 },
		"an end less":         func(c *meshv1.CursorRecord) { c.UntilLeaseMs = nil },
		"a pause less":        func(c *meshv1.CursorRecord) { c.NotBeforeLeaseMs = nil },
		"messages left out":   func(c *meshv1.CursorRecord) { c.Pending = nil },
		"columns that differ": func(c *meshv1.CursorRecord) { c.Pending.Sizes = nil },
	} {
		rec := (&Cursor{Pending: []Pending{{Session: "s"}}}).record()
		spoil(rec)
		if cur, ok := cursorOf(rec); ok {
			t.Errorf("%s: taken as %+v", name, cur)
		}
	}
}

// Positions come back as they were written, and what is not ascending is refused.
func TestAscending(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfDistinct(rapid.Uint64(), rapid.ID).Draw(t, "positions")
		slices.Sort(want)
		if got, ok := ascending(Ascending(want)); !ok || !slices.Equal(got, want) {
			t.Fatalf("%v comes back as %v, %t", want, got, ok)
		}
	})
	for _, bad := range [][]uint64{{3, 0}, {3, 1<<64 - 3}} {
		if got, ok := ascending(bad); ok {
			t.Errorf("%v is taken as %v", bad, got)
		}
	}
}
