package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/client"
	imesh "github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/loadtest"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

const (
	// submitWithin and endWithin bound what a request is waited for; past the
	// second a task counts as lost.
	submitWithin = 30 * time.Second
	endWithin    = 90 * time.Second
	// explainWithin bounds the reading of all decisions.
	explainWithin = 30 * time.Second
	// explainers ask for decisions at a time.
	explainers = 8
)

// region is where requests come in and tasks run.
type region struct {
	name string
	cell string
	// jurisdiction is one that no other region lies in; "" when there is none.
	jurisdiction string
	client       *client.Client
}

// player plays a plan against the regions' APIs.
type player struct {
	plan    *plan
	regions map[string]*region // by name
	cells   map[string]*region // by cell

	sent, ended, bad atomic.Int64
}

// dial makes a client of some addresses.
type dial func(addresses []string) (*client.Client, error)

// newPlayer finds the regions' APIs by asking one of them.
func newPlayer(ctx context.Context, p *plan, address string, dial dial) (*player, error) {
	first, err := dial([]string{address})
	if err != nil {
		return nil, err
	}
	defer first.Close()
	res, err := first.Cells(ctx)
	if err != nil {
		return nil, err
	}
	pl := &player{plan: p, regions: map[string]*region{}, cells: map[string]*region{}}
	for _, c := range res.GetCells() {
		calls, err := dial(c.GetAddresses())
		if err != nil {
			return nil, fmt.Errorf("cell %s: %w", c.GetCell(), err)
		}
		r := &region{name: c.GetRegion(), cell: c.GetCell(), jurisdiction: own(c, res.GetCells()), client: calls}
		pl.regions[r.name], pl.cells[r.cell] = r, r
	}
	for _, a := range p.trace.Arrivals {
		if pl.regions[a.Origin] == nil {
			return nil, fmt.Errorf("the mesh has no region %s", a.Origin)
		}
	}
	return pl, nil
}

// own is a jurisdiction that a cell shares with no other one.
func own(c *isobarv1.CellInfo, all []*isobarv1.CellInfo) string {
	for _, j := range c.GetJurisdictions() {
		shared := slices.ContainsFunc(all, func(o *isobarv1.CellInfo) bool {
			return o.GetCell() != c.GetCell() && slices.Contains(o.GetJurisdictions(), j)
		})
		if !shared {
			return j
		}
	}
	return ""
}

// warm runs each variant once in every region, so that the run does not measure
// how long a module takes to compile. Residency keeps each task where it is
// meant to run, and the small variant comes first: once the large one is warm,
// nothing would choose a cold small one. It returns how many tasks it took.
func (pl *player) warm(ctx context.Context, jobs []job) (int, error) {
	var all errgroup.Group
	n := 0
	for _, r := range pl.regions {
		if r.jurisdiction == "" {
			continue // it warms up with its first tasks
		}
		n += len(jobs)
		all.Go(func() error {
			for _, j := range jobs {
				j.spec = proto.CloneOf(j.spec)
				j.spec.Residency = &isobarv1.Residency{Allowed: []string{r.jurisdiction}}
				if o := pl.one(ctx, j, r.name); o.Problem != "" {
					return fmt.Errorf("warm up %s in %s: %s: %s", o.Function, r.name, o.Kind, o.Problem)
				}
			}
			return nil
		})
	}
	return n, all.Wait()
}

func (pl *player) close() {
	for _, r := range pl.regions {
		r.client.Close()
	}
}

// play sends every job when it is due and waits for the ends, then reads the
// decisions. The outcomes are in the jobs' order.
func (pl *player) play(ctx context.Context) []loadtest.Outcome {
	out := make([]loadtest.Outcome, len(pl.plan.jobs))
	pace := loadtest.Pace{Speed: pl.plan.speed}
	samples := loadtest.Drive(ctx, pl.plan.trace.Arrivals, pace, func(ctx context.Context, i int, a loadtest.Arrival) error {
		pl.sent.Add(1)
		out[i] = pl.one(ctx, pl.plan.jobs[i], a.Origin)
		pl.ended.Add(1)
		if out[i].Problem != "" {
			pl.bad.Add(1)
		}
		return nil
	})
	for i, s := range samples {
		out[i].Latency = s.Latency()
		if s.Err != nil {
			spec := pl.plan.jobs[i].spec
			out[i] = loadtest.Outcome{Request: spec.GetCorrelationId(), Function: spec.GetFunction(), Kind: loadtest.Refused, Problem: "not sent: " + s.Err.Error()}
		}
	}
	return out
}

// one submits a task, waits for its end and checks the result.
func (pl *player) one(ctx context.Context, j job, at string) loadtest.Outcome {
	o := loadtest.Outcome{Request: j.spec.GetCorrelationId(), Function: j.spec.GetFunction(), Origin: at}
	origin := pl.regions[at].client
	spec := j.spec
	if j.deadline {
		spec = proto.CloneOf(spec)
		spec.Deadline = timestamppb.New(time.Now().Add(deadlineAfter))
	}
	submit, cancel := context.WithTimeout(ctx, submitWithin)
	defer cancel()
	res, err := origin.Submit(submit, &isobarv1.SubmitRequest{Tasks: []*isobarv1.TaskSpec{spec}})
	if err != nil {
		o.Kind, o.Problem = loadtest.Refused, describe(err)
		return o
	}
	o.Task = res.GetResults()[0].GetTaskId()
	task, ended, err := origin.Wait(ctx, o.Task, endWithin)
	switch {
	case err != nil:
		o.Kind, o.Problem = loadtest.Lost, describe(err)
	case !ended:
		o.Kind, o.Problem = loadtest.Lost, fmt.Sprintf("still %s after %s", task.GetState(), endWithin)
	default:
		pl.judge(&o, j, task)
	}
	return o
}

// judge checks what ended.
func (pl *player) judge(o *loadtest.Outcome, j job, task *isobarv1.Task) {
	if task.GetState() != isobarv1.TaskState_TASK_STATE_COMPLETED {
		o.Kind, o.Problem = loadtest.Failed, fmt.Sprintf("%s: %s", task.GetState(), task.GetReason())
		return
	}
	attempts := task.GetAttempts()
	if len(attempts) == 0 {
		o.Kind, o.Problem = loadtest.Wrong, "completed without an attempt"
		return
	}
	last := attempts[len(attempts)-1]
	o.Region, o.Variant = last.GetRegion(), last.GetVariant()
	if home := pl.cells[task.GetHome()]; home != nil {
		o.Moved = home.name != o.Region
	}
	o.SHA256 = fmt.Sprintf("%x", sha256.Sum256(task.GetResult()))
	var err error
	if o.Answers, o.Right, err = j.check(task.GetResult()); err != nil {
		o.Kind, o.Problem = loadtest.Wrong, err.Error()
	}
}

// explain reads the decision that bound each task's last attempt from its home.
// The error is the first of those that could not be read.
func (pl *player) explain(ctx context.Context, out []loadtest.Outcome) error {
	ctx, cancel := context.WithTimeout(ctx, explainWithin)
	defer cancel()
	next := make(chan *loadtest.Outcome)
	errs := make(chan error, explainers)
	for range explainers {
		go func() {
			var failed error
			for o := range next {
				if failed != nil {
					continue
				}
				failed = pl.decision(ctx, o)
			}
			errs <- failed
		}()
	}
	for i := range out {
		if out[i].Task != "" {
			next <- &out[i]
		}
	}
	close(next)
	var first error
	for range explainers {
		if err := <-errs; first == nil {
			first = err
		}
	}
	return first
}

func (pl *player) decision(ctx context.Context, o *loadtest.Outcome) error {
	id, _, err := imesh.TaskID(o.Task).Home()
	if err != nil {
		return err
	}
	home := pl.cells[string(id)]
	if home == nil {
		return fmt.Errorf("task %s: its home %s is no cell of the mesh", o.Task, id)
	}
	res, err := home.client.Explain(ctx, &isobarv1.ExplainRequest{TaskId: o.Task})
	if err != nil {
		return fmt.Errorf("explain task %s: %w", o.Task, err)
	}
	if d := res.GetDecisions(); len(d) > 0 {
		o.Decision = d[0]
	}
	return nil
}

// describe adds what a cell said of an error to it.
func describe(err error) string {
	var e *client.Error
	if !errors.As(err, &e) || e.Reason == "" {
		return err.Error()
	}
	return fmt.Sprintf("%s (%s)", err, e.Reason)
}
