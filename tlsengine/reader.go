package tlsengine

import (
	"errors"
	"io"
	"sync"

	"nbd-ktls-server/ktls"
)

// readBufferLen holds eight of the largest records: a request of 256 KiB takes
// three system calls to read. It is taken from a pool while there is something
// in it; a connection that waits for its peer holds none.
const readBufferLen = 8 * maxRecord

var readBuffers = sync.Pool{New: func() any { return new([readBufferLen]byte) }}

// maxUseless bounds the records in a row that bring no data: empty ones, key
// updates, user_canceled. A peer that sends more has nothing better to do.
const maxUseless = 32

// reader is the direction in.
type reader struct {
	mu sync.Mutex
	halfConn

	buf      *[readBufferLen]byte // nil while nothing is in it
	r, w     int                  // what has been read and not been opened is buf[r:w]
	data     []byte               // what has been opened and not been taken, in buf
	fragment []byte               // of a handshake message
	late     error                // comes behind what has been taken
	dataless int                  // records in a row without data
	to       ktls.Buffer          // of whoever reads
}

// take moves opened data to p.
func (r *reader) take(p []byte) int {
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n
}

// useless counts a record without data.
func (r *reader) useless() error {
	if r.dataless++; r.dataless > maxUseless {
		return fatal(alertUnexpectedMessage, "%d records without data", r.dataless)
	}
	return nil
}

// whole reports whether the next record is there, or what cannot become one.
func (r *reader) whole() bool {
	if r.buf == nil {
		return false
	}
	n, err := recordLen(r.buf[r.r:r.w])
	return err != nil || n > 0 && r.w-r.r >= n
}

// pending reports whether there is something for tryRead.
func (r *reader) pending() bool {
	return len(r.data) > 0 || r.late != nil || r.err != nil || r.whole()
}

// next returns the next record, which is whole, until fill is called.
func (r *reader) next() ([]byte, error) {
	n, err := recordLen(r.buf[r.r:r.w])
	if err != nil {
		return nil, err
	}
	r.r += n
	return r.buf[r.r-n : r.r], nil
}

// fill reads as much as there is, and waits if there is nothing.
func (r *reader) fill(raw *ktls.Socket) error {
	if r.r == r.w {
		r.release()
	} else if r.r > 0 && readBufferLen-r.w < maxRecord {
		r.w = copy(r.buf[:], r.buf[r.r:r.w])
		r.r = 0
	}
	n, err := raw.ReadTo(r)
	r.w += n
	if n > 0 {
		return nil
	}
	if errors.Is(err, io.EOF) { // without a close_notify
		return io.ErrUnexpectedEOF
	}
	return err
}

// Space is the rest of the buffer, which is taken from the pool only when there
// is something to be read ([ktls.Buffer]).
func (r *reader) Space() []byte {
	if r.buf == nil {
		r.buf = readBuffers.Get().(*[readBufferLen]byte)
	}
	return r.buf[r.w:]
}

// Idle gives the buffer back if there is nothing in it.
func (r *reader) Idle() {
	if r.w == 0 {
		r.release()
	}
	r.to.Idle()
}

// release gives the buffer back. It has held plain text.
func (r *reader) release() {
	if r.buf != nil {
		clear(r.buf[:r.w])
		readBuffers.Put(r.buf)
	}
	r.buf, r.data, r.r, r.w = nil, nil, 0, 0
}
