package scheduler

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
)

// Submission is one task to accept, its input already turned into bytes.
type Submission struct {
	Spec        *isobarv1.TaskSpec
	Payload     []byte
	ContentType string
	Traceparent string
	// Wait is how long Submit goes on after the accept, until the task has ended.
	Wait time.Duration
}

// Receipt says what became of it.
type Receipt struct {
	TaskID    string
	State     isobarv1.TaskState
	Duplicate bool
	// Decision is provisional: the one that binds is taken at the lease.
	Decision *placement.Decision
	// Task is the record as it ended; nil when that was not waited for, or did
	// not happen within the wait.
	Task *meshv1.TaskRecord
}

// Submit accepts one task: its payload in the broker and its record in the log,
// both before it returns. Errors are a *Refusal, or ErrNotLeader. Once accepted,
// a wait that fails is no error.
func (s *Scheduler) Submit(ctx context.Context, sub Submission) (*Receipt, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	r, err := l.submit(ctx, sub)
	if ref, ok := errors.AsType[*Refusal](err); err != nil && !errors.Is(err, ErrNotLeader) && (!ok || !ref.Unknown) {
		// A refusal says that there is no task, and what refuses now (a full disk, a
		// deadline) may not have when it was submitted before.
		if known := l.known(sub.Spec); known != nil {
			r, err = known, nil
		}
	}
	if err == nil && r.Duplicate && sub.Wait > 0 {
		waiting, cancel := context.WithTimeout(ctx, sub.Wait)
		defer cancel()
		if rec, ended, err := s.Wait(waiting, r.TaskID); err == nil && ended {
			r.Task = rec
		}
	}
	return r, err
}

func (l *leader) submit(ctx context.Context, sub Submission) (*Receipt, error) {
	if l.Full != nil && l.Full() {
		return nil, &Refusal{
			Reason: DiskFull, Message: "the disk of " + string(l.Cell.ID) + " is past its cap; the rest is kept for work already accepted",
			Hint: "free space, raise disk.bytes, or submit to another region", RetryAfter: 10 * time.Second,
		}
	}
	rec, fn, err := l.record(sub)
	if err != nil {
		return nil, err
	}
	d := l.decideProvisional(rec, fn, false)
	if d.Chosen == nil {
		if r := impossible(l.decideProvisional(rec, fn, true)); r != nil {
			return nil, r
		}
	}
	var end *waiter
	if sub.Wait > 0 { // before the accept: an end cannot be missed then
		if end, err = l.startWaiting(rec.Id); err != nil {
			return nil, err
		}
		defer l.stopWaiting(rec.Id, end)
	}
	res, err := l.accept(ctx, rec, sub.Payload)
	if err != nil {
		return l.notAccepted(rec, err)
	}
	r := &Receipt{TaskID: rec.Id, State: fsm.State(res.Task), Decision: d}
	if end != nil {
		waiting, cancel := context.WithTimeout(ctx, sub.Wait)
		defer cancel()
		r.Task = end.wait(waiting, l)
	}
	return r, nil
}

// known finds the task of an earlier try of this Submit. It is looked for only
// when this one is refused: one that is not, the machine knows.
func (l *leader) known(spec *isobarv1.TaskSpec) *Receipt {
	id, ok := fsm.Requested(l.State, spec.GetTenant(), spec.GetRequestId())
	if !ok {
		return nil
	}
	return l.duplicate(id)
}

func (l *leader) duplicate(id string) *Receipt {
	r := &Receipt{TaskID: id, Duplicate: true}
	if first, ok := fsm.Task(l.State, id); ok {
		r.State = fsm.State(first)
	}
	return r
}

// impossible refuses what no cell of the mesh could ever run as it stands; a
// cell that is only away or without workers may come back.
func impossible(d *placement.Decision) *Refusal {
	for _, r := range d.RuledOut {
		switch r.Constraint {
		case placement.Residency, placement.Accelerator, placement.MinQuality, placement.Resources, placement.RoundTrip, placement.DeadlineOver:
		default:
			return nil
		}
	}
	if len(d.RuledOut) == 0 {
		return nil
	}
	return infeasible(d)
}

// record validates the submission and makes the task's record.
func (l *leader) record(sub Submission) (*meshv1.TaskRecord, *isobarv1.Function, error) {
	spec := sub.Spec
	lane, err := mesh.ParseLane(spec.Lane)
	if err != nil {
		return nil, nil, &Refusal{Reason: UnknownLane, Field: "lane", Message: fmt.Sprintf("there is no lane %q", spec.Lane), Hint: "use critical, interactive, standard or batch"}
	}
	if n := len(sub.Payload); n > mesh.MaxPayload {
		return nil, nil, &Refusal{
			Reason: PayloadTooLarge, Field: "payload", Message: fmt.Sprintf("a payload of %d bytes is above %d", n, mesh.MaxPayload),
			Hint: "put large inputs where the function can read them and pass the place",
		}
	}
	res, err := l.Residency(spec)
	if err != nil {
		return nil, nil, err
	}
	fn, err := l.Registry.Function(spec.Tenant, spec.Function)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	wall := l.clock.wall(now)
	if dl := spec.GetDeadline(); dl != nil && !dl.AsTime().After(wall) {
		return nil, nil, &Refusal{Reason: DeadlinePast, Field: "deadline", Message: "the deadline " + dl.AsTime().Format(time.RFC3339) + " has passed", Hint: "leave it out, or set a later one"}
	}
	if !l.Cell.Within(res) {
		return nil, nil, l.elsewhere(res)
	}
	if err := l.brokerWithin(res); err != nil {
		return nil, nil, err
	}
	inputs, err := l.inputs(spec)
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(sub.Payload)
	rec := &meshv1.TaskRecord{
		Id:     string(mesh.NewTaskID(newULID(), l.Cell.ID, l.incarnation)),
		Tenant: spec.Tenant, Function: spec.Function, Version: fn.Version, Lane: uint32(lane), ContentType: sub.ContentType,
		PayloadBytes: uint64(len(sub.Payload)), PayloadSha256: sum[:], IdempotencyKey: spec.IdempotencyKey, RequestId: spec.RequestId,
		CorrelationId: spec.CorrelationId, LifetimeMs: wall.Add(l.Lifetime).UnixMilli(), RetentionMs: l.Retention.Milliseconds(),
		TimeoutMs: fn.Spec.Timeout.AsDuration().Milliseconds(), Allowed: res.Allowed, Denied: res.Denied,
		MinQuality: spec.MinQuality, Traceparent: sub.Traceparent, OrderingKey: spec.OrderingKey, Inputs: inputs, Cost: spec.Cost,
		OrderRelaxed: fn.Spec.GetOrdering().GetMode() == "relaxed", OrderBlocks: fn.Spec.GetOrdering().GetOnDead() == "block",
	}
	if dl := spec.GetDeadline(); dl != nil {
		rec.DeadlineMs = dl.AsTime().UnixMilli()
	}
	if nb := spec.GetNotBefore(); nb != nil {
		rec.NotBeforeMs = max(nb.AsTime().UnixMilli(), 0)
		if rec.DeadlineMs != 0 && rec.NotBeforeMs >= rec.DeadlineMs {
			return nil, nil, &Refusal{Reason: BadRequest, Field: "notBefore", Message: "not-before is not before the deadline", Hint: "start earlier or allow more time"}
		}
		if rec.NotBeforeMs >= rec.LifetimeMs {
			return nil, nil, &Refusal{Reason: BadRequest, Field: "notBefore", Message: "not-before is beyond the lifetime of a task, " + l.Lifetime.String(), Hint: "submit it nearer to its time"}
		}
	}
	rec.SubmittedMs = wall.UnixMilli() // the machine stamps its own
	if err := l.applyWindow(rec, spec); err != nil {
		return nil, nil, err
	}
	if err := applyRetry(rec, mergeRetry(fn.Spec.GetRetry(), spec.Retry)); err != nil {
		return nil, nil, err
	}
	rec.IdempotencyHash = sameness(rec, spec)
	return rec, fn, nil
}

// inputs takes over where the task's data lies, in the order of names. A place
// that this cell knows nothing of is refused: its distance would have to be made
// up.
func (l *leader) inputs(spec *isobarv1.TaskSpec) ([]*isobarv1.Input, error) {
	if len(spec.Inputs) == 0 {
		return nil, nil
	}
	known := map[string]bool{l.Cell.Region: true}
	for _, n := range l.Neighbours.All() {
		known[n.Region] = true
	}
	out := make([]*isobarv1.Input, len(spec.Inputs))
	for i, in := range spec.Inputs {
		for k, region := range in.Places {
			if !known[region] && !l.Links(region).Known {
				return nil, &Refusal{
					Reason: UnknownRegion, Field: fmt.Sprintf("inputs[%d].places[%d]", i, k), Message: "no region " + region + " is known",
					Hint: "isobar mesh lists the regions; a place is one of them, or one of the server's rtt_ms",
				}
			}
		}
		places := slices.Clone(in.Places)
		slices.Sort(places)
		out[i] = &isobarv1.Input{Name: in.Name, Bytes: in.Bytes, Places: slices.Compact(places)}
	}
	slices.SortFunc(out, func(a, b *isobarv1.Input) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// applyWindow takes over how long the start may be put off, and how far away.
func (l *leader) applyWindow(rec *meshv1.TaskRecord, spec *isobarv1.TaskSpec) error {
	rec.MaxRttUs = spec.GetMaxRtt().AsDuration().Microseconds()
	delay := spec.GetMaxDelay().AsDuration()
	if rec.MaxDelayMs = delay.Milliseconds(); rec.MaxDelayMs == 0 {
		return nil
	}
	switch by := fsm.StartBy(rec); {
	case rec.DeadlineMs != 0 && by >= rec.DeadlineMs:
		return &Refusal{
			Reason: BadRequest, Field: "maxDelay", Message: fmt.Sprintf("a start put off by %s is not before the deadline", delay),
			Hint: "leave time to run in: a shorter delay, or a later deadline",
		}
	case by >= rec.LifetimeMs:
		return &Refusal{
			Reason: BadRequest, Field: "maxDelay", Message: fmt.Sprintf("a start put off by %s is beyond the lifetime of a task, %s", delay, l.Lifetime),
			Hint: "a shorter delay",
		}
	}
	return nil
}

// Defaults of a retry policy, and its bounds.
const (
	defaultAttempts   = 4
	maxAttempts       = 100
	defaultBackoff    = time.Second
	defaultMaxBackoff = 5 * time.Minute
)

// mergeRetry is a task's own policy, and its function's in what that leaves out. One
// of the two pauses, when the task sets it, bounds the other.
func mergeRetry(function, own *isobarv1.RetryPolicy) *isobarv1.RetryPolicy {
	out := &isobarv1.RetryPolicy{MaxAttempts: cmp.Or(own.GetMaxAttempts(), function.GetMaxAttempts()), Backoff: own.GetBackoff(), MaxBackoff: own.GetMaxBackoff()}
	if out.Backoff == nil {
		out.Backoff = function.GetBackoff()
		if most := out.MaxBackoff.AsDuration(); out.MaxBackoff != nil && most >= 0 && out.Backoff.AsDuration() > most {
			out.Backoff = out.MaxBackoff
		}
	}
	if out.MaxBackoff == nil {
		out.MaxBackoff = function.GetMaxBackoff()
		if out.MaxBackoff != nil && out.MaxBackoff.AsDuration() < out.Backoff.AsDuration() {
			out.MaxBackoff = out.Backoff
		}
	}
	return out
}

func applyRetry(rec *meshv1.TaskRecord, p *isobarv1.RetryPolicy) error {
	rec.MaxAttempts, rec.BackoffMs, rec.MaxBackoffMs = defaultAttempts, defaultBackoff.Milliseconds(), defaultMaxBackoff.Milliseconds()
	if n := p.GetMaxAttempts(); n > maxAttempts {
		return &Refusal{Reason: BadRequest, Field: "retry.maxAttempts", Message: fmt.Sprintf("%d attempts are above %d", n, maxAttempts), Hint: "at most 100"}
	} else if n > 0 {
		rec.MaxAttempts = n
	}
	if b := p.GetBackoff(); b != nil {
		if b.AsDuration() < 0 {
			return &Refusal{Reason: BadRequest, Field: "retry.backoff", Message: "a pause can't be negative", Hint: "0s or more"}
		}
		rec.BackoffMs = b.AsDuration().Milliseconds()
	}
	if b := p.GetMaxBackoff(); b != nil {
		if b.AsDuration() < 0 {
			return &Refusal{Reason: BadRequest, Field: "retry.maxBackoff", Message: "a pause can't be negative", Hint: "0s or more"}
		}
		rec.MaxBackoffMs = b.AsDuration().Milliseconds()
	}
	return nil
}

// sameness hashes all that makes two submits under one key the same task.
func sameness(rec *meshv1.TaskRecord, spec *isobarv1.TaskSpec) []byte {
	h := sha256.New()
	field := func(b []byte) {
		_, _ = h.Write(binary.AppendUvarint(nil, uint64(len(b))))
		_, _ = h.Write(b)
	}
	field([]byte(spec.Function))
	field(rec.PayloadSha256)
	own, _ := residencyOf(spec.Residency) // one that is refused has no record
	scheduling := &isobarv1.TaskSpec{
		ContentType: rec.ContentType, Lane: mesh.Lane(rec.Lane).String(), Deadline: spec.Deadline, NotBefore: spec.NotBefore,
		Residency: residencyMessage(own), MinQuality: spec.MinQuality, Retry: spec.Retry,
		MaxDelay: spec.MaxDelay, MaxRtt: spec.MaxRtt, Inputs: rec.Inputs, OrderingKey: spec.OrderingKey, Cost: rec.Cost,
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(scheduling)
	if err == nil {
		field(b)
	}
	return h.Sum(nil)
}

// message is a task's payload as the broker takes it. What it says beside the
// payload is for those who look into the broker.
func message(q fsm.Queue, rec *meshv1.TaskRecord, payload []byte) broker.Message {
	properties := map[string]string{}
	note := func(name, value string) {
		if value != "" {
			properties[name] = value
		}
	}
	note("traceparent", rec.Traceparent)
	note("content-type", rec.ContentType)
	note("isobar-residency-allowed", strings.Join(rec.Allowed, ","))
	note("isobar-residency-denied", strings.Join(rec.Denied, ","))
	return broker.Message{
		Topic: broker.Topic{Tenant: q.Tenant, Function: q.Function, Lane: q.Lane}, TaskID: mesh.TaskID(rec.Id),
		SHA256: [32]byte(rec.PayloadSha256), Payload: payload, Properties: properties,
	}
}

// accept commits payload and record: in one group, or the record once the broker
// has the payload for good. A crash between leaves an orphan, and no task.
func (l *leader) accept(ctx context.Context, rec *meshv1.TaskRecord, payload []byte) (*fsm.Result, error) {
	q := fsm.QueueOf(rec)
	under := l.inflight.begin(q.String())
	defer under.end()
	prepared, err := l.prepare(ctx, q, rec, payload)
	if err != nil {
		return nil, notStored(err)
	}
	rec.PayloadRef = prepared.Ref
	under.prepared(prepared.Ref)
	cmd := &meshv1.SchedulerCommand{
		Clocks:  l.clock.read(time.Now()),
		Command: &meshv1.SchedulerCommand_Accept{Accept: &meshv1.Accept{Task: rec, Cap: l.QueueCap}},
	}
	var before []state.Command
	if prepared.Command != nil {
		before = append(before, state.Command{Machine: state.BrokerMachine, Body: prepared.Command})
	}
	// Before the record: its lease may be on its way before the answer is.
	l.payloads.keep(rec.Id, rec.PayloadRef, rec.PayloadSha256, payload)
	res, err := l.propose(ctx, cmd, before...)
	if err != nil {
		l.payloads.forget(rec.Id)
	}
	return res, err
}

// notStored says of a failed Prepare what is certain of it: no record was
// proposed, so the task does not exist, whatever the broker has stored.
func notStored(err error) error {
	for _, known := range []error{broker.ErrFull, broker.ErrTooLarge, broker.ErrUnavailable} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
}

// notAccepted turns a failed accept into a receipt (it is known already) or a
// refusal that says whether the task may exist.
func (l *leader) notAccepted(rec *meshv1.TaskRecord, err error) (*Receipt, error) {
	var dup *fsm.DuplicateError
	var conflict *fsm.ConflictError
	var full *fsm.QueueFullError
	switch {
	case errors.As(err, &dup):
		return l.duplicate(dup.ID), nil
	case errors.As(err, &conflict):
		return nil, &Refusal{
			Reason: KeyConflict, Field: "idempotencyKey", TaskID: conflict.ID, Message: "the idempotency key belongs to " + conflict.ID + ", whose content differs",
			Hint: "use another key for another task, or repeat the first one unchanged",
		}
	case errors.As(err, &full):
		return nil, queueFull("", full)
	case errors.Is(err, broker.ErrFull):
		return nil, &Refusal{Reason: DiskFull, Message: "the broker is at its cap", RetryAfter: 5 * time.Second, Hint: "wait until tasks end, or raise the cap"}
	case errors.Is(err, fsm.ErrDeadlinePast):
		return nil, &Refusal{Reason: DeadlinePast, Field: "deadline", Message: "the deadline has passed"}
	case errors.Is(err, fsm.ErrBadCommand), errors.Is(err, consensus.ErrTooLarge), errors.Is(err, broker.ErrTooLarge):
		return nil, &Refusal{Reason: BadRequest, Message: "the task can't be stored", Hint: "make its fields smaller", Err: err}
	case errors.Is(err, consensus.ErrNotLeader), errors.Is(err, ErrNotLeader):
		return nil, fmt.Errorf("scheduler: accept %s: %w", rec.Id, ErrNotLeader)
	case errors.Is(err, broker.ErrReplaced):
		return nil, &Refusal{
			Reason: Unavailable, Message: "the region's broker is not the one that holds the payloads of its tasks", RetryAfter: 10 * time.Second, Err: err,
			Hint: "submit to another region; whoever runs this one finds what to do in docs/pulsar.md, Replacing a region's Pulsar",
		}
	case errors.Is(err, broker.ErrDenied), errors.Is(err, broker.ErrNoToken):
		return nil, &Refusal{
			Reason: Unavailable, Message: "the region's broker does not let this cell in", RetryAfter: 5 * time.Second, Err: err,
			Hint: "submit to another region; whoever runs this one finds what to do in docs/pulsar.md, When something goes wrong",
		}
	case errors.Is(err, fsm.ErrTrimmed), errors.Is(err, broker.ErrUnavailable), errors.Is(err, consensus.ErrClosed):
		return nil, &Refusal{Reason: Unavailable, Message: "the task was not accepted", RetryAfter: time.Second, Hint: "try again", Err: err}
	default:
		return nil, &Refusal{
			Reason: OutcomeUnknown, Message: "the answer was lost; the task may have been accepted", Unknown: true, Err: err,
			Hint: "repeat it at this cell with the same request id",
		}
	}
}

// decideProvisional answers where and when it would run as things are.
func (l *leader) decideProvisional(rec *meshv1.TaskRecord, fn *isobarv1.Function, explain bool) *placement.Decision {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.view.refresh(now, l)
	l.view.own(l)
	d := l.decide(rec, fn, l.Policy, now, placement.Options{Explain: explain})
	return &d
}

// Admit refuses what may not lie in this cell and its broker.
func (s *Scheduler) Admit(res mesh.Residency) error {
	if !s.Cell.Within(res) {
		return s.elsewhere(res)
	}
	return s.brokerWithin(res)
}

// elsewhere refuses a task whose residency leaves this cell out, and says
// where it may be submitted.
func (s *Scheduler) elsewhere(res mesh.Residency) *Refusal {
	r := &Refusal{
		Reason: ResidencyForbids, Field: "residency",
		Message: fmt.Sprintf("%s lies in %v, which the residency leaves out", s.Cell.ID, s.Cell.Jurisdictions),
		Hint:    "no known cell lies within it; allow more, or start a cell there",
	}
	for _, n := range s.Neighbours.All() {
		if n.Verified && n.Within(res) {
			r.Cell, r.Hint = n.ID, "submit it to "+string(n.ID)
			if n.Reachable {
				break
			}
		}
	}
	return r
}

// brokerWithin refuses what would lie in a broker that a region outside its
// residency uses too, or may use.
func (s *Scheduler) brokerWithin(res mesh.Residency) error {
	others, known := s.BrokerShared()
	for _, other := range others {
		if !other.Within(res) {
			return &Refusal{
				Reason: BrokerShared, Field: "residency",
				Message: fmt.Sprintf("%s shares its broker with %s, which lies in %v, and the residency leaves that out", s.Cell.ID, other.Region, other.Jurisdictions),
				Hint:    "use a cell whose broker is its own, or give this region one",
			}
		}
	}
	if !known && res.Bound() {
		return &Refusal{
			Reason: Unavailable, Field: "residency", RetryAfter: time.Second,
			Message: fmt.Sprintf("which other regions use the broker of %s is not known yet, and the residency bounds them", s.Cell.ID),
			Hint:    "try again; it is known once the broker has answered, or where broker.shared_with names them",
		}
	}
	return nil
}

// Residency is what bounds a task: its own residency and its tenant's, the
// stricter of the two. The error is the registry's for an unknown tenant, or a
// *Refusal of a residency that no certificate could match.
func (s *Scheduler) Residency(spec *isobarv1.TaskSpec) (mesh.Residency, error) {
	tenant, err := s.Registry.Tenant(spec.Tenant)
	if err != nil {
		return mesh.Residency{}, err
	}
	own, err := residencyOf(spec.Residency)
	if err != nil {
		return mesh.Residency{}, err
	}
	return stricter(own, mesh.Residency{Allowed: tenant.Allowed, Denied: tenant.Denied}), nil
}

// residencyOf reads a residency. Capitals are lower case, as in the document of a
// tenant; what cannot stand in a certificate is refused: taken as it is, it would
// deny nothing.
func residencyOf(r *isobarv1.Residency) (mesh.Residency, error) {
	var err error
	read := func(field string, list []string) []string {
		var out []string
		for _, j := range list {
			name := strings.ToLower(j)
			if !mesh.ValidName(name) {
				err = &Refusal{
					Reason: BadRequest, Field: "residency." + field, Message: fmt.Sprintf("%.80q does not name a jurisdiction", j),
					Hint: "letters, digits and dashes, one jurisdiction a name: eu",
				}
			}
			out = append(out, name)
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	return mesh.Residency{Allowed: read("allowed", r.GetAllowed()), Denied: read("denied", r.GetDenied())}, err
}

// stricter joins two residencies: what both allow, less what either denies.
func stricter(a, b mesh.Residency) mesh.Residency {
	out := mesh.Residency{Denied: append(slices.Clone(a.Denied), b.Denied...)}
	slices.Sort(out.Denied)
	out.Denied = slices.Compact(out.Denied)
	switch {
	case len(a.Allowed) == 0:
		out.Allowed = b.Allowed
	case len(b.Allowed) == 0:
		out.Allowed = a.Allowed
	default:
		for _, j := range a.Allowed {
			if slices.Contains(b.Allowed, j) {
				out.Allowed = append(out.Allowed, j)
			}
		}
		if len(out.Allowed) == 0 {
			out.Allowed = []string{"nowhere"} // the two exclude each other
		}
	}
	return out
}

// newULID is a lower-case-able ULID: sortable by time, 80 random bits.
func newULID() string { return ulid.Make().String() }

func timestampMs(ms int64) *timestamppb.Timestamp {
	if ms == 0 {
		return nil
	}
	return timestamppb.New(time.UnixMilli(ms))
}
