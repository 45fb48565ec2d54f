package main

import (
	"net"
	"os"
	"syscall"

	"nbd-ktls-server/ktls"
)

// streamListener makes connections over which parts of files go without being
// copied, as they do where the kernel encrypts.
type streamListener struct{ net.Listener }

func (l streamListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if s, ok := nc.(socket); ok {
		if rc, err := s.SyscallConn(); err == nil {
			return &streamConn{s, rc}, nil
		}
	}
	return nc, nil
}

// socket is a TCP or Unix connection.
type socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// streamConn is a connection in plain text. What is sent of a file may be what
// somebody writes to it meanwhile, until it is received: to the client, that is
// a write at the same time as its read.
type streamConn struct {
	socket
	rc syscall.RawConn
}

// StreamFrom is from how many bytes on SendFile costs less than a read and a
// write.
func (c *streamConn) StreamFrom() int { return ktls.StreamFrom }

// SendFile sends hdr and n bytes of f from off (nbd's fileSender). Nobody else
// may write meanwhile.
func (c *streamConn) SendFile(hdr []byte, f *os.File, off, n int64, ready func()) (handled bool, err error) {
	if n > ktls.MaxSection {
		return false, nil
	}
	s, err := ktls.Load(f, off, int(n))
	if s == nil || err != nil {
		return false, err
	}
	defer s.Free()
	ready()
	return true, s.SendTo(c.rc, hdr)
}
