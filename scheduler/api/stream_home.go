package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/peers"
	"github.com/isobar-mesh/isobar/stream"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// streamRequest names a stream.
type streamRequest interface {
	GetTenant() string
	GetStream() string
	GetCell() string
}

// streamHome is where a stream of another cell lives, and where its bytes may be.
type streamHome struct {
	cell      mesh.CellID
	residency mesh.Residency
	until     time.Time
}

// streamHomes remembers homes for a moment, so that not every call asks around.
type streamHomes struct {
	mu    sync.Mutex
	known map[streamPlace]streamHome
}

// streamPlace is a stream as a request names it; cell is "" for any.
type streamPlace struct {
	groups.Name
	cell mesh.CellID
}

const (
	rememberHome = 10 * time.Second
	maxHomes     = 10_000
	findTimeout  = 3 * time.Second
)

func (c *streamHomes) get(p streamPlace) (streamHome, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.known[p]
	return h, ok && time.Now().Before(h.until)
}

func (c *streamHomes) put(p streamPlace, h streamHome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= maxHomes {
		c.known = map[streamPlace]streamHome{}
	}
	h.until = time.Now().Add(rememberHome)
	c.known[p] = h
}

func (c *streamHomes) forget(p streamPlace) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, p)
}

// atHome answers a request about a stream at its home: here, or passed on once.
// A server outside the stream's residency passes nothing on, and says where to
// go.
func atHome[Req streamRequest, Res any](ctx context.Context, h *streams, r Req,
	here func(context.Context, groups.Name, Req) (Res, error), there func(isobarv1.StreamServiceClient, context.Context, Req) (Res, error),
) (res Res, err error) {
	place := streamPlace{groups.Name{Tenant: r.GetTenant(), Stream: r.GetStream()}, mesh.CellID(r.GetCell())}
	if place.Tenant == "" {
		place.Tenant = defaultTenant
	}
	if !mesh.ValidName(place.Stream) || !mesh.ValidName(place.Tenant) {
		return res, &scheduler.Refusal{
			Reason: scheduler.BadRequest, Field: "stream", Message: fmt.Sprintf("%.80q does not name a stream", place.Name), Hint: "1 to 63 lower-case letters, digits and dashes",
		}
	}
	home, err := h.locate(ctx, place)
	if err != nil {
		return res, h.withAddress(err)
	}
	res, err = route(ctx, h.Services, home, r, func(ctx context.Context, r Req) (Res, error) {
		if err := h.outsideStream(ctx, place.Name); err != nil {
			var none Res
			return none, err
		}
		return here(ctx, place.Name, r)
	}, func(ctx context.Context, c *connect.Client, r Req) (Res, error) {
		return there(isobarv1.NewStreamServiceClient(c), ctx, r)
	})
	if peers.Detail(err).GetReason() == string(scheduler.UnknownStream) {
		h.homes.forget(place)
	}
	return res, err
}

// locate finds the cell a stream lives in: this one, or another that says so.
func (h *streams) locate(ctx context.Context, p streamPlace) (mesh.CellID, error) {
	own := h.Scheduler.Cell.ID
	if forwarded(ctx) {
		return own, nil
	}
	if p.cell == own {
		return own, nil
	}
	if p.cell == "" {
		if _, ok := h.Streams.Lookup(p.Name); ok {
			return own, nil
		}
	}
	home, ok := h.homes.get(p)
	if !ok {
		var err error
		if home, err = h.find(ctx, p); err != nil {
			return "", err
		}
		h.homes.put(p, home)
	}
	if home.cell != own && !h.Scheduler.Cell.Within(home.residency) {
		return "", &scheduler.Refusal{
			Reason: scheduler.ResidencyForbids, Field: "stream", Cell: home.cell,
			Message: fmt.Sprintf("%s lies in %v, which the stream's residency leaves out", own, h.Scheduler.Cell.Jurisdictions), Hint: "ask " + string(home.cell),
		}
	}
	return home.cell, nil
}

// find asks the cells for a stream, side by side: the one that is named, or
// all. This server may lag behind its own cell's leader, so that is asked too.
func (h *streams) find(ctx context.Context, p streamPlace) (streamHome, error) {
	cells := []mesh.CellID{p.cell}
	if p.cell == "" {
		cells = []mesh.CellID{h.Scheduler.Cell.ID}
		for _, n := range h.Scheduler.Neighbours.All() {
			cells = append(cells, n.ID)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	found := make([]*isobarv1.StreamServiceDescribeResponse, len(cells))
	errs := make([]error, len(cells))
	var wait sync.WaitGroup
	for i, cell := range cells {
		wait.Go(func() {
			errs[i] = h.Mesh.Ask(ctx, cell, func(ctx context.Context, conn *connect.Client) (err error) {
				ctx, info := connect.NewClientContext(ctx)
				info.RequestHeader().Set(forwardedHeader, "1")
				found[i], err = isobarv1.NewStreamServiceClient(conn).Describe(ctx, &isobarv1.StreamServiceDescribeRequest{Tenant: p.Tenant, Stream: p.Stream, Brief: true})
				return err
			})
		})
	}
	wait.Wait()
	var away error
	for i, cell := range cells {
		detail := peers.Detail(errs[i])
		switch {
		case errs[i] == nil:
			res := found[i].GetStream().GetSpec().GetResidency()
			return streamHome{cell: cell, residency: mesh.Residency{Allowed: res.GetAllowed(), Denied: res.GetDenied()}}, nil
		case detail.GetReason() == string(scheduler.ResidencyForbids):
			return streamHome{}, errs[i]
		case detail.GetReason() != string(scheduler.UnknownStream):
			away = h.unavailable(cell, errs[i], false)
		}
	}
	if away != nil {
		return streamHome{}, away
	}
	return streamHome{}, fmt.Errorf("api: find stream %s: %w", p.Name, groups.ErrUnknownStream)
}

// outsideStream refuses to tell of a stream to a server that was asked for it
// and lies outside its residency.
func (h *streams) outsideStream(ctx context.Context, n groups.Name) error {
	own := h.Scheduler.Cell.ID
	from, ok := peers.Caller(ctx)
	if !ok || from.ID == own {
		return nil
	}
	rec, ok := h.Streams.Lookup(n)
	if !ok || from.Within(mesh.Residency{Allowed: rec.Allowed, Denied: rec.Denied}) {
		return nil
	}
	return &scheduler.Refusal{
		Reason: scheduler.ResidencyForbids, Field: "stream", Cell: own, Address: h.address(own),
		Message: fmt.Sprintf("the stream's messages may not be in %v, where %s lies", from.Jurisdictions, from.ID), Hint: "ask " + string(own),
	}
}

// notLeading reports an error that says that nothing was done here.
func notLeading(err error) bool {
	return errors.Is(err, scheduler.ErrNotLeader) || errors.Is(err, consensus.ErrNotLeader)
}

// ended turns the end of a stream into no error.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// ofStreams finds what an error of streams means to whoever asked; nil when it
// is none of theirs.
func ofStreams(err error) *scheduler.Refusal {
	var exists *groups.ExistsError
	var at *stream.PositionError
	switch {
	case errors.As(err, &exists):
		return &scheduler.Refusal{Reason: scheduler.StreamExists, Field: "spec", Message: exists.Error(), Hint: "isobar stream describe " + exists.Stream.Name + " shows them; use another name, or delete it first"}
	case errors.As(err, &at) && at.Dropped:
		return &scheduler.Refusal{Reason: scheduler.BeforeRetention, Field: "to", Message: at.Error(), Hint: fmt.Sprintf("seek to position %d, or to the start", at.First)}
	case errors.As(err, &at):
		return &scheduler.Refusal{Reason: scheduler.BehindEnd, Field: "to", Message: at.Error(), Hint: "seek to the end, and wait for what comes"}
	case errors.Is(err, groups.ErrUnknownStream):
		return &scheduler.Refusal{Reason: scheduler.UnknownStream, Field: "stream", Message: "no cell that answers has a stream of that name", Hint: "create it first: isobar stream create"}
	case errors.Is(err, groups.ErrDeleting):
		return &scheduler.Refusal{Reason: scheduler.Unavailable, Field: "stream", Message: "the stream is being deleted", RetryAfter: time.Second, Hint: "when it is gone, the name is free"}
	case errors.Is(err, groups.ErrUnknownGroup):
		return &scheduler.Refusal{Reason: scheduler.UnknownGroup, Field: "group", Message: "the stream has no group of that name", Hint: "a group begins with its first Consume or Fetch"}
	case errors.Is(err, groups.ErrUnknownPartition):
		return &scheduler.Refusal{Reason: scheduler.UnknownPartition, Field: "partition", Message: "the stream has no such partition", Hint: "they are counted from 0; isobar stream describe shows them"}
	case errors.Is(err, groups.ErrTooMany):
		return &scheduler.Refusal{
			Reason: scheduler.TooMany, Field: "group", Message: fmt.Sprintf("a stream has at most %d groups, a group %d members", groups.MaxGroups, groups.MaxMembers),
			Hint: "use fewer; members that are gone are forgotten after their lease", RetryAfter: 10 * time.Second,
		}
	case errors.Is(err, broker.ErrFull):
		return &scheduler.Refusal{Reason: scheduler.DiskFull, Message: "the broker is at its cap", RetryAfter: 5 * time.Second, Hint: "keep messages for a shorter time, or raise the cap"}
	case errors.Is(err, broker.ErrTooLarge):
		return &scheduler.Refusal{Reason: scheduler.PayloadTooLarge, Field: "payload", Message: fmt.Sprintf("a payload is at most %d bytes", mesh.MaxPayload), Hint: "put large data where consumers can read it and publish the place"}
	case errors.Is(err, broker.ErrReplaced):
		return &scheduler.Refusal{
			Reason: scheduler.Unavailable, Message: "the region's broker is not the one that holds the messages of its streams", RetryAfter: 10 * time.Second, Unknown: true,
			Hint: "repeat it later with the same request id; whoever runs the region finds what to do in docs/pulsar.md, Replacing a region's Pulsar",
		}
	case errors.Is(err, broker.ErrDenied), errors.Is(err, broker.ErrNoToken):
		return &scheduler.Refusal{
			Reason: scheduler.Unavailable, Message: "the region's broker does not let the cell in", RetryAfter: 5 * time.Second, Unknown: true,
			Hint: "repeat it later with the same request id; whoever runs the region finds what to do in docs/pulsar.md, When something goes wrong",
		}
	case errors.Is(err, broker.ErrUnavailable):
		return &scheduler.Refusal{Reason: scheduler.Unavailable, Message: "the broker does not answer", RetryAfter: time.Second, Unknown: true, Hint: "repeat it with the same request id"}
	case errors.Is(err, groups.ErrBadCommand):
		return &scheduler.Refusal{Reason: scheduler.BadRequest, Message: "the request can't be carried out", Hint: "docs/api.md shows the calls", Err: err}
	default:
		return nil
	}
}

// Bounds of a stream, and what it has when nothing is said.
const (
	defaultMaxAge     = 7 * 24 * time.Hour
	maxMaxAge         = 366 * 24 * time.Hour
	defaultVisibility = 30 * time.Second
	maxVisibility     = 12 * time.Hour
	maxDeliveries     = 1000
)

// streamRecord validates a spec and makes the record of it.
func streamRecord(spec *isobarv1.StreamSpec) (*meshv1.StreamRecord, error) {
	bad := func(field, message, hint string) (*meshv1.StreamRecord, error) {
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Field: "spec." + field, Message: message, Hint: hint}
	}
	rec := &meshv1.StreamRecord{
		Tenant: spec.GetTenant(), Name: spec.GetName(), Partitions: spec.GetPartitions(), Relaxed: spec.GetOrder() == "relaxed",
		MaxAgeMs: defaultMaxAge.Milliseconds(), MaxBytes: spec.GetMaxBytes(), VisibilityMs: defaultVisibility.Milliseconds(), MaxDeliveries: spec.GetMaxDeliveries(),
	}
	if rec.Tenant == "" {
		rec.Tenant = defaultTenant
	}
	if rec.Partitions == 0 {
		rec.Partitions = 1
	}
	if spec.GetMaxAge() != nil {
		rec.MaxAgeMs = spec.GetMaxAge().AsDuration().Milliseconds()
	}
	if spec.GetVisibility() != nil {
		rec.VisibilityMs = spec.GetVisibility().AsDuration().Milliseconds()
	}
	switch {
	case !mesh.ValidName(rec.Name):
		return bad("name", fmt.Sprintf("%.80q does not name a stream", rec.Name), "1 to 63 lower-case letters, digits and dashes")
	case rec.Partitions > groups.MaxPartitions:
		return bad("partitions", fmt.Sprintf("%d partitions are above %d", rec.Partitions, groups.MaxPartitions), "as many as consumers that work side by side")
	case spec.GetOrder() != "" && spec.GetOrder() != "strict" && spec.GetOrder() != "relaxed":
		return bad("order", fmt.Sprintf("there is no order %.80q", spec.GetOrder()), "strict or relaxed")
	case rec.MaxAgeMs < 1000 || rec.MaxAgeMs > maxMaxAge.Milliseconds():
		return bad("maxAge", "messages are kept from 1 s to 366 days", `"604800s" is a week`)
	case rec.VisibilityMs < 1000 || rec.VisibilityMs > maxVisibility.Milliseconds():
		return bad("visibility", "a visibility timeout is from 1 s to 12 h", `"30s", say`)
	case rec.MaxDeliveries > maxDeliveries:
		return bad("maxDeliveries", fmt.Sprintf("%d deliveries are above %d", rec.MaxDeliveries, maxDeliveries), "0 is without end")
	case len(spec.GetResidency().GetAllowed())+len(spec.GetResidency().GetDenied()) > 64:
		return bad("residency", "at most 64 jurisdictions", "name the larger ones")
	}
	return rec, nil
}

// checkPublish refuses what no server has to look up.
func checkPublish(r *isobarv1.PublishRequest) error {
	bad := func(field, message, hint string) error {
		return &scheduler.Refusal{Reason: scheduler.BadRequest, Field: field, Message: message, Hint: hint}
	}
	in := func(i int, field, message, hint string) error {
		return bad(fmt.Sprintf("messages[%d].%s", i, field), message, hint)
	}
	if n := len(r.Messages); n == 0 || n > maxBatch {
		return bad("messages", fmt.Sprintf("%d messages; one call takes 1 to %d", n, maxBatch), `send {"stream":"…","messages":[{"key":"…","text":"…"}]}`)
	}
	if len(r.RequestId) > 256 {
		return bad("requestId", "ids are at most 256 bytes", "hash longer ones")
	}
	for i, m := range r.Messages {
		size := 0
		for k, v := range m.GetAttributes() { // any order: a sum
			size += len(k) + len(v)
		}
		switch {
		case m == nil:
			return in(i, "text", "an empty message", "at least {}")
		case len(m.Key) > 256:
			return in(i, "key", "keys are at most 256 bytes", "hash longer ones")
		case len(m.Attributes) > 32 || size > 16<<10:
			return in(i, "attributes", "at most 32 attributes, together at most 16 KiB", "put more into the payload")
		}
	}
	return nil
}

func (h *streams) streamInfo(rec *meshv1.StreamRecord) *isobarv1.StreamInfo {
	spec := &isobarv1.StreamSpec{
		Tenant: rec.Tenant, Name: rec.Name, Partitions: rec.Partitions, Order: "strict", MaxBytes: rec.MaxBytes, MaxDeliveries: rec.MaxDeliveries,
		MaxAge: durationpb.New(time.Duration(rec.MaxAgeMs) * time.Millisecond), Visibility: durationpb.New(time.Duration(rec.VisibilityMs) * time.Millisecond),
	}
	if rec.Relaxed {
		spec.Order = "relaxed"
	}
	if len(rec.Allowed)+len(rec.Denied) > 0 {
		spec.Residency = &isobarv1.Residency{Allowed: rec.Allowed, Denied: rec.Denied}
	}
	return &isobarv1.StreamInfo{
		Spec: spec, Home: string(h.Scheduler.Cell.ID), Created: timestamppb.New(time.UnixMilli(rec.CreatedMs)), Deleting: rec.Deleting,
	}
}

func (h *streams) description(d *stream.Description) *isobarv1.StreamServiceDescribeResponse {
	out := &isobarv1.StreamServiceDescribeResponse{Stream: h.streamInfo(d.Stream)}
	for p, ext := range d.Partitions {
		out.Partitions = append(out.Partitions, &isobarv1.StreamPartition{
			Partition: uint32(p), First: ext.First, End: ext.End, Messages: ext.Messages, Bytes: ext.Bytes, Topic: ext.Topic,
		})
	}
	for _, g := range d.Groups {
		out.Groups = append(out.Groups, groupMessage(g))
	}
	return out
}

func groupMessage(g stream.GroupDescription) *isobarv1.StreamGroup {
	out := &isobarv1.StreamGroup{Name: g.Name, Generation: g.Record.Generation, DeadLetters: g.Record.Dead}
	for _, m := range g.Record.Members {
		member := &isobarv1.StreamMember{Session: m.Session, Consumer: m.Consumer}
		for p, owner := range g.Record.Owners {
			if owner == m.Session {
				member.Partitions = append(member.Partitions, uint32(p))
			}
		}
		out.Members = append(out.Members, member)
	}
	for p, c := range g.Cursors {
		out.Lag += c.Lag
		out.Partitions = append(out.Partitions, &isobarv1.StreamGroupPartition{
			Partition: uint32(p), Position: c.Position, Lag: c.Lag, InFlight: uint32(c.InFlight), Session: g.Record.Owners[p],
		})
	}
	for _, dead := range g.Dead {
		out.Dead = append(out.Dead, &isobarv1.StreamDeadLetter{
			Partition: dead.Partition, Position: dead.Position, Key: dead.Key, Attempts: dead.Attempts, Cause: dead.Cause, At: timestamppb.New(time.UnixMilli(dead.AtMs)),
		})
	}
	return out
}
