package registry

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// maxMerge is about how many bytes of documents go into one command; the log
// likes entries below 512 KiB.
const maxMerge = 256 << 10

// Hash is the hash of this cell's set of documents. Two cells with the same
// set have the same hash.
func (r *Registry) Hash() (uint64, error) { return Hash(r.reader) }

// Documents returns all documents, tombstones included, versions first: so
// that whoever takes only some of them has no name without its version.
func (r *Registry) Documents() ([]*meshv1.Document, error) { return r.DocumentsNewerThan(nil) }

// DocumentsNewerThan returns, in the order of Documents, those with a version
// above v. It is for telling others of what was edited since; what arrived
// here late may have a lower version, so it does not replace comparing hashes.
func (r *Registry) DocumentsNewerThan(v *meshv1.Version) ([]*meshv1.Document, error) {
	var out []*meshv1.Document
	err := r.all([]byte{keyDocument}, func(d *meshv1.Document) error {
		if CompareVersions(d.GetVersion(), v) > 0 {
			out = append(out, d)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("registry: list documents: %w", err)
	}
	sortDocuments(out)
	return out, nil
}

// Lacking returns what a cell would learn from this one if theirs is all it
// has, in the order of Documents.
func (r *Registry) Lacking(theirs []*meshv1.Document) ([]*meshv1.Document, error) {
	type key struct{ kind, name string }
	have := make(map[key]*meshv1.Document, len(theirs))
	for _, d := range theirs {
		have[key{d.GetKind(), d.GetName()}] = d
	}
	all, err := r.Documents()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(d *meshv1.Document) bool {
		their := have[key{d.GetKind(), d.GetName()}]
		return their != nil && join(d, their) == their
	}), nil
}

// MergeCommands makes the commands that join documents of another cell into
// this one's: a group each, in order. It acknowledges tombstones in this
// cell's name, and leaves out what would change nothing, so it returns none
// when there is nothing to learn. A tombstone that all members acknowledged
// and that is not here is left out, too: it was forgotten here. The members
// are all cells of the mesh, reachable or not. The documents are not changed.
func (r *Registry) MergeCommands(docs []*meshv1.Document, members []mesh.CellID, now time.Time) ([][]byte, error) {
	docs = slices.Clone(docs)
	sortDocuments(docs)
	var commands [][]byte
	var batch []*meshv1.Document
	size := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		c, err := mergeCommand(batch, now)
		commands, batch, size = append(commands, c), nil, 0
		return err
	}
	for _, d := range docs {
		old, err := loadDocument(r.reader, d.GetKind(), d.GetName())
		if err != nil {
			return nil, fmt.Errorf("registry: merge: document %s %q: %w", d.GetKind(), d.GetName(), err)
		}
		if old == nil && d.GetDeleted() && acknowledged(d, members) {
			continue
		}
		if d.GetDeleted() {
			d = proto.CloneOf(d)
			d.Acknowledged = union(d.GetAcknowledged(), []string{string(r.cell)})
		}
		if old != nil && join(d, old) == old {
			continue
		}
		if n := proto.Size(d); size+n > maxMerge {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		batch = append(batch, d)
		size += proto.Size(d)
	}
	if err := flush(); err != nil {
		return nil, err
	}
	return commands, nil
}

// ForgetCommands makes the commands that drop the tombstones of before the
// given time which all members have acknowledged. The members are all cells of
// the mesh, reachable or not. The time must leave room for messages that were
// sent before their sender had the tombstone: they could bring the document
// back; an hour ago is ample.
func (r *Registry) ForgetCommands(members []mesh.CellID, before time.Time) ([][]byte, error) {
	if len(members) == 0 {
		return nil, nil // unknown members have acknowledged nothing
	}
	var commands [][]byte
	err := r.all([]byte{keyDocument}, func(d *meshv1.Document) error {
		young := d.GetVersion().GetWallMs() >= before.UnixMilli()
		if young || !d.GetDeleted() || !acknowledged(d, members) {
			return nil
		}
		b, err := proto.Marshal(&meshv1.RegistryCommand{Command: &meshv1.RegistryCommand_Forget{
			Forget: &meshv1.Forget{Kind: d.GetKind(), Name: d.GetName(), Version: d.GetVersion()},
		}})
		commands = append(commands, b)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("registry: forget: %w", err)
	}
	return commands, nil
}

func acknowledged(d *meshv1.Document, members []mesh.CellID) bool {
	for _, m := range members {
		if !slices.Contains(d.GetAcknowledged(), string(m)) {
			return false
		}
	}
	return len(members) > 0
}

func sortDocuments(docs []*meshv1.Document) {
	rank := func(d *meshv1.Document) int {
		if d.GetKind() == KindVersion {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(docs, func(a, b *meshv1.Document) int {
		return cmp.Or(
			cmp.Compare(rank(a), rank(b)),
			cmp.Compare(a.GetKind(), b.GetKind()),
			cmp.Compare(a.GetName(), b.GetName()),
		)
	})
}
