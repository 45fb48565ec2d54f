package proxy

import "syscall"

// childAttr is for a child in a group of its own, which ends with us.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
