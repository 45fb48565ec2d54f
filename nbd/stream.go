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
	st := streamings.Get().(*streaming)
	defer st.end()
	st.replies, st.loading = &s.replies, true
	var f *os.File
	var at int64
	err = protect(s.log, func() error {
		f, at, handled = s.able.Section(off, n)
		return nil
	})
	if err != nil || !handled {
		return false, err
	}
	header := s.replies.dataHeader(st.header[:0], req, uint64(off), int(n), last)
	handled, err = s.conn.top.(fileSender).SendFile(header, f, at, n, st.ready)
	if !st.sending {
		return handled, err
	}
	s.replies.sent(err)
	if handled && s.replies.err == nil {
		s.traffic.streamed.Add(n)
	}
	return handled, s.replies.err
}

// streaming is a chunk on its way from a file to the connection.
type streaming struct {
	replies *replies
	header  [maxHeader + wire.OffsetDataSize]byte
	loading bool   // it is counted among the requests that a backend works on
	sending bool   // it holds replies.mu
	ready   func() // begin
}

var streamings = sync.Pool{New: func() any {
	st := new(streaming)
	st.ready = st.begin
	return st
}}

// begin is called when the data are at hand: nobody else sends from now on.
func (st *streaming) begin() {
	st.loaded()
	r := st.replies
	r.mu.Lock()
	st.sending = true
	r.flushLocked()
	r.conn.raw.SetWriteDeadline(r.conn.srv.limits.stallDeadline())
}

func (st *streaming) loaded() {
	if st.loading {
		st.replies.conn.srv.requests.Release(1)
	}
	st.loading = false
}

func (st *streaming) end() {
	st.loaded()
	if st.sending {
		st.replies.mu.Unlock()
	}
	st.replies, st.sending = nil, false
	streamings.Put(st)
}
