package gossip

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// maxHeld bounds the unaccepted incarnations that are held for one cell: a cell
// has one, and a second for a while after a restore.
const maxHeld = 4

// Entry is one digest as it was received.
type Entry struct {
	// Digest is shared by every reader: it must not be changed.
	Digest *meshv1.Digest
	// Encoded is the digest as Encode gives it; it must not be changed.
	Encoded []byte
	// At is when this digest was first heard of, by the receiver's clock.
	At time.Time
}

// Cell is the cell the digest speaks of.
func (e Entry) Cell() mesh.CellID { return mesh.CellID(e.Digest.GetCell()) }

// Incarnation is the incarnation the digest speaks of.
func (e Entry) Incarnation() string { return e.Digest.GetIncarnation() }

// Version is the digest's version.
func (e Entry) Version() Version { return VersionOf(e.Digest) }

// Age is how long ago the digest was first heard of, at least zero. The cell
// said it some network time earlier.
func (e Entry) Age(now time.Time) time.Duration { return max(now.Sub(e.At), 0) }

// join returns the newer of two entries of one incarnation. It is the maximum
// of a total order (version, then bytes, then the earlier receipt), hence
// commutative, associative and idempotent. Two digests with one version should
// not exist; if they do, every server settles on the same one.
func join(a, b Entry) Entry {
	if a.compare(b) >= 0 {
		return a
	}
	return b
}

func (e Entry) compare(o Entry) int {
	if c := e.content(o); c != 0 {
		return c
	}
	return o.At.Compare(e.At)
}

// content is compare without the time of receipt.
func (e Entry) content(o Entry) int {
	if c := e.Version().Compare(o.Version()); c != 0 {
		return c
	}
	return bytes.Compare(e.Encoded, o.Encoded)
}

// Outcome is what a merge did.
type Outcome uint8

const (
	// Stale: the view knew this digest or a newer one.
	Stale Outcome = iota + 1
	// Fresh: the digest is now the cell's.
	Fresh
	// Held: the digest is new, but its incarnation is not accepted, so it is
	// kept aside until Accept.
	Held
)

func (o Outcome) String() string {
	switch o {
	case Stale:
		return "stale"
	case Fresh:
		return "fresh"
	case Held:
		return "held"
	default:
		return fmt.Sprintf("outcome(%d)", uint8(o))
	}
}

// View is what one server believes of every cell. It is not safe for concurrent
// use. Restored cells are new incarnations, whose terms begin again: versions
// are compared within one incarnation only, and which one a cell has is told by
// Accept, from the cell's certificate and its own answer, never by gossip.
type View struct {
	cells map[mesh.CellID]*cellView
}

type cellView struct {
	accepted string // "" while no incarnation is accepted
	current  Entry  // of the accepted incarnation; Digest is nil when none came
	held     map[string]Entry
}

// NewView returns a view that knows nothing.
func NewView() *View { return &View{cells: map[mesh.CellID]*cellView{}} }

func (v *View) cell(id mesh.CellID) *cellView {
	c := v.cells[id]
	if c == nil {
		c = &cellView{held: map[string]Entry{}}
		v.cells[id] = c
	}
	return c
}

// Merge takes in a digest received at the given time, from whomever. d is not
// kept. The error wraps ErrInvalid, and the view is then as before.
func (v *View) Merge(d *meshv1.Digest, at time.Time) (Outcome, error) {
	// Encoding first makes the stored form canonical: a digest that came whole
	// in an offer's answer and cut by gossip is one digest.
	encoded, _, err := Encode(d)
	if err != nil {
		return 0, err
	}
	canonical, err := Decode(encoded)
	if err != nil {
		return 0, err
	}
	e := Entry{Digest: canonical, Encoded: encoded, At: at}
	c := v.cell(e.Cell())
	if e.Incarnation() == c.accepted {
		return c.mergeCurrent(e), nil
	}
	return c.hold(e), nil
}

func (c *cellView) mergeCurrent(e Entry) Outcome {
	old := c.current
	if old.Digest == nil {
		c.current = e
		return Fresh
	}
	c.current = join(old, e)
	if e.content(old) > 0 {
		return Fresh
	}
	return Stale
}

// hold keeps e aside; of too many incarnations the lowest is dropped, so that
// what is kept does not depend on the order of arrival.
func (c *cellView) hold(e Entry) Outcome {
	out := Held
	if old, ok := c.held[e.Incarnation()]; ok {
		if e.content(old) <= 0 {
			out = Stale
		}
		e = join(old, e)
	}
	c.held[e.Incarnation()] = e
	if len(c.held) <= maxHeld {
		return out
	}
	lowest := slices.MinFunc(slices.Collect(maps.Values(c.held)), heldOrder)
	delete(c.held, lowest.Incarnation())
	if lowest.Incarnation() == e.Incarnation() {
		return Stale
	}
	return out
}

func heldOrder(a, b Entry) int {
	if c := a.Version().Compare(b.Version()); c != 0 {
		return c
	}
	return cmp.Compare(a.Incarnation(), b.Incarnation())
}

// Accept says which incarnation a cell has now, and reports whether that is
// news. A digest held for it is shown from now on; those of any other
// incarnation, also the one accepted before, are forgotten.
func (v *View) Accept(cell mesh.CellID, incarnation string) bool {
	c := v.cell(cell)
	if c.accepted == incarnation || incarnation == "" {
		return false
	}
	c.accepted, c.current = incarnation, c.held[incarnation]
	c.held = map[string]Entry{}
	return true
}

// Accepted returns the incarnation accepted for a cell.
func (v *View) Accepted(cell mesh.CellID) (incarnation string, ok bool) {
	c := v.cells[cell]
	if c == nil || c.accepted == "" {
		return "", false
	}
	return c.accepted, true
}

// Snapshot is a view at one moment. It is safe for concurrent use; its entries
// are shared and must not be changed.
type Snapshot struct {
	// Cells with an accepted incarnation and a digest of it, sorted by cell.
	Cells []Entry
	// Held are digests of incarnations that are not accepted, sorted by cell,
	// then incarnation. Ask the cell itself, then Accept what it answers. After
	// a restore the old incarnation stays here, since peers still tell of it:
	// ask once for each.
	Held []Entry
}

// Snapshot returns the view as it is.
func (v *View) Snapshot() Snapshot {
	var s Snapshot
	for _, id := range slices.Sorted(maps.Keys(v.cells)) {
		c := v.cells[id]
		if c.current.Digest != nil {
			s.Cells = append(s.Cells, c.current)
		}
		for _, inc := range slices.Sorted(maps.Keys(c.held)) {
			s.Held = append(s.Held, c.held[inc])
		}
	}
	return s
}

// Cell returns the entry of one cell.
func (s Snapshot) Cell(id mesh.CellID) (Entry, bool) {
	i, ok := slices.BinarySearchFunc(s.Cells, id, func(e Entry, id mesh.CellID) int {
		return cmp.Compare(e.Cell(), id)
	})
	if !ok {
		return Entry{}, false
	}
	return s.Cells[i], true
}
