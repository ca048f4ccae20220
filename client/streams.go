package client

import (
	"context"

	"github.com/google/uuid"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// CreateStream makes a stream in the cell that is asked, or where that cell
// points to. It is not repeated when its answer was lost: another cell would make
// another stream of that name.
func (c *Client) CreateStream(ctx context.Context, req *isobarv1.StreamServiceCreateRequest) (*isobarv1.StreamServiceCreateResponse, error) {
	return call(ctx, c, "create stream", unaccepted, (*server).streamCalls, isobarv1.StreamServiceClient.Create, req)
}

// Publish stores messages. A request without an id gets one, so that repeats
// store nothing twice; it stays in req, for a repeat by the caller.
func (c *Client) Publish(ctx context.Context, req *isobarv1.PublishRequest) (*isobarv1.PublishResponse, error) {
	if req.RequestId == "" {
		req.RequestId = uuid.NewString()
	}
	return call(ctx, c, "publish", anytime, (*server).streamCalls, isobarv1.StreamServiceClient.Publish, req)
}

// Consume joins a group and hands each answer to f, in one goroutine, until ctx
// ends (then the error is nil), f fails (then it is f's), or no server has gone
// on for Patience. It comes back with the same session after a change of
// leader or a broken connection, and f then gets the assignment again. What was
// handed over and not acknowledged is delivered again after the stream's
// visibility timeout.
func (c *Client) Consume(ctx context.Context, req *isobarv1.ConsumeRequest, f func(*isobarv1.ConsumeResponse) error) error {
	if req.Session == "" {
		req.Session = uuid.NewString()
	}
	return listen(ctx, c, "consume", (*server).streamCalls, isobarv1.StreamServiceClient.Consume, req, f)
}

// Fetch waits for messages once. When it is to wait for 5 s at most, a server that
// says nothing for 15 s is left for the next.
func (c *Client) Fetch(ctx context.Context, req *isobarv1.FetchRequest) (*isobarv1.FetchResponse, error) {
	s := anytime
	if req.GetWait().AsDuration() <= longestPoll/2 { // its messages take their time
		s = poll
	}
	return call(ctx, c, "fetch", s, (*server).streamCalls, isobarv1.StreamServiceClient.Fetch, req)
}

// Ack says what became of deliveries. A repeat finds what was done done.
func (c *Client) Ack(ctx context.Context, req *isobarv1.AckRequest) (*isobarv1.AckResponse, error) {
	return call(ctx, c, "ack", anytime, (*server).streamCalls, isobarv1.StreamServiceClient.Ack, req)
}

// Leave takes a session out of its group.
func (c *Client) Leave(ctx context.Context, req *isobarv1.LeaveRequest) (*isobarv1.LeaveResponse, error) {
	return call(ctx, c, "leave", anytime, (*server).streamCalls, isobarv1.StreamServiceClient.Leave, req)
}

// Seek moves a group.
func (c *Client) Seek(ctx context.Context, req *isobarv1.SeekRequest) (*isobarv1.SeekResponse, error) {
	return call(ctx, c, "seek", anytime, (*server).streamCalls, isobarv1.StreamServiceClient.Seek, req)
}

// Streams lists the streams of the cell that is asked.
func (c *Client) Streams(ctx context.Context, req *isobarv1.StreamServiceListRequest) (*isobarv1.StreamServiceListResponse, error) {
	return call(ctx, c, "list streams", question, (*server).streamCalls, isobarv1.StreamServiceClient.List, req)
}

// DescribeStream shows a stream and its groups.
func (c *Client) DescribeStream(ctx context.Context, req *isobarv1.StreamServiceDescribeRequest) (*isobarv1.StreamServiceDescribeResponse, error) {
	return call(ctx, c, "describe stream", question, (*server).streamCalls, isobarv1.StreamServiceClient.Describe, req)
}

// DeleteStream drops a stream. After a lost answer a repeat may find it gone.
func (c *Client) DeleteStream(ctx context.Context, req *isobarv1.StreamServiceDeleteRequest) (*isobarv1.StreamServiceDeleteResponse, error) {
	return call(ctx, c, "delete stream", anytime, (*server).streamCalls, isobarv1.StreamServiceClient.Delete, req)
}
