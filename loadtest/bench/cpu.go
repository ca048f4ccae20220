package main

import (
	"syscall"
	"time"
)

// cpuTime is what this process has used of the processors. Beside wall time it
// hardly depends on what else the machine does.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // never for the process itself
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
