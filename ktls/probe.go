package ktls

import (
	"errors"
	"fmt"
)

// Support is what this machine's kernel can do, as it has shown by doing it. A
// nil error is a yes.
type Support struct {
	// ULP is whether a TCP socket takes the upper layer protocol "tls".
	ULP error
	// TX and RX are whether it then takes a key, for every one of [Ciphers].
	TX, RX map[Cipher]error
	// Rekey is whether it takes a second key (Linux 6.14, or a backport).
	Rekey error
}

// ErrNoRekey is what Send says of kernels that take one key only.
var ErrNoRekey = errors.New("the kernel cannot change keys (Linux before 6.14)")

// Sends reports why the kernel cannot send with a cipher, and with more than one
// key after another; ErrNoRekey if only that is missing.
func (s *Support) Sends(c Cipher) error {
	if s.ULP != nil {
		return s.ULP
	}
	if err := s.TX[c]; err != nil {
		return fmt.Errorf("the kernel does not know %v: %w", c, err)
	}
	if s.Rekey != nil {
		return ErrNoRekey
	}
	return nil
}

// unsupported is the answer where there is nothing to ask.
func unsupported(why error) *Support {
	s := &Support{ULP: why, TX: make(map[Cipher]error), RX: make(map[Cipher]error), Rekey: why}
	for _, c := range Ciphers {
		s.TX[c], s.RX[c] = why, why
	}
	return s
}
