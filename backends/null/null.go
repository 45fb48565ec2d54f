// Package null is a backend that forgets what is written and reads as zeroes.
package null

import (
	"nbd-ktls-server/nbd"
)

// Backend is a null device of so many bytes.
type Backend struct{ size int64 }

// New returns a null device of size bytes.
func New(size int64) *Backend { return &Backend{size} }

// ReadAt reads zeroes.
func (b *Backend) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// WriteAt does nothing, successfully.
func (b *Backend) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// Size returns the size in bytes.
func (b *Backend) Size() (int64, error) { return b.size, nil }

// Sync does nothing.
func (b *Backend) Sync() error { return nil }

// Resolve implements [nbd.Resolver].
func (b *Backend) Resolve(a *nbd.Abilities) error {
	a.WriteFUA = b.WriteAt
	a.Trim = func(_, _ int64) error { return nil }
	a.Zero = func(_, _ int64, _ nbd.ZeroFlags) error { return nil }
	a.Hole = func(_, n int64) (bool, int64) { return true, n }
	a.Cache = func(_, _ int64) error { return nil }
	a.MultiConn = true
	return nil
}
