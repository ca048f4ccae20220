package meshtest_test

import "syscall"

// childAttr puts a child in a group of its own and has the kernel end it when
// the test is killed.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
