package meshtest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// The exact count at max-deliver under crashes, of real processes: of 200 tasks
// every tenth is never acknowledged. Its attempts hang until their time is over, or
// are lost with what held them: the leader is killed twice and a worker once. In
// the end exactly those 20 are dead letters, none missing, each with its attempts
// used up and none over; a redrive lets the ones that can end so.
func TestDeadLettersUnderKills(t *testing.T) {
	whole(t)
	for i := range *letterRuns {
		s := *seed + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			r := &letterRun{seed: s, rng: rand.New(rand.NewPCG(s, 7))}
			defer r.report(t, time.Now())
			r.run(t)
		})
	}
}

var errNoLease = errors.New("no lease is out")

const (
	letterTasks    = 200
	letterEvery    = 10
	letterAttempts = 3
)

type letterRun struct {
	seed                 uint64
	rng                  *rand.Rand
	m                    *mesh
	killed               []string
	cure                 string   // a file
	poison               []string // ids
	dead, completed, max int
}

func (r *letterRun) report(t *testing.T, began time.Time) {
	verdict := "ok"
	if t.Failed() {
		verdict = "FAILED"
	}
	fmt.Printf("letters seed=%d killed=%v tasks=%d dead=%d completed=%d max_attempt=%d seconds=%.1f %s\n",
		r.seed, r.killed, letterTasks, r.dead, r.completed, r.max, time.Since(began).Seconds(), verdict)
}

func (r *letterRun) run(t *testing.T) {
	r.m = start(t, options{servers: 3, workers: 2, mesh: "regions:\n  north: {zone: SE-SE1, jurisdictions: [eu], cpu: 8}\n"})
	region := r.m.regions()[0]
	retry := &isobarv1.RetryPolicy{MaxAttempts: letterAttempts, Backoff: durationpb.New(200 * time.Millisecond), MaxBackoff: durationpb.New(time.Second)}
	variants := func(script string) []*isobarv1.Variant {
		return []*isobarv1.Variant{{
			Name: "default", Runtime: "exec", Command: []string{"sh", "-c", script}, Quality: 1,
			Resources: &isobarv1.Resources{Cpu: 0.1, MemoryMib: 32},
		}}
	}
	// Attempts of a poisonous task hang for longer than their timeout and its grace,
	// until there is the cure. Their numbers do not say which may end: one that never
	// began, or was given back, is not counted.
	r.cure = filepath.Join(t.TempDir(), "cure")
	r.m.deploy(t, region, &isobarv1.FunctionSpec{
		Name: "poison", Timeout: durationpb.New(2 * time.Second), Retry: retry,
		Variants: variants(fmt.Sprintf("test -e '%s' || sleep 15; cat", r.cure)),
	})
	many := &isobarv1.RetryPolicy{MaxAttempts: 50, Backoff: retry.Backoff, MaxBackoff: retry.MaxBackoff}
	r.m.deploy(t, region, &isobarv1.FunctionSpec{Name: "well", Timeout: durationpb.New(30 * time.Second), Retry: many, Variants: variants("sleep 0.05; cat")})

	all := r.submit(t, region, 0, letterTasks/2)
	r.killLeader(t, region)
	all = append(all, r.submit(t, region, letterTasks/2, letterTasks)...)
	time.Sleep(time.Duration(r.rng.IntN(1500)) * time.Millisecond)
	w := r.m.workersOf(region)[r.rng.IntN(2)]
	kill(t, w.pid)
	r.killed = append(r.killed, w.id())
	w.pid = r.m.run(t, "worker", w.dir).Process.Pid
	time.Sleep(time.Duration(r.rng.IntN(3000)) * time.Millisecond)
	r.killLeader(t, region)
	r.check(t, region, all)
	r.redrive(t, region)
}

// submit submits tasks until all are accepted: while nobody leads some are refused,
// by name, and their idempotency keys make repeats of the rest harmless.
func (r *letterRun) submit(t *testing.T, region string, from, to int) []string {
	t.Helper()
	req := &isobarv1.SubmitRequest{}
	for i := from; i < to; i++ {
		spec := &isobarv1.TaskSpec{Function: "well", Input: &isobarv1.TaskSpec_Text{Text: fmt.Sprint(i)}, IdempotencyKey: fmt.Sprintf("letters-%d-%d", r.seed, i)}
		if i%letterEvery == letterEvery/2 {
			spec.Function, spec.CorrelationId = "poison", fmt.Sprint("order-", i)
		}
		req.Tasks = append(req.Tasks, spec)
	}
	var ids []string
	eventually(t, time.Minute, "acceptance of all tasks", func(ctx context.Context) error {
		res, err := r.m.client(t, region).Submit(ctx, req)
		if err != nil {
			return err
		}
		ids = nil
		for _, x := range res.GetResults() {
			if x.GetError() != nil {
				return fmt.Errorf("submit: %v", x.GetError())
			}
			ids = append(ids, x.GetTaskId())
		}
		return nil
	})
	for i, id := range ids {
		if req.Tasks[i].Function == "poison" {
			r.poison = append(r.poison, id)
		}
	}
	return ids
}

// killLeader kills the leader once it holds leases, and starts it again.
func (r *letterRun) killLeader(t *testing.T, region string) {
	t.Helper()
	var s *server
	eventually(t, 30*time.Second, "leases at the leader", func(ctx context.Context) error {
		s = r.m.leader(t, region)
		samples, err := scrape(ctx, s)
		if err == nil && tasksIn(samples, "leased") == 0 {
			err = errNoLease
		}
		return err
	})
	kill(t, s.pid)
	r.killed = append(r.killed, s.id())
	r.m.restart(t, s)
}

func (r *letterRun) check(t *testing.T, region string, all []string) {
	t.Helper()
	eventually(t, 2*time.Minute, "end of all tasks", func(ctx context.Context) error {
		samples, err := scrape(ctx, r.m.leader(t, region))
		if err == nil && tasksIn(samples, "") > 0 {
			err = fmt.Errorf("%d tasks are in flight", tasksIn(samples, ""))
		}
		return err
	})
	for _, task := range r.m.get(t, all) {
		if task.GetState() == isobarv1.TaskState_TASK_STATE_COMPLETED {
			r.completed++
		}
		r.max = max(r.max, int(task.GetAttempt()))
	}
	res, err := r.m.client(t, region).DeadLetters(t.Context(), &isobarv1.DeadLetterServiceListRequest{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, l := range res.GetLetters() {
		listed = append(listed, l.GetTask().GetId())
		counted := 0
		for _, a := range l.GetTask().GetAttempts() {
			if a.GetCounted() {
				counted++
			}
		}
		if counted != letterAttempts || l.GetTask().GetIdempotencyKey() == "" || l.GetTask().GetCorrelationId() == "" || l.GetCause() == "" {
			t.Errorf("%d of %d attempts counted: %v", counted, letterAttempts, l)
		}
	}
	r.dead = len(listed)
	slices.Sort(listed)
	slices.Sort(r.poison)
	const want = letterTasks / letterEvery
	if !slices.Equal(listed, r.poison) || res.GetTotal() != want || len(r.poison) != want || r.completed != letterTasks-want {
		t.Errorf("%d dead letters, %d counted, %d completed; want %d and %d", len(listed), res.GetTotal(), r.completed, want, letterTasks-want)
	}
}

// redrive gives all of them new attempts, by the function's name, twice: each goes
// once, on under its number, and ends.
func (r *letterRun) redrive(t *testing.T, region string) {
	t.Helper()
	if err := os.WriteFile(r.cure, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	redriven := 0
	for range 2 {
		res, err := r.m.client(t, region).Redrive(t.Context(), &isobarv1.RedriveRequest{Filter: &isobarv1.DeadLetterFilter{Function: "poison"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range res.GetResults() {
			if x.GetError() != nil {
				t.Errorf("redrive: %v", x)
			}
			if x.GetRedriven() {
				redriven++
			}
		}
	}
	if redriven != len(r.poison) {
		t.Errorf("%d redriven, want %d", redriven, len(r.poison))
	}
	for _, id := range r.poison {
		task, ended, err := r.m.client(t, region).Wait(t.Context(), id, time.Minute)
		if err != nil || !ended || task.GetState() != isobarv1.TaskState_TASK_STATE_COMPLETED || task.GetAttempt() <= letterAttempts {
			t.Errorf("redriven %s is %s after attempt %d, %v", id, task.GetState(), task.GetAttempt(), err)
		}
	}
}
