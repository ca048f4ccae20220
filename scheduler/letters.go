package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// Letters chooses dead letters; what is empty chooses all.
type Letters struct {
	Tenant, Function, Lane, Cause string
	EndedAfter, EndedBefore       time.Time // zero for no bound
	After                         string    // token of the last page
	Limit                         int
}

// DeadLetters lists dead letters by queue and submit, how many there are of the
// tenant, function and lane, and the token of the next page.
func (s *Scheduler) DeadLetters(ctx context.Context, f Letters) (list []*meshv1.TaskRecord, total uint64, next string, err error) {
	l, err := s.verified(ctx)
	if err != nil {
		return nil, 0, "", err
	}
	if f.Lane != "" {
		if _, err := mesh.ParseLane(f.Lane); err != nil {
			return nil, 0, "", &Refusal{Reason: UnknownLane, Field: "filter.lane", Message: fmt.Sprintf("there is no lane %.80q", f.Lane), Hint: "use critical, interactive, standard or batch, or leave it out for all"}
		}
	}
	queue, id, _ := strings.Cut(f.After, "#")
	if _, ok := fsm.ParseTopic(queue); f.After != "" && (!ok || id == "") {
		return nil, 0, "", &Refusal{Reason: BadRequest, Field: "pageToken", Message: "not the token of a page", Hint: "leave it out to begin"}
	}
	for q, n := range fsm.Queues(l.State) {
		if n.Dead == 0 || !f.queue(q) {
			continue
		}
		total += n.Dead
		if next != "" || (queue != "" && q.String() != queue && !afterQueue(q, queue)) {
			continue
		}
		from := ""
		if q.String() == queue {
			from = id
		}
		for id := range fsm.DeadLetters(l.State, q, from) {
			rec, ok := fsm.Task(l.State, id)
			if !ok || !f.letter(rec) {
				continue
			}
			if len(list) == f.Limit {
				last := list[len(list)-1]
				next = fsm.QueueOf(last).String() + "#" + last.Id
				break
			}
			list = append(list, rec)
		}
	}
	return list, total, next, nil
}

func (f Letters) queue(q fsm.Queue) bool {
	return (f.Tenant == "" || f.Tenant == q.Tenant) && (f.Function == "" || f.Function == q.Function) && (f.Lane == "" || f.Lane == q.Lane.String())
}

func (f Letters) letter(rec *meshv1.TaskRecord) bool {
	ended := time.UnixMilli(rec.EndedMs)
	return (f.Cause == "" || f.Cause == fsm.Cause(rec)) && (f.EndedAfter.IsZero() || !ended.Before(f.EndedAfter)) &&
		(f.EndedBefore.IsZero() || ended.Before(f.EndedBefore))
}

// LetterMessage writes a dead letter as the API shows it.
func LetterMessage(rec *meshv1.TaskRecord) *isobarv1.DeadLetter {
	m := &isobarv1.DeadLetter{Task: TaskMessage(rec), Cause: fsm.Cause(rec), Redrives: rec.Redrives}
	for _, d := range rec.Deaths {
		m.Deaths = append(m.Deaths, &isobarv1.Death{
			Ended: timestamppb.New(time.UnixMilli(d.EndedMs)), Reason: d.Reason, Cause: d.Cause, Attempt: d.Attempt, Counted: d.Counted,
			Redriven: timestamppb.New(time.UnixMilli(d.RedrivenMs)),
		})
	}
	return m
}

// Redriven is what became of one task's redrive.
type Redriven struct {
	TaskID string
	Record *meshv1.TaskRecord // as it is then; nil when it is not known
	// Already: it had been redriven and did not die since.
	Already bool
	Err     error
}

// redriveAtOnce is how many redrives of a call are under way together.
const redriveAtOnce = 64

// Redrive gives dead tasks new attempts, each on its own. The error is ErrNotLeader;
// what is wrong with a task is in its result.
func (s *Scheduler) Redrive(ctx context.Context, ids []string) ([]Redriven, error) {
	l, err := s.verified(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Redriven, len(ids))
	room := make(chan struct{}, redriveAtOnce)
	var wait sync.WaitGroup
	for _, line := range l.linesOf(ids) {
		room <- struct{}{}
		wait.Go(func() {
			for _, i := range line {
				out[i] = l.redrive(ctx, ids[i])
			}
			<-room
		})
	}
	wait.Wait()
	return out, nil
}

// linesOf are the places of ids that are redriven one after the other: tasks of one
// ordering key, in the order in which they stood in its line; any other is alone.
func (l *leader) linesOf(ids []string) [][]int {
	type line struct{ tenant, function, key string }
	var out [][]int
	at := map[line]int{}
	place := make([]uint64, len(ids))
	for i, id := range ids {
		rec, ok := fsm.Task(l.State, id)
		if !ok || rec.OrderingKey == "" {
			out = append(out, []int{i})
			continue
		}
		k := line{rec.Tenant, rec.Function, rec.OrderingKey}
		n, ok := at[k]
		if !ok {
			n, at[k] = len(out), len(out)
			out = append(out, nil)
		}
		out[n], place[i] = append(out[n], i), cmp.Or(rec.OrderSeq, rec.OrderWas)
	}
	for _, line := range out {
		slices.SortStableFunc(line, func(a, b int) int { return cmp.Compare(place[a], place[b]) })
	}
	return out
}

func (l *leader) redrive(ctx context.Context, id string) Redriven {
	out := Redriven{TaskID: id}
	if out.Err = l.own(id); out.Err != nil {
		return out
	}
	rec, ok := fsm.Task(l.State, id)
	if !ok {
		out.Err = unknownTask(id)
		return out
	}
	out.Record = rec
	if fsm.State(rec) != isobarv1.TaskState_TASK_STATE_DEAD {
		if out.Already = rec.Redrives > 0; !out.Already {
			out.Err = notDead(rec)
		}
		return out
	}
	res, err := l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Redrive{
		Redrive: &meshv1.Redrive{TaskId: id, Attempt: rec.Attempt, Cap: l.QueueCap},
	}})
	if err != nil {
		out.Err = l.notRedriven(rec, err)
		return out
	}
	out.Record = res.Task
	out.Already = res.Count == 0
	return out
}

func notDead(rec *meshv1.TaskRecord) *Refusal {
	state := strings.ToLower(strings.TrimPrefix(fsm.State(rec).String(), "TASK_STATE_"))
	return &Refusal{Reason: NotDead, TaskID: rec.Id, Message: "the task is " + state + ", and only a dead one can be redriven", Hint: "isobar dlq list shows those that are"}
}

// notRedriven says why a dead task was not given new attempts.
func (l *leader) notRedriven(rec *meshv1.TaskRecord, err error) error {
	var full *fsm.QueueFullError
	switch {
	case errors.As(err, &full):
		return queueFull(rec.Id, full)
	case errors.Is(err, fsm.ErrPayloadLost):
		return &Refusal{Reason: PayloadLost, TaskID: rec.Id, Message: "the task died because its payload was lost: nothing is left to run", Hint: "submit it again"}
	case errors.Is(err, fsm.ErrDeadlinePast):
		return &Refusal{Reason: DeadlinePast, TaskID: rec.Id, Message: "the task's deadline has passed", Hint: "submit it again with a later one"}
	case errors.Is(err, fsm.ErrNotDead), errors.Is(err, fsm.ErrStale):
		if now, ok := fsm.Task(l.State, rec.Id); ok {
			rec = now
		}
		return notDead(rec)
	case errors.Is(err, fsm.ErrUnknownTask):
		return unknownTask(rec.Id)
	case errors.Is(err, consensus.ErrNotLeader), errors.Is(err, ErrNotLeader):
		return fmt.Errorf("scheduler: redrive %s: %w", rec.Id, ErrNotLeader)
	default:
		return errOutcome(err, "the task may have been redriven")
	}
}
