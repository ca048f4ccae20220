package standalone

import "syscall"

// attr puts the child in a group of its own, so that a terminal's interrupt
// does not reach it, and has the kernel kill it with us unless it stays.
func attr(stays bool) *syscall.SysProcAttr {
	if stays {
		return &syscall.SysProcAttr{Setsid: true}
	}
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
