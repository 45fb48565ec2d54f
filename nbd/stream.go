package nbd

import (
	"os"
	"sync"

	"nbd-ktls-server/nbd/wire"
)

// A fileSender is a connection that can send a part of a file without having it
// read first.
type fileSender interface {
	// StreamFrom is from how many bytes on that is worth while; 0: never.
	StreamFrom() int
	// SendFile sends header and n bytes of f at off. (false, nil): nothing was
	// done, read them and write them. (false, err): f cannot be read, and nothing
	// was sent. (true, err): the connection is broken. ready is called right
	// before the first byte is sent.
	SendFile(header []byte, f *os.File, off, n int64, ready func()) (handled bool, err error)
}

const (
	// maxStream is the longest chunk that is streamed: what a fileSender can
	// take at once, which is a MiB of pages.
	maxStream   = 1 << 20
	streamAlign = 4096
)

// streams reports whether n bytes would rather be streamed than read.
func (s *session) streams(n int64) bool {
	return s.streamFrom > 0 && n >= s.streamFrom
}

// stream sends n bytes at off, if the export has them in a file and the
// connection takes files, as SendFile does.
func (s *session) stream(req *request, off, n int64, last bool) (handled bool, err error) {
	if !s.streams(n) || n > maxStream {
		return false, nil
	}
	if err := s.conn.srv.requests.Acquire(s.conn.ctx, 1); err != nil {
		return false, err
	}
	release := sync.OnceFunc(func() { s.conn.srv.requests.Release(1) })
	defer release()
	var f *os.File
	var at int64
	err = protect(s.log, func() error {
		f, at, handled = s.able.Section(off, n)
		return nil
	})
	if err != nil || !handled {
		return false, err
	}
	handled, err = s.replies.section(req, uint64(off), f, at, n, last, release)
	if handled && err == nil {
		s.traffic.streamed.Add(n)
	}
	return handled, err
}

// section sends n bytes of f at at as the data of a READ that begin at offset,
// as SendFile does. ready is called when they are at hand.
func (r *replies) section(req *request, offset uint64, f *os.File, at, n int64, done bool, ready func()) (handled bool, err error) {
	var mem [maxHeader + wire.OffsetDataSize]byte
	header := r.dataHeader(mem[:0], req, offset, int(n), done)
	locked := false
	handled, err = r.conn.top.(fileSender).SendFile(header, f, at, n, func() {
		ready()
		r.mu.Lock()
		locked = true
		r.flushLocked()
		r.conn.raw.SetWriteDeadline(r.conn.srv.limits.stallDeadline())
	})
	if !locked {
		return handled, err
	}
	defer r.mu.Unlock()
	r.sent(err)
	return handled, r.err
}
