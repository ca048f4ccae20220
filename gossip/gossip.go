// Package gossip holds what cells say of themselves and what a cell believes of
// the others: the digest and its encoding, the view in which digests meet, and
// the home's own correction of a digest that is older than its last placements.
//
// It is pure: no clock, no I/O, no goroutine, no lock. Time comes in as data.
// It never decides where work runs, and nothing of it enters replicated state:
// what is known by gossip is stale by nature, and the guest that is asked is
// the one that knows. Package pool carries digests between servers.
//
// # Guarantees
//
//   - An encoded digest is at most MaxEncoded bytes, so that it fits one UDP
//     packet beside the headers of the pool. What is cut for that, and in which
//     order, is fixed: see Encode.
//   - View is a join: the same digests in any order, any number of times, give
//     the same view. Loss, duplication and reordering are harmless.
//   - A digest of an older term never replaces one of a later term, so a deposed
//     leader cannot overwrite its successor.
//   - A digest of an incarnation that was not accepted is held apart and is
//     never shown as the cell's.
//
// # The digest's type
//
// A digest is the generated meshv1.Digest and not a second Go struct beside it:
// the same message travels by gossip, in the answer to an offer and in the
// answer to an extend, so one type means one form, one size rule and no field
// that a copy forgot. The generated code is used as data only. The functions
// here turn its integers into the words of package mesh.
package gossip

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// MaxEncoded is the size of the largest encoded digest, in bytes.
const MaxEncoded = 1100

// Bounds of the fields that are never cut. With them the part of a digest that
// must arrive always fits into MaxEncoded.
const (
	MaxCellName    = 48 // bytes of a cell's name
	MaxRegionName  = 40 // bytes of a region's name
	MaxIncarnation = 24 // bytes of an incarnation
	MaxZoneName    = 32 // bytes of a carbon zone's name
	MaxHealth      = 64 // bytes of a health reason; a longer one is shortened
	MaxRuntimes    = 6  // runtimes of a cell
	MaxRuntimeName = 12 // bytes of a runtime's name
	// MaxModels accelerator models, each with a name of at most MaxModelName
	// bytes, are never cut.
	MaxModels    = 8
	MaxModelName = 32
)

// ErrInvalid is returned for a digest that no cell may publish: a name is
// missing or too long, or a quantity makes no sense.
var ErrInvalid = errors.New("invalid digest")

// ErrTooLarge is returned for encoded bytes above MaxEncoded.
var ErrTooLarge = errors.New("digest too large")

// Version orders the digests of one incarnation of one cell.
type Version struct {
	Term     uint64 // Raft term of the leader that published
	Sequence uint64 // counted by that leader, from 1
}

// VersionOf returns the version a digest claims.
func VersionOf(d *meshv1.Digest) Version {
	return Version{Term: d.GetTerm(), Sequence: d.GetSequence()}
}

// Compare orders versions: a later term is newer, then a later sequence. It
// returns -1, 0 or +1 as cmp.Compare does.
func (v Version) Compare(o Version) int {
	if c := cmp.Compare(v.Term, o.Term); c != 0 {
		return c
	}
	return cmp.Compare(v.Sequence, o.Sequence)
}

// Next is the version that the same leader publishes after v.
func (v Version) Next() Version { return Version{Term: v.Term, Sequence: v.Sequence + 1} }

// Key is how a digest names a thing whose name is long: the first 8 bytes of
// the name's SHA-256, big endian. Warm holds the keys of "function/variant",
// MissingCode those of function version digests.
func Key(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint64(sum[:8])
}
