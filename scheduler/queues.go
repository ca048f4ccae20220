package scheduler

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
)

// verified is the leader, once it has been confirmed that it still leads: what it
// reads then is no older than the call.
func (s *Scheduler) verified(ctx context.Context) (*leader, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	if err := l.Log.Verify(ctx); err != nil {
		return nil, fmt.Errorf("scheduler: cell %s: %w", s.Cell.ID, ErrNotLeader)
	}
	return l, nil
}

func pausedWhy(reason string) string {
	if reason == "" {
		return "paused"
	}
	return "paused: " + reason
}

// Queues lists queues by name, those after the given one, with exact counts. An
// empty tenant or function means all.
func (s *Scheduler) Queues(ctx context.Context, tenant, function, after string, limit int) (list []*isobarv1.Queue, next string, err error) {
	l, err := s.verified(ctx)
	if err != nil {
		return nil, "", err
	}
	for q, n := range fsm.Queues(l.State) {
		if (tenant != "" && q.Tenant != tenant) || (function != "" && q.Function != function) || !afterQueue(q, after) {
			continue
		}
		if len(list) == limit {
			last := list[limit-1]
			return list, last.Tenant + "/" + last.Function + "/" + last.Lane, nil
		}
		list = append(list, l.queueMessage(q, n))
	}
	return list, "", nil
}

// afterQueue reports whether q comes after the named queue; every one does after
// none.
func afterQueue(q fsm.Queue, name string) bool {
	last, ok := fsm.ParseTopic(name)
	if !ok {
		return true
	}
	order := strings.Compare(q.Tenant+"\x00"+q.Function+"\x00", last.Tenant+"\x00"+last.Function+"\x00")
	return order > 0 || (order == 0 && q.Lane > last.Lane)
}

// queueMessage writes a queue as the API shows it.
func (l *leader) queueMessage(q fsm.Queue, n *meshv1.QueueRecord) *isobarv1.Queue {
	m := &isobarv1.Queue{
		Tenant: q.Tenant, Function: q.Function, Lane: q.Lane.String(), Cell: string(l.Cell.ID),
		Ready: n.Ready, Deferred: n.Deferred, Leased: n.Leased, Dead: n.Dead, Bytes: n.Bytes, Cost: n.Cost,
	}
	if n.Pause != nil {
		m.Pause = &isobarv1.Pause{Since: timestampMs(n.Pause.SinceMs), Reason: n.Pause.Reason}
	}
	for id := range fsm.Ready(l.State, q, "") {
		rec, ok := fsm.Task(l.State, id)
		if !ok {
			break
		}
		m.Oldest, m.BlockedBy = timestampMs(rec.SubmittedMs), rec.Blocked
		if m.BlockedBy != "" || n.Pause != nil {
			break
		}
		l.mu.Lock()
		if w := l.waiting.queues[queueKey{Queue: q}]; w != nil {
			m.BlockedBy = w.why
		}
		l.mu.Unlock()
		break
	}
	if n.Pause != nil {
		m.BlockedBy = pausedWhy(n.Pause.Reason)
	}
	return m
}

// lanesOf are the queues of a function: of one lane, or with none named of all.
// Neither a function nor a task of one: the queue is not known.
func (l *leader) lanesOf(tenant, function, lane string) ([]fsm.Queue, error) {
	lanes := mesh.Lanes()
	list := lanes[:]
	if lane != "" {
		one, err := mesh.ParseLane(lane)
		if err != nil {
			return nil, &Refusal{Reason: UnknownLane, Field: "lane", Message: fmt.Sprintf("there is no lane %.80q", lane), Hint: "use critical, interactive, standard or batch, or leave it out for all"}
		}
		list = []mesh.Lane{one}
	}
	_, err := l.Registry.Function(tenant, function)
	known := err == nil
	queues := make([]fsm.Queue, len(list))
	for i, lane := range list {
		queues[i] = fsm.Queue{Tenant: tenant, Function: function, Lane: lane}
		known = known || proto.Size(fsm.QueueCounts(l.State, queues[i])) > 0
	}
	if !known {
		return nil, &Refusal{
			Reason: UnknownQueue, Field: "function", Message: fmt.Sprintf("tenant %.80s has no function %.80q and no task of one here", tenant, function),
			Hint: "isobar queue list shows the queues of a cell",
		}
	}
	return queues, nil
}

// SetPaused pauses or resumes a function's queues, all or none. It returns them as
// they are then, and how many were otherwise before.
func (s *Scheduler) SetPaused(ctx context.Context, tenant, function, lane string, paused bool, reason string) (list []*isobarv1.Queue, changed int, err error) {
	l, err := s.leading()
	if err != nil {
		return nil, 0, err
	}
	queues, err := l.lanesOf(tenant, function, lane)
	if err != nil {
		return nil, 0, err
	}
	group := make([]state.Command, len(queues))
	for i, q := range queues {
		body, err := proto.Marshal(&meshv1.SchedulerCommand{
			Clocks: l.clock.read(time.Now()),
			Command: &meshv1.SchedulerCommand_PauseQueue{PauseQueue: &meshv1.PauseQueue{
				Tenant: q.Tenant, Function: q.Function, Lane: uint32(q.Lane), Paused: paused, Reason: reason,
			}},
		})
		if err != nil {
			return nil, 0, fmt.Errorf("scheduler: encode pause: %w", err)
		}
		group[i] = state.Command{Machine: state.SchedulerMachine, Body: body}
	}
	results, err := l.proposeGroup(ctx, group)
	if err != nil {
		return nil, 0, err
	}
	for i, q := range queues {
		if res, ok := results[i].(*fsm.Result); ok {
			changed += res.Count
		}
		list = append(list, l.queueMessage(q, fsm.QueueCounts(l.State, q)))
	}
	l.Logger.Info("queues set", "tenant", tenant, "function", function, "lane", lane, "paused", paused, "reason", reason, "changed", changed)
	return list, changed, nil
}

// purgeStep is how many tasks one command of a purge cancels, purgeCall how many
// one call does.
const (
	purgeStep = 256
	purgeCall = 16_384
)

// Purge cancels what waits in a function's queues and was accepted before it
// began. The token says when that was: with it a purge that stopped goes on.
func (s *Scheduler) Purge(ctx context.Context, tenant, function, lane, reason, token string) (cancelled int, next string, err error) {
	l, err := s.leading()
	if err != nil {
		return 0, "", err
	}
	queues, err := l.lanesOf(tenant, function, lane)
	if err != nil {
		return 0, "", err
	}
	if token == "" {
		token = l.beyond(queues)
	} else if _, err := ulid.ParseStrict(strings.ToUpper(token)); err != nil {
		return 0, "", &Refusal{Reason: BadRequest, Field: "token", Message: "not the token of a purge", Hint: "leave it out to begin one"}
	}
	for _, q := range queues {
		for {
			if cancelled >= purgeCall {
				return cancelled, token, nil
			}
			res, err := l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Purge{Purge: &meshv1.Purge{
				Tenant: q.Tenant, Function: q.Function, Lane: uint32(q.Lane), BeforeId: token, Limit: purgeStep, Reason: reason,
			}}})
			if err != nil {
				if cancelled > 0 {
					return cancelled, token, nil // what was done is told; the rest is another call's
				}
				return 0, "", err
			}
			cancelled += res.Count
			if !res.More {
				break
			}
		}
	}
	l.Logger.Info("queues purged", "tenant", tenant, "function", function, "lane", lane, "reason", reason, "cancelled", cancelled)
	return cancelled, "", nil
}

// beyond is a token that sorts behind every id of the queues. Ids are made by this
// leader's clock or by one before it, which may have been ahead.
func (l *leader) beyond(queues []fsm.Queue) string {
	behind := func(ms uint64) string { return strings.ToLower(ulid.MustNew(ms+1, nil).String()) }
	token := behind(ulid.Timestamp(time.Now()))
	for _, q := range queues {
		for _, waiting := range []iter.Seq[string]{fsm.Ready(l.State, q, token), fsm.Deferred(l.State, q, token)} {
			for id := range waiting {
				if at, err := ulid.ParseStrict(strings.ToUpper(id[:min(len(id), ulid.EncodedSize)])); err == nil {
					token = max(token, behind(at.Time()))
				}
			}
		}
	}
	return token
}

// peekBytes bounds the payloads of one Peek; the first is always in.
const peekBytes = 4 << 20

// Peek reads the tasks that are next in a queue and their payloads, at most so
// many, and fewer when their payloads are large. A payload is nil when the broker
// has lost it.
func (s *Scheduler) Peek(ctx context.Context, tenant, function, lane string, limit int) (recs []*meshv1.TaskRecord, payloads [][]byte, err error) {
	l, err := s.verified(ctx)
	if err != nil {
		return nil, nil, err
	}
	if lane == "" {
		lane = mesh.Standard.String()
	}
	queues, err := l.lanesOf(tenant, function, lane)
	if err != nil {
		return nil, nil, err
	}
	total := 0
	for id := range fsm.Ready(l.State, queues[0], "") {
		if len(recs) == limit || total > peekBytes {
			break
		}
		rec, ok := fsm.Task(l.State, id)
		if !ok || fsm.State(rec) != isobarv1.TaskState_TASK_STATE_READY {
			continue
		}
		payload, err := l.payload(ctx, rec)
		if err != nil && !isLost(err) {
			if now, ok := fsm.Task(l.State, id); !ok || !fsm.Kept(now) {
				continue // it ended meanwhile
			}
			return nil, nil, &Refusal{Reason: Unavailable, Message: "a payload can't be read now", RetryAfter: time.Second, Hint: "try again", Err: err}
		}
		if err == nil && payload == nil {
			payload = []byte{}
		}
		total += len(payload)
		recs, payloads = append(recs, rec), append(payloads, payload)
	}
	return recs, payloads, nil
}

// errOutcome turns the error of a proposal that may have been committed into a
// refusal that says so.
func errOutcome(err error, what string) error {
	if errors.Is(err, ErrNotLeader) {
		return err
	}
	return &Refusal{Reason: OutcomeUnknown, Message: "the answer was lost; " + what, Unknown: true, Err: err, Hint: "repeat it: what was done is not done twice"}
}
