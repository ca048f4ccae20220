package client

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

const opSubmit = "submit"

// submission is one Submit under way: what is asked and what is known of it.
type submission struct {
	c       *Client
	tasks   []*isobarv1.TaskSpec
	results []*isobarv1.SubmitResult
	errs    []*Error
	until   time.Time // of the wait for their ends; zero without one
}

// Submit submits tasks. A task without a request id gets one for this call; the
// caller's message is not changed. With one task its refusal is the error. With
// several each has its own result, in which Error is set for one refused, and
// the call fails only when it came to nothing for all of them.
//
// When the outcome of a task is unknown, Submit goes on asking until ctx ends,
// so ctx should have a deadline; the error then has Outcome OutcomeUnknown and
// the RequestID to repeat the task with. To repeat one of several, set request
// ids of your own.
//
// With a wait, the answer comes once all have ended or the time has passed, also
// when it had to be asked for again.
func (c *Client) Submit(ctx context.Context, req *isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
	n := len(req.GetTasks())
	s := &submission{c: c, results: make([]*isobarv1.SubmitResult, n), errs: make([]*Error, n)}
	if wait := req.GetWait().AsDuration(); wait > 0 {
		s.until = time.Now().Add(wait)
	}
	all := make([]int, n)
	for i, t := range req.GetTasks() {
		if t.GetRequestId() == "" {
			t = proto.CloneOf(t)
			t.RequestId = uuid.NewString()
		}
		s.tasks = append(s.tasks, t)
		all[i] = i
	}
	if n == 0 {
		// The cell says what is wrong with it.
		return call(ctx, c, opSubmit, unaccepted, (*server).taskCalls, isobarv1.TaskServiceClient.Submit, req)
	}
	s.at(ctx, nil, all, false)
	if err := s.whole(); err != nil {
		return nil, err
	}
	for i, e := range s.errs {
		if e != nil {
			s.results[i] = &isobarv1.SubmitResult{Error: e.detail()}
		}
	}
	return &isobarv1.SubmitResponse{Results: s.results}, nil
}

// SubmitAndWait submits one task and waits until it has ended or the timeout has
// passed, in one call where that is short; zero waits as long as ctx allows. Of a
// task that was accepted the id is always there, also with an error; ended is
// false when its end was not seen. Repeats are those of Submit and Wait.
func (c *Client) SubmitAndWait(ctx context.Context, spec *isobarv1.TaskSpec, timeout time.Duration) (task *isobarv1.Task, ended bool, err error) {
	began, poll := time.Now(), longestPoll
	if timeout > 0 {
		poll = min(poll, timeout)
	}
	res, err := c.Submit(ctx, &isobarv1.SubmitRequest{Tasks: []*isobarv1.TaskSpec{spec}, Wait: durationpb.New(poll)})
	if err != nil {
		return nil, false, err
	}
	accepted := res.GetResults()[0]
	if task := accepted.GetTask(); task != nil {
		return task, true, nil
	}
	if timeout > 0 {
		timeout = max(timeout-time.Since(began), time.Millisecond)
	}
	if task, ended, err = c.Wait(ctx, accepted.GetTaskId(), timeout); task == nil {
		task = &isobarv1.Task{Id: accepted.GetTaskId(), State: accepted.GetState()}
	}
	return task, ended, err
}

// whole is the error of the call: that of a single task, or the one that all
// tasks share.
func (s *submission) whole() error {
	first := s.errs[0]
	if first == nil {
		return nil
	}
	for _, e := range s.errs[1:] {
		if e != first {
			return nil
		}
	}
	return first
}

// at submits the tasks at one server, or at any when to is nil, and follows
// for each the one redirect it may get.
func (s *submission) at(ctx context.Context, to *server, which []int, redirected bool) {
	answered := s.deliver(ctx, to, which)
	if redirected || answered == nil {
		return
	}
	// One redirect for all tasks that must go to the same place.
	var order []string
	groups := map[string][]int{}
	for _, i := range which {
		if e := s.errs[i]; e != nil && e.pointer() != "" && e.Outcome != OutcomeUnknown {
			p := e.pointer()
			if groups[p] == nil {
				order = append(order, p)
			}
			groups[p] = append(groups[p], i)
		}
	}
	for _, p := range order {
		next := s.c.follow(opSubmit, answered, s.errs[groups[p][0]])
		s.at(ctx, next, groups[p], true)
	}
}

// deliver submits the tasks until each is accepted or refused, or ctx ends. It
// returns the server that answered last; nil when none did.
func (s *submission) deliver(ctx context.Context, to *server, which []int) (answered *server) {
	pause := newPause()
	unheard, patience := 0, time.Now().Add(s.c.patience)
	// Once a task may have been accepted, only its cell may be asked.
	var cell *server
	for {
		at := to
		switch {
		case cell != nil:
			at = cell
		case to == nil:
			at = s.c.current()
		}
		e, silent := s.once(ctx, at, which)
		if e == nil || !e.unsent {
			answered = at
		}
		if e == nil {
			if which, e = s.open(which, time.Now().Before(patience)); len(which) == 0 {
				return answered
			}
		}
		switch {
		case ctx.Err() != nil:
			s.fail(e, which, cell != nil || !e.unsent && e.unsure())
			return answered
		case silent:
			s.c.advance(at) // for whoever asks next
			cell = s.c.sibling(ctx, at)
		case cell == nil && !e.unsent && e.unsure():
			cell = at
		case cell != nil && (e.unsent || e.unavailable()):
			cell = s.c.sibling(ctx, cell)
		case cell != nil && e.unsure():
		case cell != nil:
			// A plain refusal: earlier tries were refused too, or the cell
			// would have answered with the task.
			s.fail(e, which, false)
			return answered
		case e.unsent:
			if unheard++; to != nil || unheard >= len(s.c.addresses) {
				s.fail(e.unreachable(), which, false)
				return answered
			}
			s.c.advance(at)
			continue
		case e.unavailable() && e.Outcome == NotAccepted && time.Now().Before(patience):
			unheard = 0
			if to == nil {
				s.c.advance(at)
			}
		default:
			s.fail(e, which, false)
			return answered
		}
		s.c.log.Debug("repeat", "op", opSubmit, "address", at.address, "tasks", len(which), "error", e)
		if !sleep(ctx, max(pause.NextBackOff(), min(e.RetryAfter, maxPause))) {
			s.fail(e, which, cell != nil)
			return answered
		}
	}
}

const (
	// submitTimeout is how long a server may take to accept tasks, far above what a
	// broker and a log take that answer; one that hangs is left then for another of
	// its cell, which knows what was accepted by the request id.
	submitTimeout = 15 * time.Second
	// slowestUpload is the bytes a second of a connection that is waited for longer.
	slowestUpload = 64 << 10
)

// once makes one call and keeps what it says of each task. The error is the
// whole call's; silent says that the server was given up.
func (s *submission) once(ctx context.Context, at *server, which []int) (e *Error, silent bool) {
	req, wait := &isobarv1.SubmitRequest{}, time.Until(s.until)
	if wait = max(wait, 0); wait > 0 {
		req.Wait = durationpb.New(wait)
	}
	for _, i := range which {
		req.Tasks = append(req.Tasks, s.tasks[i])
	}
	within := submitTimeout + wait + time.Duration(proto.Size(req)/slowestUpload)*time.Second
	res, silent, err := try(ctx, within, at.tasks, isobarv1.TaskServiceClient.Submit, req)
	if err != nil {
		return newError(opSubmit, at.address, err), silent
	}
	if len(res.GetResults()) != len(which) {
		return &Error{
			Op: opSubmit, Address: at.address, Message: "the answer has another number of results than the question has tasks",
			Outcome: OutcomeUnknown,
		}, false
	}
	for k, i := range which {
		s.results[i], s.errs[i] = res.Results[k], nil
		if te := res.Results[k].GetError(); te != nil {
			s.results[i], s.errs[i] = nil, errorOf(opSubmit, at.address, te)
		}
	}
	return nil, false
}

// open lists the tasks of an answer that are to be asked about again, in order:
// those that may or may not exist, what stands behind such a one with its ordering
// key, and, as long as the client is patient, those whose home was away. The error
// is that of one that may exist, if any.
func (s *submission) open(which []int, patient bool) (again []int, e *Error) {
	type line struct{ tenant, function, key string }
	of := func(i int) line {
		t := s.tasks[i]
		return line{t.GetTenant(), t.GetFunction(), t.GetOrderingKey()}
	}
	unsure := map[line]bool{}
	for _, i := range which {
		err := s.errs[i]
		if err == nil {
			continue
		}
		unknown := err.Outcome == OutcomeUnknown
		if unknown && of(i).key != "" {
			unsure[of(i)] = true
		}
		if !unknown && !unsure[of(i)] && (!patient || !err.unavailable() || err.Outcome != NotAccepted) {
			continue
		}
		again = append(again, i)
		if e == nil || unknown && e.Outcome != OutcomeUnknown {
			e = err
		}
	}
	return again, e
}

// fail notes the error for the tasks. unknown: each may exist all the same.
func (s *submission) fail(e *Error, which []int, unknown bool) {
	if unknown {
		e.Outcome = OutcomeUnknown
	}
	for _, i := range which {
		s.errs[i] = e
		if unknown && len(s.tasks) == 1 {
			e.RequestID = s.tasks[i].GetRequestId()
		}
	}
}

// detail is the error as a result carries it.
func (e *Error) detail() *isobarv1.TaskError {
	te := &isobarv1.TaskError{
		Code: e.Code.String(), Reason: e.Reason, Message: e.Message, Hint: e.Hint, Outcome: e.Outcome,
		Cell: e.Cell, Address: e.CellAddress, TaskId: e.TaskID, Field: e.Field,
	}
	if e.RetryAfter > 0 {
		te.RetryAfter = durationpb.New(e.RetryAfter)
	}
	return te
}

// siblingTimeout bounds the question who else is in a cell.
const siblingTimeout = 2 * time.Second

// sibling is the next server of the cell that at belongs to; at itself when
// none is known. Any other server that answers may be asked for them.
func (c *Client) sibling(ctx context.Context, at *server) *server {
	group := c.cellOf(at.address)
	if group == nil {
		c.learnCells(ctx, at)
		group = c.cellOf(at.address)
	}
	i := slices.Index(group, at.address)
	if i < 0 {
		return at
	}
	return c.server(group[(i+1)%len(group)])
}

func (c *Client) cellOf(address string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, group := range c.cells {
		if slices.Contains(group, address) {
			return group
		}
	}
	return nil
}

// learnCells asks the configured servers in turn, but for the one that does
// not answer, which addresses make a cell.
func (c *Client) learnCells(ctx context.Context, but *server) {
	ctx, cancel := context.WithTimeout(ctx, siblingTimeout)
	defer cancel()
	for _, a := range c.addresses {
		if a == but.address {
			continue
		}
		res, err := c.server(a).mesh.Cells(ctx, &isobarv1.CellsRequest{})
		if err != nil {
			continue
		}
		var cells [][]string
		for _, cell := range res.GetCells() {
			cells = append(cells, groupOf(cell))
		}
		c.mu.Lock()
		c.cells = cells
		c.mu.Unlock()
		return
	}
}

// groupOf is the addresses of a cell's servers, those that are down included:
// it is the siblings of such a one that are looked for.
func groupOf(cell *isobarv1.CellInfo) []string {
	addresses := slices.Clone(cell.GetAddresses())
	for _, s := range cell.GetServers() {
		addresses = append(addresses, s.GetAddress())
	}
	var group []string
	for _, address := range addresses {
		if base, err := baseURL(address); err == nil && !slices.Contains(group, base) {
			group = append(group, base)
		}
	}
	return group
}
