package ktls

import (
	"errors"
	"fmt"
)

// Cipher is a cipher of TLS 1.3 by its number in <linux/tls.h>.
type Cipher uint16

const (
	AES128GCM        Cipher = 51
	AES256GCM        Cipher = 52
	ChaCha20Poly1305 Cipher = 54
)

// Ciphers are those that TLS 1.3 and the kernel have in common here.
var Ciphers = []Cipher{AES128GCM, AES256GCM, ChaCha20Poly1305}

func (c Cipher) String() string {
	switch c {
	case AES128GCM:
		return "AES-128-GCM"
	case AES256GCM:
		return "AES-256-GCM"
	case ChaCha20Poly1305:
		return "CHACHA20-POLY1305"
	}
	return fmt.Sprintf("cipher %d", uint16(c))
}

// keyLen is the length of the cipher's key in bytes.
func (c Cipher) keyLen() int {
	if c == AES128GCM {
		return 16
	}
	return 32
}

// IVLen is the length of the static IV of every cipher (RFC 8446, Section 5.3).
const IVLen = 12

// CryptoInfo is what the kernel is given for one direction: struct
// tls12_crypto_info_*, which serves TLS 1.3 too.
type CryptoInfo struct {
	Cipher Cipher
	Key    []byte
	IV     [IVLen]byte
	RecSeq uint64 // of the next record
}

// MaxRecord is how many bytes of data the kernel puts into one record.
const MaxRecord = 1 << 14

// ErrNotTCP is what Attach says of sockets that are not TCP.
var ErrNotTCP = errors.New("not a TCP socket")

// StreamFrom is the length, in bytes, from which on it is cheaper to splice a
// file to an encrypted socket than to read and write it: a reply alone from 16 KiB
// on, see the package's table, but those leave together that are asked for together.
// Instructions of the whole server for each byte that nbdcopy reads, spliced and
// written: 7.7 and 6.4 for 16 KiB, 5.6 and 6.1 for 64 KiB, 4.8 and 5.7 for 256 KiB.
const StreamFrom = 32 << 10
