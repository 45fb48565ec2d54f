package tlsengine

import (
	"crypto/tls"
	"errors"
	"fmt"

	"nbd-ktls-server/ktls"
)

// KTLS says whether the kernel makes the records we send.
type KTLS int

const (
	// KTLSAuto lets the kernel do it if it can also change keys: a connection
	// that has been given to the kernel cannot be taken back, and without
	// new keys it would have to be ended after some hundred gigabytes.
	KTLSAuto KTLS = iota
	// KTLSRequire refuses connections with which the kernel cannot do it. If it
	// cannot change keys, they end, with a close_notify, when they need a new one.
	KTLSRequire
	// KTLSOff makes all records in user space.
	KTLSOff
)

// kernelCiphers are the kernel's names for the cipher suites.
var kernelCiphers = map[uint16]ktls.Cipher{
	tls.TLS_AES_128_GCM_SHA256:       ktls.AES128GCM,
	tls.TLS_AES_256_GCM_SHA384:       ktls.AES256GCM,
	tls.TLS_CHACHA20_POLY1305_SHA256: ktls.ChaCha20Poly1305,
}

var (
	errKTLSOff = errors.New("switched off")
	// errOneKey ends a connection whose key cannot be changed.
	errOneKey = errors.New("tls: a new key is due, and the kernel cannot change it (Linux before 6.14); the client has to connect again")
)

// offload gives the sending direction of a new connection to the kernel, as k
// says. An error means that the connection is to be refused.
func (c *Conn) offload(k KTLS) error {
	err := c.offloadTX(k)
	c.state.TX.Kernel = err == nil
	if err == nil {
		return nil
	}
	c.state.TX.Why = err.Error()
	if k == KTLSRequire {
		return fatal(alertInternalError, "the kernel must encrypt, and does not: %v", err)
	}
	return nil
}

func (c *Conn) offloadTX(k KTLS) error {
	if k == KTLSOff {
		return errKTLSOff
	}
	cipher := kernelCiphers[c.out.suite.id]
	support, err := ktls.Probe()
	if err != nil {
		return fmt.Errorf("trying out the kernel: %w", err)
	}
	err = support.Sends(cipher)
	oneKey := errors.Is(err, ktls.ErrNoRekey) && k == KTLSRequire
	if err != nil && !oneKey {
		return err
	}
	info := c.out.cryptoInfo()
	defer clear(info.Key)
	tx, err := ktls.Attach(c.raw, info)
	if err != nil {
		return err
	}
	c.out.kernel, c.out.aead, c.out.oneKey = tx, nil, oneKey
	return nil
}

// cryptoInfo is the direction as the kernel wants to have it.
func (h *halfConn) cryptoInfo() *ktls.CryptoInfo {
	info := &ktls.CryptoInfo{Cipher: kernelCiphers[h.suite.id], Key: h.secret.key(h.suite), RecSeq: h.seq}
	iv := h.secret.iv(h.suite)
	copy(info.IV[:], iv)
	clear(iv)
	return info
}
