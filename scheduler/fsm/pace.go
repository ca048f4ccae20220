package fsm

import (
	"fmt"
	"slices"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
)

const (
	// keepReports is how many ids of reports a function's pace keeps.
	keepReports = 16
	// maxRateMilli is a million attempts a second.
	maxRateMilli = 1_000_000_000
	maxIncidents = 1 << 20 // of one command
)

// slow keeps how far a function's rate fell, and counts incidents.
func (a *apply) slow(c *meshv1.Slow) error {
	bad := !nameable(c.Tenant, c.Function, 0) || c.Function == "" || c.RateMilli < 0 || c.RateMilli > maxRateMilli ||
		c.Errors > maxIncidents || c.Drift > maxIncidents || c.Safety > maxIncidents
	if bad {
		return fmt.Errorf("fsm: slow %s/%s: %w", c.Tenant, c.Function, ErrBadCommand)
	}
	a.result.Verdict = Accepted
	rec := Pace(a, c.Tenant, c.Function)
	if c.ReportId != "" && slices.Contains(rec.Reports, c.ReportId) {
		return nil
	}
	if c.ReportId != "" {
		rec.Reports = append(rec.Reports, c.ReportId)
		rec.Reports = rec.Reports[max(0, len(rec.Reports)-keepReports):]
	}
	rec.Errors, rec.Drift, rec.Safety = rec.Errors+c.Errors, rec.Drift+c.Drift, rec.Safety+c.Safety
	if c.RateMilli > 0 {
		rec.RateMilli, rec.SinceMs, rec.Reason = c.RateMilli, a.clocks.WallMs, c.Reason
	}
	a.result.Count = 1
	put(a, paceKey(c.Tenant, c.Function), rec)
	return nil
}

// Pace is what is kept of a function's pace; empty when it never fell.
func Pace(r state.Reader, tenant, function string) *meshv1.PaceRecord {
	var rec meshv1.PaceRecord
	get(r, paceKey(tenant, function), &rec)
	return &rec
}
