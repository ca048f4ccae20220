// Package devmesh runs a whole mesh on one machine for development: it makes
// an authority, certificates and a gossip key, writes one YAML file for each
// process, starts every server and worker as a process of the same binary on
// loopback only, and waits until the mesh can take work.
//
// Nothing is shared between regions but the network: each process could run
// elsewhere with the same file. Processes that end are reported, never started
// again. All end with the one that runs this package, however that ends: on
// Linux the kernel kills them, elsewhere each watches its standard input.
//
// Everything lies in one data directory:
//
//	ca.pem ca-key.pem gossip.key layout.yaml
//	REGION/SERVER/{server.yaml,cert.pem,key.pem,log,data/}
//	REGION/WORKER/{worker.yaml,accelerators.yaml,log,data/}
package devmesh

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/internal/meshfile"
)

// MeshName is the name in the certificates of a development mesh.
const MeshName = "dev"

// Options describe a mesh to run.
type Options struct {
	// Mesh must be Runnable.
	Mesh *meshfile.Mesh
	// Servers in each cell: 1, 3 or 5.
	Servers int
	// Workers in each cell, 1 or more.
	Workers int
	// Data is an existing directory. One that held a mesh before continues it,
	// on the ports it had.
	Data string
	// AutoPorts takes free ports instead of the fixed ones.
	AutoPorts bool
	// CarbonFile is a feed's file; "" generates intensities.
	CarbonFile string
	// CarbonClock is the feed's time at the start; nil is the present.
	CarbonClock *time.Time
	// CarbonEpoch is the wall time at which the feed stands at CarbonClock, the same
	// for all servers, whenever each starts; nil is the start of the mesh.
	CarbonEpoch *time.Time
	// CarbonSpeed is how many seconds of the feed pass in one.
	CarbonSpeed float64
	// Policy prices what is not money in every cell; nil is the servers' default.
	Policy *config.Policy
	// Brokers are the Pulsar clusters of regions; the others keep payloads in
	// their cell's log.
	Brokers map[string]Broker
	// OTLP is where all processes send traces; "" is nowhere.
	OTLP string
	// CPU in cores and MemoryMiB that each region's workers offer together
	// where the mesh sets none.
	CPU       float64
	MemoryMiB int64
	// Binary is the program, Env its environment.
	Binary string
	Env    []string
	// ReadyTimeout is how long the mesh may take to get ready.
	ReadyTimeout time.Duration
}

// Broker is a Pulsar cluster: its service and admin URLs.
type Broker struct{ Service, Admin string }

// ErrOptions is wrapped by the error for options that make no mesh.
var ErrOptions = errors.New("bad options")

func (o Options) check() error {
	switch {
	case o.Servers != 1 && o.Servers != 3 && o.Servers != 5:
		return fmt.Errorf("devmesh: check servers: must be 1, 3 or 5 in a cell, got %d: %w", o.Servers, ErrOptions)
	case o.Workers < 1 || o.Workers > 20:
		return fmt.Errorf("devmesh: check workers: must be 1 to 20 in a cell, got %d: %w", o.Workers, ErrOptions)
	case !(o.CarbonSpeed > 0):
		return fmt.Errorf("devmesh: check carbon speed: must be above 0, got %v: %w", o.CarbonSpeed, ErrOptions)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Brokers)) {
		if !slices.ContainsFunc(o.Mesh.Regions, func(r meshfile.Region) bool { return r.Name == name }) {
			return fmt.Errorf("devmesh: check brokers: the mesh has no region %q: %w", name, ErrOptions)
		}
	}
	if p := o.Policy; p != nil && !(p.CarbonPrice >= 0 && p.LatencyPrice >= 0 && p.DelayPrice >= 0 && p.QualityPrice >= 0) {
		return fmt.Errorf("devmesh: check policy: prices must be 0 or more, got %+v: %w", *p, ErrOptions)
	}
	if err := o.Mesh.Runnable(); err != nil {
		return fmt.Errorf("devmesh: check mesh: %w: %w", err, ErrOptions)
	}
	return nil
}

// server is one server process to be.
type server struct {
	region meshfile.Region
	cell   mesh.CellID
	name   string
	ports  ports
	first  bool // of its cell
	dir    string
}

// ports of one server, all on 127.0.0.1.
type ports struct {
	API    int `yaml:"api"`
	Peer   int `yaml:"peer"`
	Raft   int `yaml:"raft"`
	Gossip int `yaml:"gossip"`
}

func (p ports) all() [4]int { return [...]int{p.API, p.Peer, p.Raft, p.Gossip} }

func (s server) id() string     { return s.region.Name + "/" + s.name }
func (s server) apiURL() string { return "http://" + address(s.ports.API) }

// worker is one worker process to be.
type worker struct {
	region meshfile.Region
	name   string
	dir    string
}

func (w worker) id() string { return w.region.Name + "/" + w.name }

func address(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// cellOf names a region's cell.
func cellOf(region string) mesh.CellID { return mesh.CellID(region + "-1") }

// layout is every process of a mesh, regions in the mesh's order.
type layout struct {
	servers []server
	workers []worker
}

func (l layout) of(region string) []server {
	var out []server
	for _, s := range l.servers {
		if s.region.Name == region {
			out = append(out, s)
		}
	}
	return out
}

// plan lays the mesh out, on the ports it had if the directory knows any.
func plan(o Options) (layout, error) {
	var l layout
	for _, r := range o.Mesh.Regions {
		for i := range o.Servers {
			name := "s" + strconv.Itoa(i+1)
			l.servers = append(l.servers, server{
				region: r, cell: cellOf(r.Name), name: name, first: i == 0, dir: filepath.Join(o.Data, r.Name, name),
			})
		}
		for i := range o.Workers {
			name := "w" + strconv.Itoa(i+1)
			l.workers = append(l.workers, worker{region: r, name: name, dir: filepath.Join(o.Data, r.Name, name)})
		}
	}
	return l, assignPorts(o, l.servers)
}
