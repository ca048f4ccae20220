package meshtest_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

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
