package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/consensus"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
)

// cell is one replicated group as the mesh sees it: a log that at most one
// leader at a time appends to, and the state the log makes. Its servers are not
// told apart: what is lost with a leader is what only the leader knew.
type cell struct {
	w   *world
	id  string
	rng *rand.Rand

	store   *state.Memory
	replica *state.Replica
	log     [][]byte
	// A server's snapshot, taken midway, and the log's length then.
	snapshot   *state.Memory
	snapshotAt int

	term    uint64
	leader  *leader // nil: none now
	up      bool
	lastRun int64 // when the newest proposal commits

	pending []*proposal
	workers []*worker

	isolated int64            // from every other cell, until then
	cut      map[string]int64 // one-way, to another cell, until then
}

// proposal is a command on its way through the log.
type proposal struct {
	by   *leader
	cmd  *meshv1.SchedulerCommand
	done func(*fsm.Result, error)
}

func newCell(w *world, i int, seed uint64) *cell {
	c := &cell{
		w: w, id: fmt.Sprintf("cell-%d", i), rng: rand.New(rand.NewPCG(seed, uint64(100+i))),
		store: state.NewMemory(), up: true, cut: map[string]int64{},
	}
	c.mount()
	_, _ = c.commit(&proposal{cmd: &meshv1.SchedulerCommand{ // a bootstrap can't be refused
		Clocks:  &meshv1.Clocks{WallMs: wallBase},
		Command: &meshv1.SchedulerCommand_Bootstrap{Bootstrap: &meshv1.Bootstrap{Cell: c.id, Incarnation: "i"}},
	}})
	return c
}

// wallBase is the calendar at the start of a run.
const wallBase = 1_700_000_000_000

// mount opens the state on the store, as a server that starts does.
func (c *cell) mount() {
	replica, err := mounted(c.store)
	if err != nil {
		c.w.violate("cell %s does not mount: %v", c.id, err)
		return
	}
	c.replica = replica
}

func mounted(store *state.Memory) (*state.Replica, error) {
	return state.NewReplica(store, map[state.MachineID]state.Machine{state.SchedulerMachine: fsm.Machine{}}, state.Options{})
}

func (c *cell) reader() state.Reader { return c.replica.Reader(state.SchedulerMachine) }

// propose sends a command through the log. The answer comes after it is
// applied, and only while the leader leads: one that is deposed never learns
// what became of it.
func (c *cell) propose(l *leader, cmd *meshv1.SchedulerCommand, done func(*fsm.Result, error)) {
	if c.leader != l {
		return
	}
	cmd.Clocks = l.clocks()
	p := &proposal{by: l, cmd: cmd, done: done}
	c.pending = append(c.pending, p)
	if !c.w.healed && chance(c.w.rng, c.w.cfg.Fall) {
		c.w.after(between(c.w.rng, 0, 6), func() {
			if c.leader == l {
				c.depose()
				c.w.after(between(c.w.rng, 200, 2_000), c.elect)
			}
		})
	}
	// The log keeps the order of proposals.
	c.lastRun = max(c.lastRun, c.w.now+between(c.rng, 1, 6))
	c.w.after(c.lastRun-c.w.now, func() {
		if c.leader == l && len(c.pending) > 0 && c.pending[0] == p {
			c.pending = c.pending[1:]
			res, err := c.commit(p)
			if done != nil && c.w.err == nil {
				done(res, err)
			}
		}
	})
}

// commit applies one command.
func (c *cell) commit(p *proposal) (*fsm.Result, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(p.cmd)
	if err != nil {
		c.w.violate("cell %s: %v", c.id, err)
		return nil, err
	}
	group := state.EncodeGroup([]state.Command{{Machine: state.SchedulerMachine, Body: body}})
	c.log = append(c.log, group)
	out := apply(c.replica, uint64(len(c.log)), group)
	if out.Err != nil {
		c.w.note("%s refuses %T: %v", c.id, p.cmd.Command, out.Err)
		return nil, out.Err
	}
	res := out.Results[0].(*fsm.Result)
	c.w.note("%s commits %s", c.id, told(p.cmd, res))
	c.w.committed(c, p.cmd, res)
	return res, nil
}

func apply(r *state.Replica, index uint64, group []byte) state.GroupResult {
	return r.Apply(consensus.Position{Index: index, Term: 1}, [][]byte{group})[0].(state.GroupResult)
}

// told is a command in the trace.
func told(cmd *meshv1.SchedulerCommand, res *fsm.Result) string {
	at := func(id string, n uint64) numbered { return numbered{id, n} }
	switch m := cmd.Command.(type) {
	case *meshv1.SchedulerCommand_Accept:
		return "accept " + name(m.Accept.Task.Id)
	case *meshv1.SchedulerCommand_Grant:
		return fmt.Sprintf("grant %s to %s%s", at(m.Grant.TaskId, m.Grant.Attempt), m.Grant.Holder.Cell, m.Grant.Holder.Session)
	case *meshv1.SchedulerCommand_Extend:
		var s strings.Builder
		s.WriteString("extend")
		for i, it := range m.Extend.Items {
			fmt.Fprintf(&s, " %s:%s", at(it.TaskId, it.Attempt), res.Items[i].Verdict)
		}
		return s.String()
	case *meshv1.SchedulerCommand_Complete:
		return fmt.Sprintf("complete %s: %s", at(m.Complete.TaskId, m.Complete.Attempt), res.Verdict)
	case *meshv1.SchedulerCommand_Fail:
		return fmt.Sprintf("fail %s %s: %s", at(m.Fail.TaskId, m.Fail.Attempt), m.Fail.Ended.Status, res.Verdict)
	case *meshv1.SchedulerCommand_Cancel:
		return fmt.Sprintf("cancel %s: %s", name(m.Cancel.TaskId), res.Verdict)
	case *meshv1.SchedulerCommand_GuestAccept:
		return fmt.Sprintf("guest-accept %s", at(m.GuestAccept.Guest.TaskId, m.GuestAccept.Guest.Attempt))
	case *meshv1.SchedulerCommand_GuestStart:
		return fmt.Sprintf("guest-start %s on %s", at(m.GuestStart.TaskId, m.GuestStart.Attempt), m.GuestStart.Session)
	case *meshv1.SchedulerCommand_GuestEnd:
		return fmt.Sprintf("guest-end %s %s: %s", at(m.GuestEnd.TaskId, m.GuestEnd.Attempt), m.GuestEnd.Ended.Status, res.Verdict)
	case *meshv1.SchedulerCommand_GuestForget:
		return fmt.Sprintf("guest-forget %s", at(m.GuestForget.TaskId, m.GuestForget.Attempt))
	case *meshv1.SchedulerCommand_Tick:
		var s strings.Builder
		s.WriteString("tick")
		for _, e := range res.Effects {
			fmt.Fprintf(&s, " %d:%s", e.Kind, at(e.TaskID, e.Attempt))
		}
		return s.String()
	default:
		return fmt.Sprintf("%T", m)
	}
}

// elect makes a leader. Its state is the log's; it knows nothing else.
func (c *cell) elect() {
	if !c.up || c.leader != nil {
		return
	}
	c.term++
	if c.term > 1 && chance(c.rng, 0.3) {
		c.store = c.store.Clone() // another server, from its own disk
		c.mount()
	}
	if chance(c.rng, 0.3) {
		c.snapshot, c.snapshotAt = c.store.Clone(), len(c.log)
	}
	c.leader = newLeader(c)
	c.w.note("%s elects leader %d", c.id, c.term)
	c.leader.begin()
}

// depose takes the leader away with all it knew. Of what it had proposed, the
// log keeps a part from the front; nobody is told.
func (c *cell) depose() {
	if c.leader == nil {
		return
	}
	for range fsm.Leases(c.reader()) {
		c.w.saw(SawLeaderLost)
		break
	}
	c.w.note("%s loses leader %d", c.id, c.term)
	c.leader = nil
	kept := c.rng.IntN(len(c.pending) + 1)
	for _, p := range c.pending[:kept] {
		_, _ = c.commit(p)
	}
	c.pending = nil
}

// replay compares the state with what other servers of the cell hold.
func (c *cell) replay() {
	want := c.replica.Hash()
	fresh, err := mounted(state.NewMemory())
	if err != nil {
		c.w.violate("cell %s: %v", c.id, err)
		return
	}
	for i, group := range c.log {
		apply(fresh, uint64(i+1), group)
	}
	if fresh.Hash() != want {
		c.w.violate("cell %s: the log from its beginning makes another state", c.id)
	}
	if c.snapshot == nil {
		return
	}
	late, err := mounted(c.snapshot.Clone())
	if err != nil {
		c.w.violate("cell %s: %v", c.id, err)
		return
	}
	for i, group := range c.log[c.snapshotAt:] {
		apply(late, uint64(c.snapshotAt+i+1), group)
	}
	if late.Hash() != want {
		c.w.violate("cell %s: the log from a snapshot makes another state", c.id)
	}
}
