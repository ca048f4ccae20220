package devmesh

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// ErrNotReady is wrapped by the error when the mesh was not ready in time.
var ErrNotReady = errors.New("the mesh is not ready")

const (
	askEvery   = 100 * time.Millisecond
	askTimeout = 5 * time.Second
)

// waitReady asks every server until each sees a whole mesh.
func waitReady(ctx context.Context, o Options, l layout) error {
	ctx, cancel := context.WithTimeout(ctx, o.ReadyTimeout)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(l.servers))
	for i, s := range l.servers {
		wg.Go(func() { errs[i] = waitServer(ctx, o, s) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("devmesh: wait for the mesh: %w: %w", ErrNotReady, err)
	}
	return nil
}

func waitServer(ctx context.Context, o Options, s server) error {
	c, err := client.New([]string{s.apiURL()}, client.WithPatience(0))
	if err != nil {
		return err
	}
	defer c.Close()
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	missing := "not asked yet"
	for {
		missing = ask(ctx, c, o, s, missing)
		if missing == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %s", s.id(), missing)
		case <-ticker.C:
		}
	}
}

func ask(ctx context.Context, c *client.Client, o Options, s server, before string) string {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	res, err := c.Cells(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return before // what was missing says more than that time ran out
	case err != nil:
		return err.Error()
	}
	return missing(o, s, res)
}

// missing says what the server does not see yet; "" when its view is whole.
func missing(o Options, s server, res *isobarv1.CellsResponse) string {
	seen := map[string]*isobarv1.CellInfo{}
	for _, c := range res.GetCells() {
		seen[c.GetCell()] = c
	}
	for _, r := range o.Mesh.Regions {
		id := string(cellOf(r.Name))
		c := seen[id]
		switch {
		case c == nil:
			return "does not see " + id
		case c.GetHealth() != "ok":
			return fmt.Sprintf("sees %s as %q", id, c.GetHealth())
		case c.GetWorkers() == 0 && c.GetTotal().GetCpu() == 0:
			return "sees no worker in " + id
		case len(c.GetJurisdictions()) != len(r.Jurisdictions):
			return "has not seen the certificate of " + id
		}
		if r.Name == s.region.Name {
			if why := missingServers(o, c); why != "" {
				return why
			}
		}
	}
	return ""
}

func missingServers(o Options, c *isobarv1.CellInfo) string {
	voters, leaders := 0, 0
	for _, s := range c.GetServers() {
		if s.GetVoter() {
			voters++
		}
		if s.GetLeader() {
			leaders++
		}
	}
	switch {
	case voters != o.Servers:
		return fmt.Sprintf("sees %d of %d voting servers in its cell", voters, o.Servers)
	case leaders != 1:
		return "sees no leader in its cell"
	default:
		return ""
	}
}
