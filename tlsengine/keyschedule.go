package tlsengine

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"hash"

	"golang.org/x/crypto/chacha20poly1305"
)

// suite is a cipher suite of TLS 1.3 (RFC 8446, Appendix B.4).
type suite struct {
	id     uint16
	hash   func() hash.Hash
	keyLen int
	aead   func(key []byte) (cipher.AEAD, error)
}

var suites = []suite{
	{tls.TLS_AES_128_GCM_SHA256, sha256.New, 16, newGCM},
	{tls.TLS_AES_256_GCM_SHA384, sha512.New384, 32, newGCM},
	{tls.TLS_CHACHA20_POLY1305_SHA256, sha256.New, chacha20poly1305.KeySize, chacha20poly1305.New},
}

func suiteByID(id uint16) *suite {
	for i := range suites {
		if suites[i].id == id {
			return &suites[i]
		}
	}
	return nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

// trafficSecret is client_ or server_application_traffic_secret_N (RFC 8446,
// Section 7.1).
type trafficSecret []byte

// next is the secret of generation N+1 (Section 7.2).
func (s trafficSecret) next(su *suite) trafficSecret {
	return expandLabel(su, s, "traffic upd", len(s))
}

// key and iv are the traffic keys (Section 7.3).
func (s trafficSecret) key(su *suite) []byte { return expandLabel(su, s, "key", su.keyLen) }
func (s trafficSecret) iv(su *suite) []byte  { return expandLabel(su, s, "iv", ivLen) }

// ivLen is the length of the nonce of every suite.
const ivLen = 12

// expandLabel is HKDF-Expand-Label with an empty context (Section 7.1).
func expandLabel(su *suite, secret []byte, label string, length int) []byte {
	const prefix = "tls13 "
	info := binary.BigEndian.AppendUint16(nil, uint16(length))
	info = append(info, byte(len(prefix)+len(label)))
	info = append(info, prefix...)
	info = append(info, label...)
	info = append(info, 0)
	out, err := hkdf.Expand(su.hash, secret, string(info), length)
	if err != nil {
		panic(err) // the lengths are ours
	}
	return out
}
