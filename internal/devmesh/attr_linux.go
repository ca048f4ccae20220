package devmesh

import "syscall"

// childAttr puts a child in a group of its own, so that a terminal's interrupt
// reaches dev alone, which stops its children in order; and has the kernel kill
// it when dev is killed.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
