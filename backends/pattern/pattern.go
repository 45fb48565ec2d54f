// Package pattern is a read-only backend for tests: every eight bytes hold
// their own offset, as a big endian integer.
package pattern

import (
	"encoding/binary"
	"syscall"

	"nbd-ktls-server/nbd"
)

// Backend is a pattern of so many bytes.
type Backend struct{ size int64 }

// New returns a pattern of size bytes. If that is not a multiple of eight, the
// last offset is cut off.
func New(size int64) *Backend { return &Backend{size} }

// ReadAt fills p with the pattern from off.
func (b *Backend) ReadAt(p []byte, off int64) (int, error) {
	n := len(p)
	if skip := off % 8; skip != 0 {
		var word [8]byte
		binary.BigEndian.PutUint64(word[:], uint64(off-skip))
		k := copy(p, word[skip:])
		p, off = p[k:], off+int64(k)
	}
	for ; len(p) >= 8; p, off = p[8:], off+8 {
		binary.BigEndian.PutUint64(p, uint64(off))
	}
	if len(p) > 0 {
		var word [8]byte
		binary.BigEndian.PutUint64(word[:], uint64(off))
		copy(p, word[:])
	}
	return n, nil
}

// WriteAt fails: the pattern cannot be changed.
func (b *Backend) WriteAt([]byte, int64) (int, error) { return 0, syscall.EROFS }

// Size returns the size in bytes.
func (b *Backend) Size() (int64, error) { return b.size, nil }

// Sync does nothing.
func (b *Backend) Sync() error { return nil }

// Resolve implements [nbd.Resolver].
func (b *Backend) Resolve(a *nbd.Abilities) error {
	a.ReadOnly()
	a.Sync = nil
	a.Cache = func(_, _ int64) error { return nil }
	return nil
}
