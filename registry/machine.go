package registry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
)

// MaxAhead is how far a document's version may be ahead of the clock of the
// leader that merges it.
const MaxAhead = time.Minute

// ErrUnknownCommand: a command that this release does not know.
var ErrUnknownCommand = errors.New("unknown command")

// Merged is the result of a Merge command.
type Merged struct {
	// Changed are the documents that are new, replaced or acknowledged further,
	// as they now are, in the order of the command. They must not be changed.
	Changed []*meshv1.Document
	// Refused are those that were not merged.
	Refused []Refused
}

// Refused is a document that was not merged, and why: ErrMalformed, ErrFuture
// or ErrImmutable.
type Refused struct {
	Kind string
	Name string
	Err  error
}

// Forgotten is the result of a Forget command.
type Forgotten struct {
	// Dropped is false when there is no such tombstone at that version (any
	// more).
	Dropped bool
}

// Machine is the registry's part of the cell's state. It is pure, has no state
// of its own, and its zero value is ready.
//
// Its keys:
//
//	d kind 0x00 name   isobar.mesh.v1.Document
//	s                  summary: hash and number of documents, highest version
type Machine struct{}

var _ state.Machine = Machine{}

// Apply applies one isobar.mesh.v1.RegistryCommand. The result is a Merged or
// a Forgotten; the error, which rejects the group, is ErrUnknownCommand or that
// of decoding. It panics when its own documents in tx cannot be read: to go on
// would let this server's state part from the others'.
func (Machine) Apply(tx state.Tx, command []byte) (any, error) {
	var c meshv1.RegistryCommand
	if err := proto.Unmarshal(command, &c); err != nil {
		return nil, fmt.Errorf("registry: apply: %w", err)
	}
	switch c := c.GetCommand().(type) {
	case *meshv1.RegistryCommand_Merge:
		return applyMerge(tx, c.Merge), nil
	case *meshv1.RegistryCommand_Forget:
		return applyForget(tx, c.Forget), nil
	default:
		return nil, fmt.Errorf("registry: apply: %w", ErrUnknownCommand)
	}
}

func applyMerge(tx state.Tx, m *meshv1.Merge) Merged {
	var res Merged
	sum := mustSummary(tx)
	before := sum
	latest := m.GetNowMs()
	if latest <= math.MaxInt64-MaxAhead.Milliseconds() {
		latest += MaxAhead.Milliseconds()
	}
	for _, d := range m.GetDocuments() {
		err := check(d)
		if err == nil && d.GetVersion().GetWallMs() > latest {
			err = ErrFuture
		}
		if err != nil {
			res.Refused = append(res.Refused, Refused{Kind: d.GetKind(), Name: d.GetName(), Err: err})
			continue
		}
		if CompareVersions(d.GetVersion(), sum.clock) > 0 {
			sum.clock = d.GetVersion()
		}
		old := mustDocument(tx, d.GetKind(), d.GetName())
		joined := join(d, old)
		if joined == old {
			continue
		}
		if old != nil {
			sum.remove(old)
		}
		sum.add(joined)
		setDocument(tx, joined)
		res.Changed = append(res.Changed, joined)
	}
	if sum != before {
		tx.Set(summaryKey(), sum.encode())
	}
	return res
}

func applyForget(tx state.Tx, f *meshv1.Forget) Forgotten {
	old := mustDocument(tx, f.GetKind(), f.GetName())
	if !old.GetDeleted() || CompareVersions(old.GetVersion(), f.GetVersion()) != 0 {
		return Forgotten{}
	}
	sum := mustSummary(tx)
	sum.remove(old)
	tx.Delete(documentKey(f.GetKind(), f.GetName()))
	tx.Set(summaryKey(), sum.encode())
	return Forgotten{Dropped: true}
}

// summary is kept as documents come and go.
type summary struct {
	// hash is the sum, modulo 2^64, of the documents' hashes: of a set, in any
	// order, and without going over it.
	hash  uint64
	count uint64
	// clock is the highest version ever merged; an edit must exceed it.
	clock *meshv1.Version
}

func (s *summary) add(d *meshv1.Document) {
	s.hash += hashDocument(d)
	s.count++
}

func (s *summary) remove(d *meshv1.Document) {
	s.hash -= hashDocument(d)
	s.count--
}

const summaryV1 = 1

func (s summary) encode() []byte {
	b := binary.BigEndian.AppendUint64([]byte{summaryV1}, s.hash)
	b = binary.AppendUvarint(b, s.count)
	b = binary.AppendVarint(b, s.clock.GetWallMs())
	b = binary.AppendUvarint(b, uint64(s.clock.GetLogical()))
	return append(b, s.clock.GetAuthor()...)
}

func decodeSummary(b []byte) (summary, error) {
	if len(b) < 9 || b[0] != summaryV1 {
		return summary{}, fmt.Errorf("summary: %w", ErrMalformed)
	}
	s := summary{hash: binary.BigEndian.Uint64(b[1:])}
	b = b[9:]
	count, n := binary.Uvarint(b)
	if n <= 0 {
		return summary{}, fmt.Errorf("summary: %w", ErrMalformed)
	}
	wall, m := binary.Varint(b[n:])
	if m <= 0 {
		return summary{}, fmt.Errorf("summary: %w", ErrMalformed)
	}
	logical, l := binary.Uvarint(b[n+m:])
	if l <= 0 || logical > math.MaxUint32 {
		return summary{}, fmt.Errorf("summary: %w", ErrMalformed)
	}
	s.count = count
	s.clock = &meshv1.Version{WallMs: wall, Logical: uint32(logical), Author: string(b[n+m+l:])}
	return s, nil
}

// The first byte of a key says what lies there.
const (
	keyDocument = 'd'
	keySummary  = 's'
)

func summaryKey() []byte { return []byte{keySummary} }

func documentKey(kind, name string) []byte {
	b := append([]byte{keyDocument}, kind...)
	return append(append(b, 0), name...)
}

func setDocument(tx state.Tx, d *meshv1.Document) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(d)
	if err != nil {
		// Only a string that is not UTF-8 cannot be encoded, and decoding the
		// command has refused those.
		panic("registry: encode a document: " + err.Error())
	}
	tx.Set(documentKey(d.GetKind(), d.GetName()), b)
}

func loadSummary(r state.Reader) (summary, error) {
	b, ok := r.Get(summaryKey())
	if !ok {
		return summary{}, nil
	}
	return decodeSummary(b)
}

// loadDocument returns nil when there is none.
func loadDocument(r state.Reader, kind, name string) (*meshv1.Document, error) {
	b, ok := r.Get(documentKey(kind, name))
	if !ok {
		return nil, nil
	}
	return decodeDocument(b)
}

func decodeDocument(b []byte) (*meshv1.Document, error) {
	var d meshv1.Document
	if err := proto.Unmarshal(b, &d); err != nil {
		return nil, err
	}
	return &d, nil
}

func mustSummary(r state.Reader) summary {
	s, err := loadSummary(r)
	if err != nil {
		panic("registry: own record in the state: " + err.Error())
	}
	return s
}

func mustDocument(r state.Reader, kind, name string) *meshv1.Document {
	d, err := loadDocument(r, kind, name)
	if err != nil {
		panic("registry: own record in the state: " + err.Error())
	}
	return d
}

// Hash reads the hash of the set of documents. Equal sets have equal hashes in
// all cells; it is 0 for the empty set.
func Hash(r state.Reader) (uint64, error) {
	s, err := loadSummary(r)
	if err != nil {
		return 0, fmt.Errorf("registry: read hash: %w", err)
	}
	return s.hash, nil
}
