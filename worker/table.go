package worker

import (
	"context"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// key names one attempt.
type key struct {
	task    string
	attempt uint64
}

func keyOf(ref *isobarv1.LeaseRef) key { return key{ref.GetTaskId(), ref.GetAttempt()} }

func (k key) ref() *isobarv1.LeaseRef {
	return &isobarv1.LeaseRef{TaskId: k.task, Attempt: k.attempt}
}

// job is one attempt from its assignment until the cell has acknowledged its
// end. Only the worker's loop reads or writes it.
type job struct {
	key
	traceID string
	invoke  bool
	variant string // "function/variant"
	// from is the server that asked for an invoke; its caller waits there.
	from string

	// While it runs. kill is nil for an attempt that was refused.
	kill   context.CancelCauseFunc
	demand mesh.Demand
	// killAt is when to kill unless the lease is confirmed again; zero for an
	// invoke, which has no lease.
	killAt time.Time
	killed time.Time
	stuck  bool // did not end within the grace, and was reported

	// After it ended.
	outcome *isobarv1.Outcome
	sentOn  *link
	sentAt  time.Time
}

// hold sets the end of the job's lease: duration after sent, the moment the
// message went out that the cell answered. The kill comes early enough for the
// attempt to have ended before the lease does.
func (j *job) hold(sent time.Time, duration, grace time.Duration) {
	j.killAt = sent.Add(duration - min(grace, duration/4))
}

// running reports whether the function may still be at work.
func (j *job) running() bool { return j.kill != nil && j.outcome == nil }

// maxSeen is how many tasks' newest attempt numbers are remembered to start
// each at most once. A cell repeats an assignment within a lease, so this is
// far more than enough.
const maxSeen = 1 << 14

// table is what the worker holds: jobs by key, in the order of their
// assignment, and what is free.
type table struct {
	free  mesh.Capacity
	jobs  map[key]*job
	order []*job
	// seen is the highest attempt number ever assigned of a task; seenOrder
	// holds the same tasks, oldest first.
	seen      map[string]uint64
	seenOrder []string
}

func newTable(total mesh.Capacity) *table {
	return &table{free: total, jobs: map[key]*job{}, seen: map[string]uint64{}}
}

// admit records the number and reports whether it is a new one: higher than
// any seen of that task.
func (t *table) admit(k key) bool {
	highest, known := t.seen[k.task]
	if known && k.attempt <= highest || t.jobs[k] != nil {
		return false
	}
	t.seen[k.task] = k.attempt
	if !known {
		t.seenOrder = append(t.seenOrder, k.task)
		if len(t.seenOrder) > maxSeen {
			delete(t.seen, t.seenOrder[0])
			t.seenOrder = t.seenOrder[1:]
		}
	}
	return true
}

func (t *table) add(j *job) {
	t.jobs[j.key] = j
	t.order = append(t.order, j)
}

// remove drops a job; its demand must have been given back.
func (t *table) remove(j *job) {
	if t.jobs[j.key] != j {
		return
	}
	delete(t.jobs, j.key)
	t.order = slices.DeleteFunc(t.order, func(o *job) bool { return o == j })
}

// take reserves the job's demand; it reports false when it does not fit.
func (t *table) take(j *job, d mesh.Demand) bool {
	if !t.free.Fits(&d) {
		return false
	}
	t.free, j.demand = t.free.Take(d)
	return true
}

// end gives the job's demand back and keeps its outcome.
func (t *table) end(j *job, o *isobarv1.Outcome) {
	t.free = t.free.Give(j.demand)
	j.demand = mesh.Demand{}
	j.outcome = o
}

// running lists the jobs at work, oldest first.
func (t *table) running() []*job {
	var out []*job
	for _, j := range t.order {
		if j.running() {
			out = append(out, j)
		}
	}
	return out
}

// leases lists what the cell must know is held here: every attempt but the
// invokes. runningOnly leaves those out that wait for an acknowledgement.
func (t *table) leases(runningOnly bool) []*isobarv1.LeaseRef {
	var out []*isobarv1.LeaseRef
	for _, j := range t.order {
		if !j.invoke && (!runningOnly || j.running()) {
			out = append(out, j.ref())
		}
	}
	return out
}

// maxWarm bounds the warm set, in variants.
const maxWarm = 256

// warmSet is which variants ran here most recently, newest last.
type warmSet struct {
	max   int
	names []string
}

// touch makes the name the newest; it reports whether the set changed.
func (s *warmSet) touch(name string) bool {
	if i := slices.Index(s.names, name); i >= 0 {
		s.names = append(slices.Delete(s.names, i, i+1), name)
		return false
	}
	if len(s.names) >= s.max {
		s.names = slices.Delete(s.names, 0, 1)
	}
	s.names = append(s.names, name)
	return true
}

// sorted returns a copy in the order of names.
func (s *warmSet) sorted() []string { return slices.Sorted(slices.Values(s.names)) }
