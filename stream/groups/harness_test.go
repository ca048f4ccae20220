package groups_test

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/consensus"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/stream/groups"
)

var orders = groups.Name{Tenant: "default", Stream: "orders"}

// cell is the machine on a replica, with the messages that a broker would hold.
type cell struct {
	t       fataler
	replica *state.Replica
	log     [][]byte // every group committed
	lease   time.Duration
	unread  int                 // so many of the waiting messages, the last, can't be read
	keys    map[uint32][]string // by partition: the key of each position
	first   map[uint32]uint64   // oldest position kept
}

// fataler is what testing and rapid have in common.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func newReplica(t fataler) *state.Replica {
	t.Helper()
	r, err := state.NewReplica(state.NewMemory(), map[state.MachineID]state.Machine{state.StreamMachine: groups.Machine{}}, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newCell(t fataler) *cell {
	t.Helper()
	return &cell{t: t, replica: newReplica(t), lease: time.Second, keys: map[uint32][]string{}, first: map[uint32]uint64{}}
}

func (c *cell) state() state.Reader { return c.replica.Reader(state.StreamMachine) }

func (c *cell) apply(cmd *meshv1.StreamCommand) (*groups.Result, error) {
	c.t.Helper()
	cmd.Clocks = &meshv1.Clocks{LeaseMs: c.lease.Milliseconds(), WallMs: 1_000_000 + c.lease.Milliseconds()}
	body, err := proto.Marshal(cmd)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.raw(body)
}

// raw applies one encoded command.
func (c *cell) raw(body []byte) (*groups.Result, error) {
	before := c.cursors()
	c.log = append(c.log, state.EncodeGroup([]state.Command{{Machine: state.StreamMachine, Body: body}}))
	out := c.replica.Apply(consensus.Position{Index: uint64(len(c.log)), Term: 1}, c.log[len(c.log)-1:])
	res := out[0].(state.GroupResult)
	if res.Err != nil {
		return nil, res.Err
	}
	result := res.Results[0].(*groups.Result)
	after := c.cursors()
	last := map[groups.CursorName]*groups.Cursor{}
	for _, m := range result.Moved {
		delete(before, m.CursorName)
		delete(after, m.CursorName)
		last[m.CursorName] = m.Cursor
	}
	for n, cur := range last {
		if stored := groups.ReadCursor(c.state(), n.Group, n.Partition); fmt.Sprint(*stored) != fmt.Sprint(*cur) {
			c.t.Fatalf("a command says of %v %+v, and has stored %+v", n, *cur, *stored)
		}
	}
	if !maps.Equal(before, after) {
		c.t.Fatalf("a command moved another cursor than it says, %v", result.Moved)
	}
	return result, nil
}

// cursors are all that are stored, by name.
func (c *cell) cursors() map[groups.CursorName]string {
	out := map[groups.CursorName]string{}
	for k, v := range c.state().Scan([]byte("p"), []byte("q")) {
		parts := strings.SplitN(string(k[1:]), "\x00", 4)
		g := groups.Group{Name: groups.Name{Tenant: parts[0], Stream: parts[1]}, Group: parts[2]}
		out[groups.CursorName{Group: g, Partition: binary.BigEndian.Uint32([]byte(parts[3]))}] = string(v)
	}
	return out
}

// replay applies the whole log to another replica, two groups an entry.
func (c *cell) replay() *state.Replica {
	c.t.Helper()
	r := newReplica(c.t)
	for i := 0; i < len(c.log); i += 2 {
		r.Apply(consensus.Position{Index: uint64(i + 1), Term: 1}, c.log[i:min(i+2, len(c.log))])
	}
	return r
}

func (c *cell) create(rec *meshv1.StreamRecord) (*groups.Result, error) {
	rec.Tenant, rec.Name = orders.Tenant, orders.Stream
	rec.MaxAgeMs = (24 * time.Hour).Milliseconds()
	if rec.VisibilityMs == 0 {
		rec.VisibilityMs = 30_000
	}
	return c.apply(&meshv1.StreamCommand{Command: &meshv1.StreamCommand_Create{Create: &meshv1.StreamCreate{Stream: rec}}})
}

func group(name string) groups.Group { return groups.Group{Name: orders, Group: name} }

func (c *cell) join(name, session string, start ...uint64) (*groups.Result, error) {
	return c.apply(&meshv1.StreamCommand{Command: &meshv1.StreamCommand_Join{Join: &meshv1.GroupJoin{
		Name: group(name).Message(), Session: session, Consumer: "c-" + session, TtlMs: 10_000, Start: start,
	}}})
}

func (c *cell) leave(name, session string) (*groups.Result, error) {
	return c.apply(&meshv1.StreamCommand{Command: &meshv1.StreamCommand_Leave{Leave: &meshv1.GroupLeave{Name: group(name).Message(), Session: session}}})
}

func (c *cell) renew(name string, sessions ...string) (*groups.Result, error) {
	r := &meshv1.GroupRenew{TtlMs: 10_000}
	for _, s := range sessions {
		r.Sessions = append(r.Sessions, &meshv1.GroupSession{Name: group(name).Message(), Session: s})
	}
	return c.apply(&meshv1.StreamCommand{Command: &meshv1.StreamCommand_Renew{Renew: r}})
}

// deliver does what a leader does: it reads what waits, then behind the cursor, and
// commits.
func (c *cell) deliver(name, session string, p uint32, limit int) ([]groups.Delivery, error) {
	cur := groups.ReadCursor(c.state(), group(name), p)
	var again []uint64
	rec, _ := groups.Stream(c.state(), orders)
	for i := range groups.Deliverable(cur, rec.Relaxed, c.lease.Milliseconds()) {
		again = append(again, cur.Pending[i].Position)
	}
	again = again[:max(0, len(again)-c.unread)]
	var read []groups.Read
	for at := max(cur.Next, c.first[p]); at < uint64(len(c.keys[p])) && len(read) < groups.MaxPending-len(cur.Pending); at++ {
		read = append(read, groups.Read{Position: at, Key: c.keys[p][at], Size: 10})
	}
	cmd := &meshv1.GroupDeliver{
		Name: group(name).Message(), Session: session, Partition: p, From: cur.Next, Max: uint32(limit), MaxBytes: 1 << 20, Read: groups.Columns(read),
		Again: groups.Ascending(again),
	}
	res, err := c.apply(&meshv1.StreamCommand{Command: &meshv1.StreamCommand_Deliver{Deliver: cmd}})
	if err != nil {
		return nil, err
	}
	return res.Deliveries, nil
}

func (c *cell) ack(name, session string, items ...*meshv1.GroupAckItem) ([]groups.Verdict, error) {
	res, err := c.apply(&meshv1.StreamCommand{Command: &meshv1.StreamCommand_Ack{Ack: &meshv1.GroupAck{Name: group(name).Message(), Session: session, Items: items}}})
	if err != nil {
		return nil, err
	}
	return res.Verdicts, nil
}

func (c *cell) tick() (*groups.Result, error) {
	return c.apply(&meshv1.StreamCommand{Command: &meshv1.StreamCommand_Tick{Tick: &meshv1.StreamTick{}}})
}

func (c *cell) seek(name string, p uint32, to uint64) error {
	_, err := c.apply(&meshv1.StreamCommand{Command: &meshv1.StreamCommand_Seek{Seek: &meshv1.GroupSeek{
		Name: group(name).Message(), To: []*meshv1.GroupSeekTo{{Partition: p, Position: to}},
	}}})
	return err
}

func (c *cell) trim(p uint32, first uint64) error {
	c.first[p] = max(c.first[p], first)
	_, err := c.apply(&meshv1.StreamCommand{Command: &meshv1.StreamCommand_Trimmed{Trimmed: &meshv1.StreamTrimmed{
		Name: orders.Message(), Partition: p, First: first,
	}}})
	return err
}

// show writes the group as a transcript has it.
func (c *cell) show(name string) string {
	var b strings.Builder
	grp, ok := groups.ReadGroup(c.state(), group(name))
	if !ok {
		return "no group\n"
	}
	fmt.Fprintf(&b, "generation %d", grp.Generation)
	for _, m := range grp.Members {
		fmt.Fprintf(&b, " %s until %v", m.Session, time.Duration(m.UntilLeaseMs)*time.Millisecond)
	}
	if grp.Dead > 0 {
		fmt.Fprintf(&b, ", %d dead", grp.Dead)
	}
	b.WriteString("\n")
	for p, owner := range grp.Owners {
		if owner == "" {
			owner = "nobody"
		}
		cur := groups.ReadCursor(c.state(), group(name), uint32(p))
		fmt.Fprintf(&b, "%d: %s, position %d, next %d", p, owner, groups.Position(cur), cur.Next)
		for _, m := range cur.Pending {
			fmt.Fprintf(&b, "; %d%s", m.Position, m.Key)
			switch {
			case m.UntilLeaseMs > 0:
				fmt.Fprintf(&b, " at %s #%d until %v", m.Session, m.Delivery, time.Duration(m.UntilLeaseMs)*time.Millisecond)
			case m.NotBeforeLeaseMs > 0:
				fmt.Fprintf(&b, " after %v", time.Duration(m.NotBeforeLeaseMs)*time.Millisecond)
			default:
				b.WriteString(" waits")
			}
			if m.Attempts > 0 {
				fmt.Fprintf(&b, " (%d)", m.Attempts)
			}
		}
		b.WriteString("\n")
	}
	for d := range groups.DeadLetters(c.state(), group(name)) {
		fmt.Fprintf(&b, "dead %d:%d%s after %d: %s\n", d.Partition, d.Position, d.Key, d.Attempts, d.Cause)
	}
	return b.String()
}

// audit checks what must always hold of the stored records.
func (c *cell) audit() {
	c.t.Helper()
	for g := range groups.Groups(c.state(), orders) {
		grp, _ := groups.ReadGroup(c.state(), g)
		var sessions []string
		held := map[string]int{}
		dead := uint64(0)
		for d := range groups.DeadLetters(c.state(), g) {
			if dead++; d.Position >= groups.ReadCursor(c.state(), g, d.Partition).Next {
				c.t.Fatalf("%s: %d:%d is dead and yet to be delivered", g, d.Partition, d.Position)
			}
		}
		if dead != grp.Dead {
			c.t.Fatalf("%s: %d dead letters, counted as %d", g, dead, grp.Dead)
		}
		for _, m := range grp.Members {
			sessions = append(sessions, m.Session)
		}
		for p, owner := range grp.Owners {
			if (owner == "") != (len(sessions) == 0) || owner != "" && !slices.Contains(sessions, owner) {
				c.t.Fatalf("%s: partition %d is of %q, members are %v", g, p, owner, sessions)
			}
			held[owner]++
			cur := groups.ReadCursor(c.state(), g, uint32(p))
			if len(cur.Pending) > groups.MaxPending {
				c.t.Fatalf("%s/%d: %d pending", g, p, len(cur.Pending))
			}
			holder := ""
			last := -1
			for _, m := range cur.Pending {
				if int(m.Position) <= last || m.Position >= cur.Next {
					c.t.Fatalf("%s/%d: pending %d comes after %d, next is %d", g, p, m.Position, last, cur.Next)
				}
				last = int(m.Position)
				if m.UntilLeaseMs == 0 {
					continue
				}
				if holder != "" && holder != m.Session {
					c.t.Fatalf("%s/%d: %s and %s hold deliveries", g, p, holder, m.Session)
				}
				holder = m.Session
			}
		}
		for _, s := range sessions {
			if n, low := held[s], len(grp.Owners)/len(sessions); n < low || n > low+1 {
				c.t.Fatalf("%s: %s has %d of %d partitions, with %d members", g, s, n, len(grp.Owners), len(sessions))
			}
		}
	}
}
