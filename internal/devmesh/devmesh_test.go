package devmesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/identity"
	"github.com/isobar-mesh/isobar/internal/meshfile"
	"github.com/isobar-mesh/isobar/worker/accel"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

const childVariable = "DEVMESH_TEST_CHILD"

// TestMain is also the program that the tests start as servers and workers.
func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case "fail":
		fmt.Fprintln(os.Stderr, "cannot go on")
		os.Exit(3)
	case "idle": // until its standard input closes
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	default:
		os.Exit(m.Run())
	}
}

func options(t *testing.T, child string) Options {
	t.Helper()
	m, err := meshfile.Default()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Mesh: m, Servers: 1, Workers: 1, Data: t.TempDir(), AutoPorts: true, CarbonSpeed: 1, CPU: 2, MemoryMiB: 512,
		Binary: binary, Env: []string{childVariable + "=" + child}, ReadyTimeout: 500 * time.Millisecond,
	}
}

func none(string) (string, bool) { return "", false }

func TestEveryFileIsValid(t *testing.T) {
	t.Parallel()
	o := options(t, "")
	o.Servers, o.Workers = 3, 2
	l, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFiles(o, l); err != nil {
		t.Fatal(err)
	}
	if len(l.servers) != 9 || len(l.workers) != 6 {
		t.Fatalf("%d servers, %d workers", len(l.servers), len(l.workers))
	}
	used := map[int]string{}
	bootstraps := 0
	for _, s := range l.servers {
		cfg, err := config.LoadServer(filepath.Join(s.dir, "server.yaml"), none, nil)
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Bootstrap {
			bootstraps++
		} else if len(cfg.Join) != 2 {
			t.Errorf("%s joins %v, want the two others of its cell", s.id(), cfg.Join)
		}
		creds, err := identity.Load(cfg.Mesh, cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key)
		if err != nil {
			t.Fatal(err)
		}
		if err := creds.Matches(cfg.Region, s.cell, cfg.Name, cfg.Jurisdictions); err != nil {
			t.Error(err)
		}
		if !cfg.EmulateRTT || len(cfg.RTTMs) != 2 || len(cfg.Gossip.Join) != 8 {
			t.Errorf("%s: round trips %v, gossip %v", s.id(), cfg.RTTMs, cfg.Gossip.Join)
		}
		for _, port := range s.ports.all() {
			if other, ok := used[port]; ok {
				t.Errorf("port %d is given to %s and %s", port, other, s.id())
			}
			used[port] = s.id()
		}
		for _, a := range []string{cfg.API.Address, cfg.Peer.Address, cfg.Raft.Address, cfg.Gossip.Address} {
			if !config.Loopback(a) {
				t.Errorf("%s listens on %s", s.id(), a)
			}
		}
	}
	if bootstraps != 3 {
		t.Errorf("%d servers bootstrap, want one in each cell", bootstraps)
	}
	for _, w := range l.workers {
		cfg, err := config.LoadWorker(filepath.Join(w.dir, "worker.yaml"), none, nil)
		if err != nil {
			t.Fatal(err)
		}
		if cfg.CPU != 1 || cfg.MemoryMiB != 256 || len(cfg.Servers) != 3 {
			t.Errorf("%s offers %v cores, %d MiB to %v", w.id(), cfg.CPU, cfg.MemoryMiB, cfg.Servers)
		}
		if _, err := accel.Load(cfg.Accelerators); err != nil {
			t.Error(err)
		}
	}
}

// Regions whose brokers are one cluster know of each other.
func TestBrokers(t *testing.T) {
	t.Parallel()
	o := options(t, "")
	one, two := Broker{"pulsar://127.0.0.1:1", "http://127.0.0.1:2"}, Broker{"pulsar://127.0.0.1:3", "http://127.0.0.1:4"}
	o.Brokers = map[string]Broker{"eu-north": one, "us-east": one, "ap-south": two}
	l, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFiles(o, l); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"eu-north": "pulsar pulsar://127.0.0.1:1 map[us-east:[us]]", "us-east": "pulsar pulsar://127.0.0.1:1 map[eu-north:[eu se]]", "ap-south": "pulsar pulsar://127.0.0.1:3 map[]"}
	for _, s := range l.servers {
		cfg, err := config.LoadServer(filepath.Join(s.dir, "server.yaml"), none, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(cfg.Broker.Kind, " ", cfg.Broker.Service, " ", cfg.Broker.SharedWith); got != want[s.region.Name] {
			t.Errorf("%s: broker %s, want %s", s.id(), got, want[s.region.Name])
		}
	}
	o.Brokers["mars"] = one
	if err := o.check(); !errors.Is(err, ErrOptions) {
		t.Errorf("a broker of no region: %v", err)
	}
}

func TestPricesAndTripsComeFromTheMesh(t *testing.T) {
	t.Parallel()
	o := options(t, "")
	l, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(l.servers, func(s server) bool { return s.region.Name == "ap-south" })
	cfg := serverConfig(o, l, l.servers[i], "key")
	if cfg.EgressUSDPerGiB["eu-north"] != 0.086 || cfg.ReturnUSDPerGiB["eu-north"] != 0.02 || cfg.RTTMs["us-east"] != 186 ||
		cfg.Prices.CPUHour != 0.0505 || cfg.Prices.MemoryGiBHour != 0 || cfg.Carbon.Zone != "IN-MH" || !cfg.Carbon.Generate {
		t.Errorf("got %+v", cfg)
	}
	// And what lies between the two others, for inputs that are there.
	out, home := cfg.Between.EgressUSDPerGiB, cfg.Between.RTTMs
	there, _ := o.Mesh.RTTMs("eu-north", "us-east")
	if len(out) != 2 || out["eu-north"]["us-east"] != o.Mesh.EgressUSDPerGiB("eu-north", "us-east") || len(out["eu-north"]) != 1 ||
		len(home) != 1 || home["eu-north"]["us-east"] != there || there == 0 {
		t.Errorf("between the others: %+v", cfg.Between)
	}
}

func TestPortsStayAcrossStarts(t *testing.T) {
	t.Parallel()
	o := options(t, "")
	first, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	again, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range first.servers {
		if first.servers[i].ports != again.servers[i].ports {
			t.Errorf("%s moved from %+v to %+v", first.servers[i].id(), first.servers[i].ports, again.servers[i].ports)
		}
	}
	o.Servers = 3
	if _, err := plan(o); !errors.Is(err, ErrOptions) {
		t.Errorf("a mesh of 3 servers was continued as one of 9: %v", err)
	}
}

func TestFixedPorts(t *testing.T) {
	t.Parallel()
	o := options(t, "")
	servers := make([]server, 0, 9)
	for _, r := range o.Mesh.Regions {
		for range 3 {
			servers = append(servers, server{region: r})
		}
	}
	if err := fixedPorts(servers); err != nil && !errors.Is(err, ErrPort) { // a mesh may be running here
		t.Fatal(err)
	}
	var apis []int
	for _, s := range servers {
		apis = append(apis, s.ports.API)
	}
	if want := []int{7101, 7102, 7103, 7201, 7202, 7203, 7301, 7302, 7303}; !slices.Equal(apis, want) {
		t.Errorf("APIs %v, want %v", apis, want)
	}
	if got, want := servers[1].ports, (ports{API: 7102, Peer: 7122, Raft: 7142, Gossip: 7162}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestUsedPortIsNamed(t *testing.T) {
	t.Parallel()
	o := options(t, "")
	l, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", address(l.servers[1].ports.Raft))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := plan(o); !errors.Is(err, ErrPort) || !strings.Contains(err.Error(), fmt.Sprint(l.servers[1].ports.Raft)) {
		t.Errorf("error %v, want the port's number", err)
	}
}

func TestAuthorityAndKeyStay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var certs, keys []string
	for range 2 {
		ca, err := authority(dir)
		if err != nil {
			t.Fatal(err)
		}
		key, err := gossipKey(dir)
		if err != nil {
			t.Fatal(err)
		}
		certs, keys = append(certs, string(ca.CertPEM())), append(keys, key)
	}
	if certs[0] != certs[1] || keys[0] != keys[1] {
		t.Error("a second start made another authority or key")
	}
	for _, secret := range []string{"ca-key.pem", "gossip.key"} {
		info, err := os.Stat(filepath.Join(dir, secret))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", secret, info.Mode())
		}
	}
}

func TestInventoryGivesEachAcceleratorOnce(t *testing.T) {
	t.Parallel()
	o := Options{Workers: 3}
	r := meshfile.Region{Name: "a", GPUs: map[string]int64{"H100": 7, "T4": 1}}
	total := map[string]int64{}
	for i := 1; i <= 3; i++ {
		inv, err := accel.Parse(inventory(o, worker{region: r, name: fmt.Sprintf("w%d", i)}))
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range inv.Accelerators {
			total[a.Model] += a.Count
		}
	}
	if total["H100"] != 7 || total["T4"] != 1 {
		t.Errorf("workers share %v", total)
	}
}

func TestChildEnv(t *testing.T) {
	t.Parallel()
	got := childEnv([]string{"PATH=/bin", "ISOBAR_API_ADDRESS=0.0.0.0:1", "ISOBAR_LOG_LEVEL=debug", "ISOBAR_SERVER=x"})
	if want := []string{"PATH=/bin", "ISOBAR_LOG_LEVEL=debug"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	o := options(t, "")
	s := server{region: o.Mesh.Regions[0]}
	whole := func() *isobarv1.CellsResponse {
		res := &isobarv1.CellsResponse{}
		for _, r := range o.Mesh.Regions {
			res.Cells = append(res.Cells, &isobarv1.CellInfo{
				Cell: string(cellOf(r.Name)), Jurisdictions: r.Jurisdictions, Health: "ok", Workers: 1,
				Servers: []*isobarv1.ServerInfo{{Voter: true, Leader: true}},
			})
		}
		return res
	}
	for _, c := range []struct {
		want   string
		damage func(*isobarv1.CellsResponse)
	}{
		{"", func(*isobarv1.CellsResponse) {}},
		{"does not see ap-south-1", func(r *isobarv1.CellsResponse) { r.Cells = r.Cells[:2] }},
		{`sees us-east-1 as "lost"`, func(r *isobarv1.CellsResponse) { r.Cells[1].Health = "lost" }},
		{"sees no worker in us-east-1", func(r *isobarv1.CellsResponse) { r.Cells[1].Workers = 0 }},
		{"has not seen the certificate of us-east-1", func(r *isobarv1.CellsResponse) { r.Cells[1].Jurisdictions = nil }},
		{"sees 0 of 1 voting servers in its cell", func(r *isobarv1.CellsResponse) { r.Cells[0].Servers[0].Voter = false }},
		{"sees no leader in its cell", func(r *isobarv1.CellsResponse) { r.Cells[0].Servers[0].Leader = false }},
		{"", func(r *isobarv1.CellsResponse) { r.Cells[1].Servers = nil }}, // only its own cell tells
	} {
		res := whole()
		c.damage(res)
		if got := missing(o, s, res); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestRunTellsWhyAProcessEnded(t *testing.T) {
	t.Parallel()
	o := options(t, "fail")
	o.ReadyTimeout = 30 * time.Second
	var out bytes.Buffer
	err := Run(t.Context(), o, &out, io.Discard, nil)
	if !errors.Is(err, ErrChild) || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "| cannot go on") {
		t.Errorf("error %v, want the process's end and last lines", err)
	}
	if strings.Contains(out.String(), "ready") {
		t.Errorf("printed %q", out.String())
	}
}

func TestRunTellsWhatIsMissing(t *testing.T) {
	t.Parallel()
	err := Run(t.Context(), options(t, "idle"), io.Discard, io.Discard, nil)
	if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "eu-north/s1: ") {
		t.Errorf("error %v, want what is missing", err)
	}
}

func TestRunStopsWhileStarting(t *testing.T) {
	t.Parallel()
	o := options(t, "idle")
	o.ReadyTimeout = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := Run(ctx, o, io.Discard, io.Discard, nil); err != nil {
		t.Error(err)
	}
}

func TestChildEndsWhenItsInputCloses(t *testing.T) {
	t.Parallel()
	o := options(t, "idle")
	spawner := newSpawner()
	defer spawner.close()
	p, err := spawn(spawner, o, "server", "eu", "eu/s1", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if p.ended() {
		t.Error("ended at once")
	}
	if err := p.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		t.Error("it goes on although nobody holds its input")
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	for _, change := range []func(*Options){
		func(o *Options) { o.Servers = 2 },
		func(o *Options) { o.Workers = 0 },
		func(o *Options) { o.CarbonSpeed = 0 },
		func(o *Options) { o.Policy = &config.Policy{QualityPrice: -1} },
		func(o *Options) { o.Mesh = &meshfile.Mesh{Regions: []meshfile.Region{{Name: "EU"}}} },
	} {
		o := options(t, "idle")
		change(&o)
		if err := Run(t.Context(), o, io.Discard, io.Discard, nil); !errors.Is(err, ErrOptions) {
			t.Errorf("error %v, want ErrOptions", err)
		}
	}
}
