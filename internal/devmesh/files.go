package devmesh

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/renameio/v2"

	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/identity"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/internal/meshfile"
)

const (
	authorityLife   = 10 * 365 * 24 * time.Hour
	certificateLife = 365 * 24 * time.Hour
	// workerGrace is how long attempts may go on when the mesh is stopped.
	workerGrace = 3 * time.Second
)

// writeFiles makes everything the processes read. Files of an earlier start are
// replaced, but for the authority and the gossip key, which stay.
func writeFiles(o Options, l layout) error {
	ca, err := authority(o.Data)
	if err != nil {
		return err
	}
	key, err := gossipKey(o.Data)
	if err != nil {
		return err
	}
	if err := write(filepath.Join(o.Data, "ca.pem"), ca.CertPEM(), 0o644); err != nil {
		return err
	}
	for _, s := range l.servers {
		pair, err := ca.Issue(identity.Identity{
			Mesh: MeshName, Server: s.name,
			Cell: mesh.Cell{ID: s.cell, Region: s.region.Name, Jurisdictions: s.region.Jurisdictions},
		}, time.Now(), certificateLife)
		if err != nil {
			return fmt.Errorf("devmesh: make certificate of %s: %w", s.id(), err)
		}
		text, err := yaml.Marshal(serverConfig(o, l, s, key))
		if err != nil {
			return fmt.Errorf("devmesh: write configuration of %s: %w", s.id(), err)
		}
		if err := errors.Join(
			write(filepath.Join(s.dir, "cert.pem"), pair.Cert, 0o644),
			write(filepath.Join(s.dir, "key.pem"), pair.Key, 0o600),
			write(filepath.Join(s.dir, "server.yaml"), text, 0o600), // it holds the gossip key
		); err != nil {
			return err
		}
	}
	for _, w := range l.workers {
		text, err := yaml.Marshal(workerConfig(o, l, w))
		if err != nil {
			return fmt.Errorf("devmesh: write configuration of %s: %w", w.id(), err)
		}
		if err := errors.Join(
			write(filepath.Join(w.dir, "worker.yaml"), text, 0o644),
			write(filepath.Join(w.dir, "accelerators.yaml"), inventory(o, w), 0o644),
		); err != nil {
			return err
		}
	}
	return nil
}

func write(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("devmesh: make directory: %w", err)
	}
	if err := renameio.WriteFile(path, data, mode); err != nil {
		return fmt.Errorf("devmesh: write file: %w", err)
	}
	return nil
}

// authority opens the directory's authority, or makes one.
func authority(dir string) (*identity.Authority, error) {
	keyPath := filepath.Join(dir, "ca-key.pem")
	key, err := os.ReadFile(keyPath)
	if err == nil {
		cert, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
		if err != nil {
			return nil, fmt.Errorf("devmesh: read authority: %w", err)
		}
		return identity.OpenAuthority(MeshName, identity.KeyPair{Cert: cert, Key: key})
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("devmesh: read authority: %w", err)
	}
	ca, err := identity.NewAuthority(MeshName, time.Now(), authorityLife)
	if err != nil {
		return nil, err
	}
	pair, err := ca.KeyPair()
	if err != nil {
		return nil, err
	}
	// The key last: where it is, the certificate is too.
	return ca, errors.Join(write(filepath.Join(dir, "ca.pem"), pair.Cert, 0o644), write(keyPath, pair.Key, 0o600))
}

func gossipKey(dir string) (string, error) {
	path := filepath.Join(dir, "gossip.key")
	key, err := os.ReadFile(path)
	if err == nil {
		return string(key), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("devmesh: read gossip key: %w", err)
	}
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	text := base64.StdEncoding.EncodeToString(raw)
	return text, write(path, []byte(text), 0o600)
}

func serverConfig(o Options, l layout, s server, gossipKey string) config.Server {
	c := config.DefaultServer()
	c.Name, c.Mesh, c.Region, c.Cell = s.name, MeshName, s.region.Name, string(s.cell)
	c.Jurisdictions = s.region.Jurisdictions
	c.Data = filepath.Join(s.dir, "data")
	c.API.Address = address(s.ports.API)
	c.Peer.Address = address(s.ports.Peer)
	c.Raft.Address = address(s.ports.Raft)
	c.Gossip = config.Gossip{Address: address(s.ports.Gossip), Join: []string{}, Keys: []string{gossipKey}}
	c.TLS = config.TLS{
		CA: filepath.Join(o.Data, "ca.pem"), Cert: filepath.Join(s.dir, "cert.pem"), Key: filepath.Join(s.dir, "key.pem"),
	}
	c.Bootstrap = s.first
	for _, other := range l.servers {
		if other.id() == s.id() {
			continue
		}
		c.Gossip.Join = append(c.Gossip.Join, address(other.ports.Gossip))
		if !s.first && other.cell == s.cell {
			c.Join = append(c.Join, address(other.ports.Peer))
		}
	}
	// The mesh's price of a core holds its memory.
	c.Prices = config.Prices{CPUHour: s.region.USDPerCPUHour, GPUs: s.region.USDPerGPUHour}
	c.Energy = config.Energy{
		WattsPerGPU: s.region.WattsPerGPU, PUE: s.region.PUE, NetworkKWhPerGiB: o.Mesh.NetworkKWhPerGiB,
		IdleWattsPerCPU: s.region.IdleWattsPerCPU, IdleWattsPerGPU: s.region.IdleWattsPerGPU, WattsPerGiB: s.region.WattsPerGiB,
		EmbodiedGPerCPUHour: s.region.EmbodiedGPerCPUHour, EmbodiedGPerGPUHour: s.region.EmbodiedGPerGPUHour,
	}
	if s.region.WattsPerCPU != nil {
		c.Energy.WattsPerCPU = *s.region.WattsPerCPU
	}
	c.Carbon = config.Carbon{
		Zone: s.region.Zone, File: o.CarbonFile, Generate: o.CarbonFile == "", Clock: o.CarbonClock, Epoch: o.CarbonEpoch, Speed: o.CarbonSpeed,
	}
	for _, r := range o.Mesh.Regions {
		c.Homes = append(c.Homes, string(cellOf(r.Name)))
		if r.Name == s.region.Name {
			continue
		}
		c.EgressUSDPerGiB[r.Name] = o.Mesh.EgressUSDPerGiB(s.region.Name, r.Name)
		c.ReturnUSDPerGiB[r.Name] = o.Mesh.EgressUSDPerGiB(r.Name, s.region.Name)
		c.RTTMs[r.Name], _ = o.Mesh.RTTMs(s.region.Name, r.Name)
	}
	c.Between = between(o.Mesh, s.region.Name)
	if o.Policy != nil {
		c.Policy = *o.Policy
	}
	if b, ok := o.Brokers[s.region.Name]; ok {
		c.Broker.Kind, c.Broker.Service, c.Broker.Admin = "pulsar", b.Service, b.Admin
		for _, r := range o.Mesh.Regions {
			if other, ok := o.Brokers[r.Name]; ok && r.Name != s.region.Name && other == b {
				c.Broker.SharedWith[r.Name] = r.Jurisdictions
			}
		}
	}
	c.EmulateRTT = len(c.RTTMs) > 0
	c.OTLP.Endpoint = o.OTLP
	return c
}

// between is what lies between the regions other than this one.
func between(m *meshfile.Mesh, own string) config.Between {
	b := config.Between{RTTMs: map[string]map[string]float64{}, EgressUSDPerGiB: map[string]map[string]float64{}}
	for _, from := range m.Regions {
		rtt, egress := map[string]float64{}, map[string]float64{}
		for _, to := range m.Regions {
			if from.Name == own || to.Name == own || from.Name == to.Name {
				continue
			}
			if ms, ok := m.RTTMs(from.Name, to.Name); ok && from.Name < to.Name {
				rtt[to.Name] = ms
			}
			egress[to.Name] = m.EgressUSDPerGiB(from.Name, to.Name)
		}
		if len(rtt) > 0 {
			b.RTTMs[from.Name] = rtt
		}
		if len(egress) > 0 {
			b.EgressUSDPerGiB[from.Name] = egress
		}
	}
	return b
}

func workerConfig(o Options, l layout, w worker) config.Worker {
	c := config.DefaultWorker()
	c.Name = w.name
	c.Servers = nil
	for _, s := range l.of(w.region.Name) {
		c.Servers = append(c.Servers, s.apiURL())
	}
	c.Data = filepath.Join(w.dir, "data")
	c.CPU, c.MemoryMiB = o.CPU, o.MemoryMiB
	if !math.IsInf(w.region.CPU, 1) {
		c.CPU = w.region.CPU
	}
	if !math.IsInf(w.region.MemoryGiB, 1) {
		c.MemoryMiB = int64(w.region.MemoryGiB * 1024)
	}
	c.CPU /= float64(o.Workers)
	c.MemoryMiB = max(c.MemoryMiB/int64(o.Workers), 1)
	c.Accelerators = filepath.Join(w.dir, "accelerators.yaml")
	c.Grace = workerGrace
	c.OTLP.Endpoint = o.OTLP
	return c
}

// inventory declares a worker's share of the region's accelerators; the first
// workers get what does not divide.
func inventory(o Options, w worker) []byte {
	out := []byte("# Declared by the mesh file, not found on this machine. Their memory is not\n# in the mesh file and nothing depends on it here.\n")
	index := 0
	if _, err := fmt.Sscanf(w.name, "w%d", &index); err != nil || len(w.region.GPUs) == 0 {
		return append(out, "accelerators: []\n"...)
	}
	var lines strings.Builder
	for _, model := range slices.Sorted(maps.Keys(w.region.GPUs)) {
		n := w.region.GPUs[model] / int64(o.Workers)
		if int64(index) <= w.region.GPUs[model]%int64(o.Workers) {
			n++
		}
		if n > 0 {
			_, _ = fmt.Fprintf(&lines, "  - {model: %s, count: %d, memory_gib: 1}\n", model, n)
		}
	}
	if lines.Len() == 0 {
		return append(out, "accelerators: []\n"...)
	}
	return append(out, "accelerators:\n"+lines.String()...)
}
