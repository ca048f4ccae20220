package groups

import (
	"bytes"
	"encoding/binary"
	"iter"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
)

// The functions here read the committed state; they are safe wherever the
// Reader is.

// ReadClocks returns the last committed clocks.
func ReadClocks(r state.Reader) (leaseMs, wallMs int64) {
	var c meshv1.Clocks
	get(r, clocksKey(), &c)
	return c.LeaseMs, c.WallMs
}

// Stream reads one stream, also one that is being deleted.
func Stream(r state.Reader, n Name) (*meshv1.StreamRecord, bool) {
	var rec meshv1.StreamRecord
	ok := get(r, streamKey(n), &rec)
	return &rec, ok
}

// Streams yields every stream, by tenant and name; only a tenant's, unless it
// is "".
func Streams(r state.Reader, tenant string) iter.Seq[*meshv1.StreamRecord] {
	return func(yield func(*meshv1.StreamRecord) bool) {
		prefix := []byte{kindStream}
		if tenant != "" {
			prefix = append(prefix, tenant+"\x00"...)
		}
		for k, v := range r.Scan(prefix, after(prefix)) {
			var rec meshv1.StreamRecord
			decode(k, v, &rec)
			if !yield(&rec) {
				return
			}
		}
	}
}

// Needed names a stream whose mark is not in [low, high); ok is false for none.
// One without a mark has no messages in a broker of its own, and one that is being
// deleted needs none.
func Needed(r state.Reader, low, high []byte) (n Name, ok bool) {
	for rec := range Streams(r, "") {
		if len(rec.Mark) > 0 && !rec.Deleting && (bytes.Compare(rec.Mark, low) < 0 || bytes.Compare(rec.Mark, high) >= 0) {
			return Name{rec.Tenant, rec.Name}, true
		}
	}
	return Name{}, false
}

// ReadGroup reads one group.
func ReadGroup(r state.Reader, g Group) (*meshv1.GroupRecord, bool) {
	var rec meshv1.GroupRecord
	ok := get(r, groupKey(g), &rec)
	return &rec, ok
}

// groups lists the names of a stream's groups. It reads all first, so that the
// caller may write.
func groups(r state.Reader, n Name) iter.Seq[Group] {
	var list []Group
	prefix := append([]byte{kindGroup}, n.key()...)
	for k := range r.Scan(prefix, after(prefix)) {
		if g, _, ok := parseGroup(string(k[1:])); ok {
			list = append(list, g)
		}
	}
	return func(yield func(Group) bool) {
		for _, g := range list {
			if !yield(g) {
				return
			}
		}
	}
}

// Groups yields a stream's groups by name.
func Groups(r state.Reader, n Name) iter.Seq[Group] { return groups(r, n) }

// ReadCursor reads where a group is in one partition.
func ReadCursor(r state.Reader, g Group, partition uint32) *Cursor {
	return readCursor(r, cursorKey(g, partition))
}

// DeadLetter is a message that a group has given up.
type DeadLetter struct {
	Partition uint32
	Position  uint64
	*meshv1.DeadRecord
}

// DeadLetters yields a group's dead letters by partition and position.
func DeadLetters(r state.Reader, g Group) iter.Seq[DeadLetter] {
	return func(yield func(DeadLetter) bool) {
		prefix := append([]byte{kindDead}, g.key()...)
		for k, v := range r.Scan(prefix, after(prefix)) {
			d := DeadLetter{DeadRecord: &meshv1.DeadRecord{}}
			d.Partition, d.Position = binary.BigEndian.Uint32(k[len(prefix):]), binary.BigEndian.Uint64(k[len(prefix)+4:])
			decode(k, v, d.DeadRecord)
			if !yield(d) {
				return
			}
		}
	}
}

// Due reports whether a Tick at that lease time would do anything, and whether
// anything waits for one.
func Due(r state.Reader, leaseMs int64) (due, waits bool) {
	for k := range r.Scan([]byte{kindDue}, []byte{kindDue + 1}) {
		return int64(binary.BigEndian.Uint64(k[1:9])) <= leaseMs, true
	}
	return false, false
}
