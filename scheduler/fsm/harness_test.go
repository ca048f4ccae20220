package fsm

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/consensus"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/state"
)

// wallBase is where the tests' calendar begins; moments are told from there.
const wallBase = 1_700_000_000_000

const (
	second = int64(1000)
	minute = 60 * second
	hour   = 60 * minute
	day    = 24 * hour
)

// failer is what the bench needs of a test, also of a property's.
type failer interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// bench is one machine on a state in memory, driven by one command an entry.
// After every command the whole state is compared with what its records say.
type bench struct {
	t       failer
	store   *state.Memory
	replica *state.Replica
	index   uint64
	// The leader's clocks for the next command.
	lease, wall int64
	watch       watch
}

func newBench(t failer) *bench {
	t.Helper()
	return mount(t, state.NewMemory())
}

// mount goes on with what a store holds.
func mount(t failer, store *state.Memory) *bench {
	t.Helper()
	replica, err := state.NewReplica(store, map[state.MachineID]state.Machine{state.SchedulerMachine: Machine{}}, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, store: store, replica: replica, index: replica.Applied().Index, wall: wallBase, watch: watch{}}
	if lease, wall := ReadClocks(b.reader()); wall != 0 {
		b.lease, b.wall = lease, wall
	}
	return b
}

// booted is a bench of a cell that has its incarnation.
func booted(t failer) *bench {
	t.Helper()
	b := newBench(t)
	b.must(&meshv1.Bootstrap{Cell: "eu-north-1", Incarnation: "k3f9ab"})
	return b
}

func (b *bench) reader() state.Reader { return b.replica.Reader(state.SchedulerMachine) }

func (b *bench) after(ms int64) *bench {
	b.lease += ms
	b.wall += ms
	return b
}

// raw applies bytes as one command.
func (b *bench) raw(body []byte) (*Result, error) {
	b.index++
	group := state.EncodeGroup([]state.Command{{Machine: state.SchedulerMachine, Body: body}})
	out := b.replica.Apply(consensus.Position{Index: b.index, Term: 1}, [][]byte{group})
	res := out[0].(state.GroupResult)
	if res.Err != nil {
		return nil, res.Err
	}
	return res.Results[0].(*Result), nil
}

// do applies one command at the present clocks and checks the state after it.
func (b *bench) do(command proto.Message) (*Result, error) {
	b.t.Helper()
	res, err := b.raw(b.encode(command))
	b.check()
	return res, err
}

// encode is the command's bytes at the present clocks.
func (b *bench) encode(command proto.Message) []byte {
	b.t.Helper()
	cmd := envelope(command)
	cmd.Clocks = &meshv1.Clocks{LeaseMs: b.lease, WallMs: b.wall}
	body, err := proto.Marshal(cmd)
	if err != nil {
		b.t.Fatal(err)
	}
	return body
}

// check fails the test when an invariant does not hold.
func (b *bench) check() {
	b.t.Helper()
	if err := audit(b.reader()); err != nil {
		b.t.Fatalf("invariant broken: %v", err)
	}
	if err := b.watch.see(b.reader()); err != nil {
		b.t.Fatalf("history broken: %v", err)
	}
}

// must is do for a command that has to be taken.
func (b *bench) must(command proto.Message) *Result {
	b.t.Helper()
	res, err := b.do(command)
	if err != nil {
		b.t.Fatalf("%T: %v", command, err)
	}
	return res
}

// refused is do for a command that has to be refused with the error.
func (b *bench) refused(command proto.Message, want error) {
	b.t.Helper()
	before := b.replica.Hash()
	if _, err := b.do(command); !errors.Is(err, want) {
		b.t.Fatalf("%T: error %v, want %v", command, err, want)
	}
	if b.replica.Hash() != before {
		b.t.Fatalf("%T: refused, but the state changed", command)
	}
}

// verdict applies a command and compares its verdict.
func (b *bench) verdict(command proto.Message, want Verdict) *Result {
	b.t.Helper()
	res := b.must(command)
	if res.Verdict != want {
		b.t.Fatalf("%T: verdict %q, want %q", command, res.Verdict, want)
	}
	return res
}

// extended applies one extend and compares its verdict.
func (b *bench) extended(item *meshv1.ExtendItem, want Verdict) ExtendVerdict {
	b.t.Helper()
	res := b.must(&meshv1.Extend{Items: []*meshv1.ExtendItem{item}})
	if res.Items[0].Verdict != want {
		b.t.Fatalf("extend %s attempt %d: %q, want %q", item.TaskId, item.Attempt, res.Items[0].Verdict, want)
	}
	return res.Items[0]
}

func (b *bench) task(id string) *meshv1.TaskRecord {
	b.t.Helper()
	rec, ok := Task(b.reader(), id)
	if !ok {
		b.t.Fatalf("task %s is not there", id)
	}
	return rec
}

func (b *bench) inState(id string, want isobarv1.TaskState) *meshv1.TaskRecord {
	b.t.Helper()
	rec := b.task(id)
	if State(rec) != want {
		b.t.Fatalf("task %s is %s, want %s", id, State(rec), want)
	}
	return rec
}

// tick lets what is due happen.
func (b *bench) tick() *Result {
	b.t.Helper()
	return b.must(&meshv1.Tick{ExpireLeases: true})
}

// keys lists the machine's keys, without clocks and bootstrap.
func (b *bench) keys() []string {
	var keys []string
	for k := range b.reader().Scan(nil, nil) {
		if s := string(k); s != string(bootstrapKey()) && s != string(clocksKey()) {
			keys = append(keys, fmt.Sprintf("%q", s))
		}
	}
	return keys
}

// submit is a task with the tests' usual policy; change may be nil.
func submit(id string, change func(*meshv1.TaskRecord)) *meshv1.Accept {
	rec := &meshv1.TaskRecord{
		Id: id, Tenant: "acme", Function: "resize", Lane: 2, LifetimeMs: wallBase + 7*day, RetentionMs: hour,
		TimeoutMs: 30 * second, MaxAttempts: 3, BackoffMs: second, MaxBackoffMs: 10 * second, RequestId: "r-" + id,
	}
	if change != nil {
		change(rec)
	}
	return &meshv1.Accept{Task: rec}
}

// keyed is a submit under an idempotency key whose hash covers content.
func keyed(id, key, content string) *meshv1.Accept {
	return submit(id, func(r *meshv1.TaskRecord) {
		sum := sha256.Sum256([]byte(content))
		r.IdempotencyKey, r.IdempotencyHash = key, sum[:]
	})
}

func worker(name string) *meshv1.Holder { return &meshv1.Holder{Worker: name, Session: "s-" + name} }

func cell(name string) *meshv1.Holder { return &meshv1.Holder{Cell: name} }

// local grants to a worker's stream for ten seconds: the grant is the start.
func local(id string, attempt uint64, w string) *meshv1.Grant {
	return &meshv1.Grant{TaskId: id, Attempt: attempt, Holder: worker(w), TtlMs: 10 * second, Started: true}
}

// abroad grants to another cell for ten seconds, to start within twenty.
func abroad(id string, attempt uint64, c string) *meshv1.Grant {
	return &meshv1.Grant{TaskId: id, Attempt: attempt, Holder: cell(c), TtlMs: 10 * second, StartWithinMs: 20 * second}
}

func ended(status string) *meshv1.Ended {
	e := &meshv1.Ended{Status: status}
	if status == "done" {
		e.Result = []byte("result")
	}
	return e
}

func done(id string, attempt uint64) *meshv1.Complete {
	return &meshv1.Complete{TaskId: id, Attempt: attempt, Ended: ended("done")}
}

func failure(id string, attempt uint64, status string) *meshv1.Fail {
	return &meshv1.Fail{TaskId: id, Attempt: attempt, Ended: ended(status)}
}

// visitor is a guest record as a home cell offers it.
func visitor(id string, attempt uint64) *meshv1.GuestAccept {
	return &meshv1.GuestAccept{Guest: &meshv1.GuestRecord{
		TaskId: id, Attempt: attempt, Home: "us-east-1", Incarnation: "p0q1r2", Tenant: "acme", Function: "resize",
		Lane: 2, TimeoutMs: 30 * second, StartWithinMs: 20 * second,
	}}
}

// envelope wraps a command's body.
func envelope(command proto.Message) *meshv1.SchedulerCommand {
	switch c := command.(type) {
	case *meshv1.Accept:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Accept{Accept: c}}
	case *meshv1.Grant:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Grant{Grant: c}}
	case *meshv1.Extend:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Extend{Extend: c}}
	case *meshv1.Complete:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Complete{Complete: c}}
	case *meshv1.Fail:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Fail{Fail: c}}
	case *meshv1.Cancel:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Cancel{Cancel: c}}
	case *meshv1.Tick:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Tick{Tick: c}}
	case *meshv1.GuestAccept:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestAccept{GuestAccept: c}}
	case *meshv1.GuestStart:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestStart{GuestStart: c}}
	case *meshv1.GuestEnd:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestEnd{GuestEnd: c}}
	case *meshv1.GuestForget:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_GuestForget{GuestForget: c}}
	case *meshv1.Trim:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Trim{Trim: c}}
	case *meshv1.TrimTold:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_TrimTold{TrimTold: c}}
	case *meshv1.Moved:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Moved{Moved: c}}
	case *meshv1.Bootstrap:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Bootstrap{Bootstrap: c}}
	case *meshv1.Block:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Block{Block: c}}
	case *meshv1.Defer:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Defer{Defer: c}}
	case *meshv1.Redrive:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Redrive{Redrive: c}}
	case *meshv1.PauseQueue:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_PauseQueue{PauseQueue: c}}
	case *meshv1.Purge:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Purge{Purge: c}}
	case *meshv1.Slow:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Slow{Slow: c}}
	case *meshv1.ForgetPace:
		return &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_ForgetPace{ForgetPace: c}}
	default:
		panic(fmt.Sprintf("no envelope for %T", command))
	}
}
