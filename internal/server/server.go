// Package server assembles one server process out of the rooms: stores, log,
// gossip, scheduler and the two listeners. It holds no rule of its own; what is
// here is the order in which parts start and stop, and the adapters between
// rooms that must not know each other.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/otelconnect"
	"golang.org/x/sync/errgroup"

	"github.com/isobar-mesh/isobar/broker/embedded"
	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/consensus/raftlog"
	"github.com/isobar-mesh/isobar/gossip/pool"
	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/delay"
	"github.com/isobar-mesh/isobar/internal/identity"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/internal/telemetry"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry"
	"github.com/isobar-mesh/isobar/registry/code"
	"github.com/isobar-mesh/isobar/registry/exchange"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/api"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/scheduler/peers"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/state/pebblestore"
	"github.com/isobar-mesh/isobar/stream"
	"github.com/isobar-mesh/isobar/stream/groups"
	"github.com/isobar-mesh/isobar/worker/attempt/wasm"
)

// Server is one running server process.
type Server struct {
	cfg     config.Server
	log     *slog.Logger
	tel     *telemetry.Telemetry
	id      string
	cell    mesh.Cell
	creds   *identity.Credentials
	store   *pebblestore.Store
	state   *state.Replica
	raft    *raftlog.Log
	broker  payloads
	pool    *pool.Pool
	mesh    *peers.Mesh
	peers   *peers.Client
	code    *code.Store
	reg     *registry.Registry
	known   *functionsOf
	spread  *exchange.Exchange
	sched   *scheduler.Scheduler
	streams *stream.Streams
	api     *api.Services
	energy  func() placement.Energy

	apiListener, peerListener net.Listener
	full                      atomic.Bool
	closers                   []func() error
	counters                  counters
	clock                     clockWatch
}

// Run serves until ctx ends, then hands leadership over, stops and returns.
func Run(ctx context.Context, cfg config.Server, log *slog.Logger, tel *telemetry.Telemetry) error {
	s := &Server{cfg: cfg, log: log, tel: tel, clock: clockWatch{wall: time.Now, every: clockEvery}}
	return s.run(ctx)
}

// heapFloor counts as live for the collector, which runs when the heap has grown
// by as much as lives: with little alive, as while tasks end as fast as they come,
// it would run several times a second. It is never touched, so it takes addresses
// and no memory; garbage may take that much more.
const heapFloor = 64 << 20

func (s *Server) run(ctx context.Context) error {
	floor := make([]byte, heapFloor)
	defer runtime.KeepAlive(floor)
	defer s.close()
	if err := s.open(); err != nil {
		return err
	}
	return s.serve(ctx)
}

// later registers what close undoes, in reverse order.
func (s *Server) later(f func() error) { s.closers = append(s.closers, f) }

func (s *Server) close() {
	for _, v := range slices.Backward(s.closers) {
		if err := v(); err != nil && !errors.Is(err, net.ErrClosed) {
			s.log.Warn("not closed cleanly", "error", err)
		}
	}
}

// open builds the parts, each on those before it.
func (s *Server) open() error {
	steps := []func() error{s.openIdentity, s.openListeners, s.openMetrics, s.openState, s.openGossip, s.openMesh, s.openRegistry, s.openScheduler, s.openLog, s.openServices}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("server: start %s: %w", s.cfg.Name, err)
		}
	}
	return nil
}

func (s *Server) openIdentity() error {
	var err error
	if s.creds, err = identity.Load(s.cfg.Mesh, s.cfg.TLS.CA, s.cfg.TLS.Cert, s.cfg.TLS.Key); err != nil {
		return err
	}
	if err := s.creds.Matches(s.cfg.Region, mesh.CellID(s.cfg.Cell), s.cfg.Name, s.cfg.Jurisdictions); err != nil {
		return err
	}
	s.cell = s.creds.Self().Cell
	if err := os.MkdirAll(s.cfg.Data, 0o700); err != nil {
		return err
	}
	s.id, err = raftlog.LoadServerID(filepath.Join(s.cfg.Data, "raft"))
	return err
}

func (s *Server) openListeners() error {
	var err error
	if s.apiListener, err = net.Listen("tcp", s.cfg.API.Address); err != nil {
		return err
	}
	s.later(s.apiListener.Close)
	if s.peerListener, err = net.Listen("tcp", s.cfg.Peer.Address); err != nil {
		return err
	}
	s.later(s.peerListener.Close)
	return nil
}

func (s *Server) openState() error {
	var err error
	if s.store, err = pebblestore.Open(filepath.Join(s.cfg.Data, "state"), pebblestore.Options{Logger: s.log.With("part", "state")}); err != nil {
		return err
	}
	s.later(s.store.Close)
	s.state, err = state.NewReplica(s.store, map[state.MachineID]state.Machine{
		state.SchedulerMachine: fsm.Machine{}, state.BrokerMachine: embedded.Machine{}, state.RegistryMachine: registry.Machine{},
		state.StreamMachine: groups.Machine{},
	}, state.Options{OnApply: s.applied})
	return err
}

// applied looks at what the log brought: effects for the scheduler, documents
// for the exchange.
func (s *Server) applied(at consensus.Position, results []state.GroupResult) {
	s.sched.Observe(at, results)
	s.streams.Observe(results)
	for _, g := range results {
		s.countRefused(g.Err)
		for _, r := range g.Results {
			switch r := r.(type) {
			case *registry.Merged:
				if len(r.Changed) > 0 {
					s.known.forget()
					s.spread.Changed()
				}
			case *fsm.Result:
				s.count(r)
			}
		}
	}
}

// oneWay is the emulated delay towards a region.
func (s *Server) oneWay(region string) time.Duration {
	if !s.cfg.EmulateRTT {
		return 0
	}
	return time.Duration(s.cfg.RTTMs[region] / 2 * float64(time.Millisecond))
}

func (s *Server) openGossip() error {
	timing := pool.DefaultTiming()
	if s.cfg.EmulateRTT {
		timing = pool.DevTiming()
	}
	var err error
	s.pool, err = pool.New(pool.Options{
		Mesh: s.cfg.Mesh, Bind: s.cfg.Gossip.Address, Advertise: s.cfg.Gossip.Advertise, Seeds: s.cfg.Gossip.Join,
		Keys: s.cfg.Gossip.Keys, Timing: timing, Delay: s.oneWay, Logger: s.log.With("part", "gossip"),
		Self: pool.Member{
			ID: s.id, Name: s.cfg.Name, Cell: s.cell.ID, Region: s.cell.Region, PID: os.Getpid(),
			PeerAddress: orAddress(s.cfg.Peer.Advertise, s.peerListener), APIAddress: strings.TrimPrefix(s.apiURL(), "http://"), RaftAddress: s.cfg.Raft.Address,
		},
	})
	if err != nil {
		return err
	}
	s.later(s.pool.Close)
	return nil
}

func orAddress(advertise string, l net.Listener) string {
	if advertise != "" {
		return advertise
	}
	return l.Addr().String()
}

func (s *Server) apiURL() string {
	if s.cfg.API.Advertise != "" {
		return s.cfg.API.Advertise
	}
	return "http://" + s.apiListener.Addr().String()
}

func (s *Server) openMesh() error {
	tracing, err := otelconnect.NewClientInterceptor(s.otel()...)
	if err != nil {
		return err
	}
	s.mesh = peers.NewMesh(s.cell.ID, s.pool)
	s.later(func() error { s.mesh.Close(); return nil })
	var d net.Dialer
	s.peers = peers.NewClient(peers.Options{
		Credentials: s.creds, Directory: s.mesh, Interceptors: []connect.ClientInterceptor{tracing},
		Dial: func(ctx context.Context, region, address string) (net.Conn, error) {
			conn, err := d.DialContext(ctx, "tcp", address)
			if err != nil {
				return nil, err
			}
			if way := s.oneWay(region); way > 0 {
				return delay.Conn(conn, way), nil
			}
			return conn, nil
		},
	})
	s.later(func() error { s.peers.Close(); return nil })
	s.mesh.SetClient(s.peers)
	return nil
}

func (s *Server) otel() []otelconnect.Option {
	return []otelconnect.Option{
		otelconnect.WithTracerProvider(s.tel.TracerProvider()), otelconnect.WithMeterProvider(s.tel.MeterProvider()),
		otelconnect.WithPropagator(s.tel.Propagator()), otelconnect.WithTrustRemote(),
	}
}

func (s *Server) openRegistry() error {
	s.reg = registry.New(s.state.Reader(state.RegistryMachine), registry.Options{Cell: s.cell.ID})
	s.known = newFunctionsOf(s.reg)
	var err error
	s.code, err = code.New(filepath.Join(s.cfg.Data, "code"), code.Options{Sources: s.sources, Log: s.log.With("part", "code")})
	if err != nil {
		return err
	}
	s.later(s.code.Close)
	s.spread = exchange.New(exchange.Options{
		Cell: s.cell.ID, Registry: s.reg, Modules: s.code, Commit: s.commitRegistry, Sync: s.peers.Sync,
		Leading: func() bool { return s.sched.Leading() }, Cells: s.hashes, Members: s.cells, Logger: s.log.With("part", "registry"),
	})
	return nil
}

func (s *Server) commitRegistry(ctx context.Context, command []byte) error {
	out, err := s.raft.Propose(ctx, state.EncodeGroup([]state.Command{{Machine: state.RegistryMachine, Body: command}}))
	if err != nil {
		return err
	}
	res, ok := out.(state.GroupResult)
	if !ok {
		return fmt.Errorf("server: commit documents: unexpected result %T", out)
	}
	return res.Err
}

// hashes lists the other cells with the registry hash of their digests.
func (s *Server) hashes() map[mesh.CellID]uint64 {
	out := map[mesh.CellID]uint64{}
	for _, n := range s.mesh.All() {
		if n.Reachable {
			out[n.ID] = n.Digest.GetRegistry()
		}
	}
	return out
}

// cells lists every cell known, reachable or not.
func (s *Server) cells() []mesh.CellID {
	return cellsOf(s.cell.ID, homesOf(s.cfg.Homes), s.mesh.All())
}

// cellsOf joins what gossip knows, which forgets a cell that was away for a day,
// with the homes, which are written down: a cell that comes back later would
// bring documents back whose tombstones were dropped without it.
func cellsOf(self mesh.CellID, homes []mesh.CellID, known []scheduler.Neighbour) []mesh.CellID {
	out := append([]mesh.CellID{self}, homes...)
	for _, n := range known {
		out = append(out, n.ID)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (s *Server) openScheduler() error {
	feed, err := s.feed()
	if err != nil {
		return err
	}
	s.energy = s.energyOf(feed)
	messages, cache, err := s.openBroker()
	if err != nil {
		return err
	}
	s.streams = stream.New(stream.Options{
		Log: (*lateLog)(s), State: s.state.Reader(state.StreamMachine), Logger: s.log.With("part", "stream"),
		Messages: messages, Wall: s.clock.wall,
	})
	s.sched = scheduler.New(scheduler.Options{
		Cell: s.cell, Log: (*lateLog)(s), State: s.state.Reader(state.SchedulerMachine), Broker: s.broker, PayloadCache: cache, BrokerShared: s.sharers,
		Registry: s.known, Neighbours: s.mesh, Peers: s.peers, Carbon: s.energy, Prices: pricesOf(s.cfg.Prices),
		Policy: placement.Policy{
			CarbonUSDPerTonne: s.cfg.Policy.CarbonPrice, LatencyUSDPerS: s.cfg.Policy.LatencyPrice, DelayUSDPerS: s.cfg.Policy.DelayPrice, QualityUSD: s.cfg.Policy.QualityPrice,
		},
		Links: s.link, Routes: routes(s.cfg.Between), Tracer: s.tracer(), Logger: s.log.With("part", "scheduler"),
		CellLease: s.cfg.Lease.Cell, WorkerLease: s.cfg.Lease.Worker, Renew: s.cfg.Lease.Renew,
		Retention: s.cfg.Retention.Task, Lifetime: s.cfg.Lifetime,
		QueueCap: &meshv1.QueueCap{Count: uint64(s.cfg.Queue.Count), Bytes: uint64(s.cfg.Queue.Bytes), Cost: costMessage(s.cfg.Queue.Cost)},
		OnLead:   s.takeLead, OnResign: s.resign, Full: s.full.Load, Wall: s.clock.wall,
	})
	return nil
}

// takeLead begins a term. A snapshot may have brought documents that nothing was
// told of.
func (s *Server) takeLead(term uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if s.yield(ctx) { // before anything is stamped with its time
		return errBadClock
	}
	s.known.forget()
	if err := s.broker.Lead(term); err != nil {
		return err
	}
	if err := s.setTenants(); err != nil {
		s.log.Error("tenants of the configuration not set", "alarm", true, "error", err)
	}
	s.streams.Lead()
	return nil
}

func (s *Server) resign() {
	s.streams.Resign()
	s.broker.Resign()
}

func (s *Server) link(region string) scheduler.Link {
	_, known := s.cfg.RTTMs[region]
	return scheduler.Link{
		Known:           known,
		RTT:             time.Duration(s.cfg.RTTMs[region] * float64(time.Millisecond)),
		EgressUSDPerGiB: s.cfg.EgressUSDPerGiB[region], ReturnUSDPerGiB: s.cfg.ReturnUSDPerGiB[region],
		NetworkKWhPerGiB: s.cfg.Energy.NetworkKWhPerGiB,
	}
}

// routes are what the configuration tells of the ways between other regions.
type routes config.Between

// Between needs both figures: with one alone the way over this region, of which
// both are known, says more.
func (r routes) Between(from, to string) (placement.Route, bool) {
	usd, ok := r.EgressUSDPerGiB[from][to]
	if !ok {
		return placement.Route{}, false
	}
	ms, ok := r.RTTMs[from][to]
	if !ok {
		ms, ok = r.RTTMs[to][from]
	}
	if !ok {
		return placement.Route{}, false
	}
	return placement.Route{RTT: time.Duration(ms * float64(time.Millisecond)), USDPerGiB: usd}, true
}

// feed opens the carbon feed; nil when none is configured.
func (s *Server) feed() (carbon.Feed, error) {
	c := s.cfg.Carbon
	now := time.Now()
	clock := carbon.Clock{Speed: c.Speed, Epoch: now}
	if c.Epoch != nil {
		clock.Epoch = *c.Epoch
	}
	if c.Clock != nil {
		clock.Start = *c.Clock
	}
	switch {
	case c.File != "":
		table, err := carbon.ReadFile(c.File, carbon.Average)
		if err != nil {
			return nil, err
		}
		if err := table.Require(c.Zone); err != nil {
			return nil, err
		}
		feed, err := carbon.NewLearner(table, clock, now)
		if err != nil {
			return nil, err
		}
		_, err = feed.Ahead(c.Zone, now, hoursAhead) // it learns the past now, and not while the leader waits
		return feed, err
	case c.Generate:
		return carbon.NewPersistence(carbon.NewGenerator(), clock, now)
	default:
		return nil, nil
	}
}

func (s *Server) openLog() error {
	tls := s.creds.ServerTLS(identity.InCell(s.cell.ID))
	tls.RootCAs = tls.ClientCAs
	var err error
	s.raft, err = raftlog.Open(raftlog.Options{
		Dir: filepath.Join(s.cfg.Data, "raft"), ServerID: s.id, Bind: s.cfg.Raft.Address, Advertise: s.cfg.Raft.Advertise,
		TLS: tls, Bootstrap: s.cfg.Bootstrap, MayBootstrap: s.mayBootstrap, Logger: s.log.With("part", "raft"),
		VerifyPeer: s.creds.VerifyLeaf(identity.InCell(s.cell.ID)),
	}, s.state)
	if err != nil {
		return err
	}
	s.later(s.raft.Close)
	return nil
}

// mayBootstrap refuses to make a cell that lives: a server whose directory was
// emptied would begin a second one of the same name, with none of its tasks. It
// asks who can be reached: the cell that is wholly down is not found.
func (s *Server) mayBootstrap() error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	select {
	case <-s.pool.Tried():
	case <-ctx.Done():
	}
	incarnation, at := s.mesh.OwnCell(ctx)
	if incarnation == "" {
		return nil
	}
	return fmt.Errorf("cell %s lives as %s, says its server %s: "+
		"a server with an empty directory joins it: replace bootstrap by join: [%s]", s.cell.ID, incarnation, at.Name, at.Peer)
}

func (s *Server) openServices() error {
	s.api = api.New(api.Options{
		Scheduler: s.sched, Streams: s.streams, Log: s.raft, Mesh: s.peers, Directory: s.mesh, Registry: s.reg, Modules: s.code, Exchange: s.spread,
		CommitRegistry: s.commitRegistry, Spread: s.spreadModule, ValidateModule: wasm.Validate,
		Homes: homesOf(s.cfg.Homes), Members: s.raft.Servers, RTTEmulated: s.cfg.EmulateRTT, Logger: s.log.With("part", "api"),
	})
	return nil
}

func homesOf(names []string) []mesh.CellID {
	var out []mesh.CellID
	for _, n := range names {
		out = append(out, mesh.CellID(n))
	}
	return out
}

func (s *Server) self() *isobarv1.ServerInfo {
	st := s.raft.Status()
	return &isobarv1.ServerInfo{
		Id: s.id, Name: s.cfg.Name, Address: s.apiURL(), Leader: st.Leader.ID == s.id, Voter: true, Pid: int64(os.Getpid()), Alive: true,
	}
}

// serve runs the parts until ctx ends or one of them fails.
func (s *Server) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serveAPI(ctx) })
	g.Go(func() error { return s.servePeers(ctx) })
	g.Go(func() error { return s.sched.Run(ctx) })
	g.Go(func() error { return s.spread.Run(ctx) })
	g.Go(func() error { s.mesh.Greet(ctx, s.log.With("part", "gossip")); return nil })
	g.Go(func() error { s.publish(ctx); return nil })
	g.Go(func() error { s.join(ctx); return nil })
	g.Go(func() error { s.sweepModules(ctx); return nil })
	g.Go(func() error { s.watchClock(ctx); return nil })
	s.log.Info("serving", "api", s.apiURL(), "peer", s.peerListener.Addr().String(), "raft", s.raft.Address(), "gossip", s.pool.Address(), "id", s.id)
	err := g.Wait()
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || err == nil) {
		return nil
	}
	return err
}

// publish tells the mesh about this cell while this server leads it, and
// watches the disk.
func (s *Server) publish(ctx context.Context) {
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for {
		if incarnation := s.sched.Incarnation(); incarnation != "" {
			s.pool.Accept(s.cell.ID, incarnation)
		}
		if d := s.sched.Digest(); d != nil {
			if _, err := s.pool.Publish(d); err != nil {
				s.log.Warn("digest not published", "error", err)
			}
		}
		s.full.Store(s.diskFull())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// fullShare of the cap is where accepts stop; the rest is for work accepted.
const fullShare = 0.8

func (s *Server) diskFull() bool {
	if limit := uint64(s.cfg.Disk.Bytes); limit > 0 {
		stats := s.raft.Stats()
		used := s.store.DiskBytes() + uint64(stats.LogBytes) + uint64(stats.SnapshotBytes)
		if float64(used) > fullShare*float64(limit) {
			return true
		}
	}
	used, ok := diskShare(s.cfg.Data)
	return ok && used > fullShare+0.15 // the disk's own end: 95 %, for others share it
}

// join asks the cell to take this server in, until it is told who leads.
func (s *Server) join(ctx context.Context) {
	for ctx.Err() == nil && !s.cfg.Bootstrap {
		for _, address := range s.cfg.Join {
			call, cancel := context.WithTimeout(ctx, 10*time.Second)
			_, err := s.peers.Member(peers.Server{Cell: s.cell.ID, Region: s.cell.Region, Peer: address}).Join(call,
				&meshv1.JoinRequest{Id: s.id, Address: s.raft.Address()})
			cancel()
			if err == nil {
				s.log.Info("joined the cell", "cell", s.cell.ID, "through", address)
				return
			}
			s.log.Debug("not joined yet", "through", address, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// leaderAddress is where the cell's leader listens, for clients or for peers.
func (s *Server) leaderAddress(of func(peers.Server) string) func() string {
	return func() string {
		leader := s.raft.Status().Leader.ID
		if leader == "" || leader == s.id {
			return ""
		}
		for _, srv := range s.mesh.Servers() {
			if srv.ID == leader {
				return of(srv)
			}
		}
		return ""
	}
}
