package nbd

import (
	"fmt"
	"io"
	"runtime/debug"

	"nbd-ktls-server/nbd/wire"
)

// handle works on a valid request and answers it. Replies that cannot be sent
// end the connection; the reader finds out by itself.
func (s *session) handle(req *request) {
	if req.Command == wire.CmdRead {
		s.handleRead(req)
		return
	}
	err := s.guard(func() error { return s.do(req) })
	if err != nil {
		s.fail(req, err)
		return
	}
	s.replies.simple(0, req.Cookie)
}

// do works on a request whose reply has no data.
func (s *session) do(req *request) error {
	off, n := int64(req.Offset), int64(req.Length)
	fua := req.Flags&wire.CmdFlagFUA != 0
	switch req.Command {
	case wire.CmdWrite:
		return s.write(req.payload.data(), off, fua)
	case wire.CmdFlush:
		return s.able.Sync()
	case wire.CmdTrim:
		return s.durable(fua, s.able.Trim(off, n))
	case wire.CmdWriteZeroes:
		return s.durable(fua, s.zero(off, n, req.Flags))
	}
	return refuse(wire.EINVAL, "unknown command") // validate knows them all
}

// handleRead answers a READ: with the data or with an error, known before the
// first byte of the reply is sent.
func (s *session) handleRead(req *request) {
	b := newBuffer(int(req.Length))
	defer b.free()
	err := s.guard(func() error { return readFull(s.able.ReadAt, b.data(), int64(req.Offset)) })
	if err != nil {
		s.fail(req, err)
		return
	}
	s.stats.bytesRead.Add(int64(req.Length))
	s.replies.read(req.Cookie, b)
}

func (s *session) write(p []byte, off int64, fua bool) error {
	write := s.able.WriteAt
	if fua && s.able.WriteFUA != nil {
		write, fua = s.able.WriteFUA, false
	}
	if err := writeFull(write, p, off); err != nil {
		return err
	}
	s.stats.bytesWritten.Add(int64(len(p)))
	return s.durable(fua, nil)
}

// durable follows up a change that ended in err with what FUA asks for.
func (s *session) durable(fua bool, err error) error {
	if err != nil || !fua {
		return err
	}
	return s.able.Sync()
}

// zero makes a range read as zeroes, by writing them if need be.
func (s *session) zero(off, n int64, flags wire.CommandFlags) error {
	if s.able.Zero != nil {
		var how ZeroFlags
		if flags&wire.CmdFlagNoHole == 0 {
			how |= ZeroMayTrim
		}
		if err := s.able.Zero(off, n, how); !isUnsupported(err) {
			return err
		}
	}
	for n > 0 {
		p := zeroes[:min(n, int64(len(zeroes)))]
		if err := writeFull(s.able.WriteAt, p, off); err != nil {
			return err
		}
		off += int64(len(p))
		n -= int64(len(p))
	}
	return nil
}

// zeroes is written where an export cannot zero by itself.
var zeroes = make([]byte, 256<<10)

// readFull makes a short read an error: bytes that were not read must never be
// sent.
func readFull(readAt func([]byte, int64) (int, error), p []byte, off int64) error {
	n, err := readAt(p, off)
	switch {
	case n == len(p): // io.ReaderAt allows io.EOF along with the last bytes
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%d of %d bytes were read at %d: %w", n, len(p), off, io.ErrUnexpectedEOF)
}

func writeFull(writeAt func([]byte, int64) (int, error), p []byte, off int64) error {
	n, err := writeAt(p, off)
	if err == nil && n != len(p) {
		return fmt.Errorf("%d of %d bytes were written at %d: %w", n, len(p), off, io.ErrShortWrite)
	}
	return err
}

// guard turns a panic of a backend into an error: one export's defect must not
// take the others down.
func (s *session) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			s.log.Error("a backend panicked", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	return f()
}

// fail answers a request with the error that err stands for. Refusals and
// failures of a kind are logged once for each connection, then counted.
func (s *session) fail(req *request, err error) error {
	errno := errnoOf(err)
	if s.stats.errors.Add(1) == 1 {
		s.log.Warn("request failed", "command", req.Command, "offset", req.Offset, "length", req.Length,
			"error", errno, "reason", err, "note", "further failures on this connection are logged by -v only")
	} else {
		s.log.Debug("request failed", "command", req.Command, "offset", req.Offset, "length", req.Length, "error", errno, "reason", err)
	}
	return s.replies.simple(errno, req.Cookie)
}
