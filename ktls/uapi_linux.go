package ktls

import (
	"encoding/binary"
	"fmt"
)

// <linux/tls.h>
const (
	optTX = 1 // TLS_TX
	optRX = 2 // TLS_RX

	cmsgSetRecordType = 1 // TLS_SET_RECORD_TYPE

	version13 = 0x0304 // TLS_1_3_VERSION
)

// appendTo appends the structure that setsockopt takes: version and cipher in
// the machine's byte order, then iv, key, salt and rec_seq. Of the 12 bytes of
// IV the ciphers of AES take the first four as their salt; ChaCha20 has none.
func (c *CryptoInfo) appendTo(b []byte) ([]byte, error) {
	salt := 4
	switch c.Cipher {
	case AES128GCM, AES256GCM:
	case ChaCha20Poly1305:
		salt = 0
	default:
		return nil, fmt.Errorf("ktls: unknown %v", c.Cipher)
	}
	if len(c.Key) != c.Cipher.keyLen() {
		return nil, fmt.Errorf("ktls: a key of %d bytes for %v", len(c.Key), c.Cipher)
	}
	b = binary.NativeEndian.AppendUint16(b, version13)
	b = binary.NativeEndian.AppendUint16(b, uint16(c.Cipher))
	b = append(b, c.IV[salt:]...)
	b = append(b, c.Key...)
	b = append(b, c.IV[:salt]...)
	return binary.BigEndian.AppendUint64(b, c.RecSeq), nil
}

// maxCryptoInfo is the size of the largest of these structures.
const maxCryptoInfo = 4 + IVLen + 32 + 8

// recSeqIn is where in these structures the sequence number is.
func recSeqIn(b []byte) uint64 { return binary.BigEndian.Uint64(b[len(b)-8:]) }
