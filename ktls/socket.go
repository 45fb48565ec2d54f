package ktls

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Socket is a connection that is read and written with as little as that takes.
// One goroutine at a time may read, and one may write.
//
// What can be done at once is done without Go's scheduler being told: it would
// wake its monitor thread, which costs more than a small read. Bytes go in pieces
// of maxPiece, so nobody waits long for this thread. A deadline for writing is set
// when a write has to wait: one that need not, succeeds after it, too. Who says how
// many bytes will come is woken once for many of them. And a peer that has answered
// in microseconds is waited for so long without going to sleep (patience.go).
type Socket struct {
	net.Conn
	rc  syscall.RawConn // nil: Conn does everything
	in  socketIn
	out socketOut

	mu       sync.Mutex
	deadline time.Time // guarded by mu: for writing
	armed    bool      // guarded by mu: Conn has been told it, and is told of others
}

// socketIn is the direction in.
type socketIn struct {
	tcp      bool
	to       Buffer
	fixed    Fixed
	n        int
	err      error
	try      func(fd uintptr) bool
	patience patience

	// coming is how many bytes will come at least, and lowWater how many the kernel
	// lets us wait for: SO_RCVLOWAT, socket(7); 0 is its default, one. That is for
	// TCP: other sockets do not wake who lowers it when there is enough already.
	coming, lowWater int
}

// socketOut is the direction out.
type socketOut struct {
	p   []byte
	n   int // of p have been written
	err error
	try func(fd uintptr) bool

	call  func(fd uintptr) bool // of somebody who knows more system calls
	armed func(fd uintptr) bool // is call, and arms
}

// maxPiece is how many bytes are read or written by one system call at most:
// it takes some dozen microseconds.
const maxPiece = 288 << 10

// Buffer is where ReadTo reads to. A connection that waits for its peer need not
// have one.
type Buffer = interface {
	// Space is asked for when there may be something to be read.
	Space() []byte
	// Idle says that there is nothing, and that it will be waited for. It may be
	// called several times.
	Idle()
}

// Fixed is a Buffer that is always there.
type Fixed []byte

func (f Fixed) Space() []byte { return f }
func (f Fixed) Idle()         {}

// NewSocket makes a Socket of nc, which must not be read or written in other ways
// any more. If it is one already, or embeds one, that is the Socket.
func NewSocket(nc net.Conn) *Socket {
	if s, ok := nc.(interface{ self() *Socket }); ok {
		return s.self()
	}
	s := &Socket{Conn: nc}
	if sc, ok := nc.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			s.rc = rc
			_, s.in.tcp = nc.LocalAddr().(*net.TCPAddr)
		}
	}
	s.in.try, s.out.try, s.out.armed = s.tryRead, s.tryWrite, s.tryCall
	return s
}

func (s *Socket) self() *Socket { return s }

// Listener accepts Sockets.
type Listener struct{ net.Listener }

// Accept waits for the next connection.
func (l Listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return NewSocket(nc), nil
}

// Read is read(2).
func (s *Socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.in.fixed = p
	defer func() { s.in.fixed = nil }()
	return s.ReadTo(&s.in.fixed)
}

// ReadTo is read(2) to the space of b.
func (s *Socket) ReadTo(b Buffer) (int, error) {
	if s.rc == nil {
		b.Idle() // perhaps
		return s.Conn.Read(b.Space())
	}
	in := &s.in
	in.to, in.n, in.err = b, 0, nil
	err := s.rc.Read(in.try)
	in.to = nil
	switch {
	case err != nil:
		return 0, s.opError("read", err)
	case in.err != nil:
		return 0, s.opError("read", os.NewSyscallError("read", in.err))
	case in.n == 0:
		return 0, io.EOF
	}
	return in.n, nil
}

// tryRead is what the poller calls: it reports false if it has to be called
// again when there is something to be read.
func (s *Socket) tryRead(fd uintptr) bool {
	in := &s.in
	again := in.readNow(fd)
	if again {
		in.to.Idle()
		again = in.patience.wait(func() bool { return in.readNow(fd) })
	}
	if again {
		in.to.Idle()
		in.wait(int(fd))
		return false
	}
	in.patience.read()
	in.coming = max(in.coming-in.n, 0)
	return true
}

// readNow reports whether there was nothing to be read.
func (in *socketIn) readNow(fd uintptr) (again bool) {
	p := in.to.Space()
	if len(p) == 0 {
		in.err = syscall.EINVAL
		return false
	}
	in.n, in.err = readNow(int(fd), p[:min(len(p), maxPiece)])
	if in.err == syscall.EAGAIN {
		in.n, in.err = 0, nil
		return true
	}
	in.n = max(in.n, 0)
	return false
}

// Expect says that at least n more bytes will be read, so that they can be waited
// for together.
func (s *Socket) Expect(n int) { s.in.coming = max(n, 0) }

// How much is waited for at once: a payload comes in many segments, or records
// of TLS, and to be woken by each costs more than to read it.
const (
	minWait = 32 << 10
	maxWait = 96 << 10
)

// wait says how many bytes to wait for: never more than have to come.
func (in *socketIn) wait(fd int) {
	n := min(in.coming, maxWait)
	if n < minWait || !in.tcp {
		n = 0
	}
	if n != in.lowWater && setLowWater(fd, max(n, 1)) == nil {
		in.lowWater = n
	}
}

// Write is write(2) until all of p has been taken.
func (s *Socket) Write(p []byte) (int, error) {
	if s.rc == nil {
		return s.Conn.Write(p)
	}
	out := &s.out
	out.p, out.n, out.err = p, 0, nil
	err := s.rc.Write(out.try)
	out.p = nil
	switch {
	case err != nil:
		err = s.opError("write", err)
	case out.err != nil:
		err = s.opError("write", os.NewSyscallError("write", out.err))
	}
	return out.n, err
}

// tryWrite is what the poller calls: it reports false if it has to be called
// again when the socket takes more.
func (s *Socket) tryWrite(fd uintptr) bool {
	out := &s.out
	for out.n < len(out.p) {
		n, err := writeNow(int(fd), out.p[out.n:min(len(out.p), out.n+maxPiece)])
		if err == syscall.EAGAIN {
			s.arm()
			return false
		}
		if err != nil {
			out.err = err
			return true
		}
		out.n += n
	}
	return true
}

// arm tells the poller the deadline for writing, and whatever becomes of it:
// something has to wait.
func (s *Socket) arm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.armed {
		s.armed = s.Conn.SetWriteDeadline(s.deadline) == nil
	}
}

// SetWriteDeadline is for writes that have to wait.
func (s *Socket) SetWriteDeadline(t time.Time) error {
	if s.rc == nil {
		return s.Conn.SetWriteDeadline(t)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	if !s.armed && !past(t) {
		return nil
	}
	s.armed = !t.IsZero()
	return s.Conn.SetWriteDeadline(t)
}

// past reports whether t is a deadline that has been set to end what is waited
// for: at once.
func past(t time.Time) bool { return !t.IsZero() && time.Until(t) <= 0 }

// SetDeadline is SetReadDeadline and SetWriteDeadline.
func (s *Socket) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// CloseWrite shuts the direction out down.
func (s *Socket) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn is for those who know more system calls.
func (s *Socket) SyscallConn() (syscall.RawConn, error) {
	if s.rc == nil {
		return nil, errors.ErrUnsupported
	}
	return rawSocket{s}, nil
}

// rawSocket is the connection underneath, with the Socket's deadlines.
type rawSocket struct{ s *Socket }

func (r rawSocket) Control(f func(fd uintptr)) error   { return r.s.rc.Control(f) }
func (r rawSocket) Read(f func(fd uintptr) bool) error { return r.s.rc.Read(f) }
func (r rawSocket) Write(f func(fd uintptr) bool) error {
	r.s.out.call = f
	defer func() { r.s.out.call = nil }()
	return r.s.rc.Write(r.s.out.armed)
}

func (s *Socket) tryCall(fd uintptr) bool {
	done := s.out.call(fd)
	if !done {
		s.arm()
	}
	return done
}

// StreamFrom is from how many bytes on SendFile costs less than a read and a
// write: 3.3 and 4.3 instructions for each byte that nbdcopy reads in plain text.
func (s *Socket) StreamFrom() int {
	if s.rc == nil {
		return 0
	}
	return 16 << 10
}

// SendFile sends hdr and n bytes of f from off, in plain text. (false, nil): it
// did nothing, read them and write them. (false, err): f cannot be read. (true,
// err): the connection is broken. ready is called right before the first byte is
// sent; nobody else may write from then on.
//
// What is sent may be what somebody writes to the file meanwhile, until it is
// received: to the client, that is a write at the same time as its read.
func (s *Socket) SendFile(hdr []byte, f *os.File, off, n int64, ready func()) (handled bool, err error) {
	if n > MaxSection || s.rc == nil {
		return false, nil
	}
	section, err := Load(f, off, int(n))
	if section == nil || err != nil {
		return false, err
	}
	defer section.Free()
	ready()
	return true, section.SendTo(rawSocket{s}, hdr)
}

// opError is an error as package net has them.
func (s *Socket) opError(op string, err error) error {
	var oe *net.OpError
	if errors.As(err, &oe) {
		err = oe.Err
	}
	return &net.OpError{Op: op, Net: s.LocalAddr().Network(), Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}
