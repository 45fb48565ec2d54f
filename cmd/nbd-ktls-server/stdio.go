package main

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"nbd-ktls-server/ktls"
)

// stdioConn makes a connection of standard input and output: of the socket that
// they are (inetd(8), libnbd's nbd_connect_command(3)), or of two pipes.
func stdioConn() (net.Conn, error) {
	if nc, err := net.FileConn(os.Stdin); err == nil {
		return ktls.NewSocket(nc), nil
	}
	in, err := pollable(0, "stdin")
	if err != nil {
		return nil, err
	}
	out, err := pollable(1, "stdout")
	if err != nil {
		return nil, err
	}
	// Ours are now the only descriptors: when they are closed the other end
	// hears of it.
	return &pipeConn{in, out}, toDevNull(0, 1)
}

// pollable returns a duplicate of a descriptor in a form that has deadlines, if
// it is of a kind that can have them.
func pollable(fd int, name string) (*os.File, error) {
	fd, err := syscall.Dup(fd)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	syscall.CloseOnExec(fd)
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// restore makes f block again: the flag is also that of whoever gave us f.
func restore(f *os.File) {
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { syscall.SetNonblock(int(fd), false) })
	}
}

// pipeConn is a connection made of two pipes.
type pipeConn struct{ in, out *os.File }

func (c *pipeConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *pipeConn) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *pipeConn) CloseWrite() error           { restore(c.out); return c.out.Close() }
func (c *pipeConn) Close() error {
	restore(c.in)
	return errors.Join(ignoreClosed(c.CloseWrite()), c.in.Close())
}
func (c *pipeConn) LocalAddr() net.Addr                { return pipeAddr{} }
func (c *pipeConn) RemoteAddr() net.Addr               { return pipeAddr{} }
func (c *pipeConn) SetReadDeadline(t time.Time) error  { return c.in.SetReadDeadline(t) }
func (c *pipeConn) SetWriteDeadline(t time.Time) error { return c.out.SetWriteDeadline(t) }
func (c *pipeConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "stdio" }
