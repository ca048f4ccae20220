package accel

import (
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Host is what this process may use: the processors it may run on and the
// memory of the machine, bounded on Linux by the limits of its control group
// and those above it (version 2). Memory is what there is, not what is free.
func Host() (mesh.Capacity, error) { return host(runtime.NumCPU()) }

// linuxHost reads a Linux file system.
func linuxHost(root fs.FS, processors int) (mesh.Capacity, error) {
	memory, err := memTotal(root)
	if err != nil {
		return mesh.Capacity{}, err
	}
	milli := int64(processors) * 1000
	for _, dir := range groups(root) {
		if limit, ok := cpuMax(root, dir); ok {
			milli = min(milli, limit)
		}
		if limit, ok := memoryMax(root, dir); ok {
			memory = min(memory, limit)
		}
	}
	return mesh.Capacity{CPUMilli: milli, MemoryMiB: memory >> 20}, nil
}

// memTotal is the memory of the machine, in bytes.
func memTotal(root fs.FS) (int64, error) {
	info, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("accel: detect memory: %w", err)
	}
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("accel: detect memory: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("accel: detect memory: /proc/meminfo names no MemTotal")
}

// groups lists the directories of the control group of this process and of
// those above it. A host without version 2 has none.
func groups(root fs.FS) []string {
	own, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(own)) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/")
		if !ok {
			continue
		}
		const top = "sys/fs/cgroup"
		// In a container the name may be that outside, with nothing at it
		// here; the files at the top are the container's own then.
		dirs := []string{top}
		for dir := path.Join(top, name); dir != top && strings.HasPrefix(dir, top); dir = path.Dir(dir) {
			dirs = append(dirs, dir)
		}
		return dirs
	}
	return nil
}

// cpuMax reads a limit of processor time as thousandths of a processor.
func cpuMax(root fs.FS, dir string) (int64, bool) {
	text, err := fs.ReadFile(root, path.Join(dir, "cpu.max"))
	if err != nil {
		return 0, false
	}
	quota, period, ok := strings.Cut(strings.TrimSpace(string(text)), " ")
	q, errQ := strconv.ParseInt(quota, 10, 64) // fails for "max"
	p, errP := strconv.ParseInt(period, 10, 64)
	if !ok || errQ != nil || errP != nil || q <= 0 || p <= 0 {
		return 0, false
	}
	return max(q*1000/p, 1), true
}

// memoryMax reads a limit of memory in bytes.
func memoryMax(root fs.FS, dir string) (int64, bool) {
	text, err := fs.ReadFile(root, path.Join(dir, "memory.max"))
	if err != nil {
		return 0, false
	}
	limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // fails for "max"
	return limit, err == nil && limit > 0
}
