package fsm

import (
	"fmt"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// guestLifetimeMs bounds how long a guest record is kept, beyond the function's
// timeout, when its home never acknowledges: longer than a task lives by
// default, so that a home that comes back still hears of an outcome it can use.
const guestLifetimeMs = 8 * 24 * 60 * 60 * 1000

// GuestQueue is the queue a guest waits in here.
func GuestQueue(g *meshv1.GuestRecord) Queue {
	return Queue{Tenant: g.Tenant, Function: g.Function, Lane: mesh.Lane(g.Lane)}
}

func (a *apply) guest(id string, attempt uint64) (*meshv1.GuestRecord, bool) {
	var g meshv1.GuestRecord
	ok := get(a, guestKey(id, attempt), &g)
	return &g, ok
}

// guestAccept takes a lease of another cell's task; a repeat changes nothing.
func (a *apply) guestAccept(c *meshv1.GuestAccept) error {
	g := c.Guest
	if g.GetTaskId() == "" || g.Attempt == 0 || g.Home == "" || !nameable(g.Tenant, g.Function, g.Lane) ||
		!inRange(g.StartWithinMs, g.TimeoutMs) {
		return fmt.Errorf("fsm: accept guest: %w", ErrBadCommand)
	}
	if Incarnation(a) == "" {
		return fmt.Errorf("fsm: accept guest %s attempt %d: %w", g.TaskId, g.Attempt, ErrNotBootstrapped)
	}
	a.result.Verdict = Accepted
	if old, ok := a.guest(g.TaskId, g.Attempt); ok {
		a.result.Guest = old
		return nil
	}
	g.AcceptedMs, g.Started, g.Ended = a.clocks.WallMs, false, nil
	g.Worker, g.Session = "", ""
	g.StartByLeaseMs = a.clocks.LeaseMs + g.StartWithinMs
	q := GuestQueue(g)
	a.Set(guestReadyKey(q, g.TaskId, g.Attempt), nil)
	a.Set(startByKey(g.StartByLeaseMs, g.TaskId, g.Attempt), nil)
	a.Set(guestDueKey(g), nil)
	a.storeGuest(g)
	a.effect(Effect{Kind: GuestReady, TaskID: g.TaskId, Attempt: g.Attempt, Queue: q})
	return nil
}

func (a *apply) storeGuest(g *meshv1.GuestRecord) {
	put(a, guestKey(g.TaskId, g.Attempt), g)
	a.result.Guest = g
}

// guestStart gives the attempt to one worker, once.
func (a *apply) guestStart(c *meshv1.GuestStart) error {
	if c.Worker == "" && c.Session == "" {
		return fmt.Errorf("fsm: start guest %s attempt %d: no worker: %w", c.TaskId, c.Attempt, ErrBadCommand)
	}
	g, ok := a.guest(c.TaskId, c.Attempt)
	if !ok || g.Started || g.Ended != nil {
		return fmt.Errorf("fsm: start guest %s attempt %d: %w", c.TaskId, c.Attempt, ErrStale)
	}
	a.unqueue(g)
	g.Started, g.Worker, g.Session = true, c.Worker, c.Session
	a.result.Verdict = Accepted
	a.storeGuest(g)
	return nil
}

func (a *apply) unqueue(g *meshv1.GuestRecord) {
	a.Delete(guestReadyKey(GuestQueue(g), g.TaskId, g.Attempt))
	a.Delete(startByKey(g.StartByLeaseMs, g.TaskId, g.Attempt))
}

// guestEnd keeps the outcome until home acknowledges; the first one counts.
func (a *apply) guestEnd(c *meshv1.GuestEnd) error {
	if c.Ended == nil {
		return fmt.Errorf("fsm: end guest %s attempt %d: no outcome: %w", c.TaskId, c.Attempt, ErrBadCommand)
	}
	g, ok := a.guest(c.TaskId, c.Attempt)
	if !ok {
		return a.verdict(Unknown)
	}
	if g.Ended != nil {
		a.result.Guest = g
		return a.verdict(Fenced)
	}
	a.endGuest(g, c.Ended)
	return a.verdict(Accepted)
}

func (a *apply) endGuest(g *meshv1.GuestRecord, ended *meshv1.Ended) {
	a.unqueue(g)
	ended.Started = g.Started && !neverRan(ended.Status)
	g.Ended = ended
	a.Set(endedKey(g.TaskId, g.Attempt), nil)
	a.storeGuest(g)
	a.effect(Effect{Kind: GuestEnded, TaskID: g.TaskId, Attempt: g.Attempt, Queue: GuestQueue(g)})
}

// guestOverdue ends a guest that found no worker within its start_by.
func (a *apply) guestOverdue(id string, attempt uint64) {
	if g, ok := a.guest(id, attempt); ok && !g.Started && g.Ended == nil {
		a.endGuest(g, &meshv1.Ended{Status: "refused", Message: "no worker was free in time"})
	}
}

// guestForget drops the record.
func (a *apply) guestForget(c *meshv1.GuestForget) error {
	a.forgetGuest(c.TaskId, c.Attempt)
	return nil
}

func (a *apply) forgetGuest(id string, attempt uint64) {
	g, ok := a.guest(id, attempt)
	if !ok {
		return
	}
	a.unqueue(g)
	a.Delete(guestDueKey(g))
	a.Delete(endedKey(g.TaskId, g.Attempt))
	a.Delete(guestKey(g.TaskId, g.Attempt))
	a.effect(Effect{Kind: GuestGone, TaskID: g.TaskId, Attempt: g.Attempt, Queue: GuestQueue(g)})
}
