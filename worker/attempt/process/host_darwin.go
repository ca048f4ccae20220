package process

import (
	"fmt"
	"os/exec"
	"syscall"
	"unsafe"

	"github.com/isobar-mesh/isobar/worker/attempt"
)

// diesWithParent does nothing: only Linux can. A worker that is killed leaves
// its commands to end by themselves.
func diesWithParent(*syscall.SysProcAttr) {}

// startLimited starts the command. No call sets the limits of another process
// here; the watcher still holds the limit of memory.
func startLimited(cmd *exec.Cmd, _ attempt.Limits) error { return cmd.Start() }

// awaitExit returns when the process has ended, and leaves it to be reaped.
func awaitExit(pid int) {
	const (
		idIsPid = 1
		exited  = 0x4
		noReap  = 0x20
	)
	var info [16]uint64 // a siginfo_t fits; it is not read
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, idIsPid, uintptr(pid), uintptr(unsafe.Pointer(&info)), exited|noReap, 0, 0)
		if errno != syscall.EINTR {
			return
		}
	}
}

// groupMemory adds up the memory in bytes of the processes of each group in
// want. Memory that processes share counts for each.
func groupMemory(want map[int]bool) (map[int]int64, error) {
	table, err := exec.Command("/bin/ps", "-axo", "pgid=,rss=").Output()
	if err != nil {
		return nil, fmt.Errorf("process: list processes: %w", err)
	}
	return parsePS(table, want), nil
}
