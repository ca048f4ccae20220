package meshtest_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// ledgerSpec is the function of examples/functions/ledger: it waits for the
// milliseconds in its payload, then appends "task attempt" to the file and
// writes the same as its result.
func ledgerSpec(t *testing.T, file string) *isobarv1.FunctionSpec {
	t.Helper()
	script, err := os.ReadFile("../examples/functions/ledger/ledger.sh")
	if err != nil {
		t.Fatal(err)
	}
	return &isobarv1.FunctionSpec{
		Name: "ledger", Timeout: durationpb.New(30 * time.Second), Env: map[string]string{"LEDGER": file},
		Retry: &isobarv1.RetryPolicy{MaxAttempts: 10, Backoff: durationpb.New(100 * time.Millisecond), MaxBackoff: durationpb.New(2 * time.Second)},
		Variants: []*isobarv1.Variant{{
			Name: "default", Runtime: "exec", Command: []string{"sh", "-c", string(script)}, Quality: 1,
			Resources: &isobarv1.Resources{Cpu: 0.05, MemoryMib: 32}, Run: durationpb.New(500 * time.Millisecond),
		}},
	}
}

// deploy deploys a function at a region and waits until every cell can run it.
func (m *mesh) deploy(t *testing.T, region string, spec *isobarv1.FunctionSpec, modules ...[]byte) *isobarv1.DeployResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	res, err := m.client(t, region).Deploy(ctx, &isobarv1.DeployRequest{Spec: spec, Modules: modules})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(res.GetCells()); n != len(m.regions()) {
		t.Fatalf("deploy speaks of %d cells, the mesh has %d", n, len(m.regions()))
	}
	for _, c := range res.GetCells() {
		if !c.GetReady() {
			t.Fatalf("%s can't run %s: %s", c.GetCell(), spec.GetName(), c.GetMessage())
		}
	}
	return res
}

// load submits ledger tasks to all regions and remembers what was accepted.
type load struct {
	m    *mesh
	name string // the start of every request id
	from []string
	// longest is the longest run of a task.
	longest time.Duration

	mu       sync.Mutex
	rng      *rand.Rand
	next     int
	accepted map[string]string // request id by task id
	lines    [][]string        // ids of one ordering key each, in order
	failures []string
}

func newLoad(m *mesh, name string, seed uint64, longest time.Duration) *load {
	return &load{
		m: m, name: name, from: m.regions(), longest: longest, rng: rand.New(rand.NewPCG(seed, 1)), accepted: map[string]string{},
	}
}

const batch = 50

// keyed is how many tasks of a batch, the first ones, have its ordering key.
const keyed = 3

// submit submits n more tasks, spread over the regions, and returns when each
// was answered.
func (l *load) submit(t *testing.T, n int) {
	var wait sync.WaitGroup
	lanes := make(chan struct{}, 4*len(l.from))
	for i := 0; n > 0; i++ {
		size := min(n, batch)
		n -= size
		tasks := l.tasks(size)
		c := l.m.client(t, l.from[i%len(l.from)])
		lanes <- struct{}{}
		wait.Go(func() {
			defer func() { <-lanes }()
			l.send(t.Context(), c, tasks)
		})
	}
	wait.Wait()
}

func (l *load) tasks(n int) []*isobarv1.TaskSpec {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*isobarv1.TaskSpec
	for range n {
		l.next++
		ms := l.rng.IntN(int(l.longest.Milliseconds()))
		out = append(out, &isobarv1.TaskSpec{
			Function: "ledger", RequestId: fmt.Sprintf("%s-%d", l.name, l.next),
			Input: &isobarv1.TaskSpec_Text{Text: strconv.Itoa(ms)},
		})
	}
	for _, spec := range out[:min(keyed, n)] {
		spec.OrderingKey = out[0].RequestId
	}
	return out
}

func (l *load) send(ctx context.Context, c *client.Client, tasks []*isobarv1.TaskSpec) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	res, err := c.Submit(ctx, &isobarv1.SubmitRequest{Tasks: tasks})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failures = append(l.failures, fmt.Sprintf("%d tasks from %s: %v", len(tasks), tasks[0].GetRequestId(), err))
		return
	}
	var line []string
	for i, r := range res.GetResults() {
		if tasks[i].GetOrderingKey() != "" && r.GetError() == nil {
			line = append(line, r.GetTaskId())
		}
		switch first, twice := l.accepted[r.GetTaskId()], l.accepted[r.GetTaskId()] != ""; {
		case r.GetError() != nil:
			l.failures = append(l.failures, fmt.Sprintf("%s: %s: %s", tasks[i].GetRequestId(), r.GetError().GetReason(), r.GetError().GetMessage()))
		case twice:
			l.failures = append(l.failures, fmt.Sprintf("%s and %s are both task %s", first, tasks[i].GetRequestId(), r.GetTaskId()))
		default:
			l.accepted[r.GetTaskId()] = tasks[i].GetRequestId()
		}
	}
	l.lines = append(l.lines, line)
}

// ids of the accepted tasks, sorted.
func (l *load) ids() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.accepted))
}

// list reads every task of a cell, at its leader.
func (m *mesh) list(ctx context.Context, leader *server, state isobarv1.TaskState) ([]*isobarv1.Task, error) {
	c, err := client.New([]string{leader.api()}, client.WithPatience(0))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var out []*isobarv1.Task
	for token := ""; ; {
		res, err := c.List(ctx, &isobarv1.ListRequest{Limit: 1000, PageToken: token, State: state})
		if err != nil {
			return nil, err
		}
		out = append(out, res.GetTasks()...)
		if token = res.GetNextPageToken(); token == "" {
			return out, nil
		}
	}
}

// get reads tasks from their homes, many at a time.
func (m *mesh) get(t *testing.T, ids []string) map[string]*isobarv1.Task {
	t.Helper()
	out := map[string]*isobarv1.Task{}
	var mu sync.Mutex
	var wait sync.WaitGroup
	lanes := make(chan struct{}, 32)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(len(ids))*10*time.Millisecond)
	defer cancel()
	for _, id := range ids {
		c := m.client(t, homeRegion(id))
		lanes <- struct{}{}
		wait.Go(func() {
			defer func() { <-lanes }()
			res, err := c.Get(ctx, &isobarv1.GetRequest{TaskId: id})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("get %s: %v", id, err)
				return
			}
			out[id] = res.GetTask()
		})
	}
	wait.Wait()
	return out
}

// homeRegion is the region in a task id, whose form is "ulid-REGION-1-incarnation".
func homeRegion(id string) string {
	words := strings.Split(id, "-")
	if len(words) < 4 {
		return ""
	}
	return strings.Join(words[1:len(words)-2], "-")
}

// readLedger reads the lines "task attempt" that the function wrote.
func readLedger(t *testing.T, file string) []string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

// audit holds what is said of the accepted tasks against the ledger. It is the
// oracle of the kill tests: every task is completed, by exactly one attempt,
// which ran, and no attempt ran twice. The ids are sorted.
func audit(ledger []string, tasks map[string]*isobarv1.Task, ids []string) (problems []string) {
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	wrote := map[string]int{}
	for _, line := range ledger {
		if wrote[line]++; wrote[line] > 1 {
			problem("attempt %q ran %d times", line, wrote[line])
		}
		id, _, _ := strings.Cut(line, " ")
		if _, known := slices.BinarySearch(ids, id); !known {
			problem("%q ran, which was never accepted", line)
		}
	}
	for _, id := range ids {
		task := tasks[id]
		switch {
		case task == nil:
			problem("task %s is lost", id)
			continue
		case task.GetState() != completed:
			problem("task %s is %v: %s", id, task.GetState(), task.GetReason())
			continue
		}
		var done []uint64
		for _, a := range task.GetAttempts() {
			if a.GetOutcome() == "done" {
				done = append(done, a.GetNumber())
			}
		}
		if len(done) != 1 {
			problem("task %s was completed by attempts %v", id, done)
			continue
		}
		line := fmt.Sprintf("%s %d", id, done[0])
		if got := string(task.GetResult()); got != line+"\n" {
			problem("the result of %s is %q, not that of attempt %d", id, got, done[0])
		}
		if wrote[line] == 0 {
			problem("attempt %q completed and never ran", line)
		}
	}
	return problems
}

// outOfOrder holds the ledger against the lines of the ordering keys: the attempt
// that completed a task had written before that of the next one began to.
func outOfOrder(ledger []string, tasks map[string]*isobarv1.Task, lines [][]string) (problems []string) {
	at := map[string]int{}
	for i, line := range ledger {
		at[line] = i
	}
	for _, line := range lines {
		before := ""
		for _, id := range line {
			result := strings.TrimSuffix(string(tasks[id].GetResult()), "\n")
			if before != "" && at[result] <= at[before] {
				problems = append(problems, fmt.Sprintf("%q ran before %q, which is before it in the line of its ordering key", result, before))
			}
			before = result
		}
	}
	return problems
}

// checkOrder fails the test for each task that ran before its turn.
func checkOrder(t *testing.T, ledger []string, tasks map[string]*isobarv1.Task, lines [][]string) {
	t.Helper()
	if !slices.ContainsFunc(lines, func(line []string) bool { return len(line) > 1 }) {
		t.Error("no ordering key has two tasks")
	}
	for _, p := range outOfOrder(ledger, tasks, lines) {
		t.Error(p)
	}
}

// checkAudit fails the test for each problem.
func checkAudit(t *testing.T, ledger []string, tasks map[string]*isobarv1.Task, ids []string) {
	t.Helper()
	for _, p := range audit(ledger, tasks, ids) {
		t.Error(p)
	}
}

// highestAttempt is the highest number any of the tasks was granted.
func highestAttempt(tasks map[string]*isobarv1.Task) (highest uint64) {
	for _, task := range tasks {
		highest = max(highest, task.GetAttempt())
	}
	return highest
}

// TestAudit holds the oracle to account: it passes what is right and names each
// thing that is not.
func TestAudit(t *testing.T) {
	t.Parallel()
	task := func(state isobarv1.TaskState, result string, outcomes ...string) *isobarv1.Task {
		out := &isobarv1.Task{State: state, Result: []byte(result)}
		for i, o := range outcomes {
			out.Attempts = append(out.Attempts, &isobarv1.Attempt{Number: uint64(i + 1), Outcome: o})
		}
		return out
	}
	for name, c := range map[string]struct {
		ledger string
		task   *isobarv1.Task
		want   string
	}{
		"right":            {"a 1", task(completed, "a 1\n", "done"), ""},
		"second attempt":   {"a 1,a 2", task(completed, "a 2\n", "lost", "done"), ""},
		"ran twice":        {"a 1,a 1", task(completed, "a 1\n", "done"), `attempt "a 1" ran 2 times`},
		"unknown":          {"a 1,b 1", task(completed, "a 1\n", "done"), `"b 1" ran, which was never accepted`},
		"lost":             {"a 1", nil, "task a is lost"},
		"not ended":        {"a 1", task(leased, "", "running"), "task a is TASK_STATE_LEASED: "},
		"two completions":  {"a 1,a 2", task(completed, "a 2\n", "done", "done"), "task a was completed by attempts [1 2]"},
		"another's result": {"a 1,a 2", task(completed, "a 1\n", "lost", "done"), `the result of a is "a 1\n", not that of attempt 2`},
		"never ran":        {"a 1", task(completed, "a 2\n", "lost", "done"), `attempt "a 2" completed and never ran`},
	} {
		tasks := map[string]*isobarv1.Task{"a": c.task}
		if got := strings.Join(audit(strings.Split(c.ledger, ","), tasks, []string{"a"}), "; "); got != c.want {
			t.Errorf("%s: %q, not %q", name, got, c.want)
		}
	}
}

func TestOutOfOrder(t *testing.T) {
	t.Parallel()
	task := func(result string) *isobarv1.Task { return &isobarv1.Task{Result: []byte(result + "\n")} }
	tasks := map[string]*isobarv1.Task{"a": task("a 2"), "b": task("b 1"), "c": task("c 1")}
	for name, c := range map[string]struct {
		ledger string
		want   string
	}{
		"right":              {"a 2,b 1,c 1", ""},
		"others between":     {"a 2,x 1,b 1,c 1", ""},
		"a late first write": {"a 2,b 1,a 1,c 1", ""},
		"before its turn":    {"b 1,a 2,c 1", `"b 1" ran before "a 2", which is before it in the line of its ordering key`},
	} {
		if got := strings.Join(outOfOrder(strings.Split(c.ledger, ","), tasks, [][]string{{"a", "b", "c"}}), "; "); got != c.want {
			t.Errorf("%s: %q, not %q", name, got, c.want)
		}
	}
}
