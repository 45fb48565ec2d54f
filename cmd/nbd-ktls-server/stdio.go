package main

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// stdioConn makes a connection of standard input and output: of the socket that
// they are (inetd(8), libnbd's nbd_connect_command(3)), or of two pipes.
func stdioConn() (net.Conn, error) {
	if nc, err := net.FileConn(os.Stdin); err == nil {
		return nc, nil
	}
	in, err := pollable(os.Stdin)
	if err != nil {
		return nil, err
	}
	out, err := pollable(os.Stdout)
	if err != nil {
		return nil, err
	}
	return &pipeConn{in, out}, nil
}

// pollable returns f in a form that has deadlines, if it is a kind of file that
// can have them.
func pollable(f *os.File) (*os.File, error) {
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// pipeConn is a connection made of two pipes.
type pipeConn struct{ in, out *os.File }

func (c *pipeConn) Read(p []byte) (int, error)         { return c.in.Read(p) }
func (c *pipeConn) Write(p []byte) (int, error)        { return c.out.Write(p) }
func (c *pipeConn) CloseWrite() error                  { return c.out.Close() }
func (c *pipeConn) Close() error                       { return errors.Join(ignoreClosed(c.out.Close()), c.in.Close()) }
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
