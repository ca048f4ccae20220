package client

import (
	"context"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// Get reads a task from its home.
func (c *Client) Get(ctx context.Context, req *isobarv1.GetRequest) (*isobarv1.GetResponse, error) {
	return call(ctx, c, "get", question, (*server).taskCalls, isobarv1.TaskServiceClient.Get, req)
}

const (
	// longestPoll is how long one question of Wait waits at the server: a server
	// that hangs meanwhile is found out when it is over.
	longestPoll = 10 * time.Second
	// pollSlack is how long after that its answer may take.
	pollSlack = readTimeout
)

// Wait waits until the task has ended or the timeout has passed; zero waits as
// long as ctx allows. ended is false when the timeout passed first, and task is
// then the record as it was last seen, nil if it never was. Once a server has
// answered, Wait goes on through times when none does.
func (c *Client) Wait(ctx context.Context, taskID string, timeout time.Duration) (task *isobarv1.Task, ended bool, err error) {
	var until time.Time
	if timeout > 0 {
		until = time.Now().Add(timeout)
	}
	pause := newPause()
	for {
		poll := longestPoll
		if timeout > 0 {
			poll = max(min(poll, time.Until(until)), 0)
		}
		asked := time.Now()
		res, err := c.poll(ctx, taskID, poll)
		if err == nil {
			if task = res.GetTask(); res.GetEnded() {
				return task, true, nil
			}
		} else if ctx.Err() != nil || !outlasts(asError(err), task != nil) {
			return task, false, err
		}
		if timeout > 0 && !time.Now().Before(until) {
			return task, false, err
		}
		if err == nil && time.Since(asked) >= poll/2 {
			pause.Reset()
			continue
		}
		// A server that fails, or answers early, is not asked without a pause.
		wait := pause.NextBackOff()
		if timeout > 0 {
			wait = min(wait, time.Until(until))
		}
		if !sleep(ctx, wait) {
			return task, false, newError("wait", "", context.Cause(ctx))
		}
	}
}

// outlasts reports whether a Wait goes on after the error. seen: a server has
// answered before.
func outlasts(e *Error, seen bool) bool {
	if e.unsent {
		return seen
	}
	return e.unavailable() || e.broken() || e.Code == connect.CodeDeadlineExceeded
}

// poll asks once. A server may take a little longer than it was told.
func (c *Client) poll(ctx context.Context, taskID string, wait time.Duration) (*isobarv1.WaitResponse, error) {
	bounded, cancel := context.WithTimeout(ctx, wait+2*pollSlack) // the second is the next server's
	defer cancel()
	// A timeout of zero would be the server's default.
	req := &isobarv1.WaitRequest{TaskId: taskID, Timeout: durationpb.New(max(wait, time.Millisecond))}
	return call(bounded, c, "wait", poll, (*server).taskCalls, isobarv1.TaskServiceClient.Wait, req)
}

// List reads the tasks of the cell that is asked; the answer says which, and
// whether it may be stale.
func (c *Client) List(ctx context.Context, req *isobarv1.ListRequest) (*isobarv1.ListResponse, error) {
	return call(ctx, c, "list", question, (*server).taskCalls, isobarv1.TaskServiceClient.List, req)
}

// Cancel ends a task. When an answer was lost and the call repeated, Cancelled
// is false although the first try did it: the task's state is what counts.
func (c *Client) Cancel(ctx context.Context, req *isobarv1.CancelRequest) (*isobarv1.CancelResponse, error) {
	return call(ctx, c, "cancel", anytime, (*server).taskCalls, isobarv1.TaskServiceClient.Cancel, req)
}

// Invoke runs a function now and waits for its result.
func (c *Client) Invoke(ctx context.Context, req *isobarv1.InvokeRequest) (*isobarv1.InvokeResponse, error) {
	return call(ctx, c, "invoke", unaccepted, (*server).taskCalls, isobarv1.TaskServiceClient.Invoke, req)
}

// Explain shows the decisions about a task, or decides about one that is not
// submitted.
func (c *Client) Explain(ctx context.Context, req *isobarv1.ExplainRequest) (*isobarv1.ExplainResponse, error) {
	return call(ctx, c, "explain", question, (*server).placementCalls, isobarv1.PlacementServiceClient.Explain, req)
}
