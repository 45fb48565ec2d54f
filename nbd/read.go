package nbd

import (
	"fmt"
	"io"

	"nbd-ktls-server/nbd/wire"
)

// minHole is the smallest hole that is worth a chunk of its own: smaller ones
// are sent as zeroes among the data.
const minHole = 4096

// handleRead answers a READ.
func (s *session) handleRead(req *request) {
	s.stats.bytesRead.Add(int64(req.Length))
	switch {
	case req.Length == 0: // a chunk of data may not be empty
		s.replies.done(req)
	case s.maySkipHoles(req):
		s.readSparse(req)
	default:
		s.sendData(req, int64(req.Offset), int64(req.Length), true)
	}
}

// maySkipHoles reports whether the reply to a READ can say where holes are, and
// we know.
func (s *session) maySkipHoles(req *request) bool {
	return s.several(req) && s.able.Hole != nil
}

// maxReadNow is the largest READ that is answered from the goroutine that reads
// requests. It is one at a time, so Limits need not count it.
const maxReadNow = 1 << 20

// readNow answers a READ from the goroutine that reads requests, if the
// data are at hand and nobody else is writing: to start a goroutine and wake a
// thread for it costs more than to copy a few pages. It reports false if the
// request has to take the long way.
func (s *session) readNow(req *request) bool {
	if req.Command != wire.CmdRead || s.able.ReadNow == nil || req.Length == 0 || req.Length > maxReadNow || s.streams(int64(req.Length)) {
		return false
	}
	off, n := int64(req.Offset), int64(req.Length)
	// Holes first: to read them would fill the page cache with zeroes.
	if s.maySkipHoles(req) {
		if hole, length := s.nextChunk(off, n); hole || length < n {
			return false
		}
	}
	if !s.replies.mu.TryLock() {
		return false
	}
	defer s.replies.mu.Unlock()
	if n <= maxHeldRead {
		b := s.replies.room(maxHeader + wire.OffsetDataSize + int(n))
		h := len(s.replies.dataHeader(b[:0], req, uint64(off), int(n), true))
		if !s.atHand(b[h:][:n], off) {
			return false
		}
		s.replies.hold(h + int(n))
	} else {
		b := newBuffer(int(n))
		defer b.free()
		if !s.atHand(b.data(), off) {
			return false
		}
		s.replies.dataLocked(req, uint64(off), b, true) // an error ends the connection, which the reader will see
	}
	s.stats.bytesRead.Add(n)
	return true
}

// maxHeldRead is the largest READ whose reply waits for others to leave with:
// larger ones fill a record of TLS.
const maxHeldRead = 16 << 10

// atHand fills p from off if that is possible at once.
func (s *session) atHand(p []byte, off int64) bool {
	got := 0
	err := protect(s.log, func() error { got = s.able.ReadNow(p, off); return nil })
	return err == nil && got == len(p)
}

// readSparse sends data and holes each as what they are (proto.md,
// "NBD_CMD_READ"). A failure after the first chunk ends the reply with an error,
// which makes the whole of it void.
func (s *session) readSparse(req *request) {
	off, end := int64(req.Offset), int64(req.Offset+req.Length)
	for off < end {
		hole, n := s.nextChunk(off, end-off)
		var ok bool
		if last := off+n == end; hole {
			ok = s.replies.hole(req, uint64(off), uint32(n), last) == nil
		} else {
			ok = s.sendData(req, off, n, last)
		}
		if !ok {
			return
		}
		off += n
	}
}

// nextChunk says whether a hole or data come next, and how many bytes of it.
func (s *session) nextChunk(off, n int64) (hole bool, length int64) {
	for length < n {
		h, k := s.holeAt(off+length, n-length)
		if h && k >= minHole {
			if length == 0 {
				return true, k
			}
			return false, length
		}
		length += k
	}
	return false, length
}

// holeAt asks the export for a hole. What it cannot say right is data, which is
// always true enough.
func (s *session) holeAt(off, n int64) (hole bool, length int64) {
	err := protect(s.log, func() error {
		hole, length = s.able.Hole(off, n)
		return nil
	})
	if err != nil || length < 1 || length > n {
		return false, n
	}
	return hole, length
}

// several reports whether the reply to req may have several chunks of data.
func (s *session) several(req *request) bool {
	return s.style != simple && req.Flags&wire.CmdFlagDF == 0
}

// maxChunk is the longest chunk that is read and written, where there may be
// several: the largest buffer that comes from a pool. A shorter one would make
// more round trips of those to a backend that is far away.
const maxChunk = 1 << maxBufferBits

// sendData sends n bytes at off, or an error, and reports whether the reply can
// go on.
func (s *session) sendData(req *request, off, n int64, last bool) bool {
	several := s.several(req)
	for n > 0 {
		k := n
		switch {
		case several && s.streams(n):
			k = min(n, maxStream-off%streamAlign)
		case several:
			k = min(n, maxChunk)
		}
		if !s.sendChunk(req, off, k, last && k == n) {
			return false
		}
		off, n = off+k, n-k
	}
	return true
}

// sendChunk sends n bytes at off with one header: or an error, which is known
// before the first byte of the chunk is sent.
func (s *session) sendChunk(req *request, off, n int64, last bool) bool {
	handled, err := s.stream(req, off, n, last)
	if handled {
		return err == nil
	}
	var b *buffer
	if err == nil {
		b = newBuffer(int(n))
		defer b.free()
		err = s.guard(func() error { return readFull(s.able.ReadAt, b.data(), off) })
	}
	if err != nil {
		s.logFailure(req, err)
		s.replies.failAt(req, errnoOf(err), clientText(err), uint64(off))
		return false
	}
	return s.replies.data(req, uint64(off), b, last) == nil
}

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
