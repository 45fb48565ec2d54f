package tlsengine

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
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
	idle     int                  // records in a row without data

	// coming is how many bytes will come at least, and lowWater how many the kernel
	// lets us wait for: SO_RCVLOWAT, socket(7); 0 is its default, one. That is for
	// TCP: other sockets do not wake who lowers it when there is enough already.
	tcp              bool
	coming, lowWater int

	rc  syscall.RawConn // nil: read through net.Conn
	try func(fd uintptr) bool
	n   int   // what try
	rer error // has read
}

// take moves opened data to p.
func (r *reader) take(p []byte) int {
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n
}

// useless counts a record without data.
func (r *reader) useless() error {
	if r.idle++; r.idle > maxUseless {
		return fatal(alertUnexpectedMessage, "%d records without data", r.idle)
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
func (r *reader) fill(raw net.Conn) error {
	if r.r == r.w {
		r.release()
	} else if r.r > 0 && readBufferLen-r.w < maxRecord {
		r.w = copy(r.buf[:], r.buf[r.r:r.w])
		r.r = 0
	}
	n, err := r.read(raw)
	r.w += n
	if n > 0 {
		return nil
	}
	if errors.Is(err, io.EOF) { // without a close_notify
		return io.ErrUnexpectedEOF
	}
	return err
}

// read is one read(2) into the rest of the buffer, which is taken from the pool
// only when there is something to be read.
func (r *reader) read(raw net.Conn) (int, error) {
	if r.rc == nil {
		r.acquire()
		return raw.Read(r.buf[r.w:])
	}
	r.n, r.rer = 0, nil
	err := r.rc.Read(r.try)
	switch {
	case err != nil:
		return 0, err
	case r.rer != nil:
		return 0, &net.OpError{Op: "read", Net: raw.LocalAddr().Network(), Source: raw.LocalAddr(), Addr: raw.RemoteAddr(), Err: r.rer}
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}

// tryRead is what the poller calls: it reports false if it has to be called
// again when there is something to be read.
func (r *reader) tryRead(fd uintptr) bool {
	r.acquire()
	for {
		r.n, r.rer = syscall.Read(int(fd), r.buf[r.w:])
		if r.rer != syscall.EINTR {
			break
		}
	}
	if r.rer == syscall.EAGAIN {
		r.n, r.rer = 0, nil
		if r.w == 0 {
			r.release()
		}
		r.wait(fd)
		return false
	}
	r.n = max(r.n, 0)
	r.coming = max(r.coming-r.n, 0)
	return true
}

// How much is waited for at once: as long as a payload comes in records, each of
// them would wake us, which costs more than opening it. The buffer holds more.
const (
	minWait = 2 * maxPlaintext
	maxWait = 6 * maxPlaintext
)

// wait says how many bytes to wait for: never more than have to come.
func (r *reader) wait(fd uintptr) {
	n := min(r.coming, maxWait)
	if n < minWait || !r.tcp {
		n = 0
	}
	if n != r.lowWater && setLowWater(int(fd), max(n, 1)) == nil {
		r.lowWater = n
	}
}

func (r *reader) acquire() {
	if r.buf == nil {
		r.buf = readBuffers.Get().(*[readBufferLen]byte)
	}
}

// release gives the buffer back. It has held plain text.
func (r *reader) release() {
	if r.buf != nil {
		clear(r.buf[:r.w])
		readBuffers.Put(r.buf)
	}
	r.buf, r.data, r.r, r.w = nil, nil, 0, 0
}
