package scheduler

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// paced makes the function one of at most 10 attempts a second.
func (r *testRegistry) paced(name string) *isobarv1.Function {
	fn := r.add(name, variant("only", "wasm"))
	fn.Spec.Tenant, fn.Spec.Name = "default", name
	fn.Spec.Pace = &isobarv1.Pace{Most: 10, Start: 10, Least: 0.5, Errors: 0.2, Window: durationpb.New(10 * time.Second)}
	return fn
}

func (c *testCell) report(r *isobarv1.ReportRequest) *isobarv1.PaceState {
	c.w.t.Helper()
	r.Tenant, r.Function = "default", "work"
	if err := CheckReport(r); err != nil {
		c.w.t.Fatal(err)
	}
	p, err := c.Report(c.w.ctx, r)
	if err != nil {
		c.w.t.Fatal(err)
	}
	return p
}

// starts counts what a worker is given in that time.
func starts(wk *testWorker, d time.Duration) int {
	before := wk.count()
	time.Sleep(d)
	synctest.Wait()
	return wk.count() - before
}

// TestAPaceBoundsStarts, and falls with errors, says so, stays low under the next
// leader, and recovers by a step each window.
func TestAPaceBoundsStarts(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		w.registry.paced("work")
		w.registry.add("free", variant("only", "wasm"))
		var fails atomic.Bool
		wk := c.worker("w1", offering(500, "wasm"), func(w *testWorker, a *isobarv1.Assignment) {
			w.finish(a, map[bool]string{false: "done", true: "failed"}[fails.Load()])
		})
		once := func(s *isobarv1.TaskSpec) { s.Retry = &isobarv1.RetryPolicy{MaxAttempts: 1} }
		for range 1500 {
			c.submit("work", once)
		}
		time.Sleep(time.Second)
		if n := starts(wk, 10*time.Second); n < 90 || n > 105 {
			t.Fatalf("%d started in 10 s at 10 a second", n)
		}
		if why := c.whyWaits("work"); why != "paced: function work starts 10 a second" {
			t.Errorf("the queue waits for %q", why)
		}
		other := c.submit("free")
		c.awaitState(time.Second, other, completed)
		fails.Store(true)
		w.await(20*time.Second, "the fall", func() bool { return fsm.Pace(c.State, "default", "work").RateMilli > 0 })
		if got := fsm.Pace(c.State, "default", "work"); got.RateMilli != 5000 || !strings.Contains(got.Reason, "attempts in 10s were errors") {
			t.Fatalf("the pace fell to %v", got)
		}
		fails.Store(false)
		time.Sleep(time.Second)
		if why := c.whyWaits("work"); !strings.HasPrefix(why, "paced: function work starts 5 a second, of 10 at most: ") {
			t.Errorf("the queue waits for %q", why)
		}
		c.changeLeader()
		wk.disconnect()
		wk.connect()
		time.Sleep(c.Renew + time.Second)
		if n := starts(wk, 5*time.Second); n < 22 || n > 32 {
			t.Errorf("%d started in 5 s under the next leader, the rate was 5", n)
		}
		// Ten windows add half of the most.
		time.Sleep(100 * time.Second)
		if n := starts(wk, 5*time.Second); n < 45 || n > 55 {
			t.Errorf("%d started in 5 s after the recovery", n)
		}
	})
}

// TestAPaceGoesWithItsFunction: what is kept of it, here and under the next leader;
// another's stays, and one deployed under the name later begins anew.
func TestAPaceGoesWithItsFunction(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		w.registry.paced("work")
		other := w.registry.paced("other")
		c.report(&isobarv1.ReportRequest{Kind: "safety", Count: 2})
		if _, err := c.Report(w.ctx, &isobarv1.ReportRequest{Tenant: "default", Function: "other", Kind: "drift"}); err != nil {
			t.Fatal(err)
		}
		c.changeLeader()
		time.Sleep(2 * trimEvery)
		if rec := fsm.Pace(c.State, "default", "work"); rec.Safety != 2 {
			t.Fatalf("the pace is %v while its function is there", rec)
		}
		w.registry.remove("work")
		time.Sleep(2 * trimEvery)
		for tenant, function := range fsm.Paced(c.State) {
			if function != "other" {
				t.Errorf("the pace of %s/%s is kept", tenant, function)
			}
		}
		if p := c.Pace(other); p.Rate >= 10 || p.Drift != 1 {
			t.Errorf("the other's pace is %v", p)
		}
		if p := c.Pace(w.registry.paced("work")); p.Rate != 10 || p.Safety != 0 {
			t.Errorf("deployed again its pace is %v", p)
		}
	})
}

// TestReportsLowerThePace: each incident halves it, once for each id; a high one
// lets it fall to the least; errors that are reported count with those seen.
func TestReportsLowerThePace(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		fn := w.registry.paced("work")
		if p := c.report(&isobarv1.ReportRequest{Kind: "drift", ReportId: "r1", Message: "PSI 0.31"}); p.Rate != 5 || p.Drift != 1 || p.Reason != "drift reported: PSI 0.31" {
			t.Errorf("after drift: %v", p)
		}
		if p := c.report(&isobarv1.ReportRequest{Kind: "drift", ReportId: "r1"}); p.Rate != 5 || p.Drift != 1 {
			t.Errorf("after the same report: %v", p)
		}
		if p := c.report(&isobarv1.ReportRequest{Kind: "safety", Count: 2}); p.Rate != 1.25 || p.Safety != 2 {
			t.Errorf("after two incidents: %v", p)
		}
		if p := c.report(&isobarv1.ReportRequest{Kind: "safety", Severity: "high"}); p.Rate != 0.5 {
			t.Errorf("after a high one: %v", p)
		}
		c.changeLeader()
		if p := c.Pace(fn); p.Rate != 0.5 || p.Safety != 3 {
			t.Errorf("under the next leader: %v", p)
		}
		time.Sleep(time.Hour)
		if p := c.Pace(fn); p.Rate != 10 {
			t.Errorf("after an hour: %v", p)
		}
		c.report(&isobarv1.ReportRequest{Kind: "error", Count: 4})
		synctest.Wait()
		if p := c.Pace(fn); p.Rate != 10 {
			t.Errorf("four errors lowered it: %v", p)
		}
		c.report(&isobarv1.ReportRequest{Kind: "error"})
		synctest.Wait()
		if p := c.Pace(fn); p.Rate != 5 || p.Errors != 5 {
			t.Errorf("after five errors: %v", p)
		}
	})
}

// TestANewVersionStartsSlowly by its policy.
func TestANewVersionStartsSlowly(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		fn := w.registry.paced("work")
		fn.Spec.Pace.Start = 2
		fn.Deployed = timestampMs(time.Now().UnixMilli())
		if p := c.Pace(fn); p.Rate != 2 {
			t.Errorf("at first %v", p)
		}
		time.Sleep(40 * time.Second)
		if p := c.Pace(fn); p.Rate != 4 {
			t.Errorf("after four windows %v", p)
		}
	})
}

// TestCallsKeepThePace: one too many is refused with when to come again.
func TestCallsKeepThePace(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		w.registry.paced("work").Spec.Pace.Most = 0.5
		c.worker("w1", offering(4, "wasm"), completes)
		in, err := c.Invocation(Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Invoke(w.ctx, *in); err != nil {
			t.Fatal(err)
		}
		_, err = c.Invoke(w.ctx, *in)
		r := wantRefusal(t, "second call", err, Paced)
		if r.RetryAfter <= time.Second || r.RetryAfter > 2*time.Second+time.Millisecond {
			t.Errorf("try again after %s", r.RetryAfter)
		}
		time.Sleep(r.RetryAfter)
		if _, err := c.Invoke(w.ctx, *in); err != nil {
			t.Error(err)
		}
	})
}

func TestReportsThatCannotBe(t *testing.T) {
	t.Parallel()
	for field, r := range map[string]*isobarv1.ReportRequest{
		"kind": {Kind: "hunch"}, "severity": {Kind: "drift", Severity: "dire"}, "count": {Kind: "drift", Count: -1}, "message": {Kind: "drift", Message: strings.Repeat("m", 257)},
		"reportId": {Kind: "drift", ReportId: strings.Repeat("r", 65)},
	} {
		if got := wantRefusal(t, field, CheckReport(r), BadRequest); got.Field != field {
			t.Errorf("%s is named %s", field, got.Field)
		}
	}
	for _, r := range []*isobarv1.ReportRequest{{Kind: "error", Severity: "low"}, {Kind: "drift", Count: 1<<63 - 1}, {}} {
		wantRefusal(t, r.String(), CheckReport(r), BadRequest)
	}
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		_, err := c.Report(w.ctx, &isobarv1.ReportRequest{Tenant: "default", Function: "work", Kind: "drift"})
		wantRefusal(t, "a function without a pace", err, BadRequest)
	})
}
