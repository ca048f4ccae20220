package main

import (
	"context"
	"fmt"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// cannedStreams answers for streams. It says back what it was asked in the
// places that the command line shows.
type cannedStreams struct {
	isobarv1.UnimplementedStreamServiceHandler
	mu   sync.Mutex
	held map[string]int // what each session was given by Fetch and has not acknowledged
}

func cannedStream(name string) *isobarv1.StreamInfo {
	return &isobarv1.StreamInfo{Home: "eu-north-1", Created: at(5), Spec: &isobarv1.StreamSpec{
		Tenant: "default", Name: name, Partitions: 2, Order: "strict", MaxAge: durationpb.New(86400e9), Visibility: durationpb.New(30e9), MaxBytes: 1 << 20, MaxDeliveries: 3,
	}}
}

func (*cannedStreams) Create(_ context.Context, r *isobarv1.StreamServiceCreateRequest) (*isobarv1.StreamServiceCreateResponse, error) {
	if r.GetSpec().GetName() == "taken" {
		return nil, refuse(connect.CodeAlreadyExists, &isobarv1.TaskError{Reason: "stream_exists", Message: "stream taken exists with other settings"})
	}
	return &isobarv1.StreamServiceCreateResponse{Stream: &isobarv1.StreamInfo{Spec: r.GetSpec(), Home: "eu-north-1"}, Existed: r.GetSpec().GetName() == "old"}, nil
}

func (*cannedStreams) Publish(_ context.Context, r *isobarv1.PublishRequest) (*isobarv1.PublishResponse, error) {
	res := &isobarv1.PublishResponse{}
	for i, m := range r.GetMessages() {
		out := &isobarv1.PublishResult{Partition: m.GetPartition(), Position: uint64(i), Duplicate: r.GetRequestId() == "again"}
		if string(m.GetPayload()) == "bad" || m.GetText() == "bad" {
			out = &isobarv1.PublishResult{Error: &isobarv1.TaskError{Message: "the broker is at its cap", Hint: "wait"}}
		}
		if m.GetKey() != "" {
			out.Position = uint64(100*len(m.GetKey()) + len(m.GetAttributes()))
		}
		res.Results = append(res.Results, out)
	}
	return res, nil
}

func (*cannedStreams) Consume(ctx context.Context, r *isobarv1.ConsumeRequest, out isobarv1.StreamServiceConsumeServerStream) error {
	asg := &isobarv1.StreamAssignment{Session: r.GetSession(), Generation: 3, Members: 3, Waiting: r.GetGroup() == "crowd"}
	if err := out.Send(&isobarv1.ConsumeResponse{Assignment: asg}); err != nil {
		return err
	}
	if r.GetGroup() != "crowd" {
		for i := range uint64(3) {
			if err := out.Send(&isobarv1.ConsumeResponse{Messages: []*isobarv1.StreamDelivery{cannedDelivery(i, r.GetConsumer())}}); err != nil {
				return err
			}
		}
	}
	<-ctx.Done()
	return nil
}

func cannedDelivery(i uint64, consumer string) *isobarv1.StreamDelivery {
	text := fmt.Sprint("message ", i, " to ", consumer)
	return &isobarv1.StreamDelivery{Position: i, Delivery: i + 1, Attempt: 1, Payload: []byte(text), Text: text, Published: at(6)}
}

// Fetch gives as many as are asked for, up to two.
func (c *cannedStreams) Fetch(_ context.Context, r *isobarv1.FetchRequest) (*isobarv1.FetchResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	res := &isobarv1.FetchResponse{Assignment: &isobarv1.StreamAssignment{Session: r.GetSession(), Generation: 3, Members: 3, Waiting: r.GetGroup() == "crowd"}}
	for i := range min(uint64(r.GetMax()), 2) {
		res.Messages = append(res.Messages, cannedDelivery(i, r.GetConsumer()))
		c.held[r.GetSession()]++
	}
	return res, nil
}

func (c *cannedStreams) Ack(_ context.Context, r *isobarv1.AckRequest) (*isobarv1.AckResponse, error) {
	c.mu.Lock()
	c.held[r.GetSession()] -= len(r.GetItems())
	c.mu.Unlock()
	res := &isobarv1.AckResponse{}
	for _, it := range r.GetItems() {
		out := &isobarv1.AckResult{Partition: it.GetPartition(), Position: it.GetPosition(), Verdict: "accepted"}
		if it.GetDelivery() == 9 {
			moved := &isobarv1.TaskError{Reason: "delivery_moved", Message: "delivery 9 is not the newest"}
			if len(r.GetItems()) == 1 {
				return nil, refuse(connect.CodeFailedPrecondition, moved)
			}
			out.Verdict, out.Error = "moved", moved
		}
		if it.GetAction() != "ack" || it.GetCumulative() {
			out.Verdict = fmt.Sprint(it.GetAction(), it.GetCumulative())
		}
		res.Results = append(res.Results, out)
	}
	return res, nil
}

// Leave fails when there is something in the session's hands: it would come again
// with one delivery less to go.
func (c *cannedStreams) Leave(_ context.Context, r *isobarv1.LeaveRequest) (*isobarv1.LeaveResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.held[r.GetSession()]; n > 0 {
		return nil, refuse(connect.CodeFailedPrecondition, &isobarv1.TaskError{Reason: "held", Message: fmt.Sprint(n, " messages are not acknowledged")})
	}
	return &isobarv1.LeaveResponse{}, nil
}

func (*cannedStreams) Seek(_ context.Context, r *isobarv1.SeekRequest) (*isobarv1.SeekResponse, error) {
	if r.GetPosition() == 1 {
		return nil, refuse(connect.CodeOutOfRange, &isobarv1.TaskError{Reason: "before_retention", Message: "the earliest position of partition 0 is 7", Hint: "seek to position 7, or to the start"})
	}
	res := &isobarv1.SeekResponse{Positions: []*isobarv1.StreamPosition{{Partition: r.GetPartition(), Position: r.GetPosition()}}}
	if t := r.GetTime(); t != nil {
		res.Positions[0].Position = uint64(t.AsTime().Year())
	}
	return res, nil
}

func (*cannedStreams) List(context.Context, *isobarv1.StreamServiceListRequest) (*isobarv1.StreamServiceListResponse, error) {
	return &isobarv1.StreamServiceListResponse{Streams: []*isobarv1.StreamInfo{cannedStream("orders")}, Cell: "eu-north-1"}, nil
}

func (*cannedStreams) Describe(_ context.Context, r *isobarv1.StreamServiceDescribeRequest) (*isobarv1.StreamServiceDescribeResponse, error) {
	return &isobarv1.StreamServiceDescribeResponse{
		Stream: cannedStream(r.GetStream()),
		Partitions: []*isobarv1.StreamPartition{
			{First: 7, End: 19, Messages: 12, Bytes: 2048, Topic: "persistent://isobar-default/eu-north-1.17.streams/orders-partition-0"}, {Partition: 1},
		},
		Groups: []*isobarv1.StreamGroup{{
			Name: "painters", Generation: 3, Lag: 4, DeadLetters: 1, Members: []*isobarv1.StreamMember{{Session: "s-1", Consumer: "ada", Partitions: []uint32{0}}},
			Partitions: []*isobarv1.StreamGroupPartition{{Position: 15, Lag: 4, InFlight: 2, Session: "s-1"}, {Partition: 1}},
			Dead:       []*isobarv1.StreamDeadLetter{{Position: 9, Attempts: 3, Cause: "its consumer was lost \x1b[31m", At: at(7)}},
		}},
	}, nil
}

func (*cannedStreams) Delete(context.Context, *isobarv1.StreamServiceDeleteRequest) (*isobarv1.StreamServiceDeleteResponse, error) {
	return &isobarv1.StreamServiceDeleteResponse{}, nil
}
