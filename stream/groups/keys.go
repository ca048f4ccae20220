package groups

import (
	"encoding/binary"
	"strings"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// The key space, one letter a kind. Stored: never reuse a letter.
//
//	c                             Clocks
//	s tenant stream               StreamRecord
//	g tenant stream group         GroupRecord
//	p tenant stream group part    CursorRecord
//	d … part position             DeadRecord
//	l lease-ms key                when a group or a cursor has something due
const (
	kindStream = 's'
	kindGroup  = 'g'
	kindCursor = 'p'
	kindDead   = 'd'
	kindDue    = 'l'
)

func clocksKey() []byte { return []byte("c") }

// key ends with a zero, so that no name's key begins another's.
func (n Name) key() string { return n.Tenant + "\x00" + n.Stream + "\x00" }

func (g Group) key() string { return g.Name.key() + g.Group + "\x00" }

func streamKey(n Name) []byte { return append([]byte{kindStream}, n.key()...) }
func groupKey(g Group) []byte { return append([]byte{kindGroup}, g.key()...) }

func cursorKey(g Group, partition uint32) []byte {
	return binary.BigEndian.AppendUint32(append([]byte{kindCursor}, g.key()...), partition)
}

func deadKey(g Group, partition uint32, position uint64) []byte {
	k := binary.BigEndian.AppendUint32(append([]byte{kindDead}, g.key()...), partition)
	return binary.BigEndian.AppendUint64(k, position)
}

func dueKey(leaseMs int64, key []byte) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{kindDue}, uint64(leaseMs)), key...)
}

// parseGroup undoes Group.key, and returns what is behind it.
func parseGroup(key string) (g Group, rest string, ok bool) {
	parts := strings.SplitN(key, "\x00", 4)
	if len(parts) != 4 {
		return Group{}, "", false
	}
	return Group{Name{parts[0], parts[1]}, parts[2]}, parts[3], true
}

// dueOf is where the due index has the record.
func dueOf(kind byte, key, value []byte) int64 {
	switch kind {
	case kindGroup:
		var rec meshv1.GroupRecord
		decode(key, value, &rec)
		return rec.DueLeaseMs
	case kindCursor:
		return parseCursor(key, value).dueLeaseMs
	default:
		return 0
	}
}

// after is the first key that does not begin with prefix.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

func nameOf(n *meshv1.StreamName) Name { return Name{n.GetTenant(), n.GetStream()} }

func groupOf(n *meshv1.GroupName) Group {
	return Group{Name{n.GetTenant(), n.GetStream()}, n.GetGroup()}
}

// Message writes the name as commands have it.
func (n Name) Message() *meshv1.StreamName {
	return &meshv1.StreamName{Tenant: n.Tenant, Stream: n.Stream}
}

// Message writes the name as commands have it.
func (g Group) Message() *meshv1.GroupName {
	return &meshv1.GroupName{Tenant: g.Tenant, Stream: g.Stream, Group: g.Group}
}
