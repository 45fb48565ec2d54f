package partitioning

import (
	"bytes"
	"fmt"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
)

// fixed is a part of the disk that cannot be changed: a table, then zeroes.
type fixed struct {
	table []byte
	size  int64
}

// ReadAt implements [nbd.Backend].
func (f fixed) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(f.table)) {
		n = copy(p, f.table[off:])
	}
	clear(p[n:])
	return len(p), nil
}

// WriteAt fails unless nothing would change.
func (f fixed) WriteAt(p []byte, off int64) (int, error) {
	have := make([]byte, len(p))
	if f.ReadAt(have, off); !bytes.Equal(p, have) {
		return 0, fmt.Errorf("the partition table cannot be changed, nor the space between partitions: %w", wire.EIO)
	}
	return len(p), nil
}

// Size implements [nbd.Backend].
func (f fixed) Size() (int64, error) { return f.size, nil }

// Sync implements [nbd.Backend].
func (f fixed) Sync() error { return nil }

// Resolve implements [nbd.Resolver].
func (f fixed) Resolve(a *nbd.Abilities) error {
	a.MultiConn = true
	a.ReadNow = func(p []byte, off int64) int { n, _ := f.ReadAt(p, off); return n }
	a.Cache = func(_, _ int64) error { return nil }
	a.Zero = func(off, n int64, _ nbd.ZeroFlags) error {
		if off < int64(len(f.table)) {
			_, err := f.WriteAt(make([]byte, min(n, int64(len(f.table))-off)), off)
			return err
		}
		return nil
	}
	a.Trim = func(_, _ int64) error { return nil }
	a.Extents = func(off, n int64, _ bool) ([]nbd.Extent, error) {
		k := min(max(int64(len(f.table))-off, 0), n)
		all := []nbd.Extent{{Length: k}, {Length: n - k, Hole: true, Zero: true}}
		if k == 0 {
			return all[1:], nil
		} else if k == n {
			return all[:1], nil
		}
		return all, nil
	}
	return nil
}
