package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// startWithin is how long another cell may take to start what it accepted: it
// accepts only what fits now, so more than a few round trips means trouble.
const startWithin = 30 * time.Second

// parkFirst and parkMost bound the pause before a task that nothing can run is
// decided again; a change of the mesh's view decides it sooner.
const (
	parkFirst = time.Second
	parkMost  = 30 * time.Second
)

// outcome of placing the head of a queue.
type outcome uint8

const (
	taken   outcome = iota // granted: out of the window, and charged for
	gone                   // nothing to place any more: out of the window
	noRoom                 // the chosen place is full: the queue waits
	nowhere                // no place is allowed: parked, the queue goes on
)

// parked is a task that nothing can run now.
type parked struct {
	key   queueKey
	until time.Time
	pause time.Duration
	why   string
	after uint64 // set aside since this attempt was refused; 0 for another cause
}

// dispatchAtOnce is how many heads are placed while the lock is held: workers
// that open sessions and calls that end must not wait for a long backlog.
const dispatchAtOnce = 32

// dispatch places what waits until nothing more fits; more says that queues are
// left that were not tried. fresh begins a new round: something changed, so that
// what found no room may find it now.
func (l *leader) dispatch(now time.Time, fresh bool) (more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.view.refresh(now, l)
	changed := l.view.news()
	if changed {
		l.unparkAll()
	}
	l.review.changed(l.view.forecasts, changed)
	if l.unparkDue {
		l.unparkDue = false
		l.reopen()
	}
	if fresh {
		l.waiting.order.Unstick()
		l.trying, l.asked = append(l.trying, l.asked...), nil
	}
	l.weigh(now)
	for range dispatchAtOnce {
		q := l.waiting.next(now)
		if q == nil {
			for _, p := range l.trying {
				p.tried = true
				p.answer()
			}
			l.trying = nil
			return false
		}
		l.refill(q)
		if len(q.items) == 0 {
			l.waiting.drop(q)
			continue
		}
		switch l.placeHead(q, now) {
		case taken, nowhere: // one that fits nowhere is charged for too, or a lane of such would hold up the others
			q.items, q.why = q.items[1:], ""
			q.goesOn(l.clock.wall(now))
			l.waiting.order.Served(now)
		case gone: // a window may name a task twice
			q.items = q.items[1:]
		case noRoom:
			q.holdUp(q.why, l.clock.wall(now))
			l.waiting.order.Stuck()
		}
	}
	return true
}

// placeHead places the first of a queue's window.
func (l *leader) placeHead(q *queue, now time.Time) outcome {
	if q.key.guest {
		return l.placeGuest(q.items[0], now)
	}
	if why, ok := l.paused[q.key.Queue]; ok {
		q.why = pausedWhy(why)
		return noRoom
	}
	if q.why = l.capped(q.key.Queue); q.why != "" {
		return noRoom
	}
	if q.why, _ = l.paced(q.key.Tenant, q.key.Function, now); q.why != "" {
		return noRoom
	}
	if q.why = l.withheld.why(q.key.Queue, now); q.why != "" {
		return noRoom
	}
	did := l.place(q.key, q.items[0], now)
	if did == noRoom && q.why == "" {
		q.why = "room: every place that may run it is taken"
	}
	return did
}

// refill moves the window on when it is used up.
func (l *leader) refill(q *queue) {
	if len(q.items) > 0 || !q.more {
		return
	}
	q.more = false
	most := q.widen()
	for id := range fsm.Ready(l.State, q.key.Queue, "") {
		if l.granting[id] || l.parked[id] != nil {
			continue
		}
		if len(q.items) == most {
			q.more = true
			return
		}
		q.items = append(q.items, ref{task: id})
	}
}

// place decides about one ready task and leases it where it should run.
func (l *leader) place(key queueKey, r ref, now time.Time) outcome {
	rec, ok := fsm.Task(l.State, r.task)
	if !ok || rec.State != uint32(isobarv1.TaskState_TASK_STATE_READY) || l.granting[r.task] {
		return gone // an effect brings it back if it is ready again
	}
	if l.expecting(now) {
		return l.waitsFor(key, "leader: it has just begun, and no worker has come back yet")
	}
	fn, err := l.Registry.Version(rec.Version)
	if err != nil {
		return l.park(key, r, now, "version: "+err.Error())
	}
	l.view.own(l)
	d := l.decideNow(rec, fn, now)
	if d.Chosen == nil {
		why := blockedBy(&d)
		l.noteBlocked(rec, why)
		return l.park(key, r, now, why)
	}
	takes := demandFor(variantOf(fn, d.Chosen.Variant), rec)
	if d.Chosen.Cell == l.Cell.ID {
		if why := l.unserved(rec.Function, variantOf(fn, d.Chosen.Variant), takes); why != "" {
			l.noteBlocked(rec, why)
			return l.park(key, r, now, why)
		}
	}
	if ms, later := until(&d, l.clock.wall(now)); later {
		return l.putOff(rec, &d, ms)
	}
	if slices.Contains(l.avoid[rec.Id], d.Chosen.Cell) && d.Chosen.Cell != l.Cell.ID && l.refusedNow(rec) {
		return l.parkRefused(key, rec, now, string(d.Chosen.Cell)+" refused or lost it, and no other may take it")
	}
	latest, err := l.Registry.Function(rec.Tenant, rec.Function)
	if err != nil {
		latest = nil // deleted: only the tenant's bound is left
	}
	if why := l.cappedBy(key.Queue, latest, takes); why != "" {
		return l.waitsFor(key, why)
	}
	delete(l.parked, r.task)
	attempt, held := ref{r.task, rec.Attempt + 1}, l.heldUp(rec, now)
	if d.Chosen.Cell == l.Cell.ID {
		return l.grantLocal(attempt, rec, fn, &d, held)
	}
	if d.Chosen.Free <= 0 {
		return noRoom
	}
	l.grantCell(attempt, rec, &d, held)
	l.started(rec.Tenant, rec.Function)
	return taken
}

// waitsFor says what the head of a queue finds no room for.
func (l *leader) waitsFor(key queueKey, why string) outcome {
	l.waiting.queue(key).why = why
	return noRoom
}

// expecting reports whether this leader has just begun and no worker has come
// back yet: to decide now would send the backlog to other regions, or call it
// infeasible, for want of workers that are on their way.
func (l *leader) expecting(now time.Time) bool {
	return len(l.sessions) == 0 && now.Sub(l.clock.Elected()) < l.Renew
}

// placementTask is the task as placement wants it.
func (l *leader) placementTask(rec *meshv1.TaskRecord, fn *isobarv1.Function) placement.Task {
	t := placement.Task{
		ID: mesh.TaskID(rec.Id), Function: rec.Function, Lane: mesh.Lane(rec.Lane), Home: l.Cell.ID,
		Variants: l.learned.variants(fn), InputBytes: int64(rec.PayloadBytes), OutputBytes: l.learned.output(fn.Version),
		Residency: mesh.Residency{Allowed: rec.Allowed, Denied: rec.Denied}, MinQuality: rec.MinQuality, Cost: costOf(rec),
		Avoid: l.avoid[rec.Id],
	}
	for _, in := range rec.Inputs {
		t.Inputs = append(t.Inputs, placement.Input{Name: in.Name, Bytes: in.Bytes, Places: in.Places})
	}
	t.MaxRTT = time.Duration(rec.MaxRttUs) * time.Microsecond
	if rec.DeadlineMs != 0 {
		t.Deadline = time.UnixMilli(rec.DeadlineMs)
	}
	return t
}

// demandOf is what one attempt of a variant takes, for work of that cost.
func (l *leader) demandOf(version, variant string, work costed) mesh.Demand {
	var d mesh.Demand
	if fn, err := l.Registry.Version(version); err == nil {
		d = demand(variantOf(fn, variant))
	}
	d.Cost = costOf(work)
	return d
}

func variantOf(fn *isobarv1.Function, name string) *isobarv1.Variant {
	for _, v := range fn.GetSpec().GetVariants() {
		if v.Name == name {
			return v
		}
	}
	return nil
}

func demand(v *isobarv1.Variant) mesh.Demand {
	r := v.GetResources()
	return mesh.Demand{
		CPUMilli: int64(r.GetCpu()*1000 + 0.5), MemoryMiB: r.GetMemoryMib(),
		GPUs: r.GetGpus(), GPUModel: r.GetGpuModel(),
	}
}

// grantLocal leases the attempt to a worker of this cell.
func (l *leader) grantLocal(r ref, rec *meshv1.TaskRecord, fn *isobarv1.Function, d *placement.Decision, held []*isobarv1.Held) outcome {
	v := variantOf(fn, d.Chosen.Variant)
	takes := demandFor(v, rec)
	s := l.pickSession(rec.Function, v, takes, false)
	if s == nil {
		if takes.Cost != (mesh.Cost{}) && l.pickSession(rec.Function, v, demand(v), false) != nil {
			return l.waitsFor(queueKey{Queue: fsm.QueueOf(rec)}, "cost: no worker of "+string(l.Cell.ID)+" has room for "+takes.Cost.String()+" beside what it holds")
		}
		return noRoom
	}
	run := l.occupy(s, r, rec.Function, v, takes)
	l.hold(r, rec.Tenant, rec.Function, run.demand, true)
	l.started(rec.Tenant, rec.Function)
	grant := l.grantCommand(r, &meshv1.Holder{Worker: s.worker, Session: s.id, RequestId: run.request}, l.WorkerLease, d, held)
	grant.Started = run.request == "" // a poller confirms the start with its first extend
	l.granting[r.task] = true
	l.withheld.try(fsm.QueueOf(rec), r.task)
	go l.commitLocal(run, rec, grant, fn, v, d, held)
	return taken
}

func (l *leader) grantCommand(r ref, h *meshv1.Holder, ttl time.Duration, d *placement.Decision, held []*isobarv1.Held) *meshv1.Grant {
	msg := DecisionMessage(d)
	msg.Attempt, msg.Held = r.attempt, held
	b, err := proto.Marshal(msg)
	if err != nil {
		l.Logger.Error("decision does not encode", "task", r.task, "error", err)
	}
	return &meshv1.Grant{
		TaskId: r.task, Attempt: r.attempt, Holder: h, TtlMs: ttl.Milliseconds(), Variant: d.Chosen.Variant,
		StartWithinMs: startWithin.Milliseconds(), Decision: b,
	}
}

// commitLocal commits the grant, then hands the attempt to the worker. The bytes
// are read before: a broker that does not answer must not use attempts up.
func (l *leader) commitLocal(run *running, rec *meshv1.TaskRecord, grant *meshv1.Grant, fn *isobarv1.Function, v *isobarv1.Variant, d *placement.Decision, held []*isobarv1.Held) {
	payload, ok, lost := l.payloadToGrant(rec, func() {
		l.release(run)
		l.letGoOf(run.ref)
	})
	if !ok {
		return
	}
	res, err := l.command(l.ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Grant{Grant: grant}})
	l.mu.Lock()
	delete(l.granting, run.task)
	if err != nil {
		l.release(run)
		l.mu.Unlock()
		l.grantFailed(run.ref, err)
		return
	}
	run.granted = time.Now()
	l.mu.Unlock()
	trace := l.openSpan(run.ref, LeaseInfo{
		Name: "isobar.lease", Record: res.Task, Attempt: run.attempt, Cell: l.Cell.ID, Worker: run.session.worker, Variant: v.Name, Decision: d, Held: held,
	}, func() bool { return l.running[run.ref] == run })
	if lost != nil {
		l.payloadFailed(run.ref, res.Task, lost)
		return
	}
	l.deliver(run, &isobarv1.Assignment{
		TaskId: run.task, Attempt: run.attempt, Tenant: res.Task.Tenant, Function: res.Task.Function, Version: res.Task.Version,
		Variant: v, Env: fn.Spec.Env, Timeout: fn.Spec.Timeout, Deadline: timestampMs(res.Task.DeadlineMs),
		Payload: payload, ContentType: res.Task.ContentType, Traceparent: trace, Cost: res.Task.Cost,
		// It began when the grant was proposed, and the commit took its time.
		Lease: durationpb.New(l.leaseLeft(res.Task)),
	})
}

// leaseLeft is how long the cell still keeps the lease of a task; 0 or less when
// it is over.
func (l *leader) leaseLeft(rec *meshv1.TaskRecord) time.Duration {
	return time.Duration(rec.GetLease().GetUntilLeaseMs()-l.clock.read(time.Now()).LeaseMs) * time.Millisecond
}

// grantFailed brings a task back whose grant was not committed. A stale grant
// needs nothing: the effect of what overtook it says what the task is now.
func (l *leader) grantFailed(r ref, err error) {
	if l.ctx.Err() == nil {
		l.Logger.Debug("grant not committed", "task", r.task, "attempt", r.attempt, "error", err)
	}
	rec, ok := fsm.Task(l.State, r.task)
	l.mu.Lock()
	if !ok || rec.Lease == nil || rec.Attempt != r.attempt {
		l.letGoOf(r) // else it was committed all the same
	}
	l.mu.Unlock()
	l.comeBack(r.task)
}

// comeBack lets a task that is ready wait for dispatch again.
func (l *leader) comeBack(id string) {
	if rec, ok := fsm.Task(l.State, id); ok && rec.State == uint32(isobarv1.TaskState_TASK_STATE_READY) {
		l.mu.Lock()
		l.waiting.queue(queueKey{Queue: fsm.QueueOf(rec)}).add(ref{task: id})
		l.mu.Unlock()
		l.kick()
	}
}

// payloadFailed ends a task whose bytes are gone; a broker that does not
// answer only costs this attempt.
func (l *leader) payloadFailed(r ref, rec *meshv1.TaskRecord, err error) {
	status := "undelivered"
	if isLost(err) {
		status = "payload_lost"
		l.Logger.Error("payload lost", "alarm", true, "task", r.task, "error", err)
	}
	l.endAttempt(r, &meshv1.Ended{Status: status, Message: fmt.Sprintf("payload of %s: %v", rec.Id, err)})
}

// endAttempt commits the failure of an attempt whose home is here.
func (l *leader) endAttempt(r ref, ended *meshv1.Ended) fsm.Verdict {
	cmd := &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Fail{Fail: &meshv1.Fail{TaskId: r.task, Attempt: r.attempt, Ended: ended}}}
	res, err := l.command(l.ctx, cmd)
	if err != nil {
		return ""
	}
	if res.Verdict == fsm.Accepted && res.Task != nil {
		l.ended(res.Task.Tenant, res.Task.Function, ended.Status)
	}
	l.Logger.Info("attempt ended", "task", r.task, "attempt", r.attempt, "status", ended.Status, "message", ended.Message,
		"verdict", res.Verdict, "trace_id", traceID(res.Task.GetTraceparent()))
	return res.Verdict
}

// openSpan opens the span of an attempt. Its end may have been seen already:
// then the span ends at once, or it would stay for ever.
func (l *leader) openSpan(r ref, info LeaseInfo, lives func() bool) string {
	parent := info.Record.GetTraceparent()
	if info.Guest != nil {
		parent = info.Guest.Traceparent
	}
	trace, end := l.Tracer.Lease(parent, info)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !lives() || l.closed {
		end("released")
	} else {
		l.spans[r] = end
	}
	return trace
}

// maxParked bounds what is set aside; past it a queue waits at its head.
const maxParked = 4096

// park sets a task aside that nothing can run, with growing pauses.
func (l *leader) park(key queueKey, r ref, now time.Time, why string) outcome {
	p := l.parked[r.task]
	if p == nil {
		if len(l.parked) >= maxParked {
			return noRoom
		}
		p = &parked{key: key, pause: parkFirst / 2}
		l.parked[r.task] = p
	}
	p.pause = min(2*p.pause, parkMost)
	p.until, p.why = now.Add(p.pause), why
	return nowhere
}

// Bounds of the pause before a task is offered again to a cell that refused or
// lost it, when no other is left. Without it the grants that a task may use up
// would last no longer than a function takes to arrive there.
const (
	refusedFirst = 100 * time.Millisecond
	refusedMost  = 10 * time.Second
)

// refusedNow reports whether the task's last attempt was refused or lost and it
// was not set aside for that yet.
func (l *leader) refusedNow(rec *meshv1.TaskRecord) bool {
	p := l.parked[rec.Id]
	return rec.Attempt > 0 && (p == nil || p.after != rec.Attempt)
}

// parkRefused sets a task aside; the pause doubles with each attempt that did
// not start.
func (l *leader) parkRefused(key queueKey, rec *meshv1.TaskRecord, now time.Time, why string) outcome {
	did := l.park(key, ref{task: rec.Id}, now, why)
	if p := l.parked[rec.Id]; p != nil {
		n := max(int64(rec.Attempt-rec.RedrivenAttempt)-int64(rec.Counted), 1)
		p.after, p.pause = rec.Attempt, min(refusedFirst<<min(n-1, 10), refusedMost)
		p.until = now.Add(p.pause)
	}
	return did
}

// unparkAll lets the next dispatch decide everything again: the mesh changed.
func (l *leader) unparkAll() { l.unparkDue = true }

// reopen reads the queues of all that was set aside from their beginning again:
// more may have been set aside than a window holds.
func (l *leader) reopen() {
	for id, p := range l.parked {
		q := l.waiting.queue(p.key)
		q.items, q.more = nil, true
		delete(l.parked, id)
	}
}

// unpark brings back what is due.
func (l *leader) unpark(now time.Time) {
	for id, p := range l.parked {
		if now.After(p.until) {
			l.waiting.queue(p.key).insert(ref{task: id})
			p.until = now.Add(p.pause)
		}
	}
}

// noteBlocked commits the constraint that blocks a task, once for each change.
func (l *leader) noteBlocked(rec *meshv1.TaskRecord, why string) {
	if rec.Blocked == why {
		return
	}
	cmd := &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Block{Block: &meshv1.Block{TaskId: rec.Id, Attempt: rec.Attempt, Constraint: why}}}
	go func() { _, _ = l.command(l.ctx, cmd) }() // a hint: the next decision repeats it
}

func (l *leader) addAvoid(task string, cell mesh.CellID) {
	rec, ok := fsm.Task(l.State, task)
	if !ok || fsm.Ended(fsm.State(rec)) || slices.Contains(l.avoid[task], cell) {
		return // of an ended one nobody would forget it
	}
	l.avoid[task] = append(l.avoid[task], cell)
}

// blockedBy names the constraints that ruled every candidate out.
func blockedBy(d *placement.Decision) string {
	var names []string
	for _, c := range d.Counts {
		names = append(names, string(c.Constraint))
	}
	if d.Hint != "" {
		return strings.Join(names, ", ") + ": " + d.Hint
	}
	return strings.Join(names, ", ")
}
