package meshtest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

const (
	// startTimeout is generous: the machine may be building something else.
	startTimeout = 90 * time.Second
	// pollEvery is how often a condition is looked at.
	pollEvery = 50 * time.Millisecond
)

// options of a mesh.
type options struct {
	servers, workers int    // in each cell; 0: 1
	mesh             string // text of a mesh file; "": the default mesh
	otlp             string
	args             []string // more of `isobar dev`
	env              []string
	dir              string // "": a new one
}

// mesh is one `isobar dev` with its files.
type mesh struct {
	options
	dir     string
	servers []*server // as in layout.yaml, sorted by id
	workers []*worker
	dev     *exec.Cmd
	devDone chan struct{}
	output  *lines

	mu      sync.Mutex
	clients map[string]*client.Client // by region
	started []*exec.Cmd               // by start
}

// server is one server process, whoever started it.
type server struct {
	region, name string
	dir          string
	ports        ports
	pid          int
}

// ports of one server, all on 127.0.0.1, as layout.yaml has them.
type ports struct {
	API    int `yaml:"api"`
	Peer   int `yaml:"peer"`
	Raft   int `yaml:"raft"`
	Gossip int `yaml:"gossip"`
}

func (s *server) id() string  { return s.region + "/" + s.name }
func (s *server) api() string { return "http://" + local(s.ports.API) }

func local(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// worker is one worker process.
type worker struct {
	region, name string
	dir          string
	pid          int
}

func (w *worker) id() string { return w.region + "/" + w.name }

// cellOf is the cell of a region, as dev names it.
func cellOf(region string) string { return region + "-1" }

// whole skips a test of real processes under -short.
func whole(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real processes, which -short leaves out")
	}
}

// start starts a mesh and waits until it is ready. It ends with the test.
func start(t *testing.T, o options) *mesh {
	t.Helper()
	m := &mesh{options: o, clients: map[string]*client.Client{}}
	m.options.servers, m.options.workers = max(o.servers, 1), max(o.workers, 1)
	if m.dir = o.dir; m.dir == "" {
		m.dir = directory(t)
	}
	t.Cleanup(func() {
		m.stop(t)
		if t.Failed() {
			t.Logf("the ends of the logs in %s:\n%s", m.dir, m.logTails())
		}
	})
	m.startDev(t)
	return m
}

// directory is a temporary one, kept when asked.
func directory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "isobar-meshtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if *keep {
			t.Logf("kept %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// startDev runs `isobar dev` on the mesh's directory until it says ready.
func (m *mesh) startDev(t *testing.T) {
	t.Helper()
	args := []string{
		"dev", "--ports", "auto", "--data", m.dir, "--servers", strconv.Itoa(m.options.servers),
		"--workers", strconv.Itoa(m.options.workers), "--ready-timeout", startTimeout.String(),
	}
	if m.mesh != "" {
		file := filepath.Join(m.dir, "mesh.yaml")
		if err := os.WriteFile(file, []byte(m.mesh), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--mesh", file)
	}
	if m.otlp != "" {
		args = append(args, "--otlp", m.otlp)
	}
	m.dev = exec.Command(isobar, append(args, m.args...)...)
	m.dev.Env = append(os.Environ(), m.env...)
	m.dev.SysProcAttr = childAttr()
	out, in := io.Pipe()
	m.dev.Stdout, m.dev.Stderr = in, in
	m.output, m.devDone = &lines{}, make(chan struct{})
	seen := make(chan string, 256)
	read := make(chan struct{})
	go func() {
		m.output.read(out, seen)
		close(read)
	}()
	if err := m.dev.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = m.dev.Wait() // how it ended is in its output
		_ = in.Close()
		<-read
		close(m.devDone)
	}()
	timeout := time.NewTimer(startTimeout + 10*time.Second)
	defer timeout.Stop()
	for {
		select {
		case line := <-seen:
			if line == "isobar dev: ready" {
				m.readLayout(t)
				m.findProcesses(t)
				return
			}
		case <-m.devDone:
			t.Fatalf("isobar dev ended before it was ready:\n%s", m.output)
		case <-timeout.C:
			t.Fatalf("isobar dev is not ready:\n%s", m.output)
		}
	}
}

// readLayout reads who listens where.
func (m *mesh) readLayout(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(m.dir, "layout.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var layout struct {
		Servers map[string]ports `yaml:"servers"`
	}
	if err := yaml.Unmarshal(data, &layout); err != nil {
		t.Fatal(err)
	}
	m.servers, m.workers = nil, nil
	for id, p := range layout.Servers {
		region, name, _ := strings.Cut(id, "/")
		m.servers = append(m.servers, &server{region: region, name: name, dir: filepath.Join(m.dir, region, name), ports: p})
	}
	slices.SortFunc(m.servers, func(a, b *server) int { return strings.Compare(a.id(), b.id()) })
}

// findProcesses learns the pids from the mesh itself.
func (m *mesh) findProcesses(t *testing.T) {
	t.Helper()
	for _, region := range m.regions() {
		c := m.client(t, region)
		eventually(t, 30*time.Second, "the pids of "+region, func(ctx context.Context) error {
			cells, err := c.Cells(ctx)
			if err != nil {
				return err
			}
			for _, cell := range cells.GetCells() {
				for _, info := range cell.GetServers() {
					if s := m.server(cell.GetRegion(), info.GetName()); s != nil {
						s.pid = int(info.GetPid())
					}
				}
			}
			res, err := c.Workers(ctx)
			if err != nil {
				return err
			}
			for _, info := range res.GetWorkers() {
				m.sawWorker(region, info)
			}
			if n := len(m.workersOf(region)); n != m.options.workers {
				return fmt.Errorf("%d of %d workers", n, m.options.workers)
			}
			return nil
		})
	}
	for _, s := range m.servers {
		if s.pid == 0 {
			t.Fatalf("no pid of %s", s.id())
		}
	}
}

func (m *mesh) sawWorker(region string, info *isobarv1.WorkerInfo) {
	for _, w := range m.workers {
		if w.region == region && w.name == info.GetWorker() {
			w.pid = int(info.GetPid())
			return
		}
	}
	m.workers = append(m.workers, &worker{
		region: region, name: info.GetWorker(), pid: int(info.GetPid()), dir: filepath.Join(m.dir, region, info.GetWorker()),
	})
}

// regions in the order of their names.
func (m *mesh) regions() []string {
	var out []string
	for _, s := range m.servers {
		if !slices.Contains(out, s.region) {
			out = append(out, s.region)
		}
	}
	return out
}

func (m *mesh) server(region, name string) *server {
	for _, s := range m.servers {
		if s.region == region && s.name == name {
			return s
		}
	}
	return nil
}

func (m *mesh) serversOf(region string) []*server {
	return slices.DeleteFunc(slices.Clone(m.servers), func(s *server) bool { return s.region != region })
}

func (m *mesh) workersOf(region string) []*worker {
	return slices.DeleteFunc(slices.Clone(m.workers), func(w *worker) bool { return w.region != region })
}

// client is one of all servers of a region.
func (m *mesh) client(t *testing.T, region string) *client.Client {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.clients[region]; c != nil {
		return c
	}
	var addresses []string
	for _, s := range m.serversOf(region) {
		addresses = append(addresses, s.api())
	}
	c, err := client.New(addresses, client.WithPatience(30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	m.clients[region] = c
	return c
}

// leader is the server that leads a region's cell now, by its own word.
func (m *mesh) leader(t *testing.T, region string) *server {
	t.Helper()
	var found *server
	eventually(t, 30*time.Second, "a leader of "+region, func(ctx context.Context) error {
		for _, s := range m.serversOf(region) {
			if samples, err := scrape(ctx, s); err == nil && samples["isobar_leading"] == 1 {
				found = s
				return nil
			}
		}
		return errors.New("none leads")
	})
	return found
}
