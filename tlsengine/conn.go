package tlsengine

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"nbd-ktls-server/ktls"
)

// Conn is an encrypted connection, TLS 1.3: the record layer after the
// handshake. Reading and writing go on side by side; each may be called from
// several goroutines.
//
// The way of a byte in: reader.go collects records and opens them, in place or
// where the caller wants them; posthandshake.go answers what is not data. The
// way of a byte out: writer.go seals records and sends many at a time.
type Conn struct {
	raw   *ktls.Socket
	state State

	in  reader
	out writer

	// updateOwed says that the peer has asked for a KeyUpdate of ours. It is
	// sent before the next application data (RFC 8446, Section 4.6.3), by
	// whoever writes next, or by a goroutine if nobody does.
	updateOwed atomic.Bool
	answering  sync.WaitGroup

	counts *counts
	closed func()                // called by Close; or nil
	ended  atomic.Pointer[error] // why somebody has ended the connection

	rekeyRecords uint64 // of one key that we send at most
	rekeyBytes   int64  // likewise, in bytes; 0: no limit
}

// Lock order: in.mu before out.mu.

// newConn takes over raw after the handshake, at the first record of each
// direction.
func newConn(raw net.Conn, su *suite, client, server trafficSecret) (*Conn, error) {
	c := &Conn{raw: ktls.NewSocket(raw), counts: new(counts), rekeyRecords: defaultRekeyRecords}
	c.in.suite, c.out.suite = su, su
	if err := c.in.setSecret(client); err != nil {
		return nil, err
	}
	if err := c.out.setSecret(server); err != nil {
		return nil, err
	}
	return c, nil
}

// Read reads application data: as many records as are there and p has room for.
// io.EOF means that the peer has said that there are no more (close_notify); an
// end without that is io.ErrUnexpectedEOF. All of p may be used as scratch space.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return c.ReadTo(ktls.Fixed(p))
}

// ReadTo is Read to the space of b.
func (c *Conn) ReadTo(b ktls.Buffer) (int, error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.to = b
	defer func() { c.in.to = nil }()
	for {
		if c.in.pending() {
			p := b.Space()
			if n, err := c.tryRead(p); n > 0 || err != nil || len(p) == 0 {
				return n, err
			}
		}
		if err := c.in.fill(c.raw); err != nil {
			return 0, c.failRead(err)
		}
	}
}

// tryRead reads what has been received already: 0 and no error if that is nothing.
// in.mu is held. An error behind data waits for the next call: so does its alert,
// and what was asked for in time can be answered.
func (c *Conn) tryRead(p []byte) (n int, err error) {
	if err, c.in.late = c.in.late, nil; err != nil {
		return 0, c.failRead(err)
	}
	for n < len(p) {
		if k := c.in.take(p[n:]); k > 0 {
			n += k
			continue
		}
		if c.in.err != nil && n == 0 {
			return 0, c.in.err
		}
		if c.in.err != nil || !c.in.whole() {
			break
		}
		k, err := c.readRecord(p[n:])
		switch {
		case err != nil && n > 0:
			c.in.late = err
			return n, nil
		case err != nil:
			return 0, c.failRead(err)
		}
		n += k
	}
	return n, nil
}

// failRead makes an error of reading permanent, unless it is a deadline, and
// tells the peer what it did wrong.
func (c *Conn) failRead(err error) error {
	var ae *alertError
	if why := c.ended.Load(); why != nil {
		err = *why
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case errors.As(err, &ae):
		c.sendAlert(ae.alert)
	}
	c.in.err = err
	return err
}

// readRecord opens the next record, which is there. It returns how many bytes of data it has put into
// p; data for which p is too small wait in c.in.
func (c *Conn) readRecord(p []byte) (int, error) {
	record, err := c.in.next()
	if err != nil {
		return 0, err
	}
	dst := record[recordHeaderLen:] // in place
	direct := len(p) >= len(dst)-tagLen
	if direct {
		dst = p
	}
	typ, content, err := c.in.open(dst, record)
	if err != nil {
		return 0, err
	}
	if len(c.in.fragment) > 0 && typ != typeHandshake {
		return 0, fatal(alertUnexpectedMessage, "a record of type %d in the middle of a handshake message", typ)
	}
	switch typ {
	case typeApplicationData:
		if len(content) == 0 {
			return 0, c.in.useless()
		}
		c.in.dataless = 0
		if direct {
			return len(content), nil
		}
		c.in.data = content
		return 0, nil
	case typeHandshake:
		return 0, c.handleHandshake(content)
	case typeAlert:
		return 0, c.handleAlert(content)
	}
	return 0, fatal(alertUnexpectedMessage, "a record with type %d in it", typ)
}

// Write sends p. It is one batch: nothing else comes between its records.
func (c *Conn) Write(p []byte) (int, error) {
	if err := c.write(p, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Expect says that n more bytes will be read, so that they can be waited for
// together. It is a hint, for whoever reads.
func (c *Conn) Expect(n int) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.raw.Expect(n - len(c.in.data) - (c.in.w - c.in.r))
}

// WriteBuffers sends all of bufs as one batch, with as few records as they
// need. The buffers, and a byte behind each that has the capacity, may be
// changed meanwhile; they are as before when it returns.
func (c *Conn) WriteBuffers(bufs net.Buffers) error {
	if len(bufs) == 1 {
		return c.write(bufs[0], true)
	}
	n := 1 // for the last record's inner type
	for _, b := range bufs {
		n += len(b)
	}
	p := make([]byte, 0, n)
	for _, b := range bufs {
		p = append(p, b...)
	}
	return c.write(p, true)
}

// CloseWrite says that no more data follow (close_notify). The connection stays
// open for reading.
func (c *Conn) CloseWrite() error {
	if !c.lockOutWithin(alertPatience) {
		return errBusy
	}
	defer c.unlockOut()
	if c.out.err != nil {
		return c.out.err
	}
	err := c.sendAlertLocked(alertCloseNotify)
	c.out.err = errClosed
	return err
}

// end ends the connection with an alert, and lets reading fail with why.
func (c *Conn) end(a Alert, why error) {
	c.ended.Store(&why)
	c.sendAlert(a)
	c.raw.SetReadDeadline(time.Unix(1, 0))
}

// Close closes the connection and forgets its keys. Say so with CloseWrite
// before.
func (c *Conn) Close() error {
	if c.closed != nil {
		c.closed()
	}
	err := c.raw.Close()
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.answering.Wait() // nobody begins to answer without in.mu
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.in.err == nil {
		c.in.err = net.ErrClosed
	}
	if c.out.err == nil {
		c.out.err = net.ErrClosed
	}
	c.wipe()
	return err
}

// wipe forgets the keys and what has been decrypted. Nobody reads or writes.
func (c *Conn) wipe() {
	c.in.wipe()
	c.in.release()
	c.out.wipe()
}

// LocalAddr and the others are those of the connection underneath.
func (c *Conn) LocalAddr() net.Addr                { return c.raw.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr               { return c.raw.RemoteAddr() }
func (c *Conn) SetDeadline(t time.Time) error      { return c.raw.SetDeadline(t) }
func (c *Conn) SetReadDeadline(t time.Time) error  { return c.raw.SetReadDeadline(t) }
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.raw.SetWriteDeadline(t) }
