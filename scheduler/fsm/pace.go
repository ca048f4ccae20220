package fsm

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

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

// forgetPace drops the record of a deleted function. A repeat changes nothing.
func (a *apply) forgetPace(c *meshv1.ForgetPace) error {
	if !nameable(c.Tenant, c.Function, 0) || c.Function == "" {
		return fmt.Errorf("fsm: forget pace of %s/%s: %w", c.Tenant, c.Function, ErrBadCommand)
	}
	key := paceKey(c.Tenant, c.Function)
	if _, ok := a.Get(key); ok && !proto.Equal(Pace(a, c.Tenant, c.Function), c.Seen) {
		return fmt.Errorf("fsm: forget pace of %s/%s: %w", c.Tenant, c.Function, ErrStale)
	}
	a.Delete(key)
	a.result.Verdict = Accepted
	return nil
}

// Paced yields the functions whose pace is kept, by tenant and name.
func Paced(r state.Reader) iter.Seq2[string, string] {
	return func(yield func(tenant, function string) bool) {
		for k := range r.Scan([]byte("P"), []byte("Q")) {
			if tenant, function, ok := strings.Cut(string(k[1:]), "\x00"); ok && !yield(tenant, function) {
				return
			}
		}
	}
}

// Pace is what is kept of a function's pace; empty when it never fell.
func Pace(r state.Reader, tenant, function string) *meshv1.PaceRecord {
	var rec meshv1.PaceRecord
	get(r, paceKey(tenant, function), &rec)
	return &rec
}
