package meshtest_test

import "syscall"

// childAttr puts a child in a group of its own and has the kernel end it when
// the test is killed: when the thread that started it ends, which Go lets none do
// whose goroutine did not end locked to it.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
