package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/examples/functions/sentiment"
	imesh "github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/loadtest"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// fakeMesh is three cells in this process that run tasks at their home, at once
// and for real.
type fakeMesh struct {
	t *testing.T

	mu    sync.Mutex
	tasks map[string]*isobarv1.TaskSpec
	// spoil changes what became of the n-th task.
	spoil map[int]func(*isobarv1.Task)
	// never is the task that does not end, refuse the one that is not taken.
	never, refuse int
	// notReady is how often a function is not runnable in a cell yet.
	notReady int
	order    map[string]int
}

func newFakeMesh(t *testing.T) *fakeMesh {
	t.Helper()
	return &fakeMesh{
		t: t, tasks: map[string]*isobarv1.TaskSpec{}, order: map[string]int{}, spoil: map[int]func(*isobarv1.Task){}, never: -1, refuse: -1,
	}
}

// cell is one of the cells as its address sees the mesh.
type cell struct {
	isobarv1.UnimplementedTaskServiceHandler
	isobarv1.UnimplementedPlacementServiceHandler
	isobarv1.UnimplementedMeshServiceHandler
	*fakeMesh
	id string
}

// functions is the service whose methods have names of another's too.
type functions struct {
	isobarv1.UnimplementedFunctionServiceHandler
	*fakeMesh
}

func (m *fakeMesh) dial(addresses []string) (*client.Client, error) {
	return client.New(addresses, client.WithPatience(0), client.WithTransport(func(address string) connect.Transport {
		srv := connect.NewServer()
		c := cell{fakeMesh: m, id: strings.TrimPrefix(address, "http://")}
		isobarv1.RegisterTaskServiceHandler(srv, c)
		isobarv1.RegisterPlacementServiceHandler(srv, c)
		isobarv1.RegisterMeshServiceHandler(srv, c)
		isobarv1.RegisterFunctionServiceHandler(srv, functions{fakeMesh: m})
		return connectinprocess.New(srv)
	}))
}

func (c cell) Cells(context.Context, *isobarv1.CellsRequest) (*isobarv1.CellsResponse, error) {
	res := &isobarv1.CellsResponse{}
	for _, p := range places() {
		id := p.Region + "-1"
		res.Cells = append(res.Cells, &isobarv1.CellInfo{Cell: id, Region: p.Region, Addresses: []string{"http://" + id},
			Jurisdictions: []string{"earth", jurisdictionOf(id)},
		})
	}
	return res, nil
}

// jurisdictionOf a cell, which no other has.
func jurisdictionOf(cell string) string { return cell[:2] }

func (c cell) Submit(_ context.Context, r *isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
	spec := r.GetTasks()[0]
	var n int
	if spec.GetCorrelationId() == "warm-up" {
		n = 1000
		if got := spec.GetResidency().GetAllowed(); len(got) != 1 || got[0] != jurisdictionOf(c.id) {
			return nil, fmt.Errorf("%s got a task for %v", c.id, got)
		}
	} else if _, err := fmt.Sscanf(spec.GetCorrelationId(), "demo-%d", &n); err != nil {
		return nil, err
	}
	if n == c.refuse {
		return nil, connect.NewError(connect.CodeResourceExhausted, "the queue is full")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	id := string(imesh.NewTaskID(fmt.Sprintf("%026d", len(c.tasks)), imesh.CellID(c.id), "inc1"))
	c.tasks[id], c.order[id] = spec, n
	return &isobarv1.SubmitResponse{Results: []*isobarv1.SubmitResult{{TaskId: id}}}, nil
}

func (c cell) Wait(ctx context.Context, r *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error) {
	c.mu.Lock()
	spec, n := c.tasks[r.GetTaskId()], c.order[r.GetTaskId()]
	c.mu.Unlock()
	task := &isobarv1.Task{Id: r.GetTaskId(), Home: c.id, State: isobarv1.TaskState_TASK_STATE_LEASED}
	if n == c.never {
		select {
		case <-time.After(r.GetTimeout().AsDuration()):
		case <-ctx.Done():
		}
		return &isobarv1.WaitResponse{Task: task}, nil
	}
	attempt := &isobarv1.Attempt{Number: 1, Region: strings.TrimSuffix(c.id, "-1"), Variant: "default"}
	if spec.GetFunction() == sentimentName {
		attempt.Variant = "small"
		var out bytes.Buffer
		if err := sentiment.Serve(strings.NewReader(spec.GetText()), &out, sentiment.Lexicon); err != nil {
			return nil, err
		}
		task.Result = out.Bytes()
	} else {
		task.Result = asJPEG(c.t, shrink(c.t, spec.GetPayload(), thumbnailSide))
	}
	task.State, task.Attempts = isobarv1.TaskState_TASK_STATE_COMPLETED, []*isobarv1.Attempt{attempt}
	if spoil := c.spoil[n]; spoil != nil {
		spoil(task)
	}
	return &isobarv1.WaitResponse{Task: task, Ended: true}, nil
}

func (c cell) Explain(_ context.Context, r *isobarv1.ExplainRequest) (*isobarv1.ExplainResponse, error) {
	if home, _, err := imesh.TaskID(r.GetTaskId()).Home(); err != nil || string(home) != c.id {
		return nil, fmt.Errorf("%s was asked of %s: %w", c.id, r.GetTaskId(), err)
	}
	return &isobarv1.ExplainResponse{Decisions: []*isobarv1.Decision{{
		Home: c.id, Candidates: []*isobarv1.Candidate{{Cell: c.id, Usd: 1e-6, Gco2Eq: 1e-5}},
	}}}, nil
}

func (f functions) Deploy(_ context.Context, _ *isobarv1.DeployRequest) (*isobarv1.DeployResponse, error) {
	return &isobarv1.DeployResponse{Cells: f.readiness()}, nil
}

func (f functions) Get(context.Context, *isobarv1.FunctionServiceGetRequest) (*isobarv1.FunctionServiceGetResponse, error) {
	return &isobarv1.FunctionServiceGetResponse{Cells: f.readiness()}, nil
}

func (f functions) readiness() []*isobarv1.CellReadiness {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notReady--
	return []*isobarv1.CellReadiness{{Cell: "a", Ready: true}, {Cell: "b", Ready: f.notReady < 0, Message: "under way"}}
}

func TestPlay(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.play = 500 * time.Millisecond
	p, err := newPlan(o)
	if err != nil {
		t.Fatal(err)
	}
	m := newFakeMesh(t)
	pl, err := newPlayer(t.Context(), p, "http://eu-north-1", m.dial)
	if err != nil {
		t.Fatal(err)
	}
	defer pl.close()
	if n, err := pl.warm(t.Context(), p.warmUp); n != 9 || err != nil {
		t.Errorf("warmed up with %d tasks, %v; want three variants in three regions", n, err)
	}
	outcomes := pl.play(t.Context())
	if err := pl.explain(t.Context(), outcomes); err != nil {
		t.Fatal(err)
	}
	r := loadtest.NewReport(outcomes)
	if r.Bad() != 0 || r.All.Tasks != 120 || r.All.Decided != 120 || r.Home.Missing != 0 {
		t.Errorf("%d completed, %d decided, %d without home; bad: %v %v", r.All.Tasks, r.All.Decided, r.Home.Missing, r.Problems, r.Examples)
	}
	if n := len(r.Outputs); n != 120 || r.Outputs[7].Request != "demo-7" || len(r.Outputs[7].SHA256) != 64 {
		t.Errorf("%d outputs, want 120 with request and hash: %+v", n, r.Outputs[:min(n, 8)])
	}
	if len(r.Rows) != 6 {
		t.Errorf("%d rows, want two functions in three regions", len(r.Rows))
	}
	if len(r.Answers) != 1 || r.Answers[0].Answers < accuracyAnswers {
		t.Errorf("answers %+v, want some thousand of one variant", r.Answers)
	}
	var out bytes.Buffer
	d := &demo{options: o, out: &out}
	if err := d.report(r, map[string]float64{"sentiment/small": 0.635}); err != nil {
		t.Errorf("%v:\n%s", err, &out)
	}
	if err := d.report(r, map[string]float64{"sentiment/small": 0.9}); err == nil {
		t.Error("an accuracy far from the manifest's passes")
	}
}

func TestPlaySeesWhatGoesWrong(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.requests = 12
	p, err := newPlan(o)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		m := newFakeMesh(t)
		m.refuse, m.never = 1, 2
		m.spoil[3] = func(task *isobarv1.Task) {
			task.State, task.Reason = isobarv1.TaskState_TASK_STATE_DEAD, "its attempts are used up"
		}
		m.spoil[4] = func(task *isobarv1.Task) { task.Result = []byte("nonsense") }
		m.spoil[5] = func(task *isobarv1.Task) { task.Attempts = nil }
		pl, err := newPlayer(t.Context(), p, "http://eu-north-1", m.dial)
		if err != nil {
			t.Fatal(err)
		}
		defer pl.close()
		outcomes := pl.play(t.Context())
		if err := pl.explain(t.Context(), outcomes); err != nil {
			t.Fatal(err)
		}
		for i, want := range map[int]loadtest.Problem{0: "", 1: loadtest.Refused, 2: loadtest.Lost, 3: loadtest.Failed, 4: loadtest.Wrong, 5: loadtest.Wrong, 6: ""} {
			if got := outcomes[i]; got.Kind != want || (got.Problem == "") != (want == "") {
				t.Errorf("task %d: %q %q, want %q", i, got.Kind, got.Problem, want)
			}
		}
		if got := outcomes[2].Latency; got < endWithin {
			t.Errorf("a task was given up after %v, want %v", got, endWithin)
		}
		if pl.sent.Load() != 12 || pl.ended.Load() != 12 || pl.bad.Load() != 5 {
			t.Errorf("%d sent, %d ended, %d bad; want 12, 12, 5", pl.sent.Load(), pl.ended.Load(), pl.bad.Load())
		}
		var out bytes.Buffer
		d := &demo{options: o, out: &out}
		if err := d.report(loadtest.NewReport(outcomes), nil); err == nil {
			t.Errorf("a run with five bad ends passes:\n%s", &out)
		}
	})
}

func TestNewPlayerErrors(t *testing.T) {
	t.Parallel()
	m := newFakeMesh(t)
	p := &plan{trace: loadtest.Trace{Arrivals: []loadtest.Arrival{{Origin: "mars"}}}}
	if _, err := newPlayer(t.Context(), p, "http://eu-north-1", m.dial); err == nil || !strings.Contains(err.Error(), "no region mars") {
		t.Errorf("got %v", err)
	}
}

// TestNoDecision: a task without a stored decision fails the run.
func TestNoDecision(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := &demo{out: &out}
	r := loadtest.NewReport([]loadtest.Outcome{{Task: "t", Function: "f", Region: "r", Variant: "v"}})
	if err := d.report(r, nil); err == nil || !strings.Contains(out.String(), "1 tasks have no stored decision") {
		t.Errorf("got %v:\n%s", err, &out)
	}
}

// TestDeploy: it waits until every cell can run the function, and says which
// cannot when time is up.
func TestDeploy(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.modules = t.TempDir()
	module := []byte{0, 'a', 's', 'm', 1, 0, 0, 0} // the smallest module
	if err := os.WriteFile(filepath.Join(o.modules, "thumbnail.wasm"), module, 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		m := newFakeMesh(t)
		m.notReady = 3
		c, err := m.dial([]string{"http://eu-north-1"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		spec, took, err := deploy(t.Context(), c, o, thumbnailName)
		if err != nil || spec.GetName() != thumbnailName || took != 3*deployPoll {
			t.Errorf("deployed %q after %v, %v; want thumbnail after %v", spec.GetName(), took, err, 3*deployPoll)
		}
		m.notReady = 1 << 30
		if _, _, err := deploy(t.Context(), c, o, thumbnailName); err == nil || !strings.Contains(err.Error(), "b: under way") {
			t.Errorf("never ready: %v", err)
		}
		if _, _, err := deploy(t.Context(), c, o, "nothing"); err == nil {
			t.Error("a function without a manifest was deployed")
		}
	})
}
