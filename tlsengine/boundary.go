package tlsengine

import (
	"encoding/binary"
	"errors"
	"net"
	"sync/atomic"
)

// boundaryConn is what crypto/tls does the handshake on. It never reads beyond
// the end of a record, so that no byte of the first application record stays
// behind in crypto/tls: NBD's client speaks first, and may send its first
// option together with its Finished. And it has an end: once the secrets have
// been taken, whatever crypto/tls might write would be encrypted under a
// sequence number that is in use.
type boundaryConn struct {
	net.Conn
	header [recordHeaderLen]byte
	have   int // bytes of header
	left   int // bytes of the record that follow it
	over   atomic.Bool
}

var errHandedOver = errors.New("tls: the connection has been handed over")

func (b *boundaryConn) Read(p []byte) (int, error) {
	if b.over.Load() {
		return 0, errHandedOver
	}
	if b.left > 0 {
		n, err := b.Conn.Read(p[:min(len(p), b.left)])
		b.left -= n
		return n, err
	}
	n, err := b.Conn.Read(p[:min(len(p), recordHeaderLen-b.have)])
	b.have += copy(b.header[b.have:], p[:n])
	if b.have == recordHeaderLen {
		b.have, b.left = 0, int(binary.BigEndian.Uint16(b.header[3:]))
	}
	return n, err
}

func (b *boundaryConn) Write(p []byte) (int, error) {
	if b.over.Load() {
		return 0, errHandedOver
	}
	return b.Conn.Write(p)
}

// Close does nothing: the alert that crypto/tls sends last would be lost if the
// connection were closed with bytes of the client unread.
func (b *boundaryConn) Close() error { return nil }
