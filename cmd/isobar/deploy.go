package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry"
	"github.com/isobar-mesh/isobar/registry/digest"
)

// deployFlags describe a function of one variant without a manifest.
type deployFlags struct {
	exec, wasm, http string
	jurisdictions    []string
	cpu              float64
	memoryMiB        int64
	gpus             int64
	gpuModel         string
	quality          float64
	runTimeout       time.Duration
	env              []string
	wait             bool
}

func newDeploy(a *app) *cobra.Command {
	var f deployFlags
	c := &cobra.Command{
		Use:   "deploy FILE.yaml | NAME --exec COMMAND | NAME --wasm FILE | NAME --http URL",
		Short: "Deploy a function, from a manifest or one command",
		Example: `  isobar deploy upper --exec 'tr a-z A-Z'
  isobar deploy thumbnail --wasm thumbnail.wasm --memory-mib 256
  isobar deploy summarise.yaml`,
		Args: args(1, 1),
	}
	flags := c.Flags()
	flags.StringVar(&f.exec, "exec", "", "a command, run without a shell: reads the payload on stdin, writes the result on stdout")
	flags.StringVar(&f.wasm, "wasm", "", "a WASI module")
	flags.StringVar(&f.http, "http", "", "a URL that the payload is POSTed to")
	flags.StringSliceVar(&f.jurisdictions, "jurisdictions", nil, "where the URL's endpoint lies (with --http)")
	flags.Float64Var(&f.cpu, "cpu", 0, "cores of one run (default 1)")
	flags.Int64Var(&f.memoryMiB, "memory-mib", 0, "memory of one run (default 128)")
	flags.Int64Var(&f.gpus, "gpus", 0, "accelerators of one run")
	flags.StringVar(&f.gpuModel, "gpu-model", "", "their model (default any)")
	flags.Float64Var(&f.quality, "quality", 0, "of its answers, 0 to 1 (default 1)")
	flags.DurationVar(&f.runTimeout, "run-timeout", 0, "longest run of one attempt (default 1m)")
	flags.StringArrayVar(&f.env, "env", nil, "NAME=VALUE of its environment; repeat for more")
	flags.BoolVar(&f.wait, "wait", false, "until it can run in every region")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		req, err := f.request(cmd, args[0])
		if err != nil {
			return err
		}
		if a.tenant != "" {
			req.Spec.Tenant = a.tenant
		}
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Deploy(ctx, req)
			if err != nil {
				return err
			}
			if f.wait {
				return a.waitDeployed(ctx, c, res)
			}
			return a.printDeployed(res)
		})
	}
	return c
}

func (f *deployFlags) request(cmd *cobra.Command, arg string) (*isobarv1.DeployRequest, error) {
	given := 0
	for _, name := range []string{"exec", "wasm", "http"} {
		if cmd.Flags().Changed(name) {
			given++
		}
	}
	ext := strings.ToLower(filepath.Ext(arg))
	isFile := ext == ".yaml" || ext == ".yml"
	switch {
	case isFile && given == 0:
		return f.fromFile(cmd, arg)
	case isFile:
		return nil, usage("a manifest says itself what to run", "leave --exec, --wasm and --http out, or give a name instead of "+arg)
	case given != 1:
		return nil, usage("nothing says what "+arg+" runs", "give one of --exec, --wasm or --http, or a manifest FILE.yaml")
	}
	return f.fromFlags(arg)
}

func (f *deployFlags) fromFile(cmd *cobra.Command, path string) (*isobarv1.DeployRequest, error) {
	for _, name := range []string{"jurisdictions", "cpu", "memory-mib", "gpus", "gpu-model", "quality", "run-timeout", "env"} {
		if cmd.Flags().Changed(name) {
			return nil, usage("--"+name+" does not go with a manifest", "write it into "+path)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, hinted(exitUsage, fmt.Errorf("read manifest: %w", err), "give the path of a YAML file")
	}
	spec, modules, err := registry.ParseManifest(data, filepath.Dir(path))
	if err != nil {
		return nil, hinted(exitUsage, fmt.Errorf("%s: %w", path, err), "docs/functions.md describes manifests")
	}
	return &isobarv1.DeployRequest{Spec: spec, Modules: modules}, nil
}

func (f *deployFlags) fromFlags(name string) (*isobarv1.DeployRequest, error) {
	v := &isobarv1.Variant{
		Name: "default", Quality: f.quality, Jurisdictions: f.jurisdictions,
		Resources: &isobarv1.Resources{Cpu: f.cpu, MemoryMib: f.memoryMiB, Gpus: f.gpus, GpuModel: f.gpuModel},
	}
	req := &isobarv1.DeployRequest{Spec: &isobarv1.FunctionSpec{Name: name, Variants: []*isobarv1.Variant{v}}}
	if f.runTimeout != 0 {
		req.Spec.Timeout = durationpb.New(f.runTimeout)
	}
	for _, kv := range f.env {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			return nil, usage(fmt.Sprintf("--env %q is not NAME=VALUE", kv), "for instance --env LANG=C.UTF-8")
		}
		if req.Spec.Env == nil {
			req.Spec.Env = map[string]string{}
		}
		req.Spec.Env[key] = value
	}
	if len(f.jurisdictions) > 0 && f.http == "" {
		return nil, usage("--jurisdictions goes with --http", "other code runs in the cell's own jurisdictions")
	}
	switch {
	case f.http != "":
		v.Runtime, v.Url = "http", f.http
	case f.wasm != "":
		module, err := os.ReadFile(f.wasm)
		if err != nil {
			return nil, hinted(exitUsage, fmt.Errorf("read module: %w", err), "give the path of a .wasm file")
		}
		v.Runtime, v.Module = "wasm", digest.Of(module)
		req.Modules = [][]byte{module}
	default:
		words, err := splitCommand(f.exec)
		if err != nil {
			return nil, hinted(exitUsage, fmt.Errorf("read --exec %q: %w", f.exec, err), "quote what belongs to a word, or run a shell: --exec \"sh -c 'a | b'\"")
		}
		if len(words) == 0 {
			return nil, usage("--exec is empty", "for instance --exec 'tr a-z A-Z'")
		}
		v.Runtime, v.Command = "exec", words
	}
	return req, nil
}

// readyEvery is how often --wait asks.
const readyEvery = 100 * time.Millisecond

func (a *app) waitDeployed(ctx context.Context, c *client.Client, res *isobarv1.DeployResponse) error {
	spec := res.GetFunction().GetSpec()
	ticker := time.NewTicker(readyEvery)
	defer ticker.Stop()
	for notReady(res.GetCells()) != "" {
		select {
		case <-ctx.Done():
			return hinted(exitRunning, fmt.Errorf("%s is deployed, but cannot run in %s yet", spec.GetName(), notReady(res.GetCells())),
				"it goes on by itself; see `isobar function get "+spec.GetName()+"`")
		case <-ticker.C:
		}
		got, err := c.GetFunction(ctx, &isobarv1.FunctionServiceGetRequest{Tenant: spec.GetTenant(), Name: spec.GetName()})
		switch {
		case err == nil:
			res = &isobarv1.DeployResponse{Function: got.GetFunction(), Cells: got.GetCells()}
		case ctx.Err() == nil:
			return err
		}
	}
	return a.printDeployed(res)
}

func notReady(cells []*isobarv1.CellReadiness) string {
	for _, c := range cells {
		if !c.GetReady() {
			return c.GetCell()
		}
	}
	return ""
}

func (a *app) printDeployed(res *isobarv1.DeployResponse) error {
	if a.json() {
		return a.printJSON(res)
	}
	fn := res.GetFunction()
	fmt.Fprintf(a.stdout, "%s %s\n", fn.GetSpec().GetName(), fn.GetVersion())
	a.printReadiness(res.GetCells())
	return nil
}

func (a *app) printReadiness(cells []*isobarv1.CellReadiness) {
	rows := [][]string{{"CELL", "READY", ""}}
	for _, c := range cells {
		ready := "yes"
		if !c.GetReady() {
			ready = "not yet"
		}
		rows = append(rows, []string{c.GetCell(), ready, c.GetMessage()})
	}
	table(a.stdout, rows)
}
