package groups

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
)

// Bounds of what one cell keeps.
const (
	// MaxPartitions of a stream.
	MaxPartitions = 256
	// MaxGroups of a stream.
	MaxGroups = 1000
	// MaxMembers of a group.
	MaxMembers = 1000
	// MaxPending is how many messages of a partition a group may have been told
	// of and not acknowledged.
	MaxPending = 1000

	maxMs = 1 << 50 // moments and spans: some 35,000 years
)

// Errors of a command. Each rejects its whole group of the log.
var (
	// ErrUnknownStream: there is no stream of that name here.
	ErrUnknownStream = errors.New("unknown stream")
	// ErrUnknownGroup: the stream has no group of that name.
	ErrUnknownGroup = errors.New("unknown group")
	// ErrUnknownPartition: the stream has fewer partitions.
	ErrUnknownPartition = errors.New("unknown partition")
	// ErrNotMember: the session is not in the group, or not any more.
	ErrNotMember = errors.New("session is not in the group")
	// ErrNotOwner: the partition is another session's.
	ErrNotOwner = errors.New("partition belongs to another session")
	// ErrDraining: the partition's former owner still holds deliveries of it.
	ErrDraining = errors.New("the former owner holds deliveries")
	// ErrStale: the cursor was read before another command moved it.
	ErrStale = errors.New("decided on a stale state")
	// ErrDeleting: the stream is being deleted.
	ErrDeleting = errors.New("stream is being deleted")
	// ErrTooMany: the stream has its most groups, or the group its most members.
	ErrTooMany = errors.New("too many")
	// ErrBadCommand: the command does not parse or names nothing.
	ErrBadCommand = errors.New("bad command")
)

// ExistsError says that a stream of that name has other settings.
type ExistsError struct{ Stream *meshv1.StreamRecord }

func (e *ExistsError) Error() string {
	return "stream " + e.Stream.Name + " exists with other settings"
}

// Verdict is what became of an acknowledgement.
type Verdict string

// The verdicts.
const (
	Accepted Verdict = "accepted"
	// Done: the message was acknowledged before.
	Done Verdict = "done"
	// Moved: the delivery is not the newest of its message: its visibility
	// timeout passed, its session was lost, or the group was moved by a Seek.
	Moved Verdict = "moved"
)

// Delivery is one message given to a session.
type Delivery struct {
	Position uint64
	Number   uint64
	Attempt  uint32
}

// Move is what became of a cursor. Nobody changes it any more.
type Move struct {
	CursorName
	*Cursor
}

// Result is what a command returns.
type Result struct {
	// Touched are the streams whose readers should look again.
	Touched []Name
	// Moved are the cursors that the command changed, some perhaps twice: the
	// last one holds.
	Moved []Move
	// Stream after the command, for Create.
	Stream *meshv1.StreamRecord
	// Existed: a Create found the stream there, with the same settings.
	Existed bool
	// Group after a Join.
	Group *meshv1.GroupRecord
	// Deliveries of a Deliver.
	Deliveries []Delivery
	// Verdicts of an Ack, in the order of its items.
	Verdicts []Verdict
	// Lost are the sessions of a Renew that are in no group any more, by place
	// in the command.
	Lost []int
	// More: a Tick or a Sweep stopped at its limit.
	More bool
}

// Name is a stream of this cell.
type Name struct{ Tenant, Stream string }

func (n Name) String() string { return n.Tenant + "/" + n.Stream }

// Group is a consumer group of a stream.
type Group struct {
	Name
	Group string
}

// CursorName is a group's cursor in one partition.
type CursorName struct {
	Group
	Partition uint32
}

func (g Group) String() string { return g.Name.String() + "/" + g.Group }

// Machine is the streams' state machine. It has no state of its own.
type Machine struct{}

var _ state.Machine = Machine{}

// Apply applies one encoded StreamCommand; the result is a *Result.
func (Machine) Apply(tx state.Tx, command []byte) (any, error) {
	var cmd meshv1.StreamCommand
	if err := proto.Unmarshal(command, &cmd); err != nil {
		return nil, fmt.Errorf("streams: decode command: %w: %w", ErrBadCommand, err)
	}
	for _, ms := range []int64{cmd.GetClocks().GetLeaseMs(), cmd.GetClocks().GetWallMs()} {
		if ms < 0 || ms > maxMs {
			return nil, fmt.Errorf("streams: advance clocks: %w", ErrBadCommand)
		}
	}
	a := &apply{Tx: tx, result: &Result{}}
	a.advance(cmd.Clocks)
	if err := a.command(&cmd); err != nil {
		return nil, err
	}
	return a.result, nil
}

// apply is one command under way.
type apply struct {
	state.Tx
	clocks meshv1.Clocks
	result *Result
}

func (a *apply) command(cmd *meshv1.StreamCommand) error {
	switch c := cmd.Command.(type) {
	case *meshv1.StreamCommand_Create:
		return a.create(c.Create)
	case *meshv1.StreamCommand_Delete:
		return a.delete(c.Delete)
	case *meshv1.StreamCommand_Sweep:
		return a.sweep(c.Sweep)
	case *meshv1.StreamCommand_Publish:
		return a.publish(c.Publish)
	case *meshv1.StreamCommand_Join:
		return a.join(c.Join)
	case *meshv1.StreamCommand_Leave:
		return a.leave(c.Leave)
	case *meshv1.StreamCommand_Renew:
		return a.renew(c.Renew)
	case *meshv1.StreamCommand_Deliver:
		return a.deliver(c.Deliver)
	case *meshv1.StreamCommand_Ack:
		return a.ack(c.Ack)
	case *meshv1.StreamCommand_Seek:
		return a.seek(c.Seek)
	case *meshv1.StreamCommand_Tick:
		return a.tick(c.Tick)
	case *meshv1.StreamCommand_Placed:
		return a.placed(c.Placed)
	case *meshv1.StreamCommand_Trimmed:
		return a.trimmed(c.Trimmed)
	default:
		return fmt.Errorf("streams: apply %T: %w", cmd.Command, ErrBadCommand)
	}
}

// advance moves the clocks on; neither ever goes back, whatever a leader says.
func (a *apply) advance(c *meshv1.Clocks) {
	get(a, clocksKey(), &a.clocks)
	before := [2]int64{a.clocks.LeaseMs, a.clocks.WallMs}
	a.clocks.LeaseMs = max(a.clocks.LeaseMs, c.GetLeaseMs())
	a.clocks.WallMs = max(a.clocks.WallMs, c.GetWallMs())
	if before != [2]int64{a.clocks.LeaseMs, a.clocks.WallMs} {
		put(a, clocksKey(), &a.clocks)
	}
}

func (a *apply) touch(n Name) {
	if !slices.Contains(a.result.Touched, n) {
		a.result.Touched = append(a.result.Touched, n)
	}
}

// stream reads a stream that is not being deleted.
func (a *apply) stream(n Name) (*meshv1.StreamRecord, error) {
	var rec meshv1.StreamRecord
	if !get(a, streamKey(n), &rec) {
		return nil, fmt.Errorf("streams: read %s: %w", n, ErrUnknownStream)
	}
	if rec.Deleting {
		return nil, fmt.Errorf("streams: read %s: %w", n, ErrDeleting)
	}
	return &rec, nil
}

func (a *apply) create(c *meshv1.StreamCreate) error {
	rec := c.GetStream()
	n := Name{rec.GetTenant(), rec.GetName()}
	if !mesh.ValidName(n.Tenant) || !mesh.ValidName(n.Stream) || rec.Partitions == 0 || rec.Partitions > MaxPartitions ||
		rec.MaxAgeMs <= 0 || rec.MaxAgeMs > maxMs || rec.VisibilityMs <= 0 || rec.VisibilityMs > maxMs {
		return fmt.Errorf("streams: create %s: %w", n, ErrBadCommand)
	}
	var old meshv1.StreamRecord
	if get(a, streamKey(n), &old) {
		if old.Deleting {
			return fmt.Errorf("streams: create %s: %w", n, ErrDeleting)
		}
		rec.CreatedMs, rec.Groups, rec.Deleting, rec.Mark = old.CreatedMs, old.Groups, false, old.Mark
		if !proto.Equal(rec, &old) {
			return &ExistsError{Stream: &old}
		}
		a.result.Stream, a.result.Existed = &old, true
		return nil
	}
	rec.CreatedMs, rec.Groups, rec.Deleting, rec.Mark = a.clocks.WallMs, 0, false, nil
	put(a, streamKey(n), rec)
	a.result.Stream = rec
	return nil
}

// placed keeps the first mark: what lies in another broker is not the stream's.
func (a *apply) placed(c *meshv1.StreamPlaced) error {
	n := nameOf(c.GetName())
	rec, err := a.stream(n)
	if err != nil {
		return err
	}
	if len(rec.Mark) > 0 && !bytes.Equal(rec.Mark, c.Mark) {
		return fmt.Errorf("streams: place %s, which lies elsewhere: %w", n, ErrBadCommand)
	}
	rec.Mark = c.Mark
	put(a, streamKey(n), rec)
	return nil
}

// publish lets the broker's commands of the same group pass.
func (a *apply) publish(c *meshv1.StreamPublish) error {
	n := nameOf(c.GetName())
	rec, err := a.stream(n)
	if err != nil {
		return err
	}
	if c.HighestPartition >= rec.Partitions {
		return fmt.Errorf("streams: publish to %s/%d: %w", n, c.HighestPartition, ErrUnknownPartition)
	}
	a.touch(n)
	return nil
}

// delete begins the end of a stream; a second one changes nothing.
func (a *apply) delete(c *meshv1.StreamDelete) error {
	n := nameOf(c.GetName())
	var rec meshv1.StreamRecord
	if !get(a, streamKey(n), &rec) {
		return fmt.Errorf("streams: delete %s: %w", n, ErrUnknownStream)
	}
	rec.Deleting = true
	put(a, streamKey(n), &rec)
	a.touch(n)
	return nil
}

// sweep removes a deleted stream's groups, a batch at a time, and then itself.
func (a *apply) sweep(c *meshv1.StreamSweep) error {
	n := nameOf(c.GetName())
	var rec meshv1.StreamRecord
	if !get(a, streamKey(n), &rec) {
		return nil
	}
	if !rec.Deleting {
		return fmt.Errorf("streams: sweep %s: %w", n, ErrBadCommand)
	}
	limit := int(c.Limit)
	if limit <= 0 {
		limit = 1024
	}
	var keys [][]byte
	for _, kind := range []byte{kindGroup, kindCursor, kindDead} {
		prefix := append([]byte{kind}, n.key()...)
		for k, v := range a.Scan(prefix, after(prefix)) {
			if len(keys) >= limit {
				a.result.More = true
				break
			}
			keys = append(keys, slices.Clone(k))
			if g, rest, ok := parseGroup(string(k[1:])); ok && kind == kindCursor {
				a.result.Moved = append(a.result.Moved, Move{CursorName{g, partitionOf(rest)}, &Cursor{}})
			}
			if due := dueOf(kind, k, v); due > 0 {
				keys = append(keys, dueKey(due, k))
			}
		}
	}
	for _, k := range keys {
		a.Delete(k)
	}
	if !a.result.More {
		a.Delete(streamKey(n))
	}
	return nil
}

// trimmed forgets what the broker has dropped below first: nobody can be given
// it any more.
func (a *apply) trimmed(c *meshv1.StreamTrimmed) error {
	n := nameOf(c.GetName())
	if _, err := a.stream(n); err != nil {
		return err
	}
	for g := range groups(a, n) {
		a.dropDead(g, c.Partition, 0, c.First)
		cur := a.cursor(g, c.Partition)
		if cur.Next >= c.First && (len(cur.Pending) == 0 || cur.Pending[0].Position >= c.First) {
			continue
		}
		cur.Next = max(cur.Next, c.First)
		cur.Pending = slices.DeleteFunc(cur.Pending, func(p Pending) bool { return p.Position < c.First })
		a.putCursor(g, c.Partition, cur)
	}
	a.touch(n)
	return nil
}

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
		panic(fmt.Sprintf("streams: stored record %q does not parse: %v", key, err))
	}
}

func put(tx state.Tx, key []byte, m proto.Message) {
	v, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("streams: record for %q does not encode: %v", key, err))
	}
	tx.Set(key, v)
}
