package devmesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"

	"github.com/goccy/go-yaml"
	"github.com/google/renameio/v2"

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
			held, err := hold(port)
			if err != nil {
				return fmt.Errorf("devmesh: check port %d for %s: %w: %w", port, s.id(), ErrPort, err)
			}
			closeAll(held)
		}
	}
	return nil
}

func freePorts(servers []server) error {
	var held []io.Closer
	defer func() { closeAll(held) }() // all are held until all are found: none is given twice
	for i := range servers {
		p := &servers[i].ports
		for _, port := range []*int{&p.API, &p.Peer, &p.Raft, &p.Gossip} {
			got, closers, err := holdFree()
			if err != nil {
				return err
			}
			*port = got
			held = append(held, closers...)
		}
	}
	return nil
}

// Automatic ports lie below those that the system gives to outgoing connections
// (from 32768 on Linux, from 49152 on macOS): a server that is away must find its
// port free when it comes back, and a peer that dials it meanwhile must not reach
// itself.
const (
	firstAutoPort = 10240
	endAutoPorts  = 32768
)

func holdFree() (int, []io.Closer, error) {
	// A port free for TCP may be taken for UDP; another try finds another.
	var last error
	for range 200 {
		port := firstAutoPort + rand.IntN(endAutoPorts-firstAutoPort)
		held, err := hold(port)
		if err == nil {
			return port, held, nil
		}
		last = err
	}
	return 0, nil, fmt.Errorf("devmesh: find a free port: %w", last)
}

func hold(port int) ([]io.Closer, error) {
	var listen net.ListenConfig
	l, err := listen.Listen(context.Background(), "tcp", address(port))
	if err != nil {
		return nil, err
	}
	u, err := listen.ListenPacket(context.Background(), "udp", address(port))
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return []io.Closer{l, u}, nil
}

func closeAll(cs []io.Closer) {
	for _, c := range cs {
		_ = c.Close()
	}
}
