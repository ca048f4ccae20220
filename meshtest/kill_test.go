package meshtest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// A cell loses a server while 2,000 tasks are in flight: every accepted task
// completes exactly once.
//
// A run kills the leader of one cell, which holds leases, and any server of
// another one; stops the leader of the third until another leads there, and lets
// it go on believing that it does; and stops a worker for longer than its lease,
// which then reports attempts that are another's by now. It fails unless it saw
// leases in flight at the killed leader, an attempt above 1, and a fenced
// completion.
func TestKilledServer(t *testing.T) {
	whole(t)
	for i := range *runs {
		s := *seed + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			r := &killRun{seed: s, rng: rand.New(rand.NewPCG(s, 0)), late: map[string]uint64{}}
			defer r.report(t, time.Now())
			r.run(t)
		})
	}
}

// killRun is one run and what it saw.
type killRun struct {
	seed uint64
	rng  *rand.Rand
	m    *mesh
	load *load

	leader, second, paused, stopped string // processes, by id
	inFlight, leased                int    // in the mesh, and at the leader, when it was killed
	tasks, completed                int
	maxAttempt                      uint64
	fenced                          int
	servers                         []*server         // killed
	late                            map[string]uint64 // attempts that the stopped worker held, by task
}

// report prints the run's line.
func (r *killRun) report(t *testing.T, began time.Time) {
	verdict := "ok"
	if t.Failed() {
		verdict = "FAILED"
	}
	fmt.Printf("run seed=%d victims=%s,%s paused=%s stopped=%s in_flight=%d leased=%d tasks=%d completed=%d max_attempt=%d fenced=%d seconds=%.1f %s\n",
		r.seed, r.leader, r.second, r.paused, r.stopped, r.inFlight, r.leased, r.tasks, r.completed, r.maxAttempt, r.fenced, time.Since(began).Seconds(), verdict)
}

func (r *killRun) run(t *testing.T) {
	r.m = start(t, options{servers: 3, workers: 2})
	regions := r.m.regions()
	ledger := filepath.Join(r.m.dir, "ledger")
	r.m.deploy(t, regions[0], ledgerSpec(t, ledger))
	r.load = newLoad(r.m, fmt.Sprintf("run-%d", r.seed), r.seed, 2*time.Second)
	r.fill(t)

	r.rng.Shuffle(len(regions), func(i, j int) { regions[i], regions[j] = regions[j], regions[i] })
	worker := r.stopWorker(t, regions[r.rng.IntN(len(regions))])
	r.killLeader(t, regions[0])
	r.kill(t, r.m.serversOf(regions[1])[r.rng.IntN(3)], &r.second)
	paused := r.pauseLeader(t, regions[2])
	// Clients go on while servers are away.
	var more sync.WaitGroup
	more.Go(func() { r.load.submit(t, 4*batch) })
	r.awaitOvertaken(t)
	signal(t, worker.pid, syscall.SIGCONT)
	r.resume(t, paused)
	more.Wait()
	r.awaitFenced(t)
	for _, s := range r.servers {
		r.m.restart(t, s)
	}
	r.awaitEnd(t)
	r.check(t, ledger)
}

// fill submits until the asked number of tasks is in flight, and a tenth more
// for what ends before the kill.
func (r *killRun) fill(t *testing.T) {
	t.Helper()
	target := *inFlight * 11 / 10
	for n := target; n > 0; {
		r.load.submit(t, n)
		if len(r.load.failures) > 0 {
			t.Fatalf("submits failed: %s", strings.Join(r.load.failures, "; "))
		}
		if n = target - r.notEnded(t); n > 0 {
			n += batch // some end meanwhile
		}
	}
}

// notEnded counts the tasks in flight in the whole mesh.
func (r *killRun) notEnded(t *testing.T) int {
	t.Helper()
	n := 0
	for _, region := range r.m.regions() {
		samples, err := scrape(t.Context(), r.m.leader(t, region))
		if err != nil {
			t.Fatal(err)
		}
		n += tasksIn(samples, "")
	}
	return n
}

// stopWorker stops a worker that runs attempts.
func (r *killRun) stopWorker(t *testing.T, region string) *worker {
	t.Helper()
	workers := r.m.workersOf(region)
	w := workers[r.rng.IntN(len(workers))]
	r.stopped = w.id()
	eventually(t, 30*time.Second, "work at "+w.id(), func(ctx context.Context) error {
		signal(t, w.pid, syscall.SIGSTOP)
		r.late = r.heldBy(ctx, t, w)
		if len(r.late) >= 3 {
			return nil
		}
		signal(t, w.pid, syscall.SIGCONT)
		return fmt.Errorf("it runs %d attempts", len(r.late))
	})
	return w
}

// heldBy finds the tasks of all homes whose newest attempt a worker runs.
func (r *killRun) heldBy(ctx context.Context, t *testing.T, w *worker) map[string]uint64 {
	t.Helper()
	held := map[string]uint64{}
	for _, region := range r.m.regions() {
		tasks, err := r.m.list(ctx, r.m.leader(t, region), isobarv1.TaskState_TASK_STATE_LEASED)
		if err != nil {
			t.Logf("list %s: %v", region, err)
			continue
		}
		for _, task := range tasks {
			a := task.GetAttempts()[len(task.GetAttempts())-1]
			if a.GetWorker() == w.name && a.GetCell() == cellOf(w.region) && a.GetOutcome() == "running" {
				held[task.GetId()] = a.GetNumber()
			}
		}
	}
	return held
}

// killLeader kills the leader of a cell once it holds leases.
func (r *killRun) killLeader(t *testing.T, region string) {
	t.Helper()
	r.inFlight = r.notEnded(t)
	var s *server
	eventually(t, 30*time.Second, "leases at the leader of "+region, func(ctx context.Context) error {
		s = r.m.leader(t, region)
		samples, err := scrape(ctx, s)
		if err != nil {
			return err
		}
		if r.leased = tasksIn(samples, "leased"); r.leased == 0 || samples["isobar_leading"] != 1 {
			return errNoLease
		}
		return nil
	})
	r.kill(t, s, &r.leader)
	if r.inFlight < *inFlight {
		t.Errorf("only %d tasks were in flight", r.inFlight)
	}
}

func (r *killRun) kill(t *testing.T, s *server, name *string) {
	t.Helper()
	kill(t, s.pid)
	*name = s.id()
	r.servers = append(r.servers, s)
}

// pauseLeader stops the leader of a cell as it is, in the middle of what it does.
func (r *killRun) pauseLeader(t *testing.T, region string) *server {
	t.Helper()
	s := r.m.leader(t, region)
	signal(t, s.pid, syscall.SIGSTOP)
	t.Cleanup(func() { _ = syscall.Kill(s.pid, syscall.SIGCONT) }) // so that it can be ended
	r.paused = s.id()
	return s
}

// resume lets a paused leader go on once another one leads, and holds that it
// then learns so: two must not lead.
func (r *killRun) resume(t *testing.T, s *server) {
	t.Helper()
	if other := r.m.leader(t, s.region); other == s {
		t.Fatalf("%s leads, and is stopped", s.id())
	}
	signal(t, s.pid, syscall.SIGCONT)
	eventually(t, 30*time.Second, "end of the lead of "+s.id(), func(ctx context.Context) error {
		samples, err := scrape(ctx, s)
		if err != nil {
			return err
		}
		if samples["isobar_leading"] == 1 && r.m.leader(t, s.region) != s {
			return errors.New("it leads beside another")
		}
		return nil
	})
}

// awaitOvertaken waits until the stopped worker has lost some of its attempts
// to a later one.
func (r *killRun) awaitOvertaken(t *testing.T) {
	t.Helper()
	eventually(t, 60*time.Second, "second attempt of what "+r.stopped+" held", func(ctx context.Context) error {
		overtaken := 0
		for id, held := range r.late {
			res, err := r.m.client(t, homeRegion(id)).Get(ctx, &isobarv1.GetRequest{TaskId: id})
			if err != nil {
				return err
			}
			if res.GetTask().GetAttempt() > held {
				overtaken++
			}
		}
		if overtaken < min(3, len(r.late)) {
			return fmt.Errorf("%d of %d overtaken", overtaken, len(r.late))
		}
		return nil
	})
}

// awaitFenced waits until a worker was told that its result came too late. The
// function had done its work: only the record refuses it.
func (r *killRun) awaitFenced(t *testing.T) {
	t.Helper()
	eventually(t, 60*time.Second, "fenced completion", func(context.Context) error {
		r.fenced = 0
		for _, w := range r.m.workers {
			data, err := os.ReadFile(filepath.Join(w.dir, "log"))
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(data)) {
				if strings.Contains(line, "result fenced") && strings.Contains(line, "status=done") {
					r.fenced++
				}
			}
		}
		if r.fenced == 0 {
			return errors.New("no worker's log has one")
		}
		return nil
	})
}

// awaitEnd waits until nothing is in flight.
func (r *killRun) awaitEnd(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, "end of all tasks", func(context.Context) error {
		if n := r.notEnded(t); n > 0 {
			return fmt.Errorf("%d tasks are in flight", n)
		}
		return nil
	})
}

func (r *killRun) check(t *testing.T, ledger string) {
	t.Helper()
	if len(r.load.failures) > 0 {
		t.Errorf("submits failed: %s", strings.Join(r.load.failures, "; "))
	}
	ids := r.load.ids()
	tasks := r.m.get(t, ids)
	r.tasks = len(ids)
	for _, task := range tasks {
		if task.GetState() == isobarv1.TaskState_TASK_STATE_COMPLETED {
			r.completed++
		}
	}
	checkAudit(t, readLedger(t, ledger), tasks, ids)
	checkOrder(t, readLedger(t, ledger), tasks, r.load.lines)
	r.maxAttempt = highestAttempt(tasks)
	if r.maxAttempt < 2 || !slices.ContainsFunc(ids, func(id string) bool { return startedTwice(tasks[id]) }) {
		t.Error("no task was started a second time")
	}
	// What the cells hold is what was accepted: a lost answer made no second task.
	var held []string
	for _, region := range r.m.regions() {
		list, err := r.m.list(t.Context(), r.m.leader(t, region), isobarv1.TaskState_TASK_STATE_UNSPECIFIED)
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range list {
			held = append(held, task.GetId())
		}
	}
	slices.Sort(held)
	if !slices.Equal(held, ids) {
		t.Errorf("the cells hold %d tasks, %d were accepted", len(held), len(ids))
	}
	r.awaitCaughtUp(t)
}

// startedTwice reports whether two attempts of a task ran. Refused offers take
// numbers too, and don't count.
func startedTwice(task *isobarv1.Task) bool {
	n := 0
	for _, a := range task.GetAttempts() {
		if a.GetCounted() {
			n++
		}
	}
	return n > 1
}

// awaitCaughtUp waits until the killed servers, started again, have applied what
// their cell's leader had.
func (r *killRun) awaitCaughtUp(t *testing.T) {
	t.Helper()
	for _, s := range r.servers {
		eventually(t, 60*time.Second, "return of "+s.id(), func(ctx context.Context) error {
			want, err := scrape(ctx, r.m.leader(t, s.region))
			if err != nil {
				return err
			}
			got, err := scrape(ctx, s)
			if err != nil {
				return err
			}
			const applied = "isobar_log_applied_index"
			if got[applied]+100 < want[applied] {
				return fmt.Errorf("it applied %v of %v", got[applied], want[applied])
			}
			return nil
		})
	}
}
