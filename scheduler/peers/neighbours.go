package peers

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/gossip/pool"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/scheduler"
)

// Mesh joins what gossip says with what certificates prove. It is the
// scheduler's Neighbours and this package's Directory.
type Mesh struct {
	self   mesh.CellID
	pool   *pool.Pool
	client *Client
	wake   <-chan struct{}
	stop   func()
}

// NewMesh watches the pool; SetClient must follow before use.
func NewMesh(self mesh.CellID, p *pool.Pool) *Mesh {
	wake, stop := p.Subscribe()
	return &Mesh{self: self, pool: p, wake: wake, stop: stop}
}

// SetClient says where identities are read.
func (m *Mesh) SetClient(c *Client) { m.client = c }

// Close ends the subscription.
func (m *Mesh) Close() { m.stop() }

// Servers lists every server gossip knows.
func (m *Mesh) Servers() []Server {
	var out []Server
	for _, s := range m.pool.Members() {
		out = append(out, Server{
			ID: s.ID, Name: s.Name, Cell: s.Cell, Region: s.Region, Peer: s.PeerAddress, API: "http://" + s.APIAddress, Raft: s.RaftAddress,
			PID: int64(s.PID), Alive: s.State == pool.Alive, Gossip: s.GossipAddress, RTT: s.RTT,
		})
	}
	slices.SortFunc(out, func(a, b Server) int {
		return cmp.Or(cmp.Compare(a.Cell, b.Cell), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// Changed receives after a change of members or digests.
func (m *Mesh) Changed() <-chan struct{} { return m.wake }

// All returns the other cells, by cell.
func (m *Mesh) All() []scheduler.Neighbour {
	snapshot := m.pool.View()
	byCell := map[mesh.CellID]*scheduler.Neighbour{}
	for _, s := range m.Servers() {
		if s.Cell == m.self {
			continue
		}
		n := byCell[s.Cell]
		if n == nil {
			n = &scheduler.Neighbour{Cell: mesh.Cell{ID: s.Cell, Region: s.Region}}
			byCell[s.Cell] = n
		}
		n.Reachable = n.Reachable || s.Alive
	}
	out := make([]scheduler.Neighbour, 0, len(byCell))
	for id, n := range byCell {
		if cell, ok := m.client.Identity(id); ok {
			n.Cell, n.Verified = cell, true
		}
		if e, ok := snapshot.Cell(id); ok {
			n.Digest, n.Received = e.Digest, e.At
		}
		n.RTT, _ = m.pool.RTT(id)
		out = append(out, *n)
	}
	slices.SortFunc(out, func(a, b scheduler.Neighbour) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// OwnCell asks the living servers of this cell for its incarnation, and returns
// the first that is told and who told it; empty when none can tell.
func (m *Mesh) OwnCell(ctx context.Context) (incarnation string, by Server) {
	self := m.pool.Self()
	for _, s := range m.Servers() {
		if s.Cell != m.self || !s.Alive || s.ID == self.ID || s.Peer == self.PeerAddress {
			continue
		}
		call, cancel := context.WithTimeout(ctx, 2*time.Second)
		res, err := m.client.Greet(call, s)
		cancel()
		if err == nil && res.Cell == string(m.self) && res.Incarnation != "" {
			return res.Incarnation, s
		}
	}
	return "", Server{}
}

// Greet reaches each cell whose certificate was not seen yet, and accepts the
// incarnation that its servers name, until ctx ends. Gossip's word about an
// incarnation is not taken.
func (m *Mesh) Greet(ctx context.Context, log *slog.Logger) {
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	known := map[mesh.CellID]string{}
	for {
		snapshot := m.pool.View()
		for _, s := range m.Servers() {
			if s.Cell == m.self || !s.Alive || !stranger(snapshot, known, s.Cell) {
				continue
			}
			call, cancel := context.WithTimeout(ctx, 3*time.Second)
			res, err := m.client.Greet(call, s)
			cancel()
			if err != nil {
				log.Debug("cell not greeted", "cell", s.Cell, "server", s.Name, "error", err)
				continue
			}
			if res.Incarnation != "" && res.Cell == string(s.Cell) && known[s.Cell] != res.Incarnation {
				known[s.Cell] = res.Incarnation
				m.pool.Accept(s.Cell, res.Incarnation)
				log.Info("cell greeted", "cell", s.Cell, "incarnation", res.Incarnation)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// stranger reports whether the cell has to be greeted: it never was, or gossip
// holds back a digest of an incarnation not accepted.
func stranger(s gossip.Snapshot, known map[mesh.CellID]string, cell mesh.CellID) bool {
	if known[cell] == "" {
		return true
	}
	for _, held := range s.Held {
		if held.Cell() == cell && held.Incarnation() != known[cell] {
			return true
		}
	}
	return false
}
