package client

import (
	"context"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// Queues lists the queues of a cell with exact counts.
func (c *Client) Queues(ctx context.Context, req *isobarv1.QueueServiceListRequest) (*isobarv1.QueueServiceListResponse, error) {
	return call(ctx, c, "list queues", question, (*server).queueCalls, isobarv1.QueueServiceClient.List, req)
}

// Pause stops the dispatch of a function's queues. When an answer was lost and the
// call repeated, Changed may be 0 although the first try did it.
func (c *Client) Pause(ctx context.Context, req *isobarv1.PauseRequest) (*isobarv1.PauseResponse, error) {
	return call(ctx, c, "pause queue", anytime, (*server).queueCalls, isobarv1.QueueServiceClient.Pause, req)
}

// Resume undoes Pause, and repeats as it does.
func (c *Client) Resume(ctx context.Context, req *isobarv1.ResumeRequest) (*isobarv1.ResumeResponse, error) {
	return call(ctx, c, "resume queue", anytime, (*server).queueCalls, isobarv1.QueueServiceClient.Resume, req)
}

// Purge cancels what waits in a function's queues, and goes on until nothing is
// left that was accepted before it began. It returns how many tasks it cancelled,
// with an error too; those of a step whose answer was lost are not counted.
func (c *Client) Purge(ctx context.Context, req *isobarv1.PurgeRequest) (cancelled uint64, err error) {
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
// redriven by a try whose answer was lost is Already.
func (c *Client) Redrive(ctx context.Context, req *isobarv1.RedriveRequest) (*isobarv1.RedriveResponse, error) {
	return call(ctx, c, "redrive", anytime, (*server).letterCalls, isobarv1.DeadLetterServiceClient.Redrive, req)
}
