package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/registry/code"
	"github.com/isobar-mesh/isobar/scheduler/peers"
)

// lateLog is the log for those who are made before it is opened: the scheduler
// observes what the log applies, so it must exist when the log starts.
type lateLog Server

func (l *lateLog) Propose(ctx context.Context, group []byte) (any, error) {
	return l.raft.Propose(ctx, group)
}
func (l *lateLog) Barrier(ctx context.Context) error { return l.raft.Barrier(ctx) }
func (l *lateLog) Verify(ctx context.Context) error  { return l.raft.Verify(ctx) }
func (l *lateLog) Status() consensus.Status          { return l.raft.Status() }
func (l *lateLog) Changes() <-chan struct{}          { return l.raft.Changes() }
func (l *lateLog) Close() error                      { return l.raft.Close() }

func pricesOf(p config.Prices) placement.Prices {
	out := placement.Prices{CPUHour: p.CPUHour, MemoryGiBHour: p.MemoryGiBHour}
	for _, model := range slices.Sorted(maps.Keys(p.GPUs)) {
		out.GPUHour = append(out.GPUHour, placement.ModelPrice{Model: model, USD: p.GPUs[model]})
	}
	return out
}

// hoursAhead is how much of the forecast placement and gossip carry.
const hoursAhead = 24

func powerOf(e config.Energy) placement.Energy {
	out := placement.Energy{
		WattsPerCPU: e.WattsPerCPU, IdleWattsPerCPU: e.IdleWattsPerCPU, WattsPerGiB: e.WattsPerGiB,
		EmbodiedPerCPUHour: e.EmbodiedGPerCPUHour, PUE: e.PUE,
	}
	models := maps.Clone(e.WattsPerGPU)
	if models == nil {
		models = map[string]float64{}
	}
	maps.Copy(models, e.EmbodiedGPerGPUHour) // a model may have either
	for _, model := range slices.Sorted(maps.Keys(models)) {
		out.WattsPerGPU = append(out.WattsPerGPU, placement.ModelWatts{
			Model: model, Watts: e.WattsPerGPU[model], Idle: e.IdleWattsPerGPU[model], EmbodiedPerHour: e.EmbodiedGPerGPUHour[model],
		})
	}
	return out
}

// energyOf reads the region's energy, its carbon at most once a second and when
// an hour of the feed is over.
func (s *Server) energyOf(feed carbon.Feed) func() placement.Energy {
	base := powerOf(s.cfg.Energy)
	base.Zone, base.Kind = s.cfg.Carbon.Zone, string(carbon.Average)
	var mu sync.Mutex
	var last placement.Energy
	var read time.Time
	return func() placement.Energy {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if feed == nil || (now.Sub(read) < time.Second && now.Sub(last.From) < last.Step) {
			return cmpEnergy(last, base)
		}
		read, last = now, base
		readings, err := feed.Ahead(base.Zone, now, hoursAhead)
		if err != nil || len(readings) == 0 {
			s.log.Warn("carbon not read", "zone", base.Zone, "error", err)
			return last
		}
		last.Known, last.Kind = true, string(feed.Kind())
		last.From, last.Step = feed.Hour(now)
		for _, r := range readings {
			last.Intensity = append(last.Intensity, r.Intensity)
			last.Forecast = r.Forecast // the last one's: that of the hours ahead
		}
		return last
	}
}

func cmpEnergy(last, base placement.Energy) placement.Energy {
	if last.Zone == "" {
		return base
	}
	return last
}

// sources are the servers a module may be fetched from: this cell's first.
func (s *Server) sources() []code.Source {
	servers := s.mesh.Servers()
	slices.SortStableFunc(servers, func(a, b peers.Server) int {
		return cmp.Compare(rank(a, s.cell.ID), rank(b, s.cell.ID))
	})
	var out []code.Source
	for _, srv := range servers {
		if srv.ID == s.id || !srv.Alive {
			continue
		}
		out = append(out, code.Source{Name: srv.Name, Fetch: func(ctx context.Context, digest string) (io.ReadCloser, error) {
			return s.fetchModule(ctx, srv, digest)
		}})
	}
	return out
}

func rank(s peers.Server, own mesh.CellID) int {
	if s.Cell == own {
		return 0
	}
	return 1
}

func (s *Server) fetchModule(ctx context.Context, from peers.Server, digest string) (io.ReadCloser, error) {
	stream, err := s.peers.Code(ctx, from, digest)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		for {
			m, err := stream.Receive()
			if errors.Is(err, io.EOF) {
				err = io.EOF // the stream's end wraps it, and the pipe's reader compares
			}
			if err != nil {
				_ = w.CloseWithError(err) // io.EOF ends the module
				return
			}
			if _, err := w.Write(m.Chunk); err != nil {
				return // the reader has given up
			}
		}
	}()
	return r, nil
}

// spreadModule puts a module on enough servers of the cell that one of them
// survives whatever the cell survives.
func (s *Server) spreadModule(ctx context.Context, digest string, content []byte) error {
	members, err := s.raft.Servers()
	if err != nil {
		return err
	}
	voters, have := 0, 0
	for _, m := range members {
		if m.Voter {
			voters++
		}
	}
	var failed error
	for _, srv := range s.mesh.Servers() {
		if srv.Cell != s.cell.ID || !slices.ContainsFunc(members, func(m consensus.Server) bool { return m.ID == srv.ID && m.Voter }) {
			continue
		}
		if srv.ID == s.id {
			have++
			continue
		}
		if !srv.Alive {
			continue
		}
		if _, err := s.peers.Member(srv).PutCode(ctx, &meshv1.PutCodeRequest{Digest: digest, Content: content}); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		have++
	}
	if have*2 <= voters {
		return fmt.Errorf("server: spread module: %d of %d servers have it: %w", have, voters, failed)
	}
	return nil
}

// heldModules answers for modules that are here; it fetches none, or two
// servers that lack one would ask each other for ever.
type heldModules struct{ *code.Store }

func (h heldModules) Open(ctx context.Context, digest string) (io.ReadSeekCloser, error) {
	if !h.Has(digest) {
		return nil, fmt.Errorf("server: open module %s: %w", digest, code.ErrMissing)
	}
	return h.Store.Open(ctx, digest)
}

func (h heldModules) PutAs(digest string, content io.Reader) error {
	return h.Store.PutAs(digest, content)
}
