package client

import (
	"context"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// here names the asked cell in a request that names none: a repeat must not come
// to another cell.
func (c *Client) here(ctx context.Context, cell *string) error {
	if *cell != "" {
		return nil
	}
	res, err := c.Cells(ctx)
	if err != nil {
		return err
	}
	for _, info := range res.GetCells() {
		if info.GetSelf() {
			*cell = info.GetCell()
		}
	}
	return nil
}

// Queues lists the queues of a cell with exact counts.
func (c *Client) Queues(ctx context.Context, req *isobarv1.QueueServiceListRequest) (*isobarv1.QueueServiceListResponse, error) {
	return call(ctx, c, "list queues", question, (*server).queueCalls, isobarv1.QueueServiceClient.List, req)
}

// Pause stops the dispatch of a function's queues. When an answer was lost and the
// call repeated, Changed may be 0 although the first try did it.
func (c *Client) Pause(ctx context.Context, req *isobarv1.PauseRequest) (*isobarv1.PauseResponse, error) {
	if err := c.here(ctx, &req.Cell); err != nil {
		return nil, err
	}
	return call(ctx, c, "pause queue", anytime, (*server).queueCalls, isobarv1.QueueServiceClient.Pause, req)
}

// Resume undoes Pause, and repeats as it does. Both name the asked cell in req where
// it names none.
func (c *Client) Resume(ctx context.Context, req *isobarv1.ResumeRequest) (*isobarv1.ResumeResponse, error) {
	if err := c.here(ctx, &req.Cell); err != nil {
		return nil, err
	}
	return call(ctx, c, "resume queue", anytime, (*server).queueCalls, isobarv1.QueueServiceClient.Resume, req)
}

// Purge cancels what waits in a function's queues, and goes on until nothing is
// left that was accepted before it began. It returns how many tasks it cancelled,
// with an error too; those of a step whose answer was lost are not counted. It names
// the asked cell in req where that names none.
func (c *Client) Purge(ctx context.Context, req *isobarv1.PurgeRequest) (cancelled uint64, err error) {
	if err := c.here(ctx, &req.Cell); err != nil {
		return 0, err
	}
	for {
		res, err := call(ctx, c, "purge queue", anytime, (*server).queueCalls, isobarv1.QueueServiceClient.Purge, req)
		if err != nil {
			return cancelled, err
		}
		cancelled += res.Cancelled
		if res.Token == "" {
			return cancelled, nil
		}
		req.Token = res.Token
	}
}

// Peek reads the tasks that are next in a queue.
func (c *Client) Peek(ctx context.Context, req *isobarv1.PeekRequest) (*isobarv1.PeekResponse, error) {
	return call(ctx, c, "peek queue", anytime, (*server).queueCalls, isobarv1.QueueServiceClient.Peek, req)
}

// DeadLetters lists the dead letters of a cell.
func (c *Client) DeadLetters(ctx context.Context, req *isobarv1.DeadLetterServiceListRequest) (*isobarv1.DeadLetterServiceListResponse, error) {
	return call(ctx, c, "list dead letters", question, (*server).letterCalls, isobarv1.DeadLetterServiceClient.List, req)
}

// Redrive gives dead tasks new attempts. A repeat changes nothing: a task that was
// redriven by a try whose answer was lost is Already. With a filter it names the
// asked cell in req where that names none.
func (c *Client) Redrive(ctx context.Context, req *isobarv1.RedriveRequest) (*isobarv1.RedriveResponse, error) {
	if len(req.TaskIds) == 0 {
		if err := c.here(ctx, &req.Cell); err != nil {
			return nil, err
		}
	}
	return call(ctx, c, "redrive", anytime, (*server).letterCalls, isobarv1.DeadLetterServiceClient.Redrive, req)
}
