package tlsengine

import (
	"crypto/cipher"
	"encoding/binary"

	"nbd-ktls-server/ktls"
)

// halfConn is one direction of a connection: its secret, and where in the
// sequence of records it is (RFC 8446, Section 5.3). The two directions know
// nothing of each other.
type halfConn struct {
	suite  *suite
	secret trafficSecret
	aead   cipher.AEAD
	iv     [ivLen]byte
	kernel kernelTX // makes the records, if it is not nil; then aead is
	seq    uint64   // of the next record under this key; with kernel, at most
	err    error    // the first one; nothing more goes this way

	nonce [ivLen]byte // scratch
}

// kernelTX is a sending direction that the kernel has: a [ktls.TX].
type kernelTX interface {
	WriteRecord(typ byte, content []byte) error
	Send(header []byte, s *ktls.Section) error
	Rekey(*ktls.CryptoInfo) error
	Drain() error
}

// setSecret begins a generation of keys.
func (h *halfConn) setSecret(s trafficSecret) error {
	if h.kernel != nil {
		return h.setKernelSecret(s)
	}
	key, iv := s.key(h.suite), s.iv(h.suite)
	defer clear(key)
	defer clear(iv)
	aead, err := h.suite.aead(key)
	if err != nil {
		return err
	}
	clear(h.secret)
	h.secret, h.aead, h.seq = s, aead, 0
	copy(h.iv[:], iv)
	return nil
}

// setKernelSecret is setSecret where the kernel makes the records.
func (h *halfConn) setKernelSecret(s trafficSecret) error {
	clear(h.secret)
	h.secret, h.seq = s, 0
	info := h.cryptoInfo()
	defer clear(info.Key)
	return h.kernel.Rekey(info)
}

// update begins the next generation (Section 7.2).
func (h *halfConn) update() error { return h.setSecret(h.secret.next(h.suite)) }

// nextNonce is the per-record nonce (Section 5.3), valid until the next one.
func (h *halfConn) nextNonce() []byte {
	h.nonce = h.iv
	seq := binary.BigEndian.Uint64(h.nonce[ivLen-8:]) ^ h.seq
	binary.BigEndian.PutUint64(h.nonce[ivLen-8:], seq)
	h.seq++
	return h.nonce[:]
}

// wipe forgets the keys. What crypto/cipher has made of them is the garbage
// collector's.
func (h *halfConn) wipe() {
	clear(h.secret)
	clear(h.iv[:])
	clear(h.nonce[:])
	h.aead = nil
}
