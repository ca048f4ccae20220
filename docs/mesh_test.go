package docs_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
)

// ports of one server.
type ports struct {
	API    int `yaml:"api"`
	Peer   int `yaml:"peer"`
	Raft   int `yaml:"raft"`
	Gossip int `yaml:"gossip"`
}

func (p ports) url() string { return "http://" + address(p.API) }

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// devMesh is `isobar dev` as a process of its own, the same for every test of
// the package.
type devMesh struct {
	bin     string // directory of the binary
	cmd     *exec.Cmd
	servers map[string]ports // by region
}

func (m *devMesh) home() string { return m.servers["eu-north"].url() }

func (m *devMesh) isobar() string { return filepath.Join(m.bin, "isobar") }

// started is the mesh once a test asked for it.
type started struct {
	once sync.Once
	dir  string
	mesh *devMesh
	err  error
}

var shared started

func TestMain(m *testing.M) {
	code := m.Run()
	if err := shared.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// testMesh starts the mesh at the first call.
func testMesh(t *testing.T) *devMesh {
	t.Helper()
	if testing.Short() {
		t.Skip("a mesh of processes is not started with -short")
	}
	shared.once.Do(func() { shared.mesh, shared.err = shared.start() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.mesh
}

func (s *started) start(more ...string) (*devMesh, error) {
	var err error
	if s.dir, err = os.MkdirTemp("", "isobar-docs-"); err != nil {
		return nil, err
	}
	m := &devMesh{bin: filepath.Join(s.dir, "bin")}
	build := exec.Command("go", "build", "-o", m.isobar(), "../cmd/isobar")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build isobar: %w\n%s", err, out)
	}
	carbon, data := filepath.Join(s.dir, "carbon.csv"), filepath.Join(s.dir, "data")
	if err := os.WriteFile(carbon, constantCarbon(), 0o600); err != nil {
		return nil, err
	}
	m.cmd = exec.Command(m.isobar(), "dev", "--ports", "auto", "--mesh", "testdata/mesh.yaml", "--carbon", carbon, "--data", data)
	m.cmd.Args = append(m.cmd.Args, more...)
	m.cmd.Env = clean(os.Environ())
	var log bytes.Buffer
	m.cmd.Stderr = &log
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	if err := ready(out); err != nil {
		stop(m.cmd)
		return nil, fmt.Errorf("start the mesh: %w\n%s", err, log.Bytes())
	}
	m.servers, err = layout(data)
	return m, err
}

// constantCarbon is a feed whose intensities never change, two days of it.
func constantCarbon() []byte {
	var b bytes.Buffer
	b.WriteString("datetime_utc,SE-SE1,US-MIDA-PJM,IN-MH\n")
	at := time.Date(2022, 6, 1, 0, 0, 0, 0, time.UTC)
	for range 48 {
		fmt.Fprintf(&b, "%s,20,400,700\n", at.Format("2006-01-02T15:04:05Z"))
		at = at.Add(time.Hour)
	}
	return b.Bytes()
}

// clean leaves out what would configure the mesh or the CLI from outside.
func clean(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		return strings.HasPrefix(kv, "ISOBAR_") || strings.HasPrefix(kv, "OTEL_")
	})
}

// ready reads until the mesh says so, and keeps reading after.
func ready(out io.Reader) error {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	timeout := time.After(90 * time.Second)
	for {
		select {
		case line, ok := <-lines:
			switch {
			case !ok:
				return errors.New("it ended before it was ready")
			case line == "isobar dev: ready":
				go func() {
					for range lines {
					}
				}()
				return nil
			}
		case <-timeout:
			return errors.New("it was not ready in 90 s")
		}
	}
}

func layout(data string) (map[string]ports, error) {
	text, err := os.ReadFile(filepath.Join(data, "layout.yaml"))
	if err != nil {
		return nil, err
	}
	var saved struct {
		Servers map[string]ports `yaml:"servers"`
	}
	if err := yaml.Unmarshal(text, &saved); err != nil {
		return nil, err
	}
	servers := map[string]ports{}
	for id, p := range saved.Servers {
		region, _, _ := strings.Cut(id, "/")
		servers[region] = p
	}
	return servers, nil
}

func (s *started) stop() error {
	if s.mesh != nil {
		stop(s.mesh.cmd)
	}
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}

// stop ends the mesh, which ends its children.
func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGINT)
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is no test's question
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Kill()
		<-done
	}
}

// need skips the test, by name of the part, when a program is not installed.
// Where everything must be tested (CI), that is a failure.
func need(t *testing.T, part, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	switch {
	case err == nil:
		return path
	case os.Getenv("CI") != "":
		t.Fatalf("%s: %s is not installed", part, program)
	default:
		t.Skipf("skipped: %s: %s is not installed", part, program)
	}
	return ""
}

// eventually repeats the check until it holds.
func eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-ticker.C:
		}
	}
}
