package vsock

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// conn is a file with deadlines, as sockets are that Go can poll.
type conn struct {
	*os.File
	local, remote Addr
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// CloseWrite ends what is sent, not what is received.
func (c *conn) CloseWrite() error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := rc.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_WR) }); cerr != nil {
		return cerr
	}
	return os.NewSyscallError("shutdown", err)
}

// newConn takes a descriptor, which it makes non-blocking.
func newConn(fd int) (net.Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	c := &conn{File: os.NewFile(uintptr(fd), "vsock")}
	if sa, err := unix.Getsockname(fd); err == nil {
		c.local = addrOf(sa)
	}
	if sa, err := unix.Getpeername(fd); err == nil {
		c.remote = addrOf(sa)
	}
	return c, nil
}

func addrOf(sa unix.Sockaddr) Addr {
	vm, ok := sa.(*unix.SockaddrVM)
	if !ok {
		return Addr{}
	}
	return Addr{vm.CID, vm.Port}
}

func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	return fd, os.NewSyscallError("socket", err)
}

// Dial connects to a port of a machine; 2 is the host. The kernel gives up after
// two seconds, whatever ctx says.
func Dial(ctx context.Context, cid, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := socket()
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: port})
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return newConn(fd)
}

// listener is a listening socket.
type listener struct {
	f    *os.File
	rc   syscall.RawConn
	addr Addr
}

// Listen listens on a port for every machine; 0 is any free one.
func Listen(port uint32) (net.Listener, error) {
	fd, err := socket()
	if err != nil {
		return nil, err
	}
	if port == 0 {
		port = unix.VMADDR_PORT_ANY
	}
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}))
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, unix.SOMAXCONN))
	}
	if err == nil {
		err = os.NewSyscallError("fcntl", unix.SetNonblock(fd, true))
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	l := &listener{f: os.NewFile(uintptr(fd), "vsock")}
	if sa, err := unix.Getsockname(fd); err == nil {
		l.addr = addrOf(sa)
	}
	l.rc, err = l.f.SyscallConn()
	if err != nil {
		l.f.Close()
		return nil, err
	}
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	var fd int
	var err error
	rerr := l.rc.Read(func(s uintptr) bool {
		fd, _, err = unix.Accept4(int(s), unix.SOCK_CLOEXEC)
		return !errors.Is(err, unix.EAGAIN)
	})
	switch {
	case errors.Is(rerr, os.ErrClosed):
		return nil, net.ErrClosed
	case rerr != nil:
		return nil, rerr
	case err != nil:
		return nil, os.NewSyscallError("accept4", err)
	}
	return newConn(fd)
}

func (l *listener) Close() error   { return l.f.Close() }
func (l *listener) Addr() net.Addr { return l.addr }
