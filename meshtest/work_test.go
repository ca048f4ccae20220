package meshtest_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// What a mesh does all day, one after the other on one mesh.
func TestWork(t *testing.T) {
	whole(t)
	m := start(t, options{mesh: gpuMesh})
	t.Run("deploy", func(t *testing.T) { checkDeploy(t, m) })
	t.Run("backoff", func(t *testing.T) { checkBackoff(t, m) })
	t.Run("garbage", func(t *testing.T) { checkGarbage(t, m) })
	t.Run("cancel", func(t *testing.T) { checkCancel(t, m) })
}

// jurisdiction of each region of gpuMesh.
func jurisdiction(region string) string {
	return map[string]string{"eu-north": "eu", "us-east": "us", "ap-south": "in"}[region]
}

func only(region string) *isobarv1.Residency {
	return &isobarv1.Residency{Allowed: []string{jurisdiction(region)}}
}

// checkDeploy measures how long it takes until a deployed function runs in
// every region: at most 5 s.
func checkDeploy(t *testing.T, m *mesh) {
	const text = "runs\n"
	module := wasmModule(text)
	sum := sha256.Sum256(module)
	wasm := &isobarv1.FunctionSpec{Name: "module", Variants: []*isobarv1.Variant{{
		Name: "default", Runtime: "wasm", Module: "sha256:" + hex.EncodeToString(sum[:]), Resources: &isobarv1.Resources{Cpu: 0.1, MemoryMib: 16},
	}}}
	for i, region := range m.regions() {
		spec, modules := execSpec("command", "printf 'runs\\n'"), [][]byte(nil)
		if i == 0 {
			spec, modules = wasm, [][]byte{module}
		}
		began := time.Now()
		m.deploy(t, region, spec, modules...)
		ready := time.Since(began)
		for _, at := range m.regions() {
			res, err := m.client(t, at).Invoke(t.Context(), &isobarv1.InvokeRequest{Function: spec.GetName(), Residency: only(at)})
			if err != nil {
				t.Errorf("%s in %s: %v", spec.GetName(), at, err)
			} else if res.GetResultText() != text || res.GetCell() != cellOf(at) {
				t.Errorf("%s in %s: wrote %q in %s", spec.GetName(), at, res.GetResultText(), res.GetCell())
			}
		}
		took := time.Since(began)
		t.Logf("%s deployed in %s: ready everywhere in %v, run everywhere in %v", spec.GetName(), region, ready, took)
		if took > 5*time.Second {
			t.Errorf("%s took %v to run in every region", spec.GetName(), took)
		}
	}
}

// submit submits one task and returns its id.
func (m *mesh) submit(t *testing.T, region string, spec *isobarv1.TaskSpec) string {
	t.Helper()
	res, err := m.client(t, region).Submit(t.Context(), &isobarv1.SubmitRequest{Tasks: []*isobarv1.TaskSpec{spec}})
	if err != nil {
		t.Fatal(err)
	}
	return res.GetResults()[0].GetTaskId()
}

// awaitTask waits until a task is as wished.
func (m *mesh) awaitTask(t *testing.T, id, what string, as func(*isobarv1.Task) bool) *isobarv1.Task {
	t.Helper()
	var task *isobarv1.Task
	eventually(t, time.Minute, what, func(ctx context.Context) error {
		res, err := m.client(t, homeRegion(id)).Get(ctx, &isobarv1.GetRequest{TaskId: id})
		if err != nil {
			return err
		}
		if task = res.GetTask(); !as(task) {
			return fmt.Errorf("it is %v", task)
		}
		return nil
	})
	return task
}

func inState(s isobarv1.TaskState) func(*isobarv1.Task) bool {
	return func(t *isobarv1.Task) bool { return t.GetState() == s }
}

// checkBackoff watches a function that always asks to be tried again: growing
// pauses, then dead, with every attempt kept.
func checkBackoff(t *testing.T, m *mesh) {
	spec := execSpec("again", `echo "attempt $ISOBAR_ATTEMPT" >&2; exit 75`)
	spec.Retry = &isobarv1.RetryPolicy{MaxAttempts: 4, Backoff: durationpb.New(300 * time.Millisecond), MaxBackoff: durationpb.New(500 * time.Millisecond)}
	m.deploy(t, "eu-north", spec)
	id := m.submit(t, "eu-north", &isobarv1.TaskSpec{Function: "again", Residency: only("eu-north")})
	task := m.awaitTask(t, id, "end of a task that never succeeds", inState(isobarv1.TaskState_TASK_STATE_DEAD))
	if !strings.Contains(task.GetReason(), "4 attempts used up") {
		t.Errorf("it is dead for %q", task.GetReason())
	}
	attempts := task.GetAttempts()
	if len(attempts) != 4 {
		t.Fatalf("it has %d attempts", len(attempts))
	}
	for i, a := range attempts {
		if want := fmt.Sprintf("attempt %d\n", i+1); a.GetOutcome() != "retry" || !a.GetCounted() || a.GetExitCode() != 75 || string(a.GetStderrTail()) != want {
			t.Errorf("attempt %d: %v", i+1, a)
		}
		if i == 0 {
			continue
		}
		// 300 ms, then doubled up to 500, each spread by a fifth.
		pause := a.GetLeased().AsTime().Sub(attempts[i-1].GetEnded().AsTime())
		policy := min(300*time.Millisecond<<(i-1), 500*time.Millisecond)
		if pause < policy*8/10 || pause > policy*12/10+5*time.Second {
			t.Errorf("the pause before attempt %d was %v, the policy says %v", i+1, pause, policy)
		}
	}

	m.deploy(t, "eu-north", execSpec("broken", "echo why >&2; exit 3"))
	id = m.submit(t, "us-east", &isobarv1.TaskSpec{Function: "broken"})
	task = m.awaitTask(t, id, "end of a task that fails", inState(isobarv1.TaskState_TASK_STATE_DEAD))
	if a := task.GetAttempts(); len(a) != 1 || a[0].GetExitCode() != 3 || string(a[0].GetStderrTail()) != "why\n" {
		t.Errorf("the attempts of a task that fails: %v", a)
	}
}

// sleeper writes its process id to a file, by task, and sleeps.
func sleeper(name, dir string) *isobarv1.FunctionSpec {
	spec := execSpec(name, `echo $$ >"$PIDS/$ISOBAR_TASK_ID.new"; mv "$PIDS/$ISOBAR_TASK_ID.new" "$PIDS/$ISOBAR_TASK_ID"; exec sleep 60`)
	spec.Timeout, spec.Env = durationpb.New(2*time.Minute), map[string]string{"PIDS": dir}
	return spec
}

// killWithin bounds how long after a cancel a function may run: a guest learns
// of it with its next extend, 2 s later at most, and kills at once.
const killWithin = 5 * time.Second

// checkCancel cancels a task in every state it can be in.
func checkCancel(t *testing.T, m *mesh) {
	dir := directory(t)
	m.deploy(t, "eu-north", sleeper("sleeper", dir))
	m.deploy(t, "eu-north", onGPU(sleeper("gpu-sleeper", dir)))
	wide := sleeper("wide", dir) // takes a whole region
	wide.Variants[0].Resources.Cpu = 2
	m.deploy(t, "eu-north", wide)
	m.deploy(t, "eu-north", execSpec("fine", "echo fine"))
	m.deploy(t, "eu-north", execSpec("fails", "exit 1"))
	again := execSpec("later", "exit 75")
	again.Retry = &isobarv1.RetryPolicy{MaxAttempts: 9, Backoff: durationpb.New(time.Minute)}
	m.deploy(t, "eu-north", again)

	for _, c := range cancelCases(m, dir) {
		t.Run(c.name, func(t *testing.T) { c.check(t, m, dir) })
	}
}

// The states a task can be in.
const (
	deferred  = isobarv1.TaskState_TASK_STATE_DEFERRED
	ready     = isobarv1.TaskState_TASK_STATE_READY
	leased    = isobarv1.TaskState_TASK_STATE_LEASED
	completed = isobarv1.TaskState_TASK_STATE_COMPLETED
	dead      = isobarv1.TaskState_TASK_STATE_DEAD
	cancelled = isobarv1.TaskState_TASK_STATE_CANCELLED
	expired   = isobarv1.TaskState_TASK_STATE_EXPIRED
)

// cancelCase is a task that is brought to a state and cancelled there.
type cancelCase struct {
	name   string
	region string
	spec   *isobarv1.TaskSpec
	state  isobarv1.TaskState
	is     func(*isobarv1.Task) bool // more than the state
	before func(t *testing.T)
	runs   bool // a process runs that must be killed
	wins   bool
	// deadline is set from the moment of the submit, when not 0.
	deadline time.Duration
}

func cancelCases(m *mesh, dir string) []cancelCase {
	later := timestamppb.New(time.Now().Add(time.Hour))
	return []cancelCase{
		{name: "deferred to a time", region: "eu-north", spec: &isobarv1.TaskSpec{Function: "fine", NotBefore: later}, state: deferred, wins: true},
		{
			name: "deferred by back-off", region: "eu-north", spec: &isobarv1.TaskSpec{Function: "later", Residency: only("eu-north")}, state: deferred, wins: true,
			is: func(task *isobarv1.Task) bool { return task.GetAttempt() == 1 },
		},
		{name: "leased at home", region: "eu-north", spec: &isobarv1.TaskSpec{Function: "sleeper", Residency: only("eu-north")}, state: leased, runs: true, wins: true},
		{
			name: "leased to a guest", region: "eu-north", spec: &isobarv1.TaskSpec{Function: "gpu-sleeper"}, state: leased, runs: true, wins: true,
			is: func(task *isobarv1.Task) bool {
				a := task.GetAttempts()[0]
				return a.GetCell() == cellOf("ap-south") && a.GetOutcome() == "running"
			},
		},
		{
			name: "ready without room", region: "us-east", spec: &isobarv1.TaskSpec{Function: "wide", Residency: only("us-east")}, state: ready, wins: true,
			before: func(t *testing.T) {
				id := m.submit(t, "us-east", &isobarv1.TaskSpec{Function: "wide", Residency: only("us-east")})
				awaitPID(t, dir, id)
				t.Cleanup(func() { m.cancel(t, id) })
			},
		},
		{
			name: "blocked", region: "us-east", spec: &isobarv1.TaskSpec{Function: "fine", Residency: only("us-east")}, state: ready, wins: true,
			is:     func(task *isobarv1.Task) bool { return strings.HasPrefix(task.GetReason(), "waits: ") },
			before: func(t *testing.T) { m.loseWorkers(t, "us-east") },
		},
		{name: "completed", region: "ap-south", spec: &isobarv1.TaskSpec{Function: "fine"}, state: completed},
		{name: "dead", region: "ap-south", spec: &isobarv1.TaskSpec{Function: "fails"}, state: dead},
		{
			name: "expired", region: "eu-north", state: expired, deadline: 2 * time.Second,
			spec: &isobarv1.TaskSpec{Function: "gpu-sleeper"},
		},
		{name: "cancelled", region: "eu-north", spec: &isobarv1.TaskSpec{Function: "fine", NotBefore: later, IdempotencyKey: "cancelled"}, state: cancelled},
	}
}

func (c cancelCase) check(t *testing.T, m *mesh, dir string) {
	if c.before != nil {
		c.before(t)
	}
	if c.deadline > 0 {
		c.spec.Deadline = timestamppb.New(time.Now().Add(c.deadline))
	}
	id := m.submit(t, c.region, c.spec)
	if c.state == cancelled {
		m.cancel(t, id)
	}
	m.awaitTask(t, id, "task that is "+c.name, func(task *isobarv1.Task) bool {
		return task.GetState() == c.state && (c.is == nil || c.is(task))
	})
	pid := 0
	if c.runs {
		pid = awaitPID(t, dir, id)
	}
	began := time.Now()
	res := m.cancel(t, id)
	if res.GetCancelled() != c.wins {
		t.Errorf("cancelled: %v", res.GetCancelled())
	}
	want := c.state
	if c.wins {
		want = cancelled
	}
	if got := res.GetTask().GetState(); got != want {
		t.Errorf("it is %v, not %v", got, want)
	}
	if c.runs {
		awaitGone(t, pid, "the cancelled function")
		took := time.Since(began)
		t.Logf("killed %v after the cancel", took.Round(time.Millisecond))
		if took > killWithin {
			t.Errorf("the function ran on for %v", took)
		}
	}
	m.checkStays(t, id, want)
}

// checkStays holds that nothing moves an ended task on.
func (m *mesh) checkStays(t *testing.T, id string, want isobarv1.TaskState) {
	t.Helper()
	res := m.cancel(t, id)
	if res.GetCancelled() || res.GetTask().GetState() != want {
		t.Errorf("a second cancel: %v, %v", res.GetCancelled(), res.GetTask().GetState())
	}
}

func (m *mesh) cancel(t *testing.T, id string) *isobarv1.CancelResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	res, err := m.client(t, homeRegion(id)).Cancel(ctx, &isobarv1.CancelRequest{TaskId: id, Reason: "not needed"})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// awaitPID waits until a sleeper has written its process id.
func awaitPID(t *testing.T, dir, task string) int {
	t.Helper()
	pid := 0
	eventually(t, time.Minute, "process of "+task, func(context.Context) error {
		data, err := os.ReadFile(filepath.Join(dir, task))
		if err != nil {
			return err
		}
		pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
		return err
	})
	if !alive(pid) {
		t.Fatalf("the function of %s, process %d, does not run", task, pid)
	}
	return pid
}

// loseWorkers kills a region's workers and waits until its cell has noticed.
func (m *mesh) loseWorkers(t *testing.T, region string) {
	t.Helper()
	for _, w := range m.workersOf(region) {
		kill(t, w.pid)
	}
	eventually(t, 30*time.Second, "loss of the workers of "+region, func(ctx context.Context) error {
		res, err := m.client(t, region).Workers(ctx)
		if err != nil {
			return err
		}
		if n := len(res.GetWorkers()); n > 0 {
			return fmt.Errorf("%d are listed", n)
		}
		return nil
	})
	m.workers = slices.DeleteFunc(m.workers, func(w *worker) bool { return w.region == region })
}

// A queue at its cap refuses with when to try again, by count, bytes and cost, and
// takes tasks again when there is room.
func TestQueueCap(t *testing.T) {
	whole(t)
	m := start(t, options{mesh: "regions:\n  north: {zone: SE-SE1, jurisdictions: [eu], cpu: 2}\n"})
	m.deploy(t, "north", execSpec("fine", "cat"))
	s := m.serversOf("north")[0]
	kill(t, s.pid)
	m.restart(t, s, "ISOBAR_QUEUE_COUNT=3", "ISOBAR_QUEUE_BYTES=1MiB", "ISOBAR_QUEUE_COST_TOKENS=900")
	m.leader(t, "north")

	waits := func(lane string, size int) *isobarv1.TaskSpec {
		return &isobarv1.TaskSpec{
			Function: "fine", Lane: lane, NotBefore: timestamppb.New(time.Now().Add(time.Hour)), Input: &isobarv1.TaskSpec_Payload{Payload: make([]byte, size)},
		}
	}
	var first string
	for i := range 3 {
		id := m.submit(t, "north", waits("standard", 1))
		if i == 0 {
			first = id
		}
	}
	m.refusedFull(t, waits("standard", 1))
	m.submit(t, "north", waits("batch", 600<<10)) // another lane is another queue
	m.refusedFull(t, waits("batch", 600<<10))
	m.cancel(t, first)
	m.submit(t, "north", waits("standard", 1))

	costs := waits("critical", 1)
	costs.Cost = &isobarv1.Cost{Tokens: 500}
	m.submit(t, "north", costs)
	m.refusedFull(t, costs)
	// It is in the state: a server that starts from it knows.
	kill(t, m.serversOf("north")[0].pid)
	m.restart(t, m.serversOf("north")[0], "ISOBAR_QUEUE_COUNT=3", "ISOBAR_QUEUE_COST_TOKENS=900")
	m.leader(t, "north")
	m.refusedFull(t, costs)
	costs.Cost.Tokens = 400
	m.submit(t, "north", costs)
}

func (m *mesh) refusedFull(t *testing.T, spec *isobarv1.TaskSpec) {
	t.Helper()
	_, err := m.client(t, "north").Submit(t.Context(), &isobarv1.SubmitRequest{Tasks: []*isobarv1.TaskSpec{spec}})
	e, ok := errors.AsType[*client.Error](err)
	if !ok || e.Code != connect.CodeResourceExhausted || e.Reason != "queue_full" || e.RetryAfter <= 0 || e.Outcome != client.NotAccepted {
		t.Errorf("a full %s queue answers %+v", spec.GetLane(), err)
	}
}
