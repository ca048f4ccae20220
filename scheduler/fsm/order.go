package fsm

import (
	"bytes"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
)

// Order by key. The tasks of one tenant's function with the same ordering key
// stand in one line, over all lanes, in the order of their accepts. Only the
// first of a line may be ready or leased; the others are deferred without a time
// (held), and each command that takes the first away makes the next one ready.
//
// A strict task leaves the line when it ends; one that is dead, if its policy says
// so, only when it is forgotten or ends otherwise after a redrive: the line waits
// for a person. A relaxed task leaves at its first grant: first attempts are in
// order, and nothing waits for another's end or its retries.

// enter puts a task at the end of its key's line.
func (a *apply) enter(rec *meshv1.TaskRecord) {
	if rec.OrderingKey == "" {
		return
	}
	last, _ := a.Get(orderKey())
	rec.OrderSeq = 1
	if len(last) == 8 {
		rec.OrderSeq = be64(last) + 1
	}
	a.Set(orderKey(), lineNumber(rec.OrderSeq))
	a.Set(placeKey(rec), []byte(rec.Id))
}

// first reports whether the task is the first of its line, or in none.
func (a *apply) first(rec *meshv1.TaskRecord) bool {
	if rec.OrderSeq == 0 {
		return true
	}
	_, id := front(a, rec)
	return id == rec.Id
}

// pass takes a task out of its line, and makes the next one ready if that waited
// for it.
func (a *apply) pass(rec *meshv1.TaskRecord) {
	if rec.OrderSeq == 0 {
		return
	}
	a.Delete(placeKey(rec))
	rec.OrderSeq = 0
	place, id := front(a, rec)
	if id == "" {
		if _, ok := a.Get(frontKey(rec)); ok {
			a.Delete(frontKey(rec))
		}
		return
	}
	a.Set(frontKey(rec), place)
	// One behind another is never ready: it is held, or has a time of its own.
	if next, err := a.task(id); err == nil && next.Held {
		a.toReady(next)
		put(a, taskKey(id), next)
	}
}

// toHeld defers a task until it is the first of its line.
func (a *apply) toHeld(rec *meshv1.TaskRecord) {
	a.leave(rec)
	q := QueueOf(rec)
	rec.State, rec.Held = uint32(deferred), true
	a.Set(deferredKey(q, rec.Id), nil)
	a.queueAdd(q, func(r *meshv1.QueueRecord) { r.Deferred++ })
}

// front is the line's first and its number; "" when the line is empty. It is looked
// for from where it was when the last one went: to the store what went is still
// there, marked as deleted, and a busy key leaves tens of thousands.
func front(r state.Reader, rec *meshv1.TaskRecord) (number []byte, id string) {
	line := lineKey(rec)
	for k, v := range r.Scan(standing(r, rec), after(line)) {
		return bytes.Clone(k[len(line):]), string(v)
	}
	return nil, ""
}

// standing is where the tasks of the record's line begin.
func standing(r state.Reader, rec *meshv1.TaskRecord) []byte {
	number, _ := r.Get(frontKey(rec))
	return append(lineKey(rec), number...)
}

// Ahead is the task that holds the record up, the first of its key's line, and how
// many are before it, counted up to a hundred; "" when nothing does.
func Ahead(r state.Reader, rec *meshv1.TaskRecord) (id string, n int) {
	if !rec.Held {
		return "", 0
	}
	line, own := lineKey(rec), placeKey(rec)
	for k, v := range r.Scan(standing(r, rec), after(line)) {
		if n == 100 || bytes.Compare(k, own) >= 0 {
			break
		}
		if n++; n == 1 {
			id = string(v)
		}
	}
	return id, n
}
