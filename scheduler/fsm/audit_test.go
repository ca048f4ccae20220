package fsm

import (
	"bytes"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
)

// audit reads the whole state and compares every key with what the records
// say must be there: an index entry missing, left over, or a counter that is
// off is an error. It builds the expected keys from the records alone.
func audit(r state.Reader) error {
	want := map[string][]byte{}
	queues := map[Queue]*meshv1.QueueRecord{}
	for rec := range Tasks(r, "") {
		if err := auditTask(rec, want, queues); err != nil {
			return fmt.Errorf("task %s: %w", rec.Id, err)
		}
	}
	for g := range Guests(r) {
		if err := auditGuest(g, want); err != nil {
			return fmt.Errorf("guest %s attempt %d: %w", g.TaskId, g.Attempt, err)
		}
	}
	for q, n := range queues {
		if n.Ready+n.Deferred+n.Leased+n.Bytes+n.Dead > 0 {
			got := QueueCounts(r, q)
			if got.Pause = nil; !proto.Equal(got, n) {
				return fmt.Errorf("queue %s counts %v, its tasks say %v", q, got, n)
			}
			want[string(queueKey(q))] = nil
		}
	}
	for q, got := range Queues(r) {
		if got.Pause != nil { // it is there without tasks too
			want[string(queueKey(q))] = nil
		}
	}
	for k, v := range r.Scan(nil, nil) {
		switch k[0] {
		case 'b', 'c', 'T', 'n', 'o', 's', 'V', 'P':
			continue
		}
		w, ok := want[string(k)]
		if !ok {
			return fmt.Errorf("key %q belongs to no record", k)
		}
		if w != nil && !bytes.Equal(v, w) {
			return fmt.Errorf("key %q holds %q, want %q", k, v, w)
		}
		delete(want, string(k))
	}
	for k := range want {
		return fmt.Errorf("key %q is missing", k)
	}
	return errors.Join(auditTopics(r), auditLines(r))
}

// auditLines holds that of each ordering key the first task only may go on, and
// that a line begins where it is said to.
func auditLines(r state.Reader) error {
	fronts := map[string]string{} // number of the first, by line
	for k, v := range r.Scan([]byte("V"), []byte("W")) {
		fronts["v"+string(k[1:])] = string(v)
	}
	behind := map[string]string{} // the task before, by line
	for k, v := range r.Scan([]byte("v"), []byte("w")) {
		line, id := string(k[:len(k)-8]), string(v)
		rec, _ := Task(r, id)
		before := behind[line]
		behind[line] = id
		if said := fronts[line]; before == "" && said != string(k[len(line):]) {
			return fmt.Errorf("line %q begins at %x, not at %x", line, k[len(line):], said)
		}
		delete(fronts, line)
		switch s := State(rec); {
		case before == "" && rec.Held:
			return fmt.Errorf("task %s is held, and the first of its line", id)
		case before != "" && s != deferred:
			return fmt.Errorf("task %s is %s behind %s", id, s, before)
		case Ended(s) && (s != dead || !rec.OrderBlocks):
			return fmt.Errorf("task %s is %s, and in its line", id, s)
		case rec.OrderRelaxed && s == leased:
			return fmt.Errorf("task %s was granted, and is in its line", id)
		}
	}
	for line := range fronts {
		return fmt.Errorf("line %q has a front and no task", line)
	}
	return nil
}

// auditTopics compares what is told of each topic with the payloads that live.
func auditTopics(r state.Reader) error {
	lowest, highest := map[string][]byte{}, map[string][]byte{}
	for rec := range Tasks(r, "") {
		topic, ref := QueueOf(rec).String(), rec.PayloadRef
		if !Kept(rec) || len(ref) == 0 {
			continue
		}
		if low, ok := lowest[topic]; !ok || bytes.Compare(ref, low) < 0 {
			lowest[topic] = ref
		}
		if bytes.Compare(ref, highest[topic]) > 0 {
			highest[topic] = ref
		}
		if bytes.Compare(ref, TrimPosition(r, topic)) < 0 {
			return fmt.Errorf("topic %s is trimmed above the live payload %x", topic, ref)
		}
	}
	for topic, told := range Topics(r) {
		if !bytes.Equal(told.Lowest, lowest[topic]) || bytes.Compare(told.Highest, highest[topic]) < 0 {
			return fmt.Errorf("topic %s is told to live from %x to %x, not %x to %x", topic, told.Lowest, told.Highest, lowest[topic], highest[topic])
		}
		delete(lowest, topic)
	}
	for topic, due := range TrimsToTell(r) {
		if !bytes.Equal(due, TrimPosition(r, topic)) {
			return fmt.Errorf("topic %s is trimmed to %x, and %x is to be told", topic, TrimPosition(r, topic), due)
		}
	}
	if len(lowest) > 0 {
		return fmt.Errorf("topics with live payloads are not told: %v", lowest)
	}
	return nil
}

// auditTask adds the keys a task must have; a nil value is not compared.
func auditTask(rec *meshv1.TaskRecord, want map[string][]byte, queues map[Queue]*meshv1.QueueRecord) error {
	id, q := rec.Id, QueueOf(rec)
	n := queues[q]
	if n == nil {
		n = &meshv1.QueueRecord{}
		queues[q] = n
	}
	want[string(taskKey(id))] = nil
	if rec.RequestId != "" {
		want[string(requestKey(rec.Tenant, rec.RequestId))] = []byte(id)
	}
	if rec.IdempotencyKey != "" {
		want[string(keyKey(rec.Tenant, rec.IdempotencyKey))] = append(bytes.Clone(rec.IdempotencyHash), id...)
	}
	if (rec.Lease != nil) != (State(rec) == leased) {
		return fmt.Errorf("state %s with lease %v", State(rec), rec.Lease)
	}
	if (rec.BlockedMs != 0) != (rec.Blocked != "") || rec.Blocked != "" && State(rec) != ready {
		return fmt.Errorf("state %s, blocked by %q since %d", State(rec), rec.Blocked, rec.BlockedMs)
	}
	if State(rec) == ready && rec.ReadyMs < rec.SubmittedMs {
		return fmt.Errorf("ready at %d, submitted at %d", rec.ReadyMs, rec.SubmittedMs)
	}
	if (rec.FinalAttempt != 0) != (State(rec) == completed) {
		return fmt.Errorf("state %s with final attempt %d", State(rec), rec.FinalAttempt)
	}
	if uint64(rec.Counted) > rec.Attempt {
		return fmt.Errorf("%d attempts counted of %d granted", rec.Counted, rec.Attempt)
	}
	if (rec.Redrives > 0) != (len(rec.Deaths) > 0) || (rec.Redrives == 0 && rec.RedrivenAttempt != 0) || rec.RedrivenAttempt > rec.Attempt {
		return fmt.Errorf("%d redrives, %d deaths, the last at attempt %d of %d", rec.Redrives, len(rec.Deaths), rec.RedrivenAttempt, rec.Attempt)
	}
	last := uint64(0)
	for _, a := range rec.Attempts {
		if a.Number <= last || a.Number > rec.Attempt {
			return fmt.Errorf("attempt %d is recorded behind %d, %d granted", a.Number, last, rec.Attempt)
		}
		last = a.Number
	}
	if Ended(State(rec)) {
		want[string(calendarKey(rec.EndedMs+rec.RetentionMs, kindRetention, id))] = nil
		if State(rec) == completed {
			want[string(resultKey(id))] = nil
		}
		if State(rec) == dead {
			n.Dead++
			want[string(deadKey(q, id))] = nil
		}
	}
	if rec.OrderSeq != 0 {
		want[string(placeKey(rec))] = []byte(id)
	}
	if rec.Held && (State(rec) != deferred || rec.OrderSeq == 0 || rec.NextMs != 0) {
		return fmt.Errorf("held and %s, at place %d, until %d", State(rec), rec.OrderSeq, rec.NextMs)
	}
	if Kept(rec) {
		n.Bytes += rec.PayloadBytes
		if len(rec.PayloadRef) > 0 {
			want[string(payloadKey(q.String(), rec.PayloadRef))] = []byte(id)
		}
	}
	if Ended(State(rec)) {
		return nil
	}
	n.Cost = CostMessage(CostOf(n.Cost, 0).Plus(CostOf(rec.Cost, rec.PayloadBytes)))
	want[string(calendarKey(expiry(rec), kindExpire, id))] = nil
	if rec.PutOff && State(rec) != deferred {
		return fmt.Errorf("put off and %s", State(rec))
	}
	switch State(rec) {
	case deferred:
		n.Deferred++
		if !rec.Held {
			want[string(calendarKey(rec.NextMs, kindNext, id))] = nil
		}
		if rec.PutOff {
			want[string(putOffKey(id))] = nil
			if rec.NextMs != rec.PlanMs || rec.NextMs > StartBy(rec) || rec.Counted > 0 {
				return fmt.Errorf("put off until %d, planned %d, allowed %d, %d attempts started", rec.NextMs, rec.PlanMs, StartBy(rec), rec.Counted)
			}
		}
		want[string(deferredKey(q, id))] = nil
	case ready:
		n.Ready++
		want[string(readyKey(q, id))] = nil
	case leased:
		n.Leased++
		want[string(leaseKey(rec.Lease.UntilLeaseMs, id))] = nil
		if rec.Lease.UntilLeaseMs > rec.Lease.LimitLeaseMs {
			return fmt.Errorf("lease until %d passes its limit %d", rec.Lease.UntilLeaseMs, rec.Lease.LimitLeaseMs)
		}
	default:
		return fmt.Errorf("state %d", rec.State)
	}
	return nil
}

func auditGuest(g *meshv1.GuestRecord, want map[string][]byte) error {
	want[string(guestKey(g.TaskId, g.Attempt))] = nil
	want[string(guestDueKey(g))] = nil
	switch {
	case g.Ended != nil:
		want[string(endedKey(g.TaskId, g.Attempt))] = nil
	case !g.Started:
		want[string(guestReadyKey(GuestQueue(g), g.TaskId, g.Attempt))] = nil
		want[string(startByKey(g.StartByLeaseMs, g.TaskId, g.Attempt))] = nil
	case g.Session == "" && g.Worker == "":
		return fmt.Errorf("started on nothing")
	}
	return nil
}

// moved reports whether nothing but the payload's place is another.
func moved(old, rec *meshv1.TaskRecord) bool {
	old = proto.CloneOf(old)
	old.PayloadRef, old.AppendedMs = rec.PayloadRef, rec.AppendedMs
	return proto.Equal(old, rec)
}

// watch is what was seen of each task before; it says what may not change from
// one command to the next.
type watch map[string]*meshv1.TaskRecord

func (w watch) see(r state.Reader) error {
	seen := map[string]bool{}
	for rec := range Tasks(r, "") {
		seen[rec.Id] = true
		old := w[rec.Id]
		w[rec.Id] = rec
		if old == nil {
			continue
		}
		switch {
		case rec.Attempt < old.Attempt || rec.Attempt > old.Attempt+1:
			return fmt.Errorf("task %s: attempt %d after %d", rec.Id, rec.Attempt, old.Attempt)
		case rec.PutOff && old.Plans == rec.Plans && old.PlanMs != rec.PlanMs:
			return fmt.Errorf("task %s: its start moved to %d without a plan", rec.Id, rec.PlanMs)
		case old.PutOff && !rec.PutOff && rec.Lease != nil:
			return fmt.Errorf("task %s: leased while it is put off", rec.Id)
		case rec.Attempt == old.Attempt+1 && State(old) != ready:
			return fmt.Errorf("task %s: attempt %d granted while %s", rec.Id, rec.Attempt, State(old))
		case rec.Redrives == old.Redrives+1:
			if State(old) != dead || State(rec) != ready && !rec.Held || rec.RedrivenAttempt != old.Attempt || rec.Counted != 0 {
				return fmt.Errorf("task %s: redriven while %s, now %v", rec.Id, State(old), rec)
			}
		case rec.Redrives != old.Redrives:
			return fmt.Errorf("task %s: %d redrives after %d", rec.Id, rec.Redrives, old.Redrives)
		case Ended(State(old)) && State(old) == dead && moved(old, rec):
			// its payload was appended again
		case Ended(State(old)) && rec.OrderSeq != old.OrderSeq:
			return fmt.Errorf("task %s: its place went from %d to %d after it was %s", rec.Id, old.OrderSeq, rec.OrderSeq, State(old))
		case Ended(State(old)) && !proto.Equal(old, rec):
			return fmt.Errorf("task %s: changed after it was %s", rec.Id, State(old))
		case State(old) == leased && State(rec) == leased && (rec.Attempt != old.Attempt || !sameHolder(old.Lease.Holder, rec.Lease.Holder)):
			return fmt.Errorf("task %s: lease went from one holder to another", rec.Id)
		}
	}
	for id, old := range w {
		if seen[id] {
			continue
		}
		if !Ended(State(old)) {
			return fmt.Errorf("task %s: forgotten while %s", id, State(old))
		}
		delete(w, id)
	}
	return nil
}
