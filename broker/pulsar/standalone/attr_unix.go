//go:build unix && !linux

package standalone

import "syscall"

// attr puts the child in a group of its own, so that a terminal's interrupt
// does not reach it.
func attr(stays bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: stays, Setpgid: !stays}
}
