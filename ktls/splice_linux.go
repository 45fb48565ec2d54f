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
	pipe *pipe
	n    int // bytes in it
}

// Load takes n bytes of f at off, all of them: what is wrong with the file is
// found here, before anything has been sent. It returns nil, and no error, if it
// cannot be done that way: there are too many bytes, no pipe is free, f is a file
// that cannot be spliced.
func Load(f *os.File, off int64, n int) (*Section, error) {
	p := pipes.get(n + int(off%pageSize))
	if p == nil {
		return nil, nil
	}
	s := &Section{pipe: p}
	if err := s.fill(f, off, n); err != nil {
		s.Free()
		if err == unix.EAGAIN || err == unix.EINVAL { // full; not for splice(2)
			return nil, nil
		}
		return nil, fmt.Errorf("%d of %d bytes were read at %d: %w", s.n, n, off, err)
	}
	return s, nil
}

// fill is splice(2) from f until the pipe holds n bytes.
func (s *Section) fill(f *os.File, off int64, n int) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return control(c, func(fd int) error {
		for s.n < n {
			// SPLICE_F_NONBLOCK is about the pipe: nobody would ever make room in it.
			k, err := splice(fd, &off, s.pipe.w, nil, n-s.n, unix.SPLICE_F_NONBLOCK)
			switch {
			case err == unix.EINTR:
			case err != nil:
				return err
			case k == 0:
				return io.ErrUnexpectedEOF
			}
			s.n += int(max(k, 0))
		}
		return nil
	})
}

// SendTo sends header, and then the section, to the socket behind c. If it fails
// the stream is broken.
func (s *Section) SendTo(c syscall.RawConn, header []byte) error {
	if err := sendMore(c, header); err != nil {
		return err
	}
	return whenWritable(c, "splice", func(fd int) error {
		for s.n > 0 {
			k, err := splice(s.pipe.r, nil, fd, nil, s.n, unix.SPLICE_F_MOVE)
			if err != nil {
				return err
			}
			if k == 0 {
				return io.ErrUnexpectedEOF
			}
			s.n -= int(k)
		}
		return nil
	})
}

// Send is SendTo for an encrypted connection.
func (t *TX) Send(header []byte, s *Section) error { return s.SendTo(t.c, header) }

// Free gives the pipe back. One in which something is left is closed: one
// client's data must not reach another.
func (s *Section) Free() {
	if s.n > 0 {
		s.pipe.close()
		s.pipe = nil
	}
	pipes.put(s.pipe)
}

type pipe struct{ r, w, size int }

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	p := &pipe{r: fds[0], w: fds[1]}
	// Who is over the limit for pipes gets a smaller one.
	for size := MaxSection; size > pageSize; size /= 2 {
		if _, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, size); err == nil {
			break
		}
	}
	size, err := unix.FcntlInt(uintptr(p.w), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		p.close()
		return nil, err
	}
	p.size = size
	return p, nil
}

// pipePool holds the empty pipes.
type pipePool struct {
	mu   sync.Mutex
	free []*pipe
	made int // free and in use
}

var pipes pipePool

// get returns a pipe for n bytes; nil if there is none.
func (l *pipePool) get(n int) *pipe {
	if n > MaxSection {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var p *pipe
	if last := len(l.free) - 1; last >= 0 {
		p, l.free = l.free[last], l.free[:last]
	} else if l.made < maxPipes {
		var err error
		if p, err = newPipe(); err != nil {
			return nil
		}
		l.made++
	}
	if p != nil && p.size < n {
		l.free = append(l.free, p)
		return nil
	}
	return p
}

// put takes a pipe back, or nil for one that has been closed.
func (l *pipePool) put(p *pipe) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p == nil {
		l.made--
		return
	}
	l.free = append(l.free, p)
}
