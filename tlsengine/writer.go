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
	buf := writeBuffers.Get().(*[writeBufferLen]byte)
	defer writeBuffers.Put(buf)
	for {
		if c.out.err != nil {
			return c.out.err
		}
		if err := c.rekeyIfDue(); err != nil {
			c.out.err = err
			return err
		}
		n := c.room(len(p))
		batch := c.sealBatch(buf[:0], p[:n:min(n+1, cap(p))], spare && n+1 <= cap(p))
		if _, err := c.raw.Write(batch); err != nil {
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

// room is how much of n bytes goes into the next batch: as much as fits, and as
// the key is good for, less the KeyUpdate that ends it.
func (c *Conn) room(n int) int {
	n = min(n, batchRecords*maxPlaintext)
	if left := c.rekeyRecords - 1 - c.out.seq; uint64(n) > left*maxPlaintext {
		n = int(left) * maxPlaintext
	}
	return n
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

// rekeyIfDue changes our key if it has been used enough. out.mu is held.
func (c *Conn) rekeyIfDue() error {
	if c.out.seq < c.rekeyRecords-1 && (c.rekeyBytes == 0 || c.out.bytes < c.rekeyBytes) {
		return nil
	}
	return c.sendKeyUpdate()
}

// sendKeyUpdate sends a KeyUpdate, the last record under the old key, and begins
// the next. It never asks for one in return: GnuTLS takes crossing requests for
// an error. out.mu is held.
func (c *Conn) sendKeyUpdate() error {
	msg := []byte{handshakeKeyUpdate, 0, 0, 1, updateNotRequested}
	record := c.out.seal(make([]byte, 0, len(msg)+recordOverhead), typeHandshake, msg, false)
	if _, err := c.raw.Write(record); err != nil {
		return fmt.Errorf("tls: sending a KeyUpdate: %w", err)
	}
	c.out.bytes = 0
	return c.out.update()
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
	_, err := c.raw.Write(c.out.seal(nil, typeAlert, []byte{level, byte(a)}, false))
	return err
}
