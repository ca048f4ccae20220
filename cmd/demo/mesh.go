package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/isobar-mesh/isobar/internal/meshfile"
)

const (
	readyLine = "isobar dev: ready"
	// readyWithin is more than dev itself allows.
	readyWithin = 90 * time.Second
	// stopWithin is more than dev needs to stop its processes in order.
	stopWithin = 25 * time.Second
)

var errNotReady = errors.New("the mesh did not get ready")

// mesh is the child process `isobar dev`.
type mesh struct {
	cmd *exec.Cmd
	// address is the first API that dev named.
	address string
	// dir holds the mesh file, and the data unless it was given; removed at the
	// end when own.
	dir string
	own bool

	ended chan struct{}
	err   error // after ended
}

// startMesh starts dev and returns once it says that the mesh is ready. What
// dev says of the mesh goes to out, each line after two blanks; its progress and
// complaints go to stderr.
func startMesh(ctx context.Context, o options, p *plan, out, stderr io.Writer) (*mesh, error) {
	m := &mesh{dir: o.data, ended: make(chan struct{})}
	var err error
	if o.data == "" {
		if m.dir, err = os.MkdirTemp("", "isobar-demo-"); err != nil {
			return nil, fmt.Errorf("make data directory: %w", err)
		}
		m.own = true
	}
	args, err := m.args(o, p)
	if err != nil {
		m.clean()
		return nil, err
	}
	m.cmd = exec.Command(o.binary, args...) //nolint:noctx // the program that was built; stopped in order by stop
	m.cmd.SysProcAttr = childAttr()
	m.cmd.Stderr = stderr
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		m.clean()
		return nil, fmt.Errorf("start the mesh: %w", err)
	}
	if err := m.start(); err != nil {
		m.clean()
		return nil, fmt.Errorf("start the mesh: %w", err)
	}
	ready := make(chan struct{})
	go m.follow(stdout, out, ready)
	timer := time.NewTimer(readyWithin)
	defer timer.Stop()
	select {
	case <-ready:
		if m.address == "" {
			err = fmt.Errorf("start the mesh: %w: it named no API", errNotReady)
		}
	case <-m.ended:
		err = fmt.Errorf("start the mesh: %w: `isobar dev` ended: %w", errNotReady, m.err)
	case <-timer.C:
		err = fmt.Errorf("start the mesh: %w in %s", errNotReady, readyWithin)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, m.stop())
	}
	return m, nil
}

func (m *mesh) args(o options, p *plan) ([]string, error) {
	file, err := meshFile(o.cpu)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	path := filepath.Join(m.dir, "mesh.yaml")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		return nil, fmt.Errorf("write mesh file: %w", err)
	}
	args := []string{
		"dev", "--ports", o.ports, "--mesh", path, "--data", filepath.Join(m.dir, "data"),
		"--carbon-clock", p.carbonClock.UTC().Format(time.RFC3339),
		"--carbon-speed", strconv.FormatFloat(max(p.speed, 1), 'f', 3, 64),
		"--quality-price", strconv.FormatFloat(o.quality, 'g', -1, 64),
	}
	if o.carbon != "" {
		args = append(args, "--carbon", o.carbon)
	}
	for _, b := range o.brokers {
		args = append(args, "--broker", b)
	}
	return args, nil
}

// meshFile is the default mesh with a bound on what each region offers: on one
// machine regions of full size would never be busy.
func meshFile(cpu float64) ([]byte, error) {
	m, err := meshfile.Default()
	if err != nil {
		return nil, err
	}
	for i := range m.Regions {
		m.Regions[i].CPU = cpu
	}
	return m.YAML()
}

// start starts the child from a thread that lives as long as the child: where
// the kernel kills it with its parent, it goes by the thread that started it.
func (m *mesh) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		// Locked to the end, the thread would go then, and take what others started on it.
		defer runtime.UnlockOSThread()
		err := m.cmd.Start()
		started <- err
		if err == nil {
			<-m.ended
		}
	}()
	return <-started
}

var apiAddress = regexp.MustCompile(`http://127\.0\.0\.1:\d+`)

// follow reads what dev says until it ends.
func (m *mesh) follow(stdout io.Reader, out io.Writer, ready chan<- struct{}) {
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		line := lines.Text()
		if m.address == "" {
			m.address = apiAddress.FindString(line)
		}
		if strings.TrimSpace(line) == readyLine && ready != nil {
			close(ready)
			ready = nil
			continue
		}
		if ready != nil {
			_, _ = fmt.Fprintln(out, "  "+line)
		}
	}
	_, _ = io.Copy(io.Discard, stdout) // after a line too long to scan
	m.err = m.cmd.Wait()
	close(m.ended)
}

// stop asks dev to end, which ends its processes in order, and waits for it.
func (m *mesh) stop() error {
	defer m.clean()
	select {
	case <-m.ended:
		return nil
	default:
	}
	_ = m.cmd.Process.Signal(syscall.SIGINT) // ended already: nothing to do
	timer := time.NewTimer(stopWithin)
	defer timer.Stop()
	select {
	case <-m.ended:
		return nil
	case <-timer.C:
	}
	_ = m.cmd.Process.Kill()
	<-m.ended
	return fmt.Errorf("stop the mesh: it took more than %s and was killed", stopWithin)
}

func (m *mesh) clean() {
	if m.own {
		_ = os.RemoveAll(m.dir) // what is left is in the temporary directory
	}
}
