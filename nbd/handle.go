package nbd

import (
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"

	"nbd-ktls-server/nbd/wire"
)

// handle works on a valid request and answers it. Replies that cannot be sent
// end the connection; the reader finds out by itself.
func (s *session) handle(req *request) {
	var err error
	switch req.Command {
	case wire.CmdRead:
		s.handleRead(req)
		return
	case wire.CmdBlockStatus:
		if err = s.handleBlockStatus(req); err == nil {
			return
		}
	default:
		err = s.guard(func() error { return s.do(req) })
	}
	if err != nil {
		s.fail(req, err)
		return
	}
	if req.soon {
		s.replies.doneSoon(req)
	} else {
		s.replies.done(req)
	}
}

// do works on a request whose reply has no data.
func (s *session) do(req *request) error {
	off, n := int64(req.Offset), int64(req.Length)
	fua := req.Flags&wire.CmdFlagFUA != 0
	switch req.Command {
	case wire.CmdWrite:
		var p []byte
		if req.payload != nil {
			p = req.payload.data()
		}
		return s.write(p, off, fua)
	case wire.CmdFlush:
		return s.able.Sync()
	case wire.CmdTrim:
		return s.durable(fua, s.able.Trim(off, n))
	case wire.CmdCache:
		return s.able.Cache(off, n)
	case wire.CmdWriteZeroes:
		return s.durable(fua, s.zero(off, n, req.Flags))
	}
	return refuse(wire.EINVAL, "unknown command") // validate knows them all
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

// zero makes a range read as zeroes, by writing them if need be: but not for a
// client that would rather do without (proto.md, "NBD_CMD_FLAG_FAST_ZERO").
func (s *session) zero(off, n int64, flags wire.CommandFlags) error {
	fast := flags&wire.CmdFlagFastZero != 0
	if s.able.Zero != nil {
		var how ZeroFlags
		if flags&wire.CmdFlagNoHole == 0 {
			how |= ZeroMayTrim
		}
		if fast {
			how |= ZeroFast
		}
		if err := s.able.Zero(off, n, how); !isUnsupported(err) {
			return err
		}
	}
	switch {
	case fast:
		return refuse(wire.ENOTSUP, "zeroing is no faster than writing here")
	case n > maxWrittenZeroes:
		return refuse(wire.EOVERFLOW, "%d zeroes would have to be written; %d at a time will be", n, maxWrittenZeroes)
	}
	for n > 0 && s.conn.ctx.Err() == nil {
		p := zeroes[:min(n, int64(len(zeroes)))]
		if err := writeFull(s.able.WriteAt, p, off); err != nil {
			return err
		}
		off += int64(len(p))
		n -= int64(len(p))
	}
	return s.conn.ctx.Err()
}

// maxWrittenZeroes bounds what one request makes us write: as much as could be
// asked for before lengths had 64 bits.
const maxWrittenZeroes = 1<<32 - 1

// zeroes is written where an export cannot zero by itself.
var zeroes = make([]byte, 256<<10)

func writeFull(writeAt func([]byte, int64) (int, error), p []byte, off int64) error {
	n, err := writeAt(p, off)
	if err == nil && n != len(p) {
		return fmt.Errorf("%d of %d bytes were written at %d: %w", n, len(p), off, io.ErrShortWrite)
	}
	return err
}

// guard lets a backend work: when the server's limit allows, and so that a panic
// becomes an error.
func (s *session) guard(f func() error) error {
	if err := s.conn.srv.requests.Acquire(s.conn.ctx, 1); err != nil {
		return err
	}
	defer s.conn.srv.requests.Release(1)
	return protect(s.log, f)
}

// protect turns a panic of a backend into an error: one export's defect must not
// take the others down.
func protect(log *slog.Logger, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			log.Error("a backend panicked", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	return f()
}

// fail answers a request with the error that err stands for.
func (s *session) fail(req *request, err error) error {
	s.logFailure(req, err)
	return s.replies.fail(req, errnoOf(err), clientText(err))
}

// logFailure logs the first failure of a connection; more of them are counted.
func (s *session) logFailure(req *request, err error) {
	req.failed = true
	attrs := []any{
		"command", req.Command, "offset", req.Offset, "length", req.Length,
		"error", errnoOf(err), "reason", err,
	}
	if s.stats.errors.Add(1) == 1 {
		s.log.Warn("request failed", append(attrs, "note", "further failures on this connection are logged by -v only")...)
	} else {
		s.log.Debug("request failed", attrs...)
	}
}
