package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry"
)

// deployWithin is how long a function may take to be runnable everywhere. The
// promise is 5 s; a machine at its limit gets more before the run fails.
const (
	deployWithin = 30 * time.Second
	deployPoll   = 100 * time.Millisecond
)

// deploy deploys a function from its manifest and waits until every cell can
// run it. It returns the spec as deployed, and how long all took.
func deploy(ctx context.Context, c *client.Client, o options, name string) (*isobarv1.FunctionSpec, time.Duration, error) {
	manifest, err := os.ReadFile(filepath.Join(o.examples, name, name+".yaml"))
	if err != nil {
		return nil, 0, fmt.Errorf("deploy %s: %w", name, err)
	}
	spec, modules, err := registry.ParseManifest(manifest, o.modules)
	if err != nil {
		return nil, 0, fmt.Errorf("deploy %s: %w", name, err)
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, deployWithin, errors.New("not runnable everywhere in "+deployWithin.String()))
	defer cancel()
	res, err := c.Deploy(ctx, &isobarv1.DeployRequest{Spec: spec, Modules: modules})
	if err != nil {
		return nil, 0, fmt.Errorf("deploy %s: %w", name, err)
	}
	cells := res.GetCells()
	ticker := time.NewTicker(deployPoll)
	defer ticker.Stop()
	for {
		waiting := notReady(cells)
		if waiting == "" {
			return spec, time.Since(begin), nil
		}
		select {
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("deploy %s: %w: %s", name, context.Cause(ctx), waiting)
		case <-ticker.C:
		}
		got, err := c.GetFunction(ctx, &isobarv1.FunctionServiceGetRequest{Name: name})
		switch {
		case err == nil:
			cells = got.GetCells()
		case ctx.Err() == nil:
			return nil, 0, fmt.Errorf("deploy %s: %w", name, err)
		}
	}
}

// notReady names a cell that cannot run the function yet, and why; "" when all
// can.
func notReady(cells []*isobarv1.CellReadiness) string {
	if len(cells) == 0 {
		return "no cell answered yet"
	}
	for _, c := range cells {
		if !c.GetReady() {
			return c.GetCell() + ": " + c.GetMessage()
		}
	}
	return ""
}
