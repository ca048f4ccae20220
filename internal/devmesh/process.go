package devmesh

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// process is one running child.
type process struct {
	id      string // "eu-north/s1"
	kind    string // "server" or "worker"
	region  string
	command string // to start it again by hand
	logPath string
	cmd     *exec.Cmd
	stdin   io.Closer // the child ends when this closes
	done    chan struct{}
	err     error // after done
}

// spawner starts children from one thread that lives as long as it: the kernel
// kills a child when the thread that started it ends, not the process.
type spawner struct{ starts chan func() }

func newSpawner() *spawner {
	s := &spawner{starts: make(chan func())}
	go func() {
		runtime.LockOSThread()
		// Locked to the end, the thread would go then, and take what others started on it.
		defer runtime.UnlockOSThread()
		for start := range s.starts {
			start()
		}
	}()
	return s
}

func (s *spawner) close() { close(s.starts) }

func (s *spawner) start(cmd *exec.Cmd) error {
	result := make(chan error)
	s.starts <- func() { result <- cmd.Start() }
	return <-result
}

// spawn starts one child, whose output goes to a file.
func spawn(s *spawner, o Options, kind, region, id, dir string) (*process, error) {
	file := filepath.Join(dir, kind+".yaml")
	p := &process{
		id: id, kind: kind, region: region, logPath: filepath.Join(dir, "log"), done: make(chan struct{}),
		command: o.Binary + " " + kind + " --config " + file,
	}
	out, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("devmesh: open log of %s: %w", id, err)
	}
	defer func() { _ = out.Close() }()                                          // the child has its own
	p.cmd = exec.Command(o.Binary, kind, "--config", file, "--exit-with-stdin") //nolint:noctx // our own program; stop ends it in order
	p.cmd.Env = childEnv(o.Env)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = childAttr()
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("devmesh: start %s %s: %w", kind, id, err)
	}
	if err := s.start(p.cmd); err != nil {
		return nil, fmt.Errorf("devmesh: start %s %s: %w", kind, id, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// childEnv drops the settings that would win over the files written for each
// process; how it logs may still be set for all.
func childEnv(env []string) []string {
	var out []string
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "ISOBAR_") || strings.HasPrefix(name, "ISOBAR_LOG_") {
			out = append(out, kv)
		}
	}
	return out
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// how says in words how the process ended; only after done.
func (p *process) how() string {
	if p.err == nil {
		return "exit status 0"
	}
	return p.err.Error()
}

// stop asks all to end, then kills what is left after the grace, and waits.
func stop(ps []*process, grace time.Duration, hurry <-chan struct{}) {
	for _, p := range ps {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // ended already: nothing to do
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for _, p := range ps {
		select {
		case <-p.done:
			continue
		case <-timer.C:
		case <-hurry:
		}
		for _, q := range ps {
			_ = q.cmd.Process.Kill()
		}
		<-p.done
	}
	for _, p := range ps {
		_ = p.stdin.Close()
	}
}

const tailBytes = 4 << 10

// tail returns the last lines of the process's log.
func (p *process) tail(lines int) string {
	f, err := os.Open(p.logPath)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	start := max(info.Size()-tailBytes, 0)
	data := make([]byte, info.Size()-start)
	if _, err := f.ReadAt(data, start); err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	all := bytes.Split(bytes.TrimRight(data, "\n"), []byte("\n"))
	if start > 0 && len(all) > 1 {
		all = all[1:] // the first may be cut
	}
	all = all[max(len(all)-lines, 0):]
	return "  | " + string(bytes.Join(all, []byte("\n  | "))) + "\n"
}
