package wasm

import (
	"fmt"

	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// arena is the linear memory of one attempt. The address space is reserved at
// once and the system gives pages as they are touched, so growing never
// copies, fresh memory is zero, and nothing stays in the worker's heap when
// the attempt is over.
type arena struct {
	mem     []byte
	peak    uint64
	refused bool // the module asked for more than its limit
}

// newArena reserves limit bytes, a multiple of the page size.
func newArena(limit uint64) (*arena, error) {
	mem, err := unix.Mmap(-1, 0, int(limit), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("wasm: reserve memory of %d MiB: %w", limit>>20, err)
	}
	return &arena{mem: mem}, nil
}

// Allocate implements experimental.MemoryAllocator. A function has one memory,
// so the arena is its own allocation.
func (a *arena) Allocate(_, _ uint64) experimental.LinearMemory { return a }

// Reallocate implements experimental.LinearMemory: nil makes the module's
// memory.grow answer -1.
func (a *arena) Reallocate(size uint64) []byte {
	if size > uint64(len(a.mem)) {
		a.refused = true
		return nil
	}
	a.peak = max(a.peak, size)
	return a.mem[:size:size]
}

// Free implements experimental.LinearMemory. It does nothing: the library does
// not call it on every path, so release is the runtime's.
func (a *arena) Free() {}

// release gives the memory back. Nothing of the module may run any more.
func (a *arena) release() error {
	if err := unix.Munmap(a.mem); err != nil {
		return fmt.Errorf("wasm: release memory: %w", err)
	}
	a.mem = nil
	return nil
}
