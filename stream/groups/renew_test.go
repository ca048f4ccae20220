package groups

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// counted is a state that counts how often groups are read and written.
type counted struct {
	all           map[string][]byte
	reads, writes int
}

func (c *counted) Get(key []byte) ([]byte, bool) {
	if key[0] == kindGroup {
		c.reads++
	}
	v, ok := c.all[string(key)]
	return v, ok
}

func (c *counted) Set(key, value []byte) {
	if key[0] == kindGroup {
		c.writes++
	}
	c.all[string(key)] = bytes.Clone(value)
}

func (c *counted) Delete(key []byte) { delete(c.all, string(key)) }

func (c *counted) Scan(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		for _, k := range slices.Sorted(maps.Keys(c.all)) {
			if k >= string(from) && (to == nil || k < string(to)) && !yield([]byte(k), c.all[k]) {
				return
			}
		}
	}
}

func (c *counted) apply(t *testing.T, cmd *meshv1.StreamCommand) *Result {
	t.Helper()
	body, err := proto.Marshal(cmd)
	if err != nil {
		t.Fatal(err)
	}
	out, err := Machine{}.Apply(c, body)
	if err != nil {
		t.Fatal(err)
	}
	return out.(*Result)
}

// A renewal reads and writes a group once, however many of its sessions it renews,
// and says which are lost.
func TestRenewalByGroup(t *testing.T) {
	t.Parallel()
	c := &counted{all: map[string][]byte{}}
	n := Name{"default", "orders"}
	c.apply(t, &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Create{Create: &meshv1.StreamCreate{Stream: &meshv1.StreamRecord{
		Tenant: n.Tenant, Name: n.Stream, Partitions: 2, MaxAgeMs: 1e9, VisibilityMs: 1e4,
	}}}})
	const sessions = 40
	renew := &meshv1.GroupRenew{TtlMs: 30_000}
	for i := range sessions {
		for _, name := range []string{"g", "h"} {
			g := Group{n, name}
			session := fmt.Sprint("s", i)
			if name == "g" || i%2 == 0 {
				c.apply(t, &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Join{Join: &meshv1.GroupJoin{Name: g.Message(), Session: session, TtlMs: 10_000}}})
			}
			renew.Sessions = append(renew.Sessions, &meshv1.GroupSession{Name: g.Message(), Session: session})
		}
	}
	renew.Sessions = append(renew.Sessions, &meshv1.GroupSession{Name: Group{n, "none"}.Message(), Session: "s"})
	c.reads, c.writes = 0, 0
	res := c.apply(t, &meshv1.StreamCommand{Clocks: &meshv1.Clocks{LeaseMs: 5_000}, Command: &meshv1.StreamCommand_Renew{Renew: renew}})
	if c.reads != 3 || c.writes != 2 {
		t.Errorf("%d sessions of 2 groups and one that is not there took %d reads and %d writes", len(renew.Sessions), c.reads, c.writes)
	}
	var lost []int
	for i, s := range renew.Sessions {
		var k int
		if _, err := fmt.Sscanf(s.Session, "s%d", &k); err != nil || s.Name.Group == "h" && k%2 == 1 {
			lost = append(lost, i)
		}
	}
	if !slices.Equal(res.Lost, lost) {
		t.Errorf("lost are %v, want %v", res.Lost, lost)
	}
	for _, name := range []string{"g", "h"} {
		grp, _ := ReadGroup(c, Group{n, name})
		for _, m := range grp.Members {
			if m.UntilLeaseMs != 35_000 {
				t.Errorf("%s of %s is kept until %d", m.Session, name, m.UntilLeaseMs)
			}
		}
		if grp.DueLeaseMs != 35_000 {
			t.Errorf("%s is due at %d", name, grp.DueLeaseMs)
		}
	}
}
