package api

import (
	"cmp"
	"context"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
)

type meshes struct {
	isobarv1.UnimplementedMeshServiceHandler
	*Services
}

// Cells shows every cell as this cell's leader sees it: the leader alone knows
// its own state first hand.
func (h *meshes) Cells(ctx context.Context, r *isobarv1.CellsRequest) (*isobarv1.CellsResponse, error) {
	return route(ctx, h.Services, h.Scheduler.Cell.ID, r, h.cellsHere, func(ctx context.Context, c *connect.Client, r *isobarv1.CellsRequest) (*isobarv1.CellsResponse, error) {
		return isobarv1.NewMeshServiceClient(c).Cells(ctx, r)
	})
}

const (
	watchEvery = time.Second
	// watchMost is how long a watcher of a quiet mesh goes without a message.
	watchMost = 10 * time.Second
)

// Watch sends the cells whenever they have changed.
func (h *meshes) Watch(ctx context.Context, _ *isobarv1.WatchRequest, out isobarv1.MeshServiceWatchServerStream) error {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	var last *isobarv1.WatchResponse
	var sent time.Time
	for {
		cells, err := h.Cells(ctx, &isobarv1.CellsRequest{})
		if ctx.Err() != nil {
			return nil // the watcher ended the stream
		}
		if err != nil {
			return err
		}
		now := &isobarv1.WatchResponse{Cells: cells.Cells}
		lasting := lasting(now)
		if !proto.Equal(lasting, last) || time.Since(sent) >= watchMost {
			if err := out.Send(now); err != nil {
				return err
			}
			last, sent = lasting, time.Now()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// lasting leaves out what changes with every look.
func lasting(r *isobarv1.WatchResponse) *isobarv1.WatchResponse {
	r = proto.CloneOf(r)
	for _, c := range r.Cells {
		c.DigestAge, c.DigestVersion, c.Rtt = nil, 0, nil
	}
	return r
}

func (h *meshes) cellsHere(context.Context, *isobarv1.CellsRequest) (*isobarv1.CellsResponse, error) {
	own := h.Scheduler.Digest()
	if own == nil {
		return nil, scheduler.ErrNotLeader
	}
	self := h.info(h.Scheduler.Cell, own)
	self.Self, self.Incarnation = true, h.Scheduler.Incarnation()
	cells := []*isobarv1.CellInfo{self}
	now := time.Now()
	for _, n := range h.Scheduler.Neighbours.All() {
		c := h.info(n.Cell, n.Digest)
		if !n.Verified {
			c.Jurisdictions = nil
		}
		if !n.Reachable {
			c.Health = "not reachable"
		}
		if n.Digest == nil {
			c.Health = cmp.Or(c.Health, "not heard of yet")
		} else {
			c.DigestAge = durationpb.New(now.Sub(n.Received))
		}
		link := h.Scheduler.Links(n.Region)
		c.Rtt, c.RttEmulated = durationpb.New(cmp.Or(n.RTT, link.RTT)), h.RTTEmulated
		cells = append(cells, c)
	}
	h.servers(cells)
	slices.SortFunc(cells, func(a, b *isobarv1.CellInfo) int { return cmp.Compare(a.Cell, b.Cell) })
	return &isobarv1.CellsResponse{Cells: cells}, nil
}

func (h *meshes) info(cell mesh.Cell, d *meshv1.Digest) *isobarv1.CellInfo {
	c := &isobarv1.CellInfo{Cell: string(cell.ID), Region: cell.Region, Jurisdictions: cell.Jurisdictions}
	if d == nil {
		return c
	}
	caps := gossip.CapacitiesOf(d)
	c.Incarnation, c.Health, c.DigestVersion, c.Leased = d.Incarnation, cmp.Or(d.Health, "ok"), d.Sequence, int64(d.Leased)
	c.Total, c.Free = scheduler.OfferOf(caps.Total, d.Runtimes), scheduler.OfferOf(caps.Free, d.Runtimes)
	c.UsdPerCpuHour, c.Zone, c.Workers = float64(d.CpuHour)/1e6, d.Zone, int64(d.Workers)
	if len(d.Carbon) > 0 {
		c.Gco2EqPerKwh, c.Forecast = float64(d.Carbon[0]), scheduler.ForecastOf(d)
	}
	for _, n := range d.Backlog {
		c.Backlog = append(c.Backlog, int64(n))
	}
	return c
}

// servers adds what gossip knows of each cell's servers. Who leads and who
// votes is known of the own cell only.
func (h *meshes) servers(cells []*isobarv1.CellInfo) {
	byCell := map[string]*isobarv1.CellInfo{}
	for _, c := range cells {
		byCell[c.Cell] = c
	}
	voters := map[string]bool{}
	if members, err := h.Members(); err == nil {
		for _, m := range members {
			voters[m.ID] = m.Voter
		}
	}
	leader := h.Log.Status().Leader.ID
	for _, s := range h.Directory.Servers() {
		c := byCell[string(s.Cell)]
		if c == nil {
			continue
		}
		if s.Alive {
			c.Addresses = append(c.Addresses, s.API)
		}
		c.Servers = append(c.Servers, &isobarv1.ServerInfo{
			Id: s.ID, Name: s.Name, Address: s.API, Pid: s.PID, Leader: s.ID == leader, Voter: voters[s.ID], Alive: s.Alive,
		})
	}
}

// Workers lists this cell's.
func (h *meshes) Workers(ctx context.Context, r *isobarv1.WorkersRequest) (*isobarv1.WorkersResponse, error) {
	return route(ctx, h.Services, h.Scheduler.Cell.ID, r, func(context.Context, *isobarv1.WorkersRequest) (*isobarv1.WorkersResponse, error) {
		list, err := h.Scheduler.Workers()
		if err != nil {
			return nil, err
		}
		return &isobarv1.WorkersResponse{Workers: list}, nil
	}, func(ctx context.Context, c *connect.Client, r *isobarv1.WorkersRequest) (*isobarv1.WorkersResponse, error) {
		return isobarv1.NewMeshServiceClient(c).Workers(ctx, r)
	})
}

// hourFrom is when a feed's first hour began: at the present hour's start where
// the feed does not say.
func hourFrom(from, now time.Time) *timestamppb.Timestamp {
	if from.IsZero() {
		from = now
	}
	return timestamppb.New(from)
}

// aheadBy says what the hours ahead are foretold by.
func aheadBy(forecast string) string {
	if forecast == "" {
		return ""
	}
	return "; the hours ahead by " + forecast
}

// Carbon shows every region's intensity as placement sees it.
func (h *meshes) Carbon(context.Context, *isobarv1.CarbonRequest) (*isobarv1.CarbonResponse, error) {
	e := h.Scheduler.Carbon()
	out := &isobarv1.CarbonResponse{}
	now := time.Now().Truncate(time.Hour)
	if e.Known {
		out.Series = append(out.Series, &isobarv1.CarbonSeries{
			Region: h.Scheduler.Cell.Region, Zone: e.Zone, Kind: e.Kind, Source: "own feed" + aheadBy(e.Forecast),
			From: hourFrom(e.From, now), Gco2EqPerKwh: e.Intensity,
		})
	}
	for _, n := range h.Scheduler.Neighbours.All() {
		if n.Digest == nil || len(n.Digest.Carbon) == 0 {
			continue
		}
		s := &isobarv1.CarbonSeries{Region: n.Region, Zone: n.Digest.Zone, Kind: "average", Source: "digest of " + string(n.ID) + aheadBy(scheduler.ForecastOf(n.Digest)), From: timestamppb.New(now)}
		if ms := n.Digest.CarbonFromMs; ms > 0 {
			s.From = timestamppb.New(time.UnixMilli(ms))
		}
		if n.Digest.CarbonKind == 2 {
			s.Kind = "marginal"
		}
		for _, g := range n.Digest.Carbon {
			s.Gco2EqPerKwh = append(s.Gco2EqPerKwh, float64(g))
		}
		out.Series = append(out.Series, s)
	}
	slices.SortFunc(out.Series, func(a, b *isobarv1.CarbonSeries) int { return cmp.Compare(a.Region, b.Region) })
	return out, nil
}
