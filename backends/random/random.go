// Package random are backends of random data, the same at every reading. Writes
// fail with EIO unless they are what is there: to test what copies disks, from one
// of them to itself.
package random

import (
	"bytes"
	"encoding/binary"
	"errors"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
)

// Disk is a disk of random bytes.
type Disk struct {
	size int64
	seed uint64
}

// New returns a disk of size bytes, which follow from seed.
func New(size int64, seed uint64) *Disk { return &Disk{size, seed} }

// word is the eight bytes at 8*i, by SplitMix64 (Steele, Lea, Flood: "Fast
// splittable pseudorandom number generators").
func word(seed uint64, i int64) uint64 {
	z := seed + uint64(i+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// fill fills p with the bytes from off on.
func fill(seed uint64, p []byte, off int64) {
	var w [8]byte
	if skip := off % 8; skip != 0 {
		binary.LittleEndian.PutUint64(w[:], word(seed, off/8))
		n := copy(p, w[skip:])
		p, off = p[n:], off+int64(n)
	}
	for ; len(p) >= 8; p, off = p[8:], off+8 {
		binary.LittleEndian.PutUint64(p, word(seed, off/8))
	}
	binary.LittleEndian.PutUint64(w[:], word(seed, off/8))
	copy(p, w[:])
}

// ReadAt fills p from off.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	fill(d.seed, p, off)
	return len(p), nil
}

// WriteAt compares p with what is there.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) { return compare(d, p, off) }

// Size returns the size in bytes.
func (d *Disk) Size() (int64, error) { return d.size, nil }

// Sync does nothing.
func (d *Disk) Sync() error { return nil }

// Resolve implements [nbd.Resolver]: zeroing would be no comparison.
func (d *Disk) Resolve(a *nbd.Abilities) error {
	a.NoZero, a.MultiConn = true, true
	a.WriteFUA = a.WriteAt
	return nil
}

var errDifferent = errors.New("what is written is not what is there")

func compare(d nbd.Backend, p []byte, off int64) (int, error) {
	var mem [16 << 10]byte
	for n := 0; n < len(p); {
		have := mem[:min(len(mem), len(p)-n)]
		if _, err := d.ReadAt(have, off+int64(n)); err != nil {
			return n, err
		}
		if !bytes.Equal(have, p[n:n+len(have)]) {
			return n, errors.Join(errDifferent, wire.EIO)
		}
		n += len(have)
	}
	return len(p), nil
}
