package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/isobar-mesh/isobar/worker/attempt"
)

// diesWithParent makes the command end when the worker does, also by kill -9.
func diesWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// startLimited starts the command with its limits in force from its first
// instruction: traced, it stops as it begins, is limited, and let go. The
// thread must stay the same from the start to the letting go. Where a policy
// of the host forbids tracing, the limits come right after the start; what the
// command starts in that moment lacks them, and is still watched for memory.
func startLimited(cmd *exec.Cmd, l attempt.Limits) error {
	cmd.SysProcAttr.Ptrace = true
	err := cmd.Start()
	if errors.Is(err, unix.EPERM) {
		cmd.SysProcAttr.Ptrace = false
		err = cmd.Start()
	}
	if err != nil {
		return err // os/exec names the action and the program.
	}
	pid := cmd.Process.Pid
	if cmd.SysProcAttr.Ptrace {
		_ = waitid(pid, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT) // It is ours: it stops, or was killed.
	}
	err = limit(pid, l)
	if cmd.SysProcAttr.Ptrace {
		err = errors.Join(err, unix.PtraceDetach(pid))
	}
	if err != nil && !errors.Is(err, unix.ESRCH) { // Else it was killed meanwhile, and Wait tells how.
		_ = unix.Kill(-pid, unix.SIGKILL)
		_ = cmd.Wait()
		return fmt.Errorf("limit process %d: %w", pid, err)
	}
	return nil
}

// limit sets what the kernel bounds of a process and of those it starts.
func limit(pid int, l attempt.Limits) error {
	limits := map[int]uint64{
		unix.RLIMIT_CORE:   0,
		unix.RLIMIT_NOFILE: uint64(l.MaxOpenFiles()),
	}
	if l.MemoryMiB > 0 {
		// Private writable memory, touched or not. The watcher holds the real
		// limit; this one ends what grows by more between two looks of it, and
		// leaves room for runtimes that reserve ahead of use.
		limits[unix.RLIMIT_DATA] = uint64(4*l.MemoryMiB+512) << 20
	}
	for resource, value := range limits {
		var now unix.Rlimit
		if err := unix.Prlimit(pid, resource, nil, &now); err != nil {
			return fmt.Errorf("read limit %d: %w", resource, err)
		}
		value = min(value, now.Max) // Raising would need a right.
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: value, Max: value}, nil); err != nil {
			return fmt.Errorf("set limit %d: %w", resource, err)
		}
	}
	// When the host runs out of memory, functions go before the worker. Raising
	// needs no right; a kernel without the file is no reason to fail.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("500"), 0)
	return nil
}

// awaitExit returns when the process has ended, and leaves it to be reaped.
func awaitExit(pid int) { _ = waitid(pid, unix.WEXITED|unix.WNOWAIT) }

func waitid(pid, options int) error {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, options, nil); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// groupMemory adds up the memory in bytes of the processes of each group in
// want. Memory that processes share counts for each.
func groupMemory(want map[int]bool) (map[int]int64, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("process: list processes: %w", err)
	}
	defer func() { _ = dir.Close() }() // It was only read.
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("process: list processes: %w", err)
	}
	sum := make(map[int]int64, len(want))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if pgid, err := unix.Getpgid(pid); err == nil && want[pgid] {
			sum[pgid] += processMemory(name)
		}
	}
	return sum, nil
}

// processMemory is what a process holds for itself; 0 when it is gone.
func processMemory(pid string) int64 {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0
	}
	var sum int64
	for line := range bytes.Lines(status) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch string(name) {
		case "RssAnon", "RssShmem", "VmSwap":
			kib, _ := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))), 10, 64)
			sum += kib << 10
		}
	}
	return sum
}
