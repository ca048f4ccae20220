package fsm

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/state"
)

// How much of a task's history its record keeps.
const (
	keepAttempts  = 16
	keepDecisions = 3
)

// Bounds of what a command may bring, so that no sum of a few overflows. They
// are far above every configured limit: those are the proposer's to hold.
const (
	maxMs    = 1 << 50 // moments and spans: some 35,000 years
	maxBytes = 1 << 40 // one payload
)

// inRange reports whether all the moments and spans are within the bounds.
func inRange(ms ...int64) bool {
	for _, v := range ms {
		if v < 0 || v > maxMs {
			return false
		}
	}
	return true
}

// Errors of a command. Each rejects its whole group.
var (
	// ErrUnknownTask: no record of that id here.
	ErrUnknownTask = errors.New("unknown task")
	// ErrStale: the command was decided on another attempt or state.
	ErrStale = errors.New("decided on a stale state")
	// ErrTrimmed: the payload's reference lies below the trim position.
	ErrTrimmed = errors.New("payload is below the trim position")
	// ErrLive: a trim would drop a live payload.
	ErrLive = errors.New("trim above a live record")
	// ErrDeadlinePast: the deadline had passed at accept.
	ErrDeadlinePast = errors.New("deadline is in the past")
	// ErrBadCommand: the command does not parse or names nothing.
	ErrBadCommand = errors.New("bad command")
	// ErrNotDead: only a dead task can be given new attempts.
	ErrNotDead = errors.New("the task is not dead")
	// ErrPayloadLost: nothing is left to run.
	ErrPayloadLost = errors.New("the payload is lost")
	// ErrPaused: nothing of the queue is granted now.
	ErrPaused = errors.New("the queue is paused")
	// ErrNotBootstrapped: the cell has no incarnation yet.
	ErrNotBootstrapped = errors.New("cell is not bootstrapped")
)

// DuplicateError says that the task is known already.
type DuplicateError struct {
	ID string
	// ByKey: found by idempotency key, not by request id.
	ByKey bool
}

func (e *DuplicateError) Error() string { return "task is known as " + e.ID }

// ConflictError says that the idempotency key belongs to a task with another
// content.
type ConflictError struct{ ID string }

func (e *ConflictError) Error() string { return "key belongs to " + e.ID + " with another content" }

// QueueFullError says that the queue is at its cap.
type QueueFullError struct {
	Queue        Queue
	Count, Bytes uint64
	Held, Over   mesh.Cost // of its tasks, and what of the new one's is too much
	Cap          *meshv1.QueueCap
	// By names the bound: count, bytes, cost.tokens, cost.bytes or
	// cost.accelerator_mib.
	By string
}

func (e *QueueFullError) Error() string {
	if e.By != "count" && e.By != "bytes" {
		most := CostOf(e.Cap.GetCost(), 0)
		return fmt.Sprintf("queue %s is full: its tasks cost %s, its bound is %s, and this one costs %s", e.Queue, e.Held.Where(e.Over), most.Where(e.Over), e.Over)
	}
	return fmt.Sprintf("queue %s is full: %d tasks of %d, %d bytes of %d", e.Queue, e.Count, e.Cap.Count, e.Bytes, e.Cap.Bytes)
}

// Verdict is what became of an attempt's message.
type Verdict string

// The verdicts.
const (
	Accepted  Verdict = "accepted"
	Fenced    Verdict = "fenced"    // another attempt, or this one's lease moved on
	Terminal  Verdict = "terminal"  // the task had ended otherwise
	Unknown   Verdict = "unknown"   // no such task here
	Cancelled Verdict = "cancelled" // the task had been cancelled
	Expired   Verdict = "expired"   // its deadline had passed
	Planned   Verdict = "planned"   // the start was put off, moved, or may come at once
)

// EffectKind says what a hint is about.
type EffectKind uint8

// The effects.
const (
	// TaskReady: the task entered its ready queue.
	TaskReady EffectKind = iota + 1
	// TaskUnready: it left it, but not by a grant.
	TaskUnready
	// TaskEnded: it reached a terminal state.
	TaskEnded
	// LeaseGone: the holder's lease is void; it should stop, its room is free.
	LeaseGone
	// GuestReady: a guest waits for a worker.
	GuestReady
	// GuestEnded: an outcome waits to be reported to its home.
	GuestEnded
	// GuestGone: the guest record was dropped.
	GuestGone
	// QueuePaused: nothing of the queue is granted until QueueResumed.
	QueuePaused
	// QueueResumed: its ready tasks may be granted again.
	QueueResumed
)

// Effect is a hint for the leader.
type Effect struct {
	Kind    EffectKind
	TaskID  string
	Attempt uint64
	Queue   Queue
	Holder  *meshv1.Holder     // LeaseGone
	Task    *meshv1.TaskRecord // TaskEnded: as it ended; nobody may change it
	State   isobarv1.TaskState
}

// Result is what a command returns.
type Result struct {
	// Task after the command, where it names one.
	Task *meshv1.TaskRecord
	// Guest after the command, where it names one.
	Guest   *meshv1.GuestRecord
	Verdict Verdict
	// Items, for Extend, in the order of the command.
	Items   []ExtendVerdict
	Effects []Effect
	// More: a Tick or a Purge stopped at its limit.
	More bool
	// Count of the tasks a Purge cancelled, and a Redrive gave new attempts, and 1
	// for a Slow: none when it is a repeat.
	Count int
	// Pause after a PauseQueue; nil when the queue is not paused.
	Pause *meshv1.Pause
}

// ExtendVerdict is what became of one extend.
type ExtendVerdict struct {
	Verdict Verdict
	// TTL left on the lease, in milliseconds of lease time.
	TTL int64
}

// Machine is the scheduler's state machine. It has no state of its own.
type Machine struct{}

var _ state.Machine = Machine{}

// Apply applies one encoded SchedulerCommand; the result is a *Result.
func (Machine) Apply(tx state.Tx, command []byte) (any, error) {
	var cmd meshv1.SchedulerCommand
	if err := proto.Unmarshal(command, &cmd); err != nil {
		return nil, fmt.Errorf("fsm: decode command: %w: %w", ErrBadCommand, err)
	}
	if !inRange(cmd.GetClocks().GetLeaseMs(), cmd.GetClocks().GetWallMs()) {
		// A clock never goes back, so one out of bounds would stay.
		return nil, fmt.Errorf("fsm: advance clocks: %w", ErrBadCommand)
	}
	a := &apply{Tx: tx, result: &Result{}}
	a.advance(cmd.Clocks)
	if err := a.command(&cmd); err != nil {
		return nil, err
	}
	a.storeQueue()
	return a.result, nil
}

// apply is one command under way.
type apply struct {
	state.Tx
	clocks meshv1.Clocks
	result *Result
	// The counts of the queue touched last. A command moves a task through
	// several of them; they are read and written once.
	queueOf    Queue
	counts     *meshv1.QueueRecord
	queueDirty bool
}

func (a *apply) command(cmd *meshv1.SchedulerCommand) error {
	switch c := cmd.Command.(type) {
	case *meshv1.SchedulerCommand_Accept:
		return a.accept(c.Accept)
	case *meshv1.SchedulerCommand_Grant:
		return a.grant(c.Grant)
	case *meshv1.SchedulerCommand_Extend:
		return a.extend(c.Extend)
	case *meshv1.SchedulerCommand_Complete:
		return a.complete(c.Complete)
	case *meshv1.SchedulerCommand_Fail:
		return a.fail(c.Fail)
	case *meshv1.SchedulerCommand_Cancel:
		return a.cancel(c.Cancel)
	case *meshv1.SchedulerCommand_Tick:
		return a.tick(c.Tick)
	case *meshv1.SchedulerCommand_GuestAccept:
		return a.guestAccept(c.GuestAccept)
	case *meshv1.SchedulerCommand_GuestStart:
		return a.guestStart(c.GuestStart)
	case *meshv1.SchedulerCommand_GuestEnd:
		return a.guestEnd(c.GuestEnd)
	case *meshv1.SchedulerCommand_GuestForget:
		return a.guestForget(c.GuestForget)
	case *meshv1.SchedulerCommand_Trim:
		return a.trim(c.Trim)
	case *meshv1.SchedulerCommand_TrimTold:
		a.trimTold(c.TrimTold)
		return nil
	case *meshv1.SchedulerCommand_Moved:
		return a.moved(c.Moved)
	case *meshv1.SchedulerCommand_Bootstrap:
		return a.bootstrap(c.Bootstrap)
	case *meshv1.SchedulerCommand_Block:
		return a.block(c.Block)
	case *meshv1.SchedulerCommand_Defer:
		return a.putOff(c.Defer)
	case *meshv1.SchedulerCommand_Redrive:
		return a.redrive(c.Redrive)
	case *meshv1.SchedulerCommand_PauseQueue:
		return a.pauseQueue(c.PauseQueue)
	case *meshv1.SchedulerCommand_Slow:
		return a.slow(c.Slow)
	case *meshv1.SchedulerCommand_ForgetPace:
		return a.forgetPace(c.ForgetPace)
	case *meshv1.SchedulerCommand_Purge:
		return a.purge(c.Purge)
	default:
		return fmt.Errorf("fsm: apply %T: %w", cmd.Command, ErrBadCommand)
	}
}

// advance moves the clocks on; neither ever goes back, whatever a leader says.
func (a *apply) advance(c *meshv1.Clocks) {
	stored := readClocks(a)
	a.clocks.LeaseMs = max(stored.LeaseMs, c.GetLeaseMs())
	a.clocks.WallMs = max(stored.WallMs, c.GetWallMs())
	if a.clocks.LeaseMs != stored.LeaseMs || a.clocks.WallMs != stored.WallMs {
		put(a, clocksKey(), &a.clocks)
	}
}

// bootstrap mints the incarnation, once; a second one changes nothing.
func (a *apply) bootstrap(c *meshv1.Bootstrap) error {
	if _, ok := a.Get(bootstrapKey()); ok {
		return nil
	}
	if c.Cell == "" || c.Incarnation == "" {
		return fmt.Errorf("fsm: bootstrap: %w", ErrBadCommand)
	}
	put(a, bootstrapKey(), c)
	return nil
}

func (a *apply) effect(e Effect) { a.result.Effects = append(a.result.Effects, e) }

// task reads a record; ErrUnknownTask when there is none.
func (a *apply) task(id string) (*meshv1.TaskRecord, error) {
	var rec meshv1.TaskRecord
	if !get(a, taskKey(id), &rec) {
		return nil, fmt.Errorf("fsm: read task %s: %w", id, ErrUnknownTask)
	}
	return &rec, nil
}

// store writes the record back and returns it to the proposer.
func (a *apply) store(rec *meshv1.TaskRecord) {
	put(a, taskKey(rec.Id), rec)
	a.result.Task = rec
}

// QueueOf is the queue a task belongs to.
func QueueOf(rec *meshv1.TaskRecord) Queue {
	return Queue{Tenant: rec.Tenant, Function: rec.Function, Lane: mesh.Lane(rec.Lane)}
}

// State is the record's state as the API names it.
func State(rec *meshv1.TaskRecord) isobarv1.TaskState { return isobarv1.TaskState(rec.State) }

// Ended reports whether the state is terminal.
func Ended(s isobarv1.TaskState) bool { return s >= isobarv1.TaskState_TASK_STATE_COMPLETED }

func get(r state.Reader, key []byte, m proto.Message) bool {
	v, ok := r.Get(key)
	if ok {
		decode(key, v, m)
	}
	return ok
}

func decode(key, value []byte, m proto.Message) {
	if err := proto.Unmarshal(value, m); err != nil {
		// The machine wrote it: to go on would diverge from the other servers.
		panic(fmt.Sprintf("fsm: stored record %q does not parse: %v", key, err))
	}
}

func put(tx state.Tx, key []byte, m proto.Message) {
	v, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("fsm: record for %q does not encode: %v", key, err))
	}
	tx.Set(key, v)
}
