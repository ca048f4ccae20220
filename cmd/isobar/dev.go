package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/devmesh"
	"github.com/isobar-mesh/isobar/internal/meshfile"
	"github.com/isobar-mesh/isobar/worker/accel"
)

// devFlags are those of `isobar dev`.
type devFlags struct {
	servers, workers          int
	ports, data, mesh         string
	carbon, carbonClock, otlp string
	carbonSpeed               float64
	policy                    config.Policy
	brokers                   []string
	readyTimeout              time.Duration
}

func newDev(a *app) *cobra.Command {
	var f devFlags
	c := &cobra.Command{
		Use: "dev", Short: "Run a mesh of three regions on this machine",
		Long: `Runs a mesh on this machine, on loopback only: every server and worker is a process of
its own, regions talk over the network, and the round trips between them are emulated.
The line "isobar dev: ready" means that every API answers, each region sees the others,
and a task can be submitted. An interrupt stops all.

Without --data everything lies in a temporary directory that is removed at the end.`,
		Example: `  isobar dev
  isobar dev --servers 3 --data ./mesh
  isobar dev --carbon intensity.csv.gz --carbon-clock 2022-06-01T00:00:00Z --carbon-speed 3600`,
		Args: args(0, 0),
	}
	flags := c.Flags()
	flags.IntVar(&f.servers, "servers", 1, "servers in each cell: 1, 3 or 5")
	flags.IntVar(&f.workers, "workers", 1, "workers in each cell")
	flags.StringVar(&f.ports, "ports", "fixed", "fixed: APIs from 7101, 7201, 7301; auto: free ones")
	flags.StringVar(&f.data, "data", "", "keep everything in this directory, and go on with what it holds")
	flags.StringVar(&f.mesh, "mesh", "", "the mesh to run; see `isobar config mesh` (default that one)")
	flags.StringVar(&f.carbon, "carbon", "", "CSV or gzip of carbon intensity, a column a zone (default generated)")
	flags.StringVar(&f.carbonClock, "carbon-clock", "", "the feed's time at the start (default now; with --carbon its first hour)")
	flags.Float64Var(&f.carbonSpeed, "carbon-speed", 1, "seconds of the feed that pass in one second")
	policy := config.DefaultServer().Policy
	flags.Float64Var(&f.policy.CarbonPrice, "carbon-price", policy.CarbonPrice, "USD for a tonne of CO2eq, to placement")
	flags.Float64Var(&f.policy.DelayPrice, "delay-price", policy.DelayPrice, "USD for a second that a start is put off by choice, to placement")
	flags.Float64Var(&f.policy.LatencyPrice, "latency-price", policy.LatencyPrice, "USD for a second until the answer, to placement")
	flags.Float64Var(&f.policy.QualityPrice, "quality-price", policy.QualityPrice, "USD for 1.0 of quality lost, to placement")
	flags.StringArrayVar(&f.brokers, "broker", nil, "REGION=URL: keep the region's payloads in an Apache Pulsar; repeatable (`make pulsar` starts one)")
	flags.StringVar(&f.otlp, "otlp", "", "send all traces to this URL, such as http://127.0.0.1:4318")
	flags.DurationVar(&f.readyTimeout, "ready-timeout", time.Minute, "how long the mesh may take to get ready")
	c.RunE = func(cmd *cobra.Command, _ []string) error { return a.runDev(cmd.Context(), f) }
	return c
}

func (a *app) runDev(ctx context.Context, f devFlags) error {
	opts, err := f.options()
	if err != nil {
		return err
	}
	if f.data == "" {
		if opts.Data, err = os.MkdirTemp("", "isobar-dev-"); err != nil {
			return failed("set TMPDIR, or give --data DIR", "make data directory: %w", err)
		}
		defer os.RemoveAll(opts.Data) //nolint:errcheck // what is left is in the temporary directory
	} else {
		if err := os.MkdirAll(f.data, 0o700); err != nil {
			return failed("give another --data", "make data directory: %w", err)
		}
		if opts.Data, err = filepath.Abs(f.data); err != nil {
			return failed("give another --data", "find data directory: %w", err)
		}
	}
	return devmesh.Run(ctx, opts, a.stdout, a.stderr, hurry(ctx))
}

// hurry closes at the second interrupt.
func hurry(ctx context.Context) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		<-ctx.Done()
		again := make(chan os.Signal, 1)
		signal.Notify(again, os.Interrupt, syscall.SIGTERM)
		<-again
		close(out)
	}()
	return out
}

func (f devFlags) options() (devmesh.Options, error) {
	opts := devmesh.Options{
		Servers: f.servers, Workers: f.workers, CarbonSpeed: f.carbonSpeed, OTLP: f.otlp, ReadyTimeout: f.readyTimeout, Env: os.Environ(),
		Policy: &f.policy,
	}
	switch f.ports {
	case "fixed":
	case "auto":
		opts.AutoPorts = true
	default:
		return opts, usage(fmt.Sprintf("unknown --ports %q", f.ports), "use --ports fixed or --ports auto")
	}
	var err error
	if opts.Brokers, err = brokersOf(f.brokers); err != nil {
		return opts, err
	}
	if f.mesh == "" {
		opts.Mesh, err = meshfile.Default()
	} else {
		opts.Mesh, err = readMesh(f.mesh)
	}
	if err != nil {
		return opts, hinted(exitUsage, err, "`isobar config mesh` prints a mesh to start from")
	}
	if opts.Binary, err = os.Executable(); err != nil {
		return opts, failed("run isobar by its path", "find this program: %w", err)
	}
	host, err := accel.Host()
	if err != nil {
		return opts, failed("give cpu and memory_gib in a mesh file with --mesh", "find the host's resources: %w", err)
	}
	// The regions are emulated places of full size: each offers the processors
	// that there are, and a share of half the memory, which runs out for real.
	opts.CPU = max(float64(host.CPUMilli)/1000, 1)
	opts.MemoryMiB = max(host.MemoryMiB/2/int64(len(opts.Mesh.Regions)), 256)
	return opts, f.feed(&opts)
}

// brokersOf reads REGION=pulsar://host:port, with ",http://host:port" behind it
// where the admin API is not at the host's port 8080.
func brokersOf(list []string) (map[string]devmesh.Broker, error) {
	out := map[string]devmesh.Broker{}
	for _, entry := range list {
		region, url, ok := strings.Cut(entry, "=")
		service, admin, has := strings.Cut(url, ",")
		rest, known := strings.CutPrefix(service, "pulsar://")
		host, _, port := strings.Cut(rest, ":")
		if !ok || region == "" || !known || !port {
			return nil, usage(fmt.Sprintf("--broker %q is not REGION=pulsar://host:port", entry), "write --broker eu-north=pulsar://127.0.0.1:6650,http://127.0.0.1:8080")
		}
		if !has {
			admin = "http://" + host + ":8080"
		}
		if _, twice := out[region]; twice {
			return nil, usage(fmt.Sprintf("--broker gives %s two brokers", region), "give each region one")
		}
		out[region] = devmesh.Broker{Service: service, Admin: admin}
	}
	return out, nil
}

func (f devFlags) feed(opts *devmesh.Options) error {
	if f.carbon != "" {
		path, err := filepath.Abs(f.carbon)
		if err != nil {
			return failed("give another --carbon", "find carbon file: %w", err)
		}
		opts.CarbonFile = path
	}
	clock := f.carbonClock
	if clock == "" && f.carbon != "" {
		var err error
		if clock, err = firstHour(f.carbon); err != nil {
			return hinted(exitUsage, fmt.Errorf("read carbon file: %w", err), "it is CSV, or gzip of it: datetime_utc and a column a zone")
		}
	}
	if clock == "" {
		return nil
	}
	t, err := time.Parse(time.RFC3339, clock)
	if err != nil {
		return usage(fmt.Sprintf("--carbon-clock %q is not a time", clock), "write 2022-06-01T00:00:00Z")
	}
	opts.CarbonClock = &t
	return nil
}

// firstHour reads the time of a feed's first row.
func firstHour(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }() // only read
	in := bufio.NewReader(file)
	if magic, err := in.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		unzipped, err := gzip.NewReader(in)
		if err != nil {
			return "", err
		}
		in = bufio.NewReader(unzipped)
	}
	for range 2 { // the header, then the first row
		line, err := in.ReadString('\n')
		if err != nil && (err != io.EOF || line == "") {
			return "", err
		}
		if word, _, _ := strings.Cut(line, ","); strings.TrimSpace(word) != "datetime_utc" {
			return strings.TrimSpace(word), nil
		}
	}
	return "", io.ErrUnexpectedEOF
}
