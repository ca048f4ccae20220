package meshtest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// The feed of TestPutOff: an hour of carbon passes in three seconds, and every
// eighth hour is clean in eu-north.
const (
	feedSpeed  = 1200
	feedStep   = time.Hour / feedSpeed
	cleanEvery = 8
)

// grids writes five days of carbon that repeat each day, so that the forecast,
// which looks at the day before, is right.
func grids(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("datetime_utc,SE-SE1,US-MIDA-PJM,IN-MH\n")
	at := time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)
	for h := range 5 * 24 {
		se := 300
		if h%cleanEvery == 0 {
			se = 20
		}
		fmt.Fprintf(&b, "%s,%d,400,600\n", at.Add(time.Duration(h)*time.Hour).Format(time.RFC3339), se)
	}
	file := filepath.Join(directory(t), "carbon.csv")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// A task whose start is put off to a clean hour in another region, on three
// regions of three servers: the leader of its home is killed while it waits. It
// starts once, in its window, and its explanation says why then.
func TestPutOff(t *testing.T) {
	whole(t)
	m := start(t, options{servers: 3, args: []string{
		"--carbon", grids(t), "--carbon-clock", "2022-01-02T12:00:00Z", "--carbon-speed", fmt.Sprint(feedSpeed),
		"--carbon-price", "1000000", "--latency-price", "0.000001",
	}})
	ledger := filepath.Join(m.dir, "ledger")
	m.deploy(t, "us-east", ledgerSpec(t, ledger))
	id, planned := m.putOff(t, "us-east")
	old := m.leader(t, "us-east")
	kill(t, old.pid)
	killed := time.Now()

	after := m.awaitTask(t, id, "the task under the next leader", func(*isobarv1.Task) bool { return true })
	if next := m.leader(t, "us-east"); next.id() == old.id() {
		t.Fatalf("%s leads although it was killed", old.id())
	}
	if after.GetPlan().GetReason() != planned.GetPlan().GetReason() && after.GetAttempt() == 0 {
		t.Logf("planned again: %s, then %s", planned.GetPlan().GetReason(), after.GetPlan().GetReason())
	}
	if !killed.Before(planned.GetPlan().GetStart().AsTime()) {
		t.Fatal("the leader was killed too late to mean anything")
	}
	ended := m.awaitTask(t, id, "its end", inState(isobarv1.TaskState_TASK_STATE_COMPLETED))
	m.checkStart(t, ended)
	if lines := readLedger(t, ledger); len(slices.DeleteFunc(lines, func(l string) bool { return !strings.HasPrefix(l, id) })) != 1 {
		t.Errorf("the function ran %v", lines)
	}
	m.checkWhyThen(t, ended)
	fmt.Printf("put off: %s; leader %s killed %.1f s before; started %.2f s after\n", ended.GetPlan().GetReason(), old.id(),
		ended.GetPlan().GetStart().AsTime().Sub(killed).Seconds(), started(ended).Sub(ended.GetPlan().GetStart().AsTime()).Seconds())
}

// putOff submits until a task is put off for long enough to kill a leader
// meanwhile: where it is about to start at once, the next clean hour is nearer.
func (m *mesh) putOff(t *testing.T, region string) (string, *isobarv1.Task) {
	t.Helper()
	for range 20 {
		id := m.submit(t, region, &isobarv1.TaskSpec{
			Function: "ledger", Input: &isobarv1.TaskSpec_Text{Text: "200"}, MaxDelay: durationpb.New(cleanEvery*feedStep + 10*time.Second),
		})
		task := m.awaitTask(t, id, "a decision", func(task *isobarv1.Task) bool { return task.GetPlan() != nil || task.GetAttempt() > 0 })
		if p := task.GetPlan(); p.GetWaits() && p.GetRegion() == "eu-north" && time.Until(p.GetStart().AsTime()) > 10*time.Second {
			return id, task
		}
		time.Sleep(2 * feedStep)
	}
	t.Fatal("no task was put off for long enough")
	return "", nil
}

// started is when the task's only attempt was leased.
func started(task *isobarv1.Task) time.Time { return task.GetAttempts()[0].GetLeased().AsTime() }

// checkStart compares the start with what was planned and allowed.
func (m *mesh) checkStart(t *testing.T, task *isobarv1.Task) {
	t.Helper()
	p := task.GetPlan()
	if task.GetAttempt() != 1 || len(task.GetAttempts()) != 1 || task.GetAttempts()[0].GetRegion() != p.GetRegion() || p.GetWaits() {
		t.Fatalf("it is %v", task)
	}
	at := started(task)
	if at.Before(p.GetStart().AsTime().Add(-time.Second)) {
		t.Errorf("it started at %s, planned for %s", at, p.GetStart().AsTime())
	}
	if at.After(task.GetStartBy().AsTime()) {
		t.Errorf("it started at %s, after %s", at, task.GetStartBy().AsTime())
	}
}

// checkWhyThen looks at the explanation: the plan names the carbon that is lower
// then, and the starts that were compared show it.
func (m *mesh) checkWhyThen(t *testing.T, task *isobarv1.Task) {
	t.Helper()
	if reason := task.GetPlan().GetReason(); !strings.Contains(reason, " UTC in eu-north, because carbon is 280 g/kWh lower then") {
		t.Errorf("reason %q", reason)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	res, err := m.client(t, "us-east").Explain(ctx, &isobarv1.ExplainRequest{TaskId: task.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	d := res.GetPlan()
	if d.GetLater() != task.GetPlan().GetReason() || len(d.GetStarts()) < 3 || len(res.GetDecisions()) != 1 {
		t.Fatalf("explained by %v", res)
	}
	chosen := d.GetCandidates()[0]
	for _, s := range d.GetStarts() {
		if sum := s.GetCompute() + s.GetEgress() + s.GetCarbon() + s.GetLatency() + s.GetColdStart() + s.GetQualityLost(); sum-s.GetScore() > 1e-9 || s.GetScore()-sum > 1e-9 {
			t.Errorf("terms of the start at %s sum to %g, not %g", s.GetAt().AsTime(), sum, s.GetScore())
		}
		if s.GetScore() < chosen.GetScore()-1e-12 {
			t.Errorf("the start at %s is cheaper than the chosen", s.GetAt().AsTime())
		}
	}
}
