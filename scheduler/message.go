package scheduler

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// DecisionMessage writes a decision as it is stored and sent.
func DecisionMessage(d *placement.Decision) *isobarv1.Decision {
	m := &isobarv1.Decision{
		At: timestamppb.New(d.At), Home: string(d.Home), CarbonPrice: d.Policy.CarbonUSDPerTonne,
		LatencyPrice: d.Policy.LatencyUSDPerS, QualityPrice: d.Policy.QualityUSD, Notes: d.Notes, Hint: d.Hint, Summary: d.Summary(),
		Later: d.Later(), DelayPrice: d.Policy.DelayUSDPerS,
	}
	for i := range d.Candidates {
		m.Candidates = append(m.Candidates, CandidateMessage(&d.Candidates[i]))
	}
	for _, c := range d.Counts {
		m.Counts = append(m.Counts, &isobarv1.ConstraintCount{Constraint: string(c.Constraint), Count: uint32(c.Count)})
	}
	for _, r := range d.RuledOut {
		m.RuledOut = append(m.RuledOut, &isobarv1.RuledOut{
			Cell: string(r.Cell), Region: r.Region, Variant: r.Variant, Constraint: string(r.Constraint), Detail: r.Detail,
		})
	}
	for i := range d.Starts {
		m.Starts = append(m.Starts, startMessage(&d.Starts[i]))
	}
	for _, f := range d.Flips {
		m.Flips = append(m.Flips, &isobarv1.Flip{Weight: f.Weight, Now: f.Now, At: f.At, Cell: string(f.Cell), Variant: f.Variant})
	}
	return m
}

// CandidateMessage writes one candidate.
func CandidateMessage(c *placement.Candidate) *isobarv1.Candidate {
	if c == nil {
		return nil
	}
	return &isobarv1.Candidate{
		Cell: string(c.Cell), Region: c.Region, Variant: c.Variant, Start: timestamppb.New(c.Start), Finish: timestamppb.New(c.Finish),
		Score: c.Score, Compute: c.Terms.Compute, Egress: c.Terms.Egress, Carbon: c.Terms.Carbon, Latency: c.Terms.Latency,
		ColdStart: c.Terms.Cold, QualityLost: c.Terms.Quality, Kwh: c.KWh, Gco2Eq: c.GCO2eq, Intensity: c.Intensity, Usd: c.USD,
		Quality: c.Quality, Wait: durationpb.New(c.Wait), Cold: durationpb.New(c.Cold), Run: durationpb.New(c.Run), Rtt: durationpb.New(c.RTT),
		Warm: c.Warm, Free: c.Free, DigestVersion: c.DigestVersion, DigestAge: durationpb.New(c.DigestAge),
		NetworkKwh: c.NetworkKWh, NetworkGco2Eq: c.NetworkGCO2eq, EmbodiedGco2Eq: c.EmbodiedGCO2eq,
		Put: durationpb.New(c.Put), Data: c.Terms.Data, Scarcity: c.Terms.Scarcity, Fetch: durationpb.New(c.Fetch), Forecast: c.Forecast,
	}
}

func startMessage(s *placement.Start) *isobarv1.Start {
	return &isobarv1.Start{
		At: timestamppb.New(s.At), Put: durationpb.New(s.Put), Score: s.Score, Compute: s.Terms.Compute, Egress: s.Terms.Egress,
		Carbon: s.Terms.Carbon, Latency: s.Terms.Latency, ColdStart: s.Terms.Cold, QualityLost: s.Terms.Quality,
		Gco2Eq: s.GCO2eq, Intensity: s.Intensity, Data: s.Terms.Data, Scarcity: s.Terms.Scarcity,
	}
}

// Plan is the stored decision of the newest start that was put off by choice;
// nil for a task whose start never was.
func Plan(rec *meshv1.TaskRecord) (*isobarv1.Decision, error) {
	if len(rec.Plan) == 0 {
		return nil, nil //nolint:nilnil // there is none
	}
	var d isobarv1.Decision
	if err := proto.Unmarshal(rec.Plan, &d); err != nil {
		return nil, fmt.Errorf("scheduler: read plan of %s: %w", rec.Id, err)
	}
	return &d, nil
}

// planMessage is the plan as Get shows it; nil for none, and for one that another
// version wrote.
func planMessage(rec *meshv1.TaskRecord) *isobarv1.Plan {
	d, err := Plan(rec)
	if err != nil || len(d.GetCandidates()) == 0 {
		return nil
	}
	c := d.Candidates[0]
	return &isobarv1.Plan{
		Start: c.Start, Cell: c.Cell, Region: c.Region, Variant: c.Variant, Reason: d.Later, Decided: d.At, Plans: rec.Plans, Waits: rec.PutOff,
	}
}

// TaskMessage writes a record as the API shows it, without its result.
func TaskMessage(rec *meshv1.TaskRecord) *isobarv1.Task {
	t := &isobarv1.Task{
		Id: rec.Id, State: isobarv1.TaskState(rec.State), Tenant: rec.Tenant, Function: rec.Function, Version: rec.Version,
		Lane: mesh.Lane(rec.Lane).String(), Home: homeOf(rec.Id), IdempotencyKey: rec.IdempotencyKey, CorrelationId: rec.CorrelationId,
		Submitted: timestampMs(rec.SubmittedMs), Deadline: timestampMs(rec.DeadlineMs), NotBefore: timestampMs(rec.NotBeforeMs),
		Next: timestampMs(rec.NextMs), Ended: timestampMs(rec.EndedMs), MinQuality: rec.MinQuality, Attempt: rec.Attempt,
		Reason: rec.Reason, PayloadBytes: rec.PayloadBytes, PayloadSha256: rec.PayloadSha256, ResultSha256: rec.ResultSha256,
		Traceparent: rec.Traceparent, OrderingKey: rec.OrderingKey, StartBy: timestampMs(fsm.StartBy(rec)), Plan: planMessage(rec), Inputs: rec.Inputs, Cost: rec.Cost,
		Retry: &isobarv1.RetryPolicy{
			MaxAttempts: rec.MaxAttempts, Backoff: durationpb.New(time.Duration(rec.BackoffMs) * time.Millisecond),
			MaxBackoff: durationpb.New(time.Duration(rec.MaxBackoffMs) * time.Millisecond),
		},
	}
	t.Residency = residencyMessage(mesh.Residency{Allowed: rec.Allowed, Denied: rec.Denied})
	if rec.MaxDelayMs > 0 {
		t.MaxDelay = durationpb.New(time.Duration(rec.MaxDelayMs) * time.Millisecond)
	}
	if rec.MaxRttUs > 0 {
		t.MaxRtt = durationpb.New(time.Duration(rec.MaxRttUs) * time.Microsecond)
	}
	if rec.Blocked != "" && rec.Reason == "" {
		t.Reason = "waits: " + rec.Blocked
	}
	for _, a := range rec.Attempts {
		t.Attempts = append(t.Attempts, attemptMessage(rec, a))
	}
	if l := rec.Lease; l != nil {
		outcome := "leased"
		if l.Started {
			outcome = "running"
		}
		t.Attempts = append(t.Attempts, &isobarv1.Attempt{
			Number: rec.Attempt, Cell: orHome(l.Holder.Cell, rec.Id), Worker: l.Worker, Variant: l.Variant,
			Leased: timestampMs(l.GrantedMs), Outcome: outcome, Counted: l.Started,
		})
	}
	describeAttempts(t, rec)
	return t
}

// describeAttempts adds what the stored decisions know: region and reason. A
// decision that does not parse was written by another version; the task is
// shown without it.
func describeAttempts(t *isobarv1.Task, rec *meshv1.TaskRecord) {
	decisions, err := Decisions(rec)
	if err != nil {
		return
	}
	for _, d := range decisions {
		for _, a := range t.Attempts {
			if a.Number == d.Attempt && len(d.Candidates) > 0 {
				a.Decision, a.Region = d.Summary, d.Candidates[0].Region
			}
		}
	}
}

func attemptMessage(rec *meshv1.TaskRecord, a *meshv1.AttemptRecord) *isobarv1.Attempt {
	return &isobarv1.Attempt{
		Number: a.Number, Cell: orHome(a.Cell, rec.Id), Worker: a.Worker, Variant: a.Variant, Leased: timestampMs(a.LeasedMs),
		Started: timestampMs(a.StartedMs), Ended: timestampMs(a.EndedMs), Outcome: a.Outcome, Counted: a.Counted, ExitCode: a.ExitCode,
		Message: a.Message, StderrTail: a.StderrTail, RunTime: durationpb.New(time.Duration(a.RunUs) * time.Microsecond), Cold: a.Cold,
	}
}

func homeOf(id string) string {
	home, _, err := mesh.TaskID(id).Home()
	if err != nil {
		return ""
	}
	return string(home)
}

func orHome(cell, id string) string {
	if cell != "" {
		return cell
	}
	return homeOf(id)
}

// traceID is the trace of a W3C trace context, for logs; "" for none.
func traceID(traceparent string) string {
	parts := strings.Split(traceparent, "-")
	if len(parts) < 4 {
		return ""
	}
	return parts[1]
}

// residencyMessage writes a residency; nil for one that bounds nothing.
func residencyMessage(r mesh.Residency) *isobarv1.Residency {
	if !r.Bound() {
		return nil
	}
	return &isobarv1.Residency{Allowed: r.Allowed, Denied: r.Denied}
}
