package proxy

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// childAttr is for a child in a group of its own, which ends with us.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// vsockConn is a connection to another machine on the same host, vsock(7), which
// package net does not know.
type vsockConn struct {
	*os.File
	addr vsockAddr
}

type vsockAddr string

func (vsockAddr) Network() string  { return "vsock" }
func (a vsockAddr) String() string { return string(a) }

func (c vsockConn) LocalAddr() net.Addr  { return vsockAddr("local") }
func (c vsockConn) RemoteAddr() net.Addr { return c.addr }

func dialVsock(cid, port uint32) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	addr := &unix.SockaddrVM{CID: cid, Port: port}
	if err := unix.Connect(fd, addr); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return vsockConn{os.NewFile(uintptr(fd), "vsock"), "vsock"}, nil
}
