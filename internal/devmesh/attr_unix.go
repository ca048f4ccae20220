//go:build unix && !linux

package devmesh

import "syscall"

// childAttr puts a child in a group of its own, so that a terminal's interrupt
// reaches dev alone, which stops its children in order. When dev is killed, the
// child sees its standard input close.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
