// Package scheduler is one server's part of a cell's scheduler: the leader's
// loop that admits, dispatches, leases, hands off and runs effects, and the
// doors through which the API reaches it.
//
// What is true is in scheduler/fsm, behind the replicated log; what is here is
// memory of one term of leadership (type leader) and is rebuilt from the state
// by the next leader. The package decides with placement, proposes to
// consensus, keeps payloads in the broker and reaches other cells through
// Peers; it knows no Raft, no Pulsar, no memberlist and no HTTP.
//
// To its peers a cell is a big worker: the same lease, extend, complete and
// fail serve a worker of this cell and another cell.
package scheduler

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
)

// Options are what a Scheduler stands on. Every field without a default is
// required.
type Options struct {
	// Cell is this cell, as its certificate proves it.
	Cell mesh.Cell
	// Log and State are two sides of one replica: what is proposed to Log is
	// read from State once applied. State reads the scheduler's machine.
	Log   consensus.Log
	State state.Reader
	// Broker keeps payloads.
	Broker broker.Broker
	// PayloadCache is how many bytes of payloads the leader keeps in memory
	// between accept and lease, for a broker that is slow to fetch one. 0 keeps
	// none.
	PayloadCache int
	// BrokerShared are the other regions, with their jurisdictions, whose cells
	// keep payloads in the same broker. While not all are known, what has a
	// residency is refused for now.
	BrokerShared func() (cells []mesh.Cell, known bool)
	// Functions and tenants.
	Registry Registry
	// Neighbours are the other cells as gossip and certificates show them.
	Neighbours Neighbours
	// Peers carries messages to other cells.
	Peers Peers
	// Carbon tells this region's intensity; its first value is the present hour.
	Carbon func() placement.Energy
	// Prices of this cell's resources.
	Prices placement.Prices
	// Policy prices carbon, latency and quality.
	Policy placement.Policy
	// Links tells price and distance from this region to another.
	Links func(region string) Link
	// Routes tells the same between two other regions, for inputs of tasks; nil
	// knows none.
	Routes placement.Routes
	// Tracer follows leases; nil follows nothing.
	Tracer Tracer
	Logger *slog.Logger

	// Wall is this server's calendar. Default time.Now; only a test of bad clocks
	// sets another.
	Wall func() time.Time

	// CellLease is how long another cell holds a task without an extend.
	// Default 10 s: it outlasts an election (about 1 s) and four lost extends.
	CellLease time.Duration
	// WorkerLease is the same for a worker; it ends before the cell's. Default 6 s.
	WorkerLease time.Duration
	// Renew is how often leases are extended. Default 2 s: three fit a worker's lease.
	Renew time.Duration
	// Retention is how long an ended task, its result and its keys are kept.
	// Default 24 h.
	Retention time.Duration
	// Lifetime bounds every task that has no nearer deadline. Default 7 days.
	Lifetime time.Duration
	// QueueCap bounds each queue (tenant, function, lane). Default 100,000
	// tasks and 1 GiB of payloads.
	QueueCap *meshv1.QueueCap
	// OnLead runs when a term of leadership begins, before anything is accepted
	// in it; OnResign when it has ended. Either may be nil.
	OnLead   func(term uint64) error
	OnResign func()
	// Full reports whether the disk is too full to accept; nil never is.
	Full func() bool
}

// Link is what lies between this region and another.
type Link struct {
	Known           bool          // the region is configured
	RTT             time.Duration // used until Neighbours have measured it
	EgressUSDPerGiB float64
	// NetworkKWhPerGiB is the energy of a GiB, either way.
	NetworkKWhPerGiB float64
	ReturnUSDPerGiB  float64
}

// Registry is where functions and tenants are looked up; reads only.
type Registry interface {
	// Function returns the version the name points at now.
	Function(tenant, name string) (*isobarv1.Function, error)
	// Gone reports whether no function has the name: it was deleted.
	Gone(tenant, name string) bool
	// Version returns a version by digest.
	Version(digest string) (*isobarv1.Function, error)
	// Tenant returns the tenant's document: its residency, weight and bounds.
	Tenant(name string) (*meshv1.Tenant, error)
	// Hash of all documents.
	Hash() uint64
}

// Neighbours are the other cells.
type Neighbours interface {
	// All returns what is known of every other cell, sorted by cell.
	All() []Neighbour
	// Changed receives after a change.
	Changed() <-chan struct{}
}

// Neighbour is one other cell.
type Neighbour struct {
	mesh.Cell
	// Verified: the cell's identity was read from its certificate.
	Verified bool
	// Reachable: some server of it is alive, by gossip.
	Reachable bool
	Digest    *meshv1.Digest
	Received  time.Time
	RTT       time.Duration
}

// Peers carries the messages between cells; it finds the leader of the cell
// that is asked. Errors are ErrPeerUnavailable when nobody answered.
type Peers interface {
	Offer(ctx context.Context, to mesh.CellID, r *meshv1.OfferRequest) (*meshv1.OfferResponse, error)
	Extend(ctx context.Context, to mesh.CellID, r *meshv1.GuestExtendRequest) (*meshv1.GuestExtendResponse, error)
	Report(ctx context.Context, to mesh.CellID, r *meshv1.ReportRequest) (*meshv1.ReportResponse, error)
	Payload(ctx context.Context, to mesh.CellID, r *meshv1.PayloadRequest) (*meshv1.PayloadResponse, error)
	Invoke(ctx context.Context, to mesh.CellID, r *meshv1.CellInvokeRequest) (*meshv1.CellInvokeResponse, error)
}

// Tracer follows a lease through the cells.
type Tracer interface {
	// Lease opens the span of one lease under the parent's W3C trace context;
	// it returns the context for the holder and what closes the span.
	Lease(parent string, l LeaseInfo) (traceparent string, end func(outcome string))
	// Planned notes under the task's trace context that its start was put off.
	Planned(parent string, p PlanInfo)
}

// PlanInfo is what a trace says of a start that was put off by choice.
type PlanInfo struct {
	Record   *meshv1.TaskRecord
	Until    time.Time
	Decision *placement.Decision
}

// LeaseInfo is what a lease's span says.
type LeaseInfo struct {
	Name     string // "isobar.lease", "isobar.guest"
	Record   *meshv1.TaskRecord
	Guest    *meshv1.GuestRecord
	Attempt  uint64
	Cell     mesh.CellID // where it runs
	Worker   string
	Variant  string
	Decision *placement.Decision
	Held     []*isobarv1.Held // what held a task up before
}

// ErrNotLeader: another server of the cell leads, or none does.
var ErrNotLeader = errors.New("this server does not lead its cell")

// ErrNotTaken: the other cell did not take the call, or never saw it.
var ErrNotTaken = errors.New("the other cell did not take it")

// ErrPeerUnavailable: no server of the other cell answered.
var ErrPeerUnavailable = errors.New("the other cell does not answer")

// Scheduler is one server's scheduler. Its methods are safe for concurrent use.
type Scheduler struct {
	Options
	mu      sync.Mutex
	leader  *leader // nil while another server leads
	changed chan struct{}
	learned *learned
}

// New makes a scheduler; Run starts it. Observe must be wired to the replica
// before the log starts.
func New(o Options) *Scheduler {
	o.CellLease = defaulted(o.CellLease, 10*time.Second)
	o.WorkerLease = defaulted(o.WorkerLease, 6*time.Second)
	o.Renew = defaulted(o.Renew, 2*time.Second)
	o.Retention = defaulted(o.Retention, 24*time.Hour)
	o.Lifetime = defaulted(o.Lifetime, 7*24*time.Hour)
	if o.QueueCap == nil {
		o.QueueCap = &meshv1.QueueCap{Count: 100_000, Bytes: 1 << 30}
	}
	if o.Wall == nil {
		o.Wall = time.Now
	}
	if o.Tracer == nil {
		o.Tracer = noTracer{}
	}
	if o.BrokerShared == nil {
		o.BrokerShared = func() ([]mesh.Cell, bool) { return nil, true }
	}
	return &Scheduler{Options: o, changed: make(chan struct{}), learned: newLearned()}
}

func defaulted(d, or time.Duration) time.Duration {
	if d == 0 {
		return or
	}
	return d
}

type noTracer struct{}

func (noTracer) Lease(parent string, _ LeaseInfo) (string, func(string)) {
	return parent, func(string) {}
}

func (noTracer) Planned(string, PlanInfo) {}

// Observe hands over what the replica applied, in log order. Only a leader
// looks: on other servers, and on replay, effects are void.
func (s *Scheduler) Observe(_ consensus.Position, results []state.GroupResult) {
	l := s.current()
	if l == nil {
		return
	}
	for _, g := range results {
		for _, r := range g.Results {
			if res, ok := r.(*fsm.Result); ok && len(res.Effects) > 0 {
				l.observe(res.Effects)
			}
		}
	}
}

// Run leads whenever the log says so, until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error {
	for {
		if s.Log.Status().Role == consensus.Leader {
			if err := s.lead(ctx); err != nil && ctx.Err() == nil {
				s.Logger.Warn("leadership ended", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.Log.Changes():
		case <-time.After(time.Second):
			// A change may have been taken by lead; look again.
		}
	}
}

// lead serves one term: barrier, rebuild, then the loop.
func (s *Scheduler) lead(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	term := s.Log.Status().Term
	if err := s.Log.Barrier(ctx); err != nil {
		return fmt.Errorf("scheduler: take the lead: %w", err)
	}
	incarnation, err := s.bootstrap(ctx)
	if err != nil {
		return err
	}
	if s.OnLead != nil {
		if err := s.OnLead(term); err != nil {
			return fmt.Errorf("scheduler: take the lead: %w", err)
		}
	}
	if s.OnResign != nil {
		defer s.OnResign()
	}
	l := newLeader(ctx, s, term, incarnation)
	// Effects of commands applied from here on are observed; what was applied
	// before is found in the state.
	s.set(l)
	defer s.set(nil)
	l.rebuild()
	s.Logger.Info("leading", "cell", s.Cell.ID, "term", term, "incarnation", incarnation)
	return l.run()
}

// bootstrap mints the cell's incarnation if it has none.
func (s *Scheduler) bootstrap(ctx context.Context) (string, error) {
	if inc := fsm.Incarnation(s.State); inc != "" {
		return inc, nil
	}
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand.Read aborts the program instead
	inc := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))[:6]
	cmd := &meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Bootstrap{
		Bootstrap: &meshv1.Bootstrap{Cell: string(s.Cell.ID), Incarnation: inc},
	}}
	if _, err := s.propose(ctx, cmd); err != nil {
		return "", fmt.Errorf("scheduler: bootstrap cell %s: %w", s.Cell.ID, err)
	}
	return fsm.Incarnation(s.State), nil
}

func (s *Scheduler) current() *leader {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leader
}

func (s *Scheduler) set(l *leader) {
	s.mu.Lock()
	s.leader = l
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
}

// leading returns the leader of this term or ErrNotLeader.
func (s *Scheduler) leading() (*leader, error) {
	if l := s.current(); l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("scheduler: cell %s: %w", s.Cell.ID, ErrNotLeader)
}

// Leading reports whether this server leads and has caught up.
func (s *Scheduler) Leading() bool { return s.current() != nil }

// Incarnation of the cell; "" until its first leader.
func (s *Scheduler) Incarnation() string { return fsm.Incarnation(s.State) }

// propose commits one command, with others for other machines in its group,
// and returns the result of the last.
func (s *Scheduler) propose(ctx context.Context, cmd *meshv1.SchedulerCommand, before ...state.Command) (*fsm.Result, error) {
	body, err := proto.Marshal(cmd)
	if err != nil {
		return nil, fmt.Errorf("scheduler: encode command: %w", err)
	}
	results, err := s.proposeGroup(ctx, append(before, state.Command{Machine: state.SchedulerMachine, Body: body}))
	if err != nil {
		return nil, err
	}
	last, ok := results[len(results)-1].(*fsm.Result)
	if !ok {
		return nil, fmt.Errorf("scheduler: apply command: unexpected result %T", results[len(results)-1])
	}
	return last, nil
}

// proposeGroup commits a group and returns the result of each command.
func (s *Scheduler) proposeGroup(ctx context.Context, group []state.Command) ([]any, error) {
	out, err := s.Log.Propose(ctx, state.EncodeGroup(group))
	if err != nil {
		return nil, err
	}
	res, ok := out.(state.GroupResult)
	if !ok {
		return nil, fmt.Errorf("scheduler: apply command: unexpected result %T", out)
	}
	return res.Results, res.Err
}
