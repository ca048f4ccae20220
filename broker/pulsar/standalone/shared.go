package standalone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Running is the machine's shared standalone, which `make pulsar` starts.
type Running struct {
	PID     int    `json:"pid"`
	Service string `json:"service"`
	Admin   string `json:"admin"`
	Log     string `json:"log"`
}

// ErrStopped: the shared standalone does not run.
var ErrStopped = errors.New("no standalone runs; run `make pulsar`")

// Shared returns the shared standalone if it runs and is healthy, or
// ErrStopped.
func Shared(ctx context.Context) (*Running, error) {
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(cache, "shared.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("standalone: find the shared one: %w", ErrStopped)
	}
	var r Running
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return nil, fmt.Errorf("standalone: find the shared one: %w", err)
	}
	if !isPulsar(r.PID) {
		return nil, fmt.Errorf("standalone: find the shared one: %w", ErrStopped)
	}
	if err := Healthy(ctx, r.Admin); err != nil {
		return nil, errors.Join(fmt.Errorf("standalone: find the shared one: %w", ErrStopped), err)
	}
	return &r, nil
}

// isPulsar reports whether the process still is the one that was started: ids
// are used again.
func isPulsar(pid int) bool {
	if pid <= 1 || syscall.Kill(pid, 0) != nil {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err != nil || strings.Contains(string(b), "PulsarStandalone") // no /proc: not Linux
}

// StartShared starts the machine's shared standalone unless it runs, and
// returns when it is healthy. Its data stay from one start to the next.
func StartShared(ctx context.Context, out io.Writer) (*Running, error) {
	d, err := Fetch(ctx, out)
	if err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(d.cache, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r, err := Shared(ctx); err == nil {
		return r, nil
	}
	stopShared(d.cache) // one that runs and is not healthy
	_, _ = fmt.Fprintln(out, "==> starting Apache Pulsar (half a minute)")
	i, err := d.Start(ctx, Options{Dir: filepath.Join(d.cache, "shared"), Stays: true, DefaultPorts: true})
	if err != nil {
		return nil, err
	}
	r := &Running{PID: i.PID(), Service: i.Service, Admin: i.Admin, Log: i.Log()}
	b, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(filepath.Join(d.cache, "shared.json"), b, 0o600)
	}
	if err != nil {
		i.Kill()
		return nil, fmt.Errorf("standalone: note the shared one: %w", err)
	}
	return r, nil
}

// StopShared stops the shared standalone; it returns false if none ran.
func StopShared() (bool, error) {
	cache, err := Cache()
	if err != nil {
		return false, err
	}
	return stopShared(cache), nil
}

func stopShared(cache string) bool {
	file := filepath.Join(cache, "shared.json")
	b, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	defer func() { _ = os.Remove(file) }() // a stale one is recognised
	var r Running
	if json.Unmarshal(b, &r) != nil || !isPulsar(r.PID) {
		return false
	}
	_ = syscall.Kill(r.PID, syscall.SIGTERM) // ended already: nothing to do
	for range 200 {
		if !isPulsar(r.PID) {
			return true
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = syscall.Kill(r.PID, syscall.SIGKILL) // see above
	return true
}
