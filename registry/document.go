package registry

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry/digest"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// The kinds of documents that this release reads.
const (
	KindTenant   = "tenant"
	KindFunction = "function"
	KindVersion  = "version"
)

// Bounds of a document, in bytes but for maxAcknowledged.
const (
	maxKind         = 32
	maxDocumentName = 256
	maxAuthor       = 128
	maxContent      = 160 << 10
	maxAcknowledged = 4096
)

// Reasons why a document is refused.
var (
	// ErrMalformed: no release writes such a document.
	ErrMalformed = errors.New("malformed document")
	// ErrFuture: its version is more than a minute ahead of the leader's clock.
	ErrFuture = errors.New("version is from the future")
	// ErrImmutable: content under a version's name that is not that version.
	ErrImmutable = errors.New("versions do not change")
)

// CompareVersions orders versions: by wall time, then logical time, then
// author. A nil version is before all others.
func CompareVersions(a, b *meshv1.Version) int {
	return cmp.Or(
		cmp.Compare(a.GetWallMs(), b.GetWallMs()),
		cmp.Compare(a.GetLogical(), b.GetLogical()),
		cmp.Compare(a.GetAuthor(), b.GetAuthor()),
	)
}

// Newer reports whether document a replaces b, of one kind and name. It is a
// total order but for the acknowledgements: the higher version; of equal
// versions, which no sound author makes, the tombstone and then the greater
// content, so that all cells choose alike. A nil document is before all others.
func Newer(a, b *meshv1.Document) bool { return compareDocuments(a, b) > 0 }

func compareDocuments(a, b *meshv1.Document) int {
	deleted := func(d *meshv1.Document) int {
		if d.GetDeleted() {
			return 1
		}
		return 0
	}
	return cmp.Or(
		CompareVersions(a.GetVersion(), b.GetVersion()),
		cmp.Compare(deleted(a), deleted(b)),
		bytes.Compare(a.GetContent(), b.GetContent()),
	)
}

// join is the least document that says all that a and b say; neither is
// changed. The result is b itself when a adds nothing. b may be nil.
func join(a, b *meshv1.Document) *meshv1.Document {
	c := compareDocuments(a, b)
	if b == nil || c > 0 {
		a = proto.CloneOf(a)
		a.Acknowledged = union(a.GetAcknowledged(), nil)
		return a
	}
	if c < 0 || containsAll(b.GetAcknowledged(), a.GetAcknowledged()) {
		return b
	}
	b = proto.CloneOf(b)
	b.Acknowledged = union(b.GetAcknowledged(), a.GetAcknowledged())
	return b
}

func union(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}

func containsAll(all, some []string) bool {
	for _, s := range some {
		if !slices.Contains(all, s) {
			return false
		}
	}
	return true
}

// check says why a document cannot be, whatever the state holds, so that the
// order of merges does not matter.
func check(d *meshv1.Document) error {
	malformed := func(what string) error { return fmt.Errorf("%s: %w", what, ErrMalformed) }
	v := d.GetVersion()
	switch {
	case !validKind(d.GetKind()):
		return malformed("kind")
	case d.GetName() == "" || len(d.GetName()) > maxDocumentName || strings.ContainsFunc(d.GetName(), isControl):
		return malformed("name")
	case v == nil || v.GetWallMs() <= 0 || v.GetAuthor() == "" || len(v.GetAuthor()) > maxAuthor:
		return malformed("version")
	case len(d.GetContent()) > maxContent:
		return malformed("content is too large")
	case len(d.GetAcknowledged()) > maxAcknowledged || slices.Contains(d.GetAcknowledged(), ""):
		return malformed("acknowledgements")
	case d.GetDeleted() && len(d.GetContent()) > 0:
		return malformed("tombstone with content")
	case !d.GetDeleted() && len(d.GetAcknowledged()) > 0:
		return malformed("acknowledged without deletion")
	case d.GetDeleted():
		return nil
	}
	return checkContent(d)
}

func checkContent(d *meshv1.Document) error {
	switch d.GetKind() {
	case KindTenant:
		t, err := decodeTenant(d.GetContent())
		if err != nil || t.GetName() != d.GetName() {
			return fmt.Errorf("content of a tenant: %w", ErrMalformed)
		}
	case KindFunction:
		a, err := decodeAlias(d.GetContent())
		if err != nil || !digest.Valid(a.GetDigest()) || strings.Count(d.GetName(), "/") != 1 {
			return fmt.Errorf("content of a function: %w", ErrMalformed)
		}
	case KindVersion:
		spec, err := specOf(d.GetContent(), d.GetName())
		if err != nil {
			return err
		}
		if proto.Unmarshal(spec, &isobarv1.FunctionSpec{}) != nil {
			return fmt.Errorf("content of a version: %w", ErrMalformed)
		}
	}
	return nil
}

func validKind(kind string) bool {
	for _, c := range []byte(kind) {
		if (c < 'a' || c > 'z') && c != '-' {
			return false
		}
	}
	return kind != "" && len(kind) <= maxKind
}

func isControl(r rune) bool { return r < ' ' || r == utf8.RuneError }

// versionContent is an isobar.v1.Function with the spec's bytes as they stand
// and the digest of them, in this order and nothing else.
func versionContent(spec []byte) (content []byte, name string) {
	name = digest.Of(spec)
	content = protowire.AppendTag(nil, 1, protowire.BytesType)
	content = protowire.AppendBytes(content, spec)
	content = protowire.AppendTag(content, 2, protowire.BytesType)
	return protowire.AppendString(content, name), name
}

// specOf takes the spec's bytes out of a version's content. It works on bytes,
// not on decoded messages, because the digest is over bytes and another
// release of the protobuf library may encode the same message otherwise.
func specOf(content []byte, name string) ([]byte, error) {
	_, _, n := protowire.ConsumeTag(content)
	if n < 0 {
		return nil, fmt.Errorf("content of a version: %w", ErrMalformed)
	}
	spec, m := protowire.ConsumeBytes(content[n:])
	if m < 0 {
		return nil, fmt.Errorf("content of a version: %w", ErrMalformed)
	}
	if want, digest := versionContent(spec); digest != name || !bytes.Equal(want, content) {
		return nil, ErrImmutable
	}
	return spec, nil
}

func decodeTenant(content []byte) (*meshv1.Tenant, error) {
	var t meshv1.Tenant
	if err := proto.Unmarshal(content, &t); err != nil {
		return nil, err
	}
	return &t, nil
}

func decodeAlias(content []byte) (*meshv1.Alias, error) {
	var a meshv1.Alias
	if err := proto.Unmarshal(content, &a); err != nil {
		return nil, err
	}
	return &a, nil
}

// hashDocument is one document's part of the set's hash. It has an encoding of
// its own, because cells of two releases must agree on it.
func hashDocument(d *meshv1.Document) uint64 {
	var b []byte
	field := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	field(d.GetKind())
	field(d.GetName())
	b = binary.AppendVarint(b, d.GetVersion().GetWallMs())
	b = binary.AppendUvarint(b, uint64(d.GetVersion().GetLogical()))
	field(d.GetVersion().GetAuthor())
	if d.GetDeleted() {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	field(string(d.GetContent()))
	for _, cell := range d.GetAcknowledged() {
		field(cell)
	}
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:])
}
