package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/identity"
	"github.com/isobar-mesh/isobar/internal/loopback"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/internal/server"
	"github.com/isobar-mesh/isobar/internal/telemetry"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

const (
	benchMesh   = "bench"
	benchRegion = "bench"
	benchCell   = "bench-1"
	function    = "noop"
)

// cell is a running cell of whole servers.
type cell struct {
	// leader is the API address of the server that led when the cell was ready.
	leader string
	client *client.Client
	stop   context.CancelFunc
	ended  chan error
	n      int
}

// startCell runs n servers and returns when all vote and the function is
// deployed. change, when not nil, changes each one's configuration.
func startCell(ctx context.Context, o options, n int, change func(*config.Server)) (*cell, error) {
	dir, err := os.MkdirTemp(o.dir, "cell-")
	if err != nil {
		return nil, err
	}
	configs, err := serverConfigs(dir, n)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	c := &cell{stop: stop, ended: make(chan error, n), n: n}
	for _, cfg := range configs {
		if change != nil {
			change(&cfg)
		}
		tel, err := telemetry.New(ctx, telemetry.Options{Service: "isobar-server", Instance: cfg.Name})
		if err != nil {
			stop()
			return nil, err
		}
		go func() { c.ended <- server.Run(ctx, cfg, o.log.With("server", cfg.Name), tel) }()
	}
	if err := c.ready(ctx, configs); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// close stops the servers and waits for them.
func (c *cell) close() error {
	c.stop()
	if c.client != nil {
		c.client.Close()
	}
	var err error
	for range c.n {
		err = errors.Join(err, <-c.ended)
	}
	return err
}

// ready waits for a leader and n voters.
func (c *cell) ready(ctx context.Context, configs []config.Server) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	first, err := client.New([]string{configs[0].API.Address})
	if err != nil {
		return err
	}
	defer first.Close()
	for c.leader == "" {
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("wait for %d servers to vote: %w", c.n, err)
		}
		res, err := first.Cells(ctx)
		if err != nil {
			continue
		}
		c.leader = leaderOf(res, c.n)
	}
	if c.client, err = client.New([]string{c.leader}); err != nil {
		return err
	}
	for {
		// The lead may not be taken up yet.
		_, err := c.client.Deploy(ctx, noopFunction())
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("deploy: %w", err)
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// leaderOf is the address of the cell's leader, once n servers vote.
func leaderOf(res *isobarv1.CellsResponse, n int) string {
	voters, leader := 0, ""
	for _, info := range res.Cells {
		for _, s := range info.Servers {
			if s.Voter && s.Alive {
				voters++
			}
			if s.Leader {
				leader = s.Address
			}
		}
	}
	if voters < n {
		return ""
	}
	return leader
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// noopModule is a WASI module whose _start returns at once.
func noopModule() []byte {
	return []byte{
		0x00, 'a', 's', 'm', 0x01, 0x00, 0x00, 0x00,
		0x01, 0x04, 0x01, 0x60, 0x00, 0x00, // type: () -> ()
		0x03, 0x02, 0x01, 0x00, // one function of it
		0x05, 0x03, 0x01, 0x00, 0x01, // one page of memory
		0x07, 0x13, 0x02, // exports
		0x06, '_', 's', 't', 'a', 'r', 't', 0x00, 0x00,
		0x06, 'm', 'e', 'm', 'o', 'r', 'y', 0x02, 0x00,
		0x0a, 0x04, 0x01, 0x02, 0x00, 0x0b, // its body
	}
}

func moduleDigest() string {
	sum := sha256.Sum256(noopModule())
	return "sha256:" + hex.EncodeToString(sum[:])
}

func noopFunction() *isobarv1.DeployRequest {
	return &isobarv1.DeployRequest{
		Spec: &isobarv1.FunctionSpec{
			Name: function, Timeout: durationpb.New(10 * time.Second),
			Variants: []*isobarv1.Variant{{
				Name: "only", Runtime: "wasm", Module: moduleDigest(), Resources: &isobarv1.Resources{Cpu: 0.01, MemoryMib: 1},
				Run: durationpb.New(time.Millisecond),
			}},
		},
		Modules: [][]byte{noopModule()},
	}
}

// serverConfigs writes certificates and makes the configurations of n servers.
func serverConfigs(dir string, n int) ([]config.Server, error) {
	ca, err := identity.NewAuthority(benchMesh, time.Now(), 24*time.Hour)
	if err != nil {
		return nil, err
	}
	caFile := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(caFile, ca.CertPEM(), 0o600); err != nil {
		return nil, err
	}
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	ports, err := freePorts(4 * n)
	if err != nil {
		return nil, err
	}
	var out []config.Server
	for i := range n {
		cfg := config.DefaultServer()
		cfg.Name, cfg.Mesh, cfg.Region, cfg.Cell = fmt.Sprintf("s%d", i+1), benchMesh, benchRegion, benchCell
		cfg.Data = filepath.Join(dir, cfg.Name)
		cfg.API.Address, cfg.Peer.Address = ports[4*i], ports[4*i+1]
		cfg.Raft.Address, cfg.Gossip.Address = ports[4*i+2], ports[4*i+3]
		cfg.Gossip.Keys = []string{base64.StdEncoding.EncodeToString(raw)}
		cfg.Bootstrap = i == 0
		if i > 0 {
			cfg.Gossip.Join, cfg.Join = []string{ports[3]}, []string{ports[1]}
		}
		pair, err := ca.Issue(identity.Identity{
			Mesh: benchMesh, Server: cfg.Name, Cell: mesh.Cell{ID: benchCell, Region: benchRegion},
		}, time.Now(), 24*time.Hour)
		if err != nil {
			return nil, err
		}
		cfg.TLS = config.TLS{CA: caFile, Cert: filepath.Join(dir, cfg.Name+".pem"), Key: filepath.Join(dir, cfg.Name+"-key.pem")}
		if err := errors.Join(os.WriteFile(cfg.TLS.Cert, pair.Cert, 0o600), os.WriteFile(cfg.TLS.Key, pair.Key, 0o600)); err != nil {
			return nil, err
		}
		out = append(out, cfg)
	}
	return out, nil
}

// freePorts finds loopback addresses nothing listens on.
func freePorts(n int) ([]string, error) {
	ports, err := loopback.Free(n)
	var out []string
	for _, port := range ports {
		out = append(out, loopback.Address(port))
	}
	return out, err
}
