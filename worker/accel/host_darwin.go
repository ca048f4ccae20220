package accel

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

func host(processors int) (mesh.Capacity, error) {
	memory, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return mesh.Capacity{}, fmt.Errorf("accel: detect memory: %w", err)
	}
	return mesh.Capacity{CPUMilli: int64(processors) * 1000, MemoryMiB: int64(memory >> 20)}, nil
}
