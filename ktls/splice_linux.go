package ktls

import (
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxPipes bounds the pipes of the whole process. An ordinary user may have
	// 64 of 1 MiB (pipe-user-pages-soft).
	maxPipes = 48
	// MaxSection is what a pipe is to hold, in bytes.
	MaxSection = 1 << 20
	pageSize   = 4096
)

// Section is a part of a file on its way to a socket: pages of the page cache,
// referenced by a pipe. Nothing has been copied.
type Section struct {
	r, w int // the pipe's ends
	size int // how much it holds
	n    int // bytes in it

	// What load and send, which are made once, work on.
	off    int64
	want   int
	header []byte
	err    error
	load   func(fd uintptr)
	send   func(fd uintptr) bool
}

// Load takes n bytes of f at off, all of them: what is wrong with the file is
// found here, before anything has been sent. It returns nil, and no error, if it
// cannot be done that way: there are too many bytes, no pipe is free, f is a file
// that cannot be spliced.
func Load(f *os.File, off int64, n int) (*Section, error) {
	s := pipes.get(n + int(off%pageSize))
	if s == nil {
		return nil, nil
	}
	if err := s.fill(f, off, n); err != nil {
		read := s.n // before it may be somebody else's
		s.Free()
		if err == unix.EAGAIN || err == unix.EINVAL { // full; not for splice(2)
			return nil, nil
		}
		return nil, fmt.Errorf("%d of %d bytes were read at %d: %w", read, n, off, err)
	}
	return s, nil
}

// fill is splice(2) from f until the pipe holds n bytes.
func (s *Section) fill(f *os.File, off int64, n int) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	s.off, s.want, s.err = off, n, nil
	if err := c.Control(s.load); err != nil {
		return err
	}
	return s.err
}

// loadFrom is load.
func (s *Section) loadFrom(fd uintptr) {
	for s.n < s.want {
		// SPLICE_F_NONBLOCK is about the pipe: nobody would ever make room in it.
		k, err := splice(int(fd), &s.off, s.w, nil, s.want-s.n, unix.SPLICE_F_NONBLOCK)
		switch {
		case err == unix.EINTR:
		case err != nil:
			s.err = err
			return
		case k == 0:
			s.err = io.ErrUnexpectedEOF
			return
		}
		s.n += int(max(k, 0))
	}
}

// SendTo sends header, and then the section, to the socket behind c. If it fails
// the stream is broken.
func (s *Section) SendTo(c syscall.RawConn, header []byte) error {
	s.header, s.err = header, nil
	err := c.Write(s.send)
	s.header = nil
	if err != nil {
		return err
	}
	return s.err
}

// sendTo is send: it reports false if the socket takes no more for now.
func (s *Section) sendTo(fd uintptr) bool {
	for len(s.header) > 0 {
		// More will follow at once: the kernel keeps the record open.
		n, err := sendmsg(int(fd), s.header, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL|unix.MSG_MORE)
		if again, done := s.result("sendmsg", err); done {
			return !again
		}
		s.header = s.header[max(n, 0):]
	}
	for s.n > 0 {
		k, err := splice(s.r, nil, int(fd), nil, s.n, unix.SPLICE_F_MOVE)
		if again, done := s.result("splice", err); done {
			return !again
		}
		if k == 0 && err == nil {
			s.err = io.ErrUnexpectedEOF
			return true
		}
		s.n -= int(max(k, 0))
	}
	return true
}

// result says whether a call that ended in err was the last one for now, and
// whether it is to be made again when the socket takes more.
func (s *Section) result(call string, err error) (again, done bool) {
	switch err {
	case nil, unix.EINTR:
		return false, false
	case unix.EAGAIN:
		return true, true
	}
	s.err = os.NewSyscallError(call, err)
	return false, true
}

// Send is SendTo for an encrypted connection.
func (t *TX) Send(header []byte, s *Section) error { return s.SendTo(t.c, header) }

// Free gives the pipe back. One in which something is left is closed: one
// client's data must not reach another.
func (s *Section) Free() {
	if s.n > 0 {
		unix.Close(s.r)
		unix.Close(s.w)
		pipes.put(nil)
		return
	}
	pipes.put(s)
}

// newSection makes a pipe.
func newSection() (*Section, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	s := &Section{r: fds[0], w: fds[1]}
	s.load, s.send = s.loadFrom, s.sendTo
	// Who is over the limit for pipes gets a smaller one.
	for size := MaxSection; size > pageSize; size /= 2 {
		if _, err := unix.FcntlInt(uintptr(s.w), unix.F_SETPIPE_SZ, size); err == nil {
			break
		}
	}
	size, err := unix.FcntlInt(uintptr(s.w), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		unix.Close(s.r)
		unix.Close(s.w)
		return nil, err
	}
	s.size = size
	return s, nil
}

// pipePool holds the empty pipes.
type pipePool struct {
	mu   sync.Mutex
	free []*Section
	made int // free and in use
}

var pipes pipePool

// get returns a pipe for n bytes; nil if there is none.
func (l *pipePool) get(n int) *Section {
	if n > MaxSection {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var s *Section
	if last := len(l.free) - 1; last >= 0 {
		s, l.free = l.free[last], l.free[:last]
	} else if l.made < maxPipes {
		var err error
		if s, err = newSection(); err != nil {
			return nil
		}
		l.made++
	}
	if s != nil && s.size < n {
		l.free = append(l.free, s)
		return nil
	}
	return s
}

// put takes a pipe back, or nil for one that has been closed.
func (l *pipePool) put(s *Section) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s == nil {
		l.made--
		return
	}
	l.free = append(l.free, s)
}
