package tlsengine

import (
	"errors"
	"fmt"
	"io"
	"os"

	"nbd-ktls-server/ktls"
)

// maxSendFile bounds the memory of SendFile.
const maxSendFile = ktls.MaxSection

// StreamFrom is from how many bytes on SendFile costs less than reading them and
// writing them; 0: it never does.
func (c *Conn) StreamFrom() int {
	if c.out.kernel != nil {
		return ktls.StreamFrom
	}
	return 0
}

// SendFile sends hdr and n bytes of f from off, as one batch. (false, nil) means
// that nothing was done: read the bytes and write them. (false, err): f cannot
// be read, and nothing was sent. (true, err): the connection is broken.
//
// ready, which may be nil, is called when the bytes are at hand, right before
// the first is sent: so the caller need not keep others from writing while a
// disk is slow.
//
// If the kernel makes the records, it takes the bytes from the page cache itself.
// In user space they are read and sealed, which costs what doing so elsewhere
// does.
func (c *Conn) SendFile(hdr []byte, f *os.File, off, n int64, ready func()) (handled bool, err error) {
	if n > maxSendFile {
		return false, nil
	}
	if ready == nil {
		ready = func() {}
	}
	if c.out.kernel != nil {
		return c.spliceFile(hdr, f, off, int(n), ready)
	}
	p := make([]byte, len(hdr)+int(n), len(hdr)+int(n)+1)
	copy(p, hdr)
	if k, err := f.ReadAt(p[len(hdr):], off); k < int(n) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return false, fmt.Errorf("%d of %d bytes were read at %d: %w", k, n, off, err)
	}
	ready()
	return true, c.write(p, true)
}

// spliceFile is SendFile where the kernel makes the records.
func (c *Conn) spliceFile(hdr []byte, f *os.File, off int64, n int, ready func()) (handled bool, err error) {
	records := sectionRecords(n)
	if len(hdr) > maxPlaintext || records >= c.rekeyRecords {
		return false, nil
	}
	s, err := ktls.Load(f, off, n)
	if s == nil || err != nil {
		return false, err
	}
	defer s.Free()
	ready()
	c.lockOut()
	defer c.unlockOut()
	if err := c.ready(records); err != nil {
		return true, err
	}
	c.out.seq += records
	c.out.bytes += int64(len(hdr) + n)
	if err := c.out.kernel.Send(hdr, s); err != nil {
		c.out.err = fmt.Errorf("tls: %w", err)
	}
	return true, c.out.err
}

// sectionRecords is into how many records the kernel puts a header and n bytes of
// a file at most: one for every page.
func sectionRecords(n int) uint64 {
	const page = 4096
	return uint64(n/page) + 4
}
