package server

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/consensus"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// The guard against another cluster asks for streams as for payloads.
func TestStreamsAreNeeded(t *testing.T) {
	t.Parallel()
	replica, err := state.NewReplica(state.NewMemory(), map[state.MachineID]state.Machine{
		state.SchedulerMachine: fsm.Machine{}, state.StreamMachine: groups.Machine{},
	}, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	name := &meshv1.StreamName{Tenant: "default", Stream: "orders"}
	rec := &meshv1.StreamRecord{Tenant: "default", Name: "orders", Partitions: 1, MaxAgeMs: 1, VisibilityMs: 1}
	for i, cmd := range []*meshv1.StreamCommand{
		{Command: &meshv1.StreamCommand_Create{Create: &meshv1.StreamCreate{Stream: rec}}},
		{Command: &meshv1.StreamCommand_Placed{Placed: &meshv1.StreamPlaced{Name: name, Mark: []byte("5")}}},
	} {
		body, err := proto.Marshal(cmd)
		if err != nil {
			t.Fatal(err)
		}
		group := state.EncodeGroup([]state.Command{{Machine: state.StreamMachine, Body: body}})
		out := replica.Apply(consensus.Position{Index: uint64(i + 1), Term: 1}, [][]byte{group})
		if res, ok := out[0].(state.GroupResult); !ok || res.Err != nil {
			t.Fatalf("command %d: %+v", i, out[0])
		}
	}
	l := payloadLog{replica.Reader(state.SchedulerMachine), replica.Reader(state.StreamMachine)}
	if what := l.Needed([]byte("5"), []byte("6")); what != "" {
		t.Errorf("in its own cluster %q is missed", what)
	}
	for _, elsewhere := range [][2]string{{"", ""}, {"4", "5"}, {"6", "7"}} {
		if what := l.Needed([]byte(elsewhere[0]), []byte(elsewhere[1])); what != "the stream default/orders" {
			t.Errorf("in [%q, %q) %q is missed", elsewhere[0], elsewhere[1], what)
		}
	}
}
