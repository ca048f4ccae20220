package peers

import (
	"bytes"
	"context"
	"io"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/internal/identity"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
)

// Exchange answers for the registry.
type Exchange interface {
	Answer(ctx context.Context, from mesh.CellID, r *meshv1.SyncRequest) (*meshv1.SyncResponse, error)
}

// Modules are the modules this server holds.
type Modules interface {
	// Open opens a module that is here and sound; it fetches none.
	Open(ctx context.Context, digest string) (io.ReadSeekCloser, error)
	// PutAs stores bytes that must have the digest.
	PutAs(digest string, content io.Reader) error
}

// Cell is this server's side of its cell.
type Cell struct {
	Scheduler *scheduler.Scheduler
	Exchange  Exchange
	Modules   Modules
	Members   consensus.Members
	Log       interface {
		consensus.Log
		AppliedIndex() uint64
	}
	Self func() *isobarv1.ServerInfo
}

// Register serves CellService and ServerService.
func (c *Cell) Register(s *connect.Server) {
	meshv1.RegisterCellServiceHandler(s, &cellHandler{Cell: c})
	meshv1.RegisterServerServiceHandler(s, &serverHandler{Cell: c})
}

// caller reads who asks from the certificate of the connection.
func caller(ctx context.Context) (identity.Identity, error) {
	if info, ok := connecthttp.ServerInfoForContext(ctx); ok && info.TLS() != nil {
		return identity.Peer(*info.TLS())
	}
	return identity.Identity{}, &scheduler.Refusal{Reason: scheduler.BadRequest, Message: "the caller shows no certificate"}
}

// Caller is the cell of the server that asks, by its certificate; false for a
// client, which shows none.
func Caller(ctx context.Context) (mesh.Cell, bool) {
	id, err := caller(ctx)
	return id.Cell, err == nil
}

// from is the caller's cell; claimed, where the message names one, must be it.
func from(ctx context.Context, claimed string) (mesh.CellID, error) {
	id, err := caller(ctx)
	if err != nil {
		return "", err
	}
	if claimed != "" && claimed != string(id.Cell.ID) {
		return "", &scheduler.Refusal{Reason: scheduler.BadRequest, Message: "the message says " + claimed + ", the certificate " + string(id.Cell.ID)}
	}
	return id.Cell.ID, nil
}

type cellHandler struct {
	meshv1.UnimplementedCellServiceHandler
	*Cell
}

func (h *cellHandler) Offer(ctx context.Context, r *meshv1.OfferRequest) (*meshv1.OfferResponse, error) {
	cell, err := from(ctx, r.Home)
	if err != nil {
		return nil, err
	}
	return h.Scheduler.AcceptOffers(ctx, cell, r)
}

func (h *cellHandler) Extend(ctx context.Context, r *meshv1.GuestExtendRequest) (*meshv1.GuestExtendResponse, error) {
	cell, err := from(ctx, r.Guest)
	if err != nil {
		return nil, err
	}
	return h.Scheduler.GuestExtend(ctx, cell, r)
}

func (h *cellHandler) Report(ctx context.Context, r *meshv1.ReportRequest) (*meshv1.ReportResponse, error) {
	cell, err := from(ctx, r.Guest)
	if err != nil {
		return nil, err
	}
	return h.Scheduler.GuestReport(ctx, cell, r)
}

// Payload gives a task's bytes only to a cell that may hold them, by its
// certificate: the lease alone is not enough.
func (h *cellHandler) Payload(ctx context.Context, r *meshv1.PayloadRequest) (*meshv1.PayloadResponse, error) {
	if _, err := from(ctx, r.Guest); err != nil {
		return nil, err
	}
	id, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	return h.Scheduler.GuestPayload(ctx, id.Cell, r)
}

func (h *cellHandler) Invoke(ctx context.Context, r *meshv1.CellInvokeRequest) (*meshv1.CellInvokeResponse, error) {
	if _, err := from(ctx, r.Home); err != nil {
		return nil, err
	}
	return h.Scheduler.GuestInvoke(ctx, r)
}

func (h *cellHandler) Sync(ctx context.Context, r *meshv1.SyncRequest) (*meshv1.SyncResponse, error) {
	cell, err := from(ctx, r.Cell)
	if err != nil {
		return nil, err
	}
	return h.Exchange.Answer(ctx, cell, r)
}

// chunk is how much of a module goes in one message.
const chunk = 256 << 10

func (h *cellHandler) Code(ctx context.Context, r *isobarv1.CodeRequest, out meshv1.CellServiceCodeServerStream) error {
	if _, err := from(ctx, ""); err != nil {
		return err
	}
	return SendCode(ctx, h.Modules, r.Digest, func(b []byte) error { return out.Send(&isobarv1.CodeResponse{Chunk: b}) })
}

// SendCode sends a module in pieces.
func SendCode(ctx context.Context, m Modules, digest string, send func([]byte) error) error {
	f, err := m.Open(ctx, digest)
	if err != nil {
		return &scheduler.Refusal{Reason: scheduler.UnknownModule, Message: "no module " + digest + " here", Err: err}
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, chunk)
	for {
		n, err := io.ReadFull(f, buf)
		if n > 0 {
			if err := send(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return &scheduler.Refusal{Reason: scheduler.Unavailable, Message: "module " + digest + " can't be read", Err: err}
		}
	}
}

func (h *cellHandler) Identity(ctx context.Context, _ *meshv1.IdentityRequest) (*meshv1.IdentityResponse, error) {
	if _, err := from(ctx, ""); err != nil {
		return nil, err
	}
	self := h.Self()
	return &meshv1.IdentityResponse{
		Cell: string(h.Scheduler.Cell.ID), Region: h.Scheduler.Cell.Region, Incarnation: h.Scheduler.Incarnation(),
		Leader: h.Scheduler.Leading(), Server: self,
	}, nil
}

type serverHandler struct {
	meshv1.UnimplementedServerServiceHandler
	*Cell
}

// own lets only servers of this cell in.
func (h *serverHandler) own(ctx context.Context) error {
	cell, err := from(ctx, "")
	if err == nil && cell != h.Scheduler.Cell.ID {
		err = &scheduler.Refusal{Reason: scheduler.BadRequest, Message: "only servers of " + string(h.Scheduler.Cell.ID) + " may ask this"}
	}
	return err
}

func (h *serverHandler) Join(ctx context.Context, r *meshv1.JoinRequest) (*meshv1.JoinResponse, error) {
	if err := h.own(ctx); err != nil {
		return nil, err
	}
	if !h.Scheduler.Leading() {
		return nil, scheduler.ErrNotLeader
	}
	if err := h.Members.Join(ctx, consensus.Server{ID: r.Id, Address: r.Address}); err != nil {
		return nil, err
	}
	return &meshv1.JoinResponse{Incarnation: h.Scheduler.Incarnation()}, nil
}

func (h *serverHandler) Applied(ctx context.Context, _ *meshv1.AppliedRequest) (*meshv1.AppliedResponse, error) {
	if err := h.own(ctx); err != nil {
		return nil, err
	}
	return &meshv1.AppliedResponse{Index: h.Log.AppliedIndex(), WallMs: h.Scheduler.Wall().UnixMilli()}, nil
}

func (h *serverHandler) PutCode(ctx context.Context, r *meshv1.PutCodeRequest) (*meshv1.PutCodeResponse, error) {
	if err := h.own(ctx); err != nil {
		return nil, err
	}
	if err := h.Modules.PutAs(r.Digest, bytes.NewReader(r.Content)); err != nil {
		return nil, &scheduler.Refusal{Reason: scheduler.BadRequest, Message: "module not stored", Err: err}
	}
	return &meshv1.PutCodeResponse{}, nil
}
