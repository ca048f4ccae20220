package scheduler

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fairness"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// How fast a function's attempts start. What lowered its rate is in the log, so
// that the next leader goes on from there: each fall is a command, and the
// recovery follows from its time. What of the window was seen is memory.

// pacing is a function's policy; false for none.
func pacing(fn *isobarv1.Function) (fairness.Pacing, bool) {
	p := fn.GetSpec().GetPace()
	return fairness.Pacing{Most: p.GetMost(), Start: p.GetStart(), Least: p.GetLeast(), Errors: p.GetErrors(), Window: p.GetWindow().AsDuration()}, p.GetMost() > 0
}

// rate is what a function may start in a second now: the less of what its last
// fall and its last deploy allow.
func (l *leader) rate(fn *isobarv1.Function, p fairness.Pacing, now time.Time) float64 {
	return l.rateAt(fn, p, l.clock.wall(now))
}

func (s *Scheduler) rateAt(fn *isobarv1.Function, p fairness.Pacing, wall time.Time) float64 {
	rate := p.Rate(p.Start, fn.GetDeployed().AsTime(), wall)
	if rec := fsm.Pace(s.State, fn.Spec.Tenant, fn.Spec.Name); rec.RateMilli > 0 {
		rate = min(rate, p.Rate(float64(rec.RateMilli)/1000, time.UnixMilli(rec.SinceMs), wall))
	}
	return rate
}

// paceOf is the memory of a function's pace; the caller holds the lock.
func (l *leader) paceOf(tenant, function string) *fairness.Pace {
	o := owner{tenant, function}
	p := l.paces[o]
	if p == nil {
		p = &fairness.Pace{}
		l.paces[o] = p
	}
	return p
}

// paced says that the queue's function has started as much as it may for now, and
// for how long; "" when the next may start.
func (l *leader) paced(tenant, function string, now time.Time) (why string, wait time.Duration) {
	fn, err := l.Registry.Function(tenant, function)
	if err != nil {
		return "", 0 // deleted: what was accepted runs
	}
	p, ok := pacing(fn)
	if !ok {
		return "", 0
	}
	rate := l.rate(fn, p, now)
	if wait = l.paceOf(tenant, function).Wait(rate, now); wait <= 0 {
		return "", 0
	}
	why = fmt.Sprintf("paced: function %s starts %.3g a second", function, rate)
	if rec := fsm.Pace(l.State, tenant, function); rate < p.Most && rec.Reason != "" {
		why += fmt.Sprintf(", of %.3g at most: %s", p.Most, rec.Reason)
	}
	return why, wait
}

// started counts an attempt, or a call, of a function that has a pace.
func (l *leader) started(tenant, function string) {
	if p := l.paces[owner{tenant, function}]; p != nil {
		p.Took()
	}
}

// ended counts how an attempt of this cell's task, or a call, ended.
func (l *leader) ended(tenant, function, status string) {
	bad := slices.Contains([]string{"failed", "retry", "timeout", "memory"}, status)
	if !bad && status != "done" {
		return // lost, refused, undelivered: no word of the function
	}
	errs := int64(0)
	if bad {
		errs = 1
	}
	l.judge(tenant, function, 1, errs)
}

// judge lowers the rate when the window's errors pass what is acceptable.
func (l *leader) judge(tenant, function string, ended, errs int64) {
	fn, err := l.Registry.Function(tenant, function)
	if err != nil {
		return
	}
	p, ok := pacing(fn)
	if !ok {
		return
	}
	l.mu.Lock()
	memory := l.paceOf(tenant, function)
	over := memory.Ended(p, ended, errs, time.Now())
	bad, all := memory.Share()
	l.mu.Unlock()
	if !over {
		return
	}
	why := fmt.Sprintf("%d of %d attempts in %s were errors", bad, all, p.Window)
	go func() {
		if _, err := l.slower(l.ctx, fn, p, &meshv1.Slow{Reason: why}, 1, false); err != nil && l.ctx.Err() == nil {
			l.Logger.Warn("pace not lowered", "function", function, "error", err)
		}
	}()
}

// slower commits a fall of the rate by so many halvings, or to the least. Falls
// go one after the other: each is from what the one before left.
func (l *leader) slower(ctx context.Context, fn *isobarv1.Function, p fairness.Pacing, c *meshv1.Slow, halvings int64, least bool) (*fsm.Result, error) {
	l.slowing.Lock()
	defer l.slowing.Unlock()
	c.Tenant, c.Function = fn.Spec.Tenant, fn.Spec.Name
	if halvings > 0 || least {
		to := p.Least
		if !least {
			to = p.Slower(l.rate(fn, p, time.Now()), halvings)
		}
		c.RateMilli = max(int64(math.Ceil(to*1000)), 1)
	}
	res, err := l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Slow{Slow: c}})
	if err == nil && res.Count > 0 {
		l.Logger.Info("pace lowered", "tenant", c.Tenant, "function", c.Function, "rate_milli", c.RateMilli, "reason", c.Reason)
	}
	return res, err
}

// forgetPaces drops what is kept of functions that were deleted: one that is deployed
// under the name later begins anew.
func (l *leader) forgetPaces(ctx context.Context) {
	for tenant, function := range fsm.Paced(l.State) {
		if !l.Registry.Gone(tenant, function) {
			continue
		}
		_, err := l.command(ctx, &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_ForgetPace{ForgetPace: &meshv1.ForgetPace{
			Tenant: tenant, Function: function, Seen: fsm.Pace(l.State, tenant, function),
		}}})
		if err != nil {
			continue // it is looked at again
		}
		l.mu.Lock()
		delete(l.paces, owner{tenant, function})
		l.mu.Unlock()
	}
}

// MaxIncidents bounds the count of one report.
const MaxIncidents = 1_000_000

// CheckReport refuses a report that no cell can count.
func CheckReport(r *isobarv1.ReportRequest) error {
	bad := func(field, message, hint string) error {
		return &Refusal{Reason: BadRequest, Field: field, Message: message, Hint: hint}
	}
	switch {
	case !slices.Contains([]string{"error", "drift", "safety"}, r.Kind):
		return bad("kind", fmt.Sprintf("there is no kind %.40q", r.Kind), "error, drift or safety")
	case !slices.Contains([]string{"", "low", "high"}, r.Severity):
		return bad("severity", fmt.Sprintf("there is no severity %.40q", r.Severity), "low or high")
	case r.Kind == "error" && r.Severity != "":
		return bad("severity", "errors have no severity: their share counts", "leave it out")
	case r.Count < 0 || r.Count > MaxIncidents:
		return bad("count", fmt.Sprintf("a count of %d is not 1 to %d", r.Count, MaxIncidents), "leave it out for one")
	case len(r.Message) > 256:
		return bad("message", "a message is at most 256 bytes", "say it shorter")
	case len(r.ReportId) > 64:
		return bad("reportId", "a report's id is at most 64 bytes", "a UUID, say")
	}
	return nil
}

// Report counts an incident at this cell, once for each id, and lowers the
// function's rate. The report is one that CheckReport allows.
func (s *Scheduler) Report(ctx context.Context, r *isobarv1.ReportRequest) (*isobarv1.PaceState, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	fn, err := l.Registry.Function(r.Tenant, r.Function)
	if err != nil {
		return nil, err
	}
	p, ok := pacing(fn)
	if !ok {
		return nil, &Refusal{
			Reason: BadRequest, Field: "function", Message: "function " + r.Function + " has no pace that could fall",
			Hint: "deploy it with a pace (docs/functions.md, Pace)",
		}
	}
	n := uint64(max(r.Count, 1))
	c := &meshv1.Slow{ReportId: r.ReportId, Reason: r.Kind + " reported"}
	if r.Message != "" {
		c.Reason += ": " + r.Message
	}
	halvings, least := int64(n), r.Severity == "high"
	switch r.Kind {
	case "error":
		c.Errors, halvings = n, 0
	case "drift":
		c.Drift = n
	default:
		c.Safety = n
	}
	res, err := l.slower(ctx, fn, p, c, halvings, least)
	switch {
	case errors.Is(err, ErrNotLeader):
		return nil, err
	case err != nil:
		return nil, errOutcome(err, "the report may have been counted")
	case r.Kind == "error" && res.Count > 0:
		l.judge(r.Tenant, r.Function, 0, int64(n))
	}
	l.kick()
	return l.paceState(fn, p), nil
}

// Pace tells a function's pace at this cell as this server knows it; nil when it
// has none.
func (s *Scheduler) Pace(fn *isobarv1.Function) *isobarv1.PaceState {
	p, ok := pacing(fn)
	if !ok {
		return nil
	}
	if l := s.current(); l != nil {
		return l.paceState(fn, p)
	}
	return paceMessage(s.Cell.ID, fsm.Pace(s.State, fn.Spec.Tenant, fn.Spec.Name), p, s.rateAt(fn, p, s.Wall()))
}

func (l *leader) paceState(fn *isobarv1.Function, p fairness.Pacing) *isobarv1.PaceState {
	return paceMessage(l.Cell.ID, fsm.Pace(l.State, fn.Spec.Tenant, fn.Spec.Name), p, l.rate(fn, p, time.Now()))
}

func paceMessage(cell mesh.CellID, rec *meshv1.PaceRecord, p fairness.Pacing, rate float64) *isobarv1.PaceState {
	return &isobarv1.PaceState{
		Cell: string(cell), Rate: rate, Most: p.Most, Reason: rec.Reason, Since: timestampMs(rec.SinceMs),
		Errors: rec.Errors, Drift: rec.Drift, Safety: rec.Safety,
	}
}
