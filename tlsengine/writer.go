package tlsengine

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// batchRecords is how many full records are sealed and then sent by one
	// system call: a reply of 256 KiB, what nbdcopy asks for, with its header.
	batchRecords   = 17
	writeBufferLen = batchRecords * (maxPlaintext + recordOverhead)

	// defaultRekeyRecords is how many records we send under one key: 2^24, below
	// the 2^24.5 that AES-GCM allows (RFC 8446, Section 5.5), as GnuTLS does.
	defaultRekeyRecords = 1 << 24

	// alertPatience is how long an alert waits for a writer to finish, and then
	// for the peer to take it.
	alertPatience = time.Second
)

var writeBuffers = sync.Pool{New: func() any { return new([writeBufferLen]byte) }}

var (
	errClosed = errors.New("tls: written to after close_notify")
	errBusy   = errors.New("tls: a writer does not finish")
)

// writer is the direction out.
type writer struct {
	mu sync.Mutex
	halfConn
	bytes int64 // of plain text under this key
	// oneKey says that this key is the last one: the kernel cannot change it.
	oneKey bool
}

// lockOut locks the direction out, and pays what is owed.
func (c *Conn) lockOut() {
	c.out.mu.Lock()
	c.payUpdate()
}

// lockOutWithin is lockOut, but gives up: whoever reads must not wait for ever
// for somebody who cannot write.
func (c *Conn) lockOutWithin(d time.Duration) bool {
	for end := time.Now().Add(d); ; time.Sleep(time.Millisecond) {
		if c.out.mu.TryLock() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

func (c *Conn) unlockOut() { c.out.mu.Unlock() }

// payUpdate sends the KeyUpdate that the peer has asked for, if it has: one,
// however often it did. out.mu is held.
func (c *Conn) payUpdate() {
	if c.updateOwed.CompareAndSwap(true, false) && c.out.err == nil {
		c.out.err = c.sendKeyUpdate()
	}
}

// write seals p and sends it. spare says that p, and a byte behind it if it has
// the capacity, may be changed meanwhile.
func (c *Conn) write(p []byte, spare bool) error {
	if len(p) == 0 {
		return nil
	}
	c.lockOut()
	defer c.unlockOut()
	for {
		if err := c.ready(c.out.fewest()); err != nil {
			return err
		}
		n := c.room(len(p))
		if err := c.writeBatch(p[:n:min(n+1, cap(p))], spare && n+1 <= cap(p)); err != nil {
			c.out.err = fmt.Errorf("tls: %w", err)
			return c.out.err
		}
		c.out.bytes += int64(n)
		if p = p[n:]; len(p) == 0 {
			return nil
		}
		c.payUpdate()
	}
}

// ready makes sure that the key is good for so many records more. out.mu is
// held.
func (c *Conn) ready(records uint64) error {
	if c.out.err == nil {
		c.out.err = c.rekeyIfDue(records)
	}
	return c.out.err
}

// fewest is into how many records a little data goes. In the kernel, which
// does not tell, it is the most it can become.
func (w *writer) fewest() uint64 {
	if w.kernel != nil {
		return kernelRecords(1)
	}
	return 1
}

// kernelRecords is into how many records the kernel puts n bytes at most: when a
// socket is full it may end one early.
func kernelRecords(n int) uint64 { return 2*uint64((n+maxPlaintext-1)/maxPlaintext) + 1 }

// room is how much of n bytes goes into the next batch: as much as fits, and as
// the key is good for, less the KeyUpdate that ends it.
func (c *Conn) room(n int) int {
	left := c.rekeyRecords - 1 - c.out.seq
	n = min(n, batchRecords*maxPlaintext)
	if c.out.kernel != nil {
		left = (left - 1) / 2
	}
	if uint64(n) > left*maxPlaintext {
		n = int(left) * maxPlaintext
	}
	return n
}

// writeBatch sends p, which room allows.
func (c *Conn) writeBatch(p []byte, spare bool) error {
	if c.out.kernel != nil {
		c.out.seq += kernelRecords(len(p))
		_, err := c.raw.Write(p)
		return err
	}
	buf := writeBuffers.Get().(*[writeBufferLen]byte)
	defer writeBuffers.Put(buf)
	_, err := c.raw.Write(c.sealBatch(buf[:0], p, spare))
	return err
}

// sealBatch appends the records of p to dst.
func (c *Conn) sealBatch(dst, p []byte, spare bool) []byte {
	for {
		n := min(len(p), maxPlaintext)
		dst = c.out.seal(dst, typeApplicationData, p[:n], spare)
		if p = p[n:]; len(p) == 0 {
			return dst
		}
	}
}

// rekeyIfDue changes our key if it has been used enough to be no good for so
// many records more. out.mu is held.
func (c *Conn) rekeyIfDue(records uint64) error {
	if c.out.seq+records < c.rekeyRecords && (c.rekeyBytes == 0 || c.out.bytes < c.rekeyBytes) {
		return nil
	}
	return c.sendKeyUpdate()
}

// sendKeyUpdate sends a KeyUpdate, the last record under the old key, and begins
// the next. It never asks for one in return: GnuTLS takes crossing requests for
// an error. out.mu is held.
func (c *Conn) sendKeyUpdate() error {
	if c.out.oneKey {
		c.sendAlertLocked(alertCloseNotify)
		return c.breakOff(errOneKey)
	}
	if err := c.sendRecord(typeHandshake, []byte{handshakeKeyUpdate, 0, 0, 1, updateNotRequested}); err != nil {
		return c.breakOff(fmt.Errorf("tls: sending a KeyUpdate: %w", err))
	}
	c.counts.sent.Add(1)
	c.out.bytes = 0
	if err := c.out.update(); err != nil {
		// The peer is waiting for the new key: not even an alert can be sent.
		return c.breakOff(fmt.Errorf("tls: the new key could not be installed: %w", err))
	}
	return nil
}

// breakOff lets reading fail with why, too, and returns it.
func (c *Conn) breakOff(why error) error {
	c.ended.Store(&why)
	c.raw.SetReadDeadline(time.Unix(1, 0))
	return why
}

// sendRecord sends one record. out.mu is held.
func (c *Conn) sendRecord(typ contentType, content []byte) error {
	if c.out.kernel != nil {
		c.out.seq++
		return c.out.kernel.WriteRecord(byte(typ), content)
	}
	_, err := c.raw.Write(c.out.seal(make([]byte, 0, len(content)+recordOverhead), typ, content, false))
	return err
}

// sendAlert sends a fatal alert, after which nothing else is sent, if it can be
// sent soon.
func (c *Conn) sendAlert(a Alert) {
	if !c.lockOutWithin(alertPatience) {
		return
	}
	defer c.unlockOut()
	if c.out.err == nil {
		c.sendAlertLocked(a)
		c.out.err = fmt.Errorf("tls: the connection was ended by the alert %v", a)
	}
}

// sendAlertLocked sends an alert. out.mu is held.
func (c *Conn) sendAlertLocked(a Alert) error {
	const warning, fatal = 1, 2
	level := byte(fatal)
	if a == alertCloseNotify {
		level = warning
	}
	c.raw.SetWriteDeadline(time.Now().Add(alertPatience))
	defer c.raw.SetWriteDeadline(time.Time{})
	err := c.sendRecord(typeAlert, []byte{level, byte(a)})
	if err == nil && c.out.kernel != nil {
		err = c.out.kernel.Drain()
	}
	return err
}
