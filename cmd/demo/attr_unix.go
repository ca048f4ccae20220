//go:build unix && !linux

package main

import "syscall"

// childAttr puts dev in a process group of its own, so that a terminal's
// interrupt reaches only this program, which stops dev in order.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
