package devmesh

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/goccy/go-yaml"
	"github.com/google/renameio/v2"

	"github.com/isobar-mesh/isobar/internal/loopback"
	"github.com/isobar-mesh/isobar/internal/strictyaml"
)

// ErrPort is wrapped by the error for a port that something else uses.
var ErrPort = errors.New("the port is in use")

// savedLayout keeps the ports across starts: a server's Raft address is part of
// its cell's durable configuration.
type savedLayout struct {
	Servers map[string]ports `yaml:"servers"`
}

const layoutFile = "layout.yaml"

func assignPorts(o Options, servers []server) error {
	path := filepath.Join(o.Data, layoutFile)
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		return reusePorts(path, data, servers)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("devmesh: read layout: %w", err)
	}
	if o.AutoPorts {
		err = freePorts(servers)
	} else {
		err = fixedPorts(servers)
	}
	if err != nil {
		return err
	}
	saved := savedLayout{Servers: map[string]ports{}}
	for _, s := range servers {
		saved.Servers[s.id()] = s.ports
	}
	out, err := yaml.Marshal(saved)
	if err != nil {
		return fmt.Errorf("devmesh: write layout: %w", err)
	}
	if err := renameio.WriteFile(path, out, 0o644); err != nil {
		return fmt.Errorf("devmesh: write layout: %w", err)
	}
	return nil
}

func reusePorts(path string, data []byte, servers []server) error {
	var saved savedLayout
	if _, err := strictyaml.Decode(path, data, &saved); err != nil {
		return fmt.Errorf("devmesh: read layout: %w", err)
	}
	if len(saved.Servers) != len(servers) {
		return fmt.Errorf("devmesh: continue %s: it holds a mesh of %d servers, not %d: %w",
			filepath.Dir(path), len(saved.Servers), len(servers), ErrOptions)
	}
	for i := range servers {
		p, ok := saved.Servers[servers[i].id()]
		if !ok {
			return fmt.Errorf("devmesh: continue %s: it holds a mesh without server %s: %w", filepath.Dir(path), servers[i].id(), ErrOptions)
		}
		servers[i].ports = p
	}
	return checkPorts(servers)
}

// fixedPorts gives the first region 7101 and up, the next 7201, and so on; peer,
// Raft and gossip lie 20, 40 and 60 above the API.
func fixedPorts(servers []server) error {
	region, member, last := -1, 0, ""
	for i := range servers {
		if servers[i].region.Name != last {
			region, member, last = region+1, 0, servers[i].region.Name
		}
		api := 7101 + 100*region + member
		servers[i].ports = ports{API: api, Peer: api + 20, Raft: api + 40, Gossip: api + 60}
		member++
	}
	return checkPorts(servers)
}

// checkPorts turns a port that something else uses into an error now, with its
// number, instead of a process that ends a moment later.
func checkPorts(servers []server) error {
	for _, s := range servers {
		for _, port := range s.ports.all() {
			if err := loopback.Check(port); err != nil {
				return fmt.Errorf("devmesh: check port %d for %s: %w: %w", port, s.id(), ErrPort, err)
			}
		}
	}
	return nil
}

func freePorts(servers []server) error {
	free, err := loopback.Free(4 * len(servers))
	if err != nil {
		return fmt.Errorf("devmesh: %w", err)
	}
	for i := range servers {
		servers[i].ports = ports{API: free[4*i], Peer: free[4*i+1], Raft: free[4*i+2], Gossip: free[4*i+3]}
	}
	return nil
}
