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
	number := lineNumber(rec.OrderSeq)
	a.Set(orderKey(), number)
	a.Set(placeKey(rec), []byte(rec.Id))
	if _, ok := a.Get(frontKey(rec)); !ok {
		a.Set(frontKey(rec), number)
	}
}

// first reports whether the task is the first of its line, or in none.
func (a *apply) first(rec *meshv1.TaskRecord) bool {
	if rec.OrderSeq == 0 {
		return true
	}
	number, ok := a.Get(frontKey(rec))
	return ok && be64(number) == rec.OrderSeq
}

// pass takes a task out of its line, and makes the next one ready if that waited
// for it.
func (a *apply) pass(rec *meshv1.TaskRecord) {
	if rec.OrderSeq == 0 {
		return
	}
	was, place := a.first(rec), placeKey(rec)
	a.Delete(place)
	rec.OrderSeq, rec.OrderWas = 0, rec.OrderSeq
	if !was {
		return
	}
	line := lineKey(rec)
	number, id := a.next(place, line)
	if id == "" {
		a.Delete(frontKey(rec))
		return
	}
	a.Set(frontKey(rec), number)
	// One behind another is never ready: it is held, or has a time of its own.
	if next, err := a.task(id); err == nil && next.Held {
		a.toReady(next)
		put(a, taskKey(id), next)
	}
}

// next is the number and id of the first of a line from a place on; "" when there
// is none. The places before it are not gone through: to the store what went is
// still there, marked as deleted, and a busy key leaves tens of thousands.
func (a *apply) next(place, line []byte) (number []byte, id string) {
	for k, v := range a.Scan(place, after(line)) {
		return bytes.Clone(k[len(line):]), string(v)
	}
	return nil, ""
}

// toHeld defers a task until it is the first of its line.
func (a *apply) toHeld(rec *meshv1.TaskRecord) {
	a.leave(rec)
	q := QueueOf(rec)
	rec.State, rec.Held = uint32(deferred), true
	a.Set(deferredKey(q, rec.Id), nil)
	a.queueAdd(q, func(r *meshv1.QueueRecord) { r.Deferred++ })
}

// Ahead is the task that holds the record up, the first of its key's line, and how
// many are before it, counted up to a hundred; "" when nothing does.
func Ahead(r state.Reader, rec *meshv1.TaskRecord) (id string, n int) {
	if !rec.Held {
		return "", 0
	}
	line, own := lineKey(rec), placeKey(rec)
	front, _ := r.Get(frontKey(rec))
	for k, v := range r.Scan(append(lineKey(rec), front...), after(line)) {
		if n == 100 || bytes.Compare(k, own) >= 0 {
			break
		}
		if n++; n == 1 {
			id = string(v)
		}
	}
	return id, n
}
