package api

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/stream"
	"github.com/isobar-mesh/isobar/stream/groups"
)

type streams struct {
	isobarv1.UnimplementedStreamServiceHandler
	*Services
}

// Create makes a stream in this cell.
func (h *streams) Create(ctx context.Context, r *isobarv1.StreamServiceCreateRequest) (*isobarv1.StreamServiceCreateResponse, error) {
	rec, err := streamRecord(r.GetSpec())
	if err != nil {
		return nil, err
	}
	res, err := h.Scheduler.Residency(&isobarv1.TaskSpec{Tenant: rec.Tenant, Residency: r.GetSpec().GetResidency()})
	if err == nil {
		err = h.Scheduler.Admit(res)
	}
	if err != nil {
		return nil, h.withAddress(err)
	}
	rec.Allowed, rec.Denied = res.Allowed, res.Denied
	return route(ctx, h.Services, h.Scheduler.Cell.ID, r, func(ctx context.Context, _ *isobarv1.StreamServiceCreateRequest) (*isobarv1.StreamServiceCreateResponse, error) {
		made, existed, err := h.Streams.Create(ctx, rec)
		if err != nil {
			return nil, err
		}
		return &isobarv1.StreamServiceCreateResponse{Stream: h.streamInfo(made), Existed: existed}, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.StreamServiceCreateRequest) (*isobarv1.StreamServiceCreateResponse, error) {
		return isobarv1.NewStreamServiceClient(c).Create(ctx, r)
	})
}

// Publish stores messages at the stream's home.
func (h *streams) Publish(ctx context.Context, r *isobarv1.PublishRequest) (*isobarv1.PublishResponse, error) {
	if r.RequestId == "" {
		r.RequestId = uuid.NewString() // repeats of this forward find the first
	}
	if err := checkPublish(r); err != nil {
		return nil, err
	}
	return atHome(ctx, h, r, h.publishHere, isobarv1.StreamServiceClient.Publish)
}

func (h *streams) publishHere(ctx context.Context, n groups.Name, r *isobarv1.PublishRequest) (*isobarv1.PublishResponse, error) {
	if h.Scheduler.Full != nil && h.Scheduler.Full() {
		return nil, &scheduler.Refusal{
			Reason: scheduler.DiskFull, Message: "the disk of " + string(h.Scheduler.Cell.ID) + " is past its cap; the rest is kept for work already accepted",
			Hint: "free space, raise disk.bytes, or keep messages for a shorter time", RetryAfter: 10 * time.Second,
		}
	}
	msgs := make([]stream.Message, len(r.Messages))
	for i, m := range r.Messages {
		payload, err := messagePayload(i, m)
		if err != nil {
			return nil, err
		}
		msgs[i] = stream.Message{Key: m.Key, Attributes: m.Attributes, Payload: payload, Partition: m.Partition}
	}
	stored, err := h.Streams.Publish(ctx, n, r.RequestId, msgs)
	if err != nil {
		return nil, err
	}
	out := &isobarv1.PublishResponse{Results: make([]*isobarv1.PublishResult, len(stored))}
	for i, p := range stored {
		if p.Err != nil && len(stored) == 1 {
			return nil, p.Err
		}
		out.Results[i] = &isobarv1.PublishResult{Partition: p.Partition, Position: p.Position, Duplicate: p.Duplicate}
		if p.Err != nil {
			out.Results[i].Error = Describe(p.Err, func() string { return "" })
		}
	}
	return out, nil
}

func messagePayload(i int, m *isobarv1.StreamMessage) ([]byte, error) {
	var payload []byte
	var err error
	switch in := m.GetInput().(type) {
	case *isobarv1.StreamMessage_Payload:
		payload = in.Payload
	case *isobarv1.StreamMessage_Text:
		payload = []byte(in.Text)
	case *isobarv1.StreamMessage_Json:
		payload, err = jsonBytes(in.Json)
	}
	if n := len(payload); n > mesh.MaxPayload {
		err = &scheduler.Refusal{
			Reason: scheduler.PayloadTooLarge, Field: fmt.Sprintf("messages[%d].payload", i), Message: fmt.Sprintf("a payload of %d bytes is above %d", n, mesh.MaxPayload),
			Hint: "put large data where consumers can read it and publish the place",
		}
	}
	return payload, err
}

// Consume streams what a session is given. A server that does not lead the
// stream's home passes on what its leader streams.
func (h *streams) Consume(ctx context.Context, r *isobarv1.ConsumeRequest, out isobarv1.StreamServiceConsumeServerStream) error {
	if r.Session == "" {
		r.Session = uuid.NewString()
	}
	m, want, err := h.consumer(r)
	if err != nil {
		return err
	}
	sent := false
	send := func(res *isobarv1.ConsumeResponse) error {
		readable(ctx, res.Messages)
		return out.Send(res)
	}
	_, err = atHome(ctx, h, r, func(ctx context.Context, n groups.Name, _ *isobarv1.ConsumeRequest) (*isobarv1.ConsumeResponse, error) {
		m.Group.Name = n
		err := h.consumeHere(ctx, m, want, func(res *isobarv1.ConsumeResponse) error { sent = true; return send(res) })
		if sent && notLeading(err) {
			// Forwarding now could not tell the caller what it has missed.
			err = h.movedOn(err)
		}
		return nil, err
	}, func(c isobarv1.StreamServiceClient, ctx context.Context, r *isobarv1.ConsumeRequest) (*isobarv1.ConsumeResponse, error) {
		in, err := c.Consume(ctx, r)
		if err != nil {
			return nil, err
		}
		defer func() { _ = in.Close() }()
		for {
			res, err := in.Receive()
			if err != nil {
				return nil, ended(err)
			}
			if err := send(res); err != nil {
				return nil, err
			}
		}
	})
	if ctx.Err() != nil {
		err = nil // the consumer ended the stream
	}
	return err
}

// movedOn is what a consumer is told whose leader changed.
func (h *streams) movedOn(err error) error {
	return &scheduler.Refusal{
		Reason: scheduler.Unavailable, Message: "the leader of " + string(h.Scheduler.Cell.ID) + " changed", RetryAfter: 200 * time.Millisecond,
		Hint: "consume again with the same session", Err: err,
	}
}

// keepAlive is how long a quiet stream goes without a message: an empty one
// shows whether the consumer is still there.
const keepAlive = 3 * time.Second

// slowestConsumer is how long a consumer may take to receive one answer, before it
// counts as one that is not heard of.
const slowestConsumer = time.Minute

func (h *streams) consumeHere(ctx context.Context, m stream.Member, w stream.Want, send func(*isobarv1.ConsumeResponse) error) error {
	for {
		b, err := h.Streams.Next(ctx, m, w)
		if err != nil {
			return err
		}
		res := &isobarv1.ConsumeResponse{Messages: deliveries(b.Deliveries)}
		if b.Assignment.Generation != w.Generation {
			res.Assignment = assignment(m.Session, b.Assignment)
		}
		// A consumer that is slow to take large messages is not lost.
		release := h.Streams.Hold(m)
		patience := time.AfterFunc(slowestConsumer, release)
		err = send(res)
		patience.Stop()
		release()
		if err != nil {
			return err
		}
		w.Generation, w.Wait = b.Assignment.Generation, keepAlive
	}
}

const (
	defaultInFlight = 64
	maxInFlight     = 1000
	maxFetchWait    = time.Minute
)

// consumerRequest is what Consume and Fetch share.
type consumerRequest interface {
	streamRequest
	GetGroup() string
	GetSession() string
	GetConsumer() string
	GetMaxInFlight() uint32
	GetStart() string
}

func (h *streams) consumer(r consumerRequest) (stream.Member, stream.Want, error) {
	bad := func(field, message, hint string) (stream.Member, stream.Want, error) {
		return stream.Member{}, stream.Want{}, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: field, Message: message, Hint: hint}
	}
	inFlight := int(r.GetMaxInFlight())
	if inFlight == 0 {
		inFlight = defaultInFlight
	}
	switch {
	case !mesh.ValidName(r.GetGroup()):
		return bad("group", fmt.Sprintf("%.80q does not name a group", r.GetGroup()), "1 to 63 lower-case letters, digits and dashes")
	case r.GetSession() == "" || len(r.GetSession()) > 256:
		return bad("session", "a session is named by 1 to 256 bytes", "make a UUID, and keep it for as long as the consumer runs")
	case len(r.GetConsumer()) > 256:
		return bad("consumer", "a consumer's name is at most 256 bytes", "a host's name will do")
	case inFlight > maxInFlight:
		return bad("maxInFlight", fmt.Sprintf("%d in flight is above %d", inFlight, maxInFlight), "as many as the consumer can work on within the visibility timeout")
	case r.GetStart() != "" && r.GetStart() != "earliest" && r.GetStart() != "latest":
		return bad("start", fmt.Sprintf("a group can't start at %.80q", r.GetStart()), "earliest or latest")
	}
	m := stream.Member{Session: r.GetSession(), Consumer: r.GetConsumer(), Latest: r.GetStart() == "latest"}
	m.Group.Group = r.GetGroup()
	return m, stream.Want{Max: inFlight, InFlight: inFlight}, nil
}

// Fetch waits for messages once.
func (h *streams) Fetch(ctx context.Context, r *isobarv1.FetchRequest) (*isobarv1.FetchResponse, error) {
	m, want, err := h.consumer(r)
	if err != nil {
		return nil, err
	}
	if r.Max > maxInFlight {
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "max", Message: fmt.Sprintf("%d messages are above %d", r.Max, maxInFlight), Hint: "fetch again for more"}
	}
	if want.Max = int(r.Max); want.Max == 0 {
		want.Max = defaultInFlight
	}
	want.Wait = min(max(r.GetWait().AsDuration(), 0), maxFetchWait)
	res, err := atHome(ctx, h, r, func(ctx context.Context, n groups.Name, _ *isobarv1.FetchRequest) (*isobarv1.FetchResponse, error) {
		m.Group.Name = n
		b, err := h.Streams.Next(ctx, m, want)
		if err != nil {
			return nil, err
		}
		return &isobarv1.FetchResponse{
			Assignment: assignment(m.Session, b.Assignment), Messages: deliveries(b.Deliveries), Lease: durationpb.New(h.Streams.Lease),
		}, nil
	}, isobarv1.StreamServiceClient.Fetch)
	readable(ctx, res.GetMessages())
	return res, err
}

// maxAcks bounds one Ack.
const maxAcks = 1000

// Ack says what became of deliveries.
func (h *streams) Ack(ctx context.Context, r *isobarv1.AckRequest) (*isobarv1.AckResponse, error) {
	if n := len(r.Items); n == 0 || n > maxAcks {
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "items", Message: fmt.Sprintf("%d items; one call takes 1 to %d", n, maxAcks), Hint: `send {"items":[{"partition":0,"position":"0","delivery":"1"}]}`}
	}
	items := make([]*meshv1.GroupAckItem, len(r.Items))
	for i, it := range r.Items {
		switch {
		case it.Action != "" && it.Action != "ack" && it.Action != "retry" && it.Action != "extend":
			return nil, badAck(i, "action", fmt.Sprintf("there is no action %.80q", it.Action), "ack, retry or extend")
		case it.Cumulative && it.Action != "" && it.Action != "ack":
			return nil, badAck(i, "cumulative", "only an ack can be cumulative", "name each message")
		case len(it.Reason) > maxReason:
			return nil, badAck(i, "reason", fmt.Sprintf("a reason of %d bytes is above %d", len(it.Reason), maxReason), "a sentence will do")
		}
		items[i] = &meshv1.GroupAckItem{Partition: it.Partition, Position: it.Position, Delivery: it.Delivery, Action: it.Action, Cumulative: it.Cumulative, Reason: it.Reason}
	}
	return atHome(ctx, h, r, func(ctx context.Context, n groups.Name, r *isobarv1.AckRequest) (*isobarv1.AckResponse, error) {
		verdicts, err := h.Streams.Ack(ctx, groups.Group{Name: n, Group: r.Group}, r.Session, items)
		if err != nil {
			return nil, err
		}
		out := &isobarv1.AckResponse{}
		for i, v := range verdicts {
			it := r.Items[i]
			res := &isobarv1.AckResult{Partition: it.Partition, Position: it.Position, Verdict: string(v)}
			if v == groups.Moved {
				moved := &scheduler.Refusal{
					Reason: scheduler.DeliveryMoved, Field: fmt.Sprintf("items[%d].delivery", i),
					Message: fmt.Sprintf("delivery %d of message %d in partition %d is not the newest, or not this session's", it.Delivery, it.Position, it.Partition),
					Hint:    "its time passed, or the group was moved: the message is or will be delivered again; acknowledge within the visibility timeout, or extend it",
				}
				if len(verdicts) == 1 {
					return nil, moved
				}
				res.Error = Describe(moved, func() string { return "" })
			}
			out.Results = append(out.Results, res)
		}
		return out, nil
	}, isobarv1.StreamServiceClient.Ack)
}

func badAck(i int, field, message, hint string) error {
	return &scheduler.Refusal{Reason: scheduler.BadRequest, Field: fmt.Sprintf("items[%d].%s", i, field), Message: message, Hint: hint}
}

// Leave takes a session out of its group.
func (h *streams) Leave(ctx context.Context, r *isobarv1.LeaveRequest) (*isobarv1.LeaveResponse, error) {
	return atHome(ctx, h, r, func(ctx context.Context, n groups.Name, r *isobarv1.LeaveRequest) (*isobarv1.LeaveResponse, error) {
		return &isobarv1.LeaveResponse{}, h.Streams.Leave(ctx, groups.Group{Name: n, Group: r.Group}, r.Session)
	}, isobarv1.StreamServiceClient.Leave)
}

// Seek moves a group.
func (h *streams) Seek(ctx context.Context, r *isobarv1.SeekRequest) (*isobarv1.SeekResponse, error) {
	var to stream.Target
	switch at := r.GetTo().(type) {
	case *isobarv1.SeekRequest_Position:
		to.Position = &at.Position
	case *isobarv1.SeekRequest_Time:
		if !at.Time.IsValid() {
			return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "time", Message: "not a time between the years 1 and 9999", Hint: "2026-01-02T15:04:05Z"}
		}
		to.Time = at.Time.AsTime()
	case *isobarv1.SeekRequest_Start:
		to.Start = true
	case *isobarv1.SeekRequest_End:
		to.End = true
	default:
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "to", Message: "seek takes a position, a time, start or end", Hint: `one of {"position":"0"}, {"time":"2026-01-02T15:04:05Z"}, {"start":true}, {"end":true}`}
	}
	return atHome(ctx, h, r, func(ctx context.Context, n groups.Name, r *isobarv1.SeekRequest) (*isobarv1.SeekResponse, error) {
		if rec, ok := h.Streams.Lookup(n); ok && to.Position != nil && r.Partition == nil && rec.Partitions > 1 {
			return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "partition", Message: "a position is of one partition", Hint: "name the partition, or seek by time"}
		}
		at, err := h.Streams.Seek(ctx, groups.Group{Name: n, Group: r.Group}, r.Partition, to)
		if err != nil {
			return nil, err
		}
		out := &isobarv1.SeekResponse{}
		for p := uint32(0); len(out.Positions) < len(at); p++ {
			if pos, ok := at[p]; ok {
				out.Positions = append(out.Positions, &isobarv1.StreamPosition{Partition: p, Position: pos})
			}
		}
		return out, nil
	}, isobarv1.StreamServiceClient.Seek)
}

// List reads what this server knows of its cell's streams.
func (h *streams) List(_ context.Context, r *isobarv1.StreamServiceListRequest) (*isobarv1.StreamServiceListResponse, error) {
	out := &isobarv1.StreamServiceListResponse{Cell: string(h.Scheduler.Cell.ID), Stale: !h.Scheduler.Leading()}
	for _, rec := range h.Streams.List(r.Tenant) {
		out.Streams = append(out.Streams, h.streamInfo(rec))
	}
	return out, nil
}

// Describe shows a stream and its groups.
func (h *streams) Describe(ctx context.Context, r *isobarv1.StreamServiceDescribeRequest) (*isobarv1.StreamServiceDescribeResponse, error) {
	return atHome(ctx, h, r, func(ctx context.Context, n groups.Name, r *isobarv1.StreamServiceDescribeRequest) (*isobarv1.StreamServiceDescribeResponse, error) {
		if r.Brief {
			rec, err := h.Streams.Find(ctx, n)
			if err != nil {
				return nil, err
			}
			return &isobarv1.StreamServiceDescribeResponse{Stream: h.streamInfo(rec)}, nil
		}
		d, err := h.Streams.Describe(ctx, n)
		if err != nil {
			return nil, err
		}
		return h.description(d), nil
	}, isobarv1.StreamServiceClient.Describe)
}

// Delete drops a stream.
func (h *streams) Delete(ctx context.Context, r *isobarv1.StreamServiceDeleteRequest) (*isobarv1.StreamServiceDeleteResponse, error) {
	return atHome(ctx, h, r, func(ctx context.Context, n groups.Name, _ *isobarv1.StreamServiceDeleteRequest) (*isobarv1.StreamServiceDeleteResponse, error) {
		return &isobarv1.StreamServiceDeleteResponse{}, h.Streams.Delete(ctx, n)
	}, isobarv1.StreamServiceClient.Delete)
}

func assignment(session string, a stream.Assignment) *isobarv1.StreamAssignment {
	return &isobarv1.StreamAssignment{
		Session: session, Generation: a.Generation, Partitions: a.Partitions, Members: uint32(a.Members), Waiting: a.Waiting,
	}
}

func deliveries(list []stream.Delivery) []*isobarv1.StreamDelivery {
	out := make([]*isobarv1.StreamDelivery, len(list))
	for i := range list {
		d := &list[i]
		out[i] = &isobarv1.StreamDelivery{
			Partition: d.Partition.Number, Position: d.StreamStored.Position, Delivery: d.Number, Attempt: d.Attempt, Key: d.Key,
			Payload: d.Payload, Attributes: d.Attributes, Published: timestamppb.New(d.Published),
		}
	}
	return out
}

// readable adds the text of payloads for a caller that speaks JSON, where bytes are
// base64. Others would be sent each payload twice.
func readable(ctx context.Context, list []*isobarv1.StreamDelivery) {
	info, ok := connect.CallInfoForServerContext(ctx)
	if !ok || !strings.Contains(info.RequestHeader().Get("Content-Type"), "json") {
		return
	}
	for _, m := range list {
		if utf8.Valid(m.Payload) {
			m.Text = string(m.Payload)
		}
	}
}
