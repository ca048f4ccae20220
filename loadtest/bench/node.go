package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isobar-mesh/isobar/broker/embedded"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/consensus/raftlog"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/state/pebblestore"
)

// node is a server without its doors: state, log and scheduler, for what can be
// timed from the inside only.
type node struct {
	id    string // in the log
	store *pebblestore.Store
	state *state.Replica
	raft  *raftlog.Log
	sched *scheduler.Scheduler
	stop  context.CancelFunc
	ended chan error
}

// nodes is a cell of them.
type nodes []*node

// startNodes runs a cell of n nodes and returns when all vote.
func startNodes(ctx context.Context, o options, n int, extra map[state.MachineID]state.Machine) (cell nodes, err error) {
	dir, err := os.MkdirTemp(o.dir, "nodes-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, cell.close())
		}
	}()
	for i := range n {
		x, err := startNode(ctx, o, filepath.Join(dir, fmt.Sprint(i)), i == 0, extra)
		if err != nil {
			return cell, err
		}
		cell = append(cell, x)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for cell[0].raft.Status().Role != consensus.Leader {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return cell, err
		}
	}
	for _, x := range cell[1:] {
		if err := cell[0].raft.Join(ctx, consensus.Server{ID: x.id, Address: x.raft.Address()}); err != nil {
			return cell, err
		}
	}
	for cell.voters() < n {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return cell, err
		}
	}
	return cell, nil
}

func (c nodes) voters() (n int) {
	list, err := c[0].raft.Servers()
	if err != nil {
		return 0
	}
	for _, s := range list {
		if s.Voter {
			n++
		}
	}
	return n
}

func (c nodes) close() error {
	var err error
	for _, x := range c {
		err = errors.Join(err, x.close())
	}
	return err
}

func startNode(ctx context.Context, o options, dir string, first bool, extra map[state.MachineID]state.Machine) (*node, error) {
	x := &node{ended: make(chan error, 1)}
	var err error
	if x.store, err = pebblestore.Open(filepath.Join(dir, "state"), pebblestore.Options{}); err != nil {
		return nil, err
	}
	mounts := map[state.MachineID]state.Machine{state.SchedulerMachine: fsm.Machine{}, state.BrokerMachine: embedded.Machine{}}
	maps.Copy(mounts, extra)
	x.state, err = state.NewReplica(x.store, mounts, state.Options{OnApply: func(at consensus.Position, results []state.GroupResult) {
		x.sched.Observe(at, results)
	}})
	if err != nil {
		return nil, errors.Join(err, x.store.Close())
	}
	payloads := embedded.New(x.state.Reader(state.BrokerMachine), embedded.Options{})
	late := &lateLog{}
	x.sched = scheduler.New(scheduler.Options{
		Cell: mesh.Cell{ID: benchCell, Region: benchRegion}, Log: late, State: x.state.Reader(state.SchedulerMachine), Broker: payloads,
		Registry: oneFunction{}, Neighbours: alone{}, Peers: alone{},
		Carbon: func() placement.Energy { return placement.Energy{WattsPerCPU: 3.5, PUE: 1.1} },
		Links:  func(string) scheduler.Link { return scheduler.Link{} }, Logger: o.log,
		QueueCap: &meshv1.QueueCap{Count: 1 << 30, Bytes: 1 << 40}, OnLead: payloads.Lead, OnResign: payloads.Resign,
	})
	if x.id, err = raftlog.LoadServerID(filepath.Join(dir, "raft")); err == nil {
		x.raft, err = raftlog.Open(raftlog.Options{
			Dir: filepath.Join(dir, "raft"), ServerID: x.id, Bind: "127.0.0.1:0", Bootstrap: first, Logger: o.log,
		}, x.state)
	}
	if err != nil {
		return nil, errors.Join(err, x.store.Close())
	}
	late.Log = x.raft
	ctx, x.stop = context.WithCancel(ctx)
	go func() { x.ended <- x.sched.Run(ctx) }()
	return x, nil
}

func (x *node) close() error {
	x.stop()
	return errors.Join(<-x.ended, x.raft.Close(), x.store.Close())
}

// lateLog is the log for the scheduler, which must exist before the log is
// opened.
type lateLog struct{ consensus.Log }

// oneFunction is a registry of the one function.
type oneFunction struct{}

func (oneFunction) Function(string, string) (*isobarv1.Function, error) {
	return &isobarv1.Function{Spec: noopFunction().Spec, Version: "v1"}, nil
}

func (f oneFunction) Version(string) (*isobarv1.Function, error) { return f.Function("", "") }

func (oneFunction) Tenant(string) (*meshv1.Tenant, error) { return &meshv1.Tenant{}, nil }

func (oneFunction) Gone(string, string) bool { return false }

func (oneFunction) Hash() uint64 { return 1 }

// alone is a mesh of one cell.
type alone struct{ scheduler.Peers }

func (alone) All() []scheduler.Neighbour { return nil }

func (alone) Changed() <-chan struct{} { return nil }

// nothing is a machine that keeps nothing.
type nothing struct{}

func (nothing) Apply(state.Tx, []byte) (any, error) { return struct{}{}, nil }

// logFloor is how many groups a second the log alone commits, of a machine that
// does nothing with them.
func logFloor(ctx context.Context, o options, n int) (rate float64, err error) {
	const floorMachine state.MachineID = 'f'
	cell, err := startNodes(ctx, o, n, map[state.MachineID]state.Machine{floorMachine: nothing{}})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, cell.close()) }()
	group := state.EncodeGroup([]state.Command{{Machine: floorMachine, Body: make([]byte, 512)}})
	var count atomic.Int64
	var failed atomic.Pointer[error]
	var wait sync.WaitGroup
	start := time.Now()
	for range o.inFlight {
		wait.Go(func() {
			for time.Since(start) < o.span/2 && failed.Load() == nil {
				if _, err := cell[0].raft.Propose(ctx, group); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				count.Add(1)
			}
		})
	}
	wait.Wait()
	if p := failed.Load(); p != nil {
		return 0, *p
	}
	return float64(count.Load()) / time.Since(start).Seconds(), nil
}
