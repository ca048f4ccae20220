package meshtest_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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

// lines collects a process's output.
type lines struct {
	mu   sync.Mutex
	text []string
}

func (l *lines) read(r io.Reader, seen chan<- string) {
	in := bufio.NewScanner(r)
	for in.Scan() {
		l.mu.Lock()
		l.text = append(l.text, in.Text())
		l.mu.Unlock()
		select {
		case seen <- in.Text():
		default:
		}
	}
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.text, "\n")
}

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
	m.dev = exec.Command(isobar, args...)
	m.dev.Env = append(os.Environ(), m.env...)
	m.dev.SysProcAttr = childAttr()
	out, in := io.Pipe()
	m.dev.Stdout, m.dev.Stderr = in, in
	m.output, m.devDone = &lines{}, make(chan struct{})
	seen := make(chan string, 256)
	go m.output.read(out, seen)
	if err := m.dev.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = m.dev.Wait() // how it ended is in its output
		_ = in.Close()
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

// kill ends a process at once.
func kill(t *testing.T, pid int) { signal(t, pid, syscall.SIGKILL) }

func signal(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("no process %d to send %v", pid, s)
	}
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatalf("send %v to %d: %v", s, pid, err)
	}
}

// run starts a server or worker of the mesh again, on the files it had.
func (m *mesh) run(t *testing.T, kind, dir string, env ...string) *exec.Cmd {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(isobar, kind, "--config", filepath.Join(dir, kind+".yaml"))
	cmd.Env = append(append(os.Environ(), m.env...), env...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, childAttr()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	m.started = append(m.started, cmd)
	m.mu.Unlock()
	return cmd
}

func (m *mesh) restart(t *testing.T, s *server, env ...string) {
	t.Helper()
	s.pid = m.run(t, "server", s.dir, env...).Process.Pid
}

// stop ends everything: what the test started, then dev with its children.
func (m *mesh) stop(t *testing.T) {
	t.Helper()
	// A stopped process would not hear of its end.
	for _, w := range m.workers {
		_ = syscall.Kill(w.pid, syscall.SIGCONT)
	}
	m.mu.Lock()
	started := m.started
	m.started = nil
	m.mu.Unlock()
	for _, cmd := range started {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	m.stopDev(t)
}

// stopDev ends dev in order.
func (m *mesh) stopDev(t *testing.T) {
	t.Helper()
	if m.dev == nil || m.dev.Process == nil {
		return
	}
	_ = m.dev.Process.Signal(os.Interrupt)
	timer := time.NewTimer(40 * time.Second)
	defer timer.Stop()
	select {
	case <-m.devDone:
	case <-timer.C:
		t.Error("isobar dev did not end when told to")
		_ = m.dev.Process.Kill()
		<-m.devDone
	}
	m.dev = nil
}

// killDev kills dev, and so every process of it.
func (m *mesh) killDev(t *testing.T) {
	t.Helper()
	kill(t, m.dev.Process.Pid)
	<-m.devDone
	m.dev = nil
	for _, s := range m.servers {
		awaitGone(t, s.pid, s.id())
	}
	for _, w := range m.workers {
		awaitGone(t, w.pid, w.id())
	}
}

// awaitGone waits until a process has ended.
func awaitGone(t *testing.T, pid int, what string) {
	t.Helper()
	eventually(t, 30*time.Second, "the end of "+what, func(context.Context) error {
		if alive(pid) {
			return fmt.Errorf("process %d is alive", pid)
		}
		return nil
	})
}

// alive reports whether a process runs; one that only waits for its parent does
// not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	state, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true // no /proc: the signal's answer is all there is
	}
	i := bytes.LastIndexByte(state, ')')
	return i < 0 || !strings.HasPrefix(string(state[i+1:]), " Z")
}

// logTails shows the last lines of every log.
func (m *mesh) logTails() string {
	var b strings.Builder
	files, _ := filepath.Glob(filepath.Join(m.dir, "*", "*", "log"))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		rows := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(&b, "%s:\n  %s\n", strings.TrimPrefix(f, m.dir+"/"), strings.Join(rows[max(0, len(rows)-8):], "\n  "))
	}
	return b.String()
}

// scrape reads a server's metrics, by name with labels as they are written.
func scrape(ctx context.Context, s *server) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.api()+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	samples := map[string]float64{}
	in := bufio.NewScanner(res.Body)
	for in.Scan() {
		line := in.Text()
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
			samples[line[:i]] = v
		}
	}
	return samples, in.Err()
}

// tasksIn sums the tasks not ended in one state, or in all for "".
func tasksIn(samples map[string]float64, state string) int {
	n := 0.0
	for name, v := range samples {
		if strings.HasPrefix(name, "isobar_tasks{") && strings.Contains(name, `state="`+state) {
			n += v
		}
	}
	return int(n)
}

// eventually looks until f returns nil; each look has a moment of its own.
func eventually(t *testing.T, within time.Duration, what string, f func(context.Context) error) {
	t.Helper()
	deadline := time.Now().Add(within)
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		ctx, cancel := context.WithDeadline(t.Context(), deadline)
		err := f(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %v: %v", what, within, err)
		}
		<-ticker.C
	}
}
