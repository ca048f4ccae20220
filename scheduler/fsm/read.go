package fsm

import (
	"bytes"
	"iter"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
)

// The functions here read the committed state; they are safe wherever the
// Reader is.

// Incarnation returns what Bootstrap minted; "" before.
func Incarnation(r state.Reader) string {
	var b meshv1.Bootstrap
	get(r, bootstrapKey(), &b)
	return b.Incarnation
}

// ReadClocks returns the last committed clocks.
func ReadClocks(r state.Reader) (leaseMs, wallMs int64) {
	c := readClocks(r)
	return c.LeaseMs, c.WallMs
}

func readClocks(r state.Reader) *meshv1.Clocks {
	var c meshv1.Clocks
	get(r, clocksKey(), &c)
	return &c
}

// Task reads one record.
func Task(r state.Reader, id string) (*meshv1.TaskRecord, bool) {
	var rec meshv1.TaskRecord
	ok := get(r, taskKey(id), &rec)
	return &rec, ok
}

// Requested is the task that a Submit with the request id made; false for none,
// and for no id.
func Requested(r state.Reader, tenant, requestID string) (id string, ok bool) {
	if requestID == "" {
		return "", false
	}
	v, ok := r.Get(requestKey(tenant, requestID))
	return string(v), ok
}

// TaskResult reads the result of a completed task.
func TaskResult(r state.Reader, id string) ([]byte, bool) { return r.Get(resultKey(id)) }

// Tasks yields records in id order, those after the given id.
func Tasks(r state.Reader, afterID string) iter.Seq[*meshv1.TaskRecord] {
	return func(yield func(*meshv1.TaskRecord) bool) {
		from := []byte("t")
		if afterID != "" {
			from = append(taskKey(afterID), 0)
		}
		for k := range r.Scan(from, []byte("u")) {
			if rec, ok := Task(r, string(k[1:])); ok && !yield(rec) {
				return
			}
		}
	}
}

// Queues yields every queue that has a task not ended or a dead letter, or is
// paused, with its counts. Its keys
// are few and written with each command, so each is sought anew: a scan would
// walk over all the versions that the store has not dropped yet.
func Queues(r state.Reader) iter.Seq2[Queue, *meshv1.QueueRecord] {
	return func(yield func(Queue, *meshv1.QueueRecord) bool) {
		for at := []byte("Q"); at != nil; {
			from := at
			at = nil
			for k, v := range r.Scan(from, []byte("R")) {
				at = append(bytes.Clone(k), 0)
				q, ok := parseQueue(string(k[1:]))
				var rec meshv1.QueueRecord
				decode(k, v, &rec)
				if ok && !yield(q, &rec) {
					return
				}
				break
			}
		}
	}
}

// QueueCounts reads one queue's counts; zeros when it is empty.
func QueueCounts(r state.Reader, q Queue) *meshv1.QueueRecord {
	var rec meshv1.QueueRecord
	get(r, queueKey(q), &rec)
	return &rec
}

// Ready yields ids of the queue's ready tasks in order, those after the id.
func Ready(r state.Reader, q Queue, afterID string) iter.Seq[string] {
	return idsOf(r, readyKey, q, afterID)
}

// Leases yields the records of every leased task, the earliest to end first.
func Leases(r state.Reader) iter.Seq[*meshv1.TaskRecord] {
	return func(yield func(*meshv1.TaskRecord) bool) {
		for k := range r.Scan([]byte("l"), []byte("m")) {
			if rec, ok := Task(r, string(k[9:])); ok && rec.Lease != nil && !yield(rec) {
				return
			}
		}
	}
}

// NextDue returns the earliest moment of the calendar index, 0 when empty.
func NextDue(r state.Reader) int64 {
	for k := range r.Scan([]byte("w"), []byte("x")) {
		return int64(be64(k[1:9]))
	}
	return 0
}

// Guests yields every guest record.
func Guests(r state.Reader) iter.Seq[*meshv1.GuestRecord] {
	return func(yield func(*meshv1.GuestRecord) bool) {
		for k := range r.Scan([]byte("g"), []byte("h")) {
			var g meshv1.GuestRecord
			if get(r, k, &g) && !yield(&g) {
				return
			}
		}
	}
}

// Guest reads one guest record.
func Guest(r state.Reader, id string, attempt uint64) (*meshv1.GuestRecord, bool) {
	var g meshv1.GuestRecord
	ok := get(r, guestKey(id, attempt), &g)
	return &g, ok
}

// TrimPosition is what the topic is trimmed up to; nil for nothing.
func TrimPosition(r state.Reader, topic string) []byte {
	v, _ := r.Get(trimKey(topic))
	return v
}

// TrimsToTell yields the topics of which a broker outside the log is to be told
// the trim position, with it.
func TrimsToTell(r state.Reader) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for k, ref := range r.Scan([]byte("o"), []byte("p")) {
			if !yield(string(k[1:]), bytes.Clone(ref)) {
				return
			}
		}
	}
}

// TopicState says what a topic still holds.
type TopicState struct {
	// Lowest live reference; nil when no payload is live.
	Lowest []byte
	// Highest reference ever given.
	Highest []byte
}

// Topics yields the topics that may be trimmed.
func Topics(r state.Reader) iter.Seq2[string, TopicState] {
	return func(yield func(string, TopicState) bool) {
		for k, high := range r.Scan([]byte("n"), []byte("o")) {
			topic := string(k[1:])
			t := TopicState{Highest: high}
			prefix := payloadKey(topic, nil)
			for live := range r.Scan(prefix, after(prefix)) {
				t.Lowest = append([]byte(nil), live[len(prefix):]...)
				break
			}
			if !yield(topic, t) {
				return
			}
		}
	}
}

// Payloads yields the live payloads of a topic by reference, with their tasks.
func Payloads(r state.Reader, topic string) iter.Seq2[[]byte, string] {
	return func(yield func([]byte, string) bool) {
		prefix := payloadKey(topic, nil)
		for k, id := range r.Scan(prefix, after(prefix)) {
			if !yield(bytes.Clone(k[len(prefix):]), string(id)) {
				return
			}
		}
	}
}

// PayloadOwner is the task whose live payload lies at the reference.
func PayloadOwner(r state.Reader, topic string, ref []byte) (id string, ok bool) {
	v, ok := r.Get(payloadKey(topic, ref))
	return string(v), ok
}

// Needed names a task that has not ended and whose payload's reference is not in
// [low, high), with its topic; ok is false for none. A dead letter, whose payload
// is kept in case it is redriven, has ended.
func Needed(r state.Reader, low, high []byte) (id, topic string, ok bool) {
	for topic := range Topics(r) {
		prefix := payloadKey(topic, nil)
		for _, span := range [][2][]byte{{prefix, payloadKey(topic, low)}, {payloadKey(topic, high), after(prefix)}} {
			for _, id := range r.Scan(span[0], span[1]) {
				if rec, ok := Task(r, string(id)); ok && !Ended(State(rec)) {
					return rec.Id, topic, true
				}
			}
		}
	}
	return "", "", false
}

// Due reports whether a Tick at these clocks would do anything.
func Due(r state.Reader, leaseMs, wallMs int64, expireLeases bool) bool {
	if DueByCalendar(r, wallMs) {
		return true
	}
	first, out := FirstLeaseEnd(r)
	return expireLeases && out && first <= leaseMs
}

// DueByCalendar reports whether a Tick would do anything but end leases.
func DueByCalendar(r state.Reader, wallMs int64) bool {
	for k := range r.Scan([]byte("w"), []byte("x")) {
		return int64(be64(k[1:9])) <= wallMs
	}
	return false
}

// FirstLeaseEnd is the lease time at which the first lease that is out ends, also
// those of guests that must start; out is false when there is none.
func FirstLeaseEnd(r state.Reader) (ms int64, out bool) {
	for _, prefix := range []byte{'l', 'm'} {
		for k := range r.Scan([]byte{prefix}, []byte{prefix + 1}) {
			if at := int64(be64(k[1:9])); !out || at < ms {
				ms, out = at, true
			}
			break
		}
	}
	return ms, out
}
