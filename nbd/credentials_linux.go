package nbd

import (
	"net"
	"syscall"
)

// credentials asks a Unix socket for those of its peer.
func credentials(nc net.Conn) (c *Credentials) {
	if _, ok := nc.RemoteAddr().(*net.UnixAddr); !ok {
		return nil
	}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	rc.Control(func(fd uintptr) {
		if u, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			c = &Credentials{PID: u.Pid, UID: u.Uid, GID: u.Gid}
		}
	})
	return c
}
