package scheduler

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/broker"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
)

// trimEvery is how often payloads of ended tasks are dropped.
const trimEvery = 5 * time.Second

// moveAfter is the age at which a payload still needed is appended again, so
// that one slow task does not keep a topic's whole tail.
const moveAfter = time.Hour

// trimLoop trims what ended, moves what stays long and forgets paces of functions
// that were deleted.
func (l *leader) trimLoop(ctx context.Context) error {
	ticker := time.NewTicker(trimEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		for topic, live := range fsm.Topics(l.State) {
			if err := l.trimTopic(ctx, topic, live); err != nil && ctx.Err() == nil {
				l.Logger.Warn("trim failed", "topic", topic, "error", err)
			}
		}
		l.tellTrims(ctx)
		l.forgetPaces(ctx)
	}
}

// tellTrims tells a broker outside the log what was trimmed, by this leader or
// one before: only what is committed is told, and it is told until that has
// been committed too.
//
// A topic that fails is left alone for a while, so that it keeps no other from being
// trimmed; after several in a row the rest of a round waits: it is the broker.
func (l *leader) tellTrims(ctx context.Context) {
	failed := 0
	for topic, ref := range fsm.TrimsToTell(l.State) {
		q, ok := fsm.ParseTopic(topic)
		later := l.untold[topic]
		if !ok || time.Now().Before(later.until) {
			continue
		}
		err := l.Broker.Trimmed(ctx, broker.Topic{Tenant: q.Tenant, Function: q.Function, Lane: q.Lane}, ref)
		if err == nil {
			told := &meshv1.TrimTold{Topic: topic, Ref: ref}
			_, err = l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_TrimTold{TrimTold: told}})
		}
		if err == nil {
			delete(l.untold, topic)
			failed = 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		later.pause = min(max(2*later.pause, trimEvery), untoldMost)
		later.until = time.Now().Add(later.pause)
		l.untold[topic] = later
		l.Logger.Warn("trim not told to the broker; it keeps more than it must", "topic", topic, "again", later.pause, "error", err)
		if failed++; failed == brokerDown {
			return
		}
	}
}

// untoldMost bounds the pause before a trim is told again, from trimEvery on.
const untoldMost = 5 * time.Minute

// untold is a trim that the broker did not take.
type untold struct {
	until time.Time
	pause time.Duration
}

// trimTopic raises the trim position to the lowest payload that is live, or with
// none live past the last one; never beyond what an accept under way may hold.
// The state is older than what is known of accepts here, so one that ended in
// between is in neither: the machine then refuses the trim, until the next round.
func (l *leader) trimTopic(ctx context.Context, topic string, t fsm.TopicState) error {
	q, ok := fsm.ParseTopic(topic)
	if !ok {
		return nil
	}
	to := t.Lowest
	if to == nil {
		to = above(t.Highest)
	}
	if low, ok := l.inflight.lowest(topic); ok && bytes.Compare(low, to) < 0 {
		to = low
	}
	if t.Lowest != nil {
		if err := l.moveOld(ctx, topic, q); err != nil {
			return err
		}
	}
	if bytes.Compare(to, fsm.TrimPosition(l.State, topic)) <= 0 {
		return nil
	}
	bt := broker.Topic{Tenant: q.Tenant, Function: q.Function, Lane: q.Lane}
	command, err := l.Broker.Trim(ctx, bt, to)
	if err != nil {
		return err
	}
	trim := &meshv1.SchedulerCommand{
		Clocks:  l.clock.read(time.Now()),
		Command: &meshv1.SchedulerCommand_Trim{Trim: &meshv1.Trim{Topic: topic, Ref: to, Outside: command == nil}},
	}
	body, err := proto.Marshal(trim)
	if err != nil {
		return fmt.Errorf("scheduler: encode trim: %w", err)
	}
	group := []state.Command{{Machine: state.SchedulerMachine, Body: body}}
	if command != nil {
		group = append([]state.Command{{Machine: state.BrokerMachine, Body: command}}, group...)
	}
	// A broker may delete a part at a time; what is left would grow under load.
	for unfinished := true; unfinished; {
		results, err := l.proposeGroup(ctx, group)
		if err != nil {
			return err
		}
		left, ok := results[0].(broker.Unfinished)
		unfinished = ok && left.Unfinished()
	}
	return nil
}

// moveAtOnce bounds what one round moves of a topic.
const moveAtOnce = 256

// moveOld appends payloads again that have been live for long, the lowest first.
func (l *leader) moveOld(ctx context.Context, topic string, q fsm.Queue) error {
	n := 0
	for ref, id := range fsm.Payloads(l.State, topic) {
		rec, ok := fsm.Task(l.State, id)
		if !ok || !bytes.Equal(rec.PayloadRef, ref) {
			continue // ended or moved since the scan began
		}
		at := lostPayload{id, string(ref)}
		if l.lost[at] {
			continue // it can't be moved, and must hold up none behind it
		}
		if n == moveAtOnce || l.clock.wall(time.Now()).UnixMilli()-rec.AppendedMs < moveAfter.Milliseconds() {
			return nil
		}
		err := l.move(ctx, q, rec)
		switch {
		case err == nil:
			n++
		case isLost(err):
			l.lost[at] = true // the attempt that needs it will find it so
		default:
			return err
		}
	}
	return nil
}

// lostPayload is a payload that was found lost where it should lie.
type lostPayload struct{ task, ref string }

// move appends a payload again.
func (l *leader) move(ctx context.Context, q fsm.Queue, rec *meshv1.TaskRecord) error {
	payload, err := l.payload(ctx, rec)
	if err != nil {
		return err
	}
	prepared, err := l.Broker.Prepare(ctx, []broker.Message{message(q, rec, payload)})
	if err != nil {
		return err
	}
	cmd := &meshv1.SchedulerCommand{
		Clocks:  l.clock.read(time.Now()),
		Command: &meshv1.SchedulerCommand_Moved{Moved: &meshv1.Moved{TaskId: rec.Id, OldRef: rec.PayloadRef, NewRef: prepared[0].Ref}},
	}
	var before []state.Command
	if prepared[0].Command != nil {
		before = append(before, state.Command{Machine: state.BrokerMachine, Body: prepared[0].Command})
	}
	if _, err = l.propose(ctx, cmd, before...); err == nil {
		l.payloads.keep(rec.Id, prepared[0].Ref, rec.PayloadSha256, payload)
	}
	return err
}
