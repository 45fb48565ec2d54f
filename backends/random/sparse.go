package random

import (
	"nbd-ktls-server/nbd"
)

// Sparse says what a sparse disk is like.
type Sparse struct {
	Seed uint64
	// Percent of it are data.
	Percent int
	// RunLength is how long a run of data is on average, in bytes.
	RunLength int64
	// Content makes each byte random; otherwise each block is full of one.
	Content bool
}

// SparseDisk is a disk with runs of data and holes.
type SparseDisk struct {
	Sparse
	size int64
	// period is how far a run is from the next one.
	period int64
}

// blockSize is how finely data and holes alternate, in bytes.
const blockSize = 4096

// NewSparse returns a disk of size bytes.
//
// In each period there is one run of data, at a random place in it; its length
// is between half of and one and a half of the average. So a block is found
// without a map of the disk.
func NewSparse(size int64, s Sparse) *SparseDisk {
	d := &SparseDisk{Sparse: s, size: size}
	if s.Percent > 0 {
		run := max(s.RunLength/blockSize, 1)
		d.period = max(run*100/int64(s.Percent), 1)
	}
	return d
}

// isData reports whether a block has data.
func (d *SparseDisk) isData(block int64) bool {
	switch d.Percent {
	case 0:
		return false
	case 100:
		return true
	}
	period, at := block/d.period, block%d.period
	average := max(d.RunLength/blockSize, 1)
	length := average
	if average > 1 {
		length = average/2 + int64(word(d.Seed, 2*period)%uint64(average+1))
	}
	length = min(length, d.period)
	begin := int64(word(d.Seed, 2*period+1) % uint64(d.period-length+1))
	return at >= begin && at < begin+length
}

// ReadAt fills p from off.
func (d *SparseDisk) ReadAt(p []byte, off int64) (int, error) {
	n := len(p)
	for len(p) > 0 {
		block := off / blockSize
		k := min(int64(len(p)), (block+1)*blockSize-off)
		switch part := p[:k]; {
		case !d.isData(block):
			clear(part)
		case d.Content:
			fill(d.Seed, part, off)
		default:
			b := byte(word(d.Seed, block)%255) + 1
			for i := range part {
				part[i] = b
			}
		}
		p, off = p[k:], off+k
	}
	return n, nil
}

// WriteAt compares p with what is there.
func (d *SparseDisk) WriteAt(p []byte, off int64) (int, error) { return compare(d, p, off) }

// Size returns the size in bytes.
func (d *SparseDisk) Size() (int64, error) { return d.size, nil }

// Sync does nothing.
func (d *SparseDisk) Sync() error { return nil }

// Resolve implements [nbd.Resolver].
func (d *SparseDisk) Resolve(a *nbd.Abilities) error {
	a.MultiConn = true
	a.WriteFUA = a.WriteAt
	a.Hole = d.hole
	a.Zero = func(off, n int64, _ nbd.ZeroFlags) error {
		for n > 0 {
			hole, k := d.hole(off, n)
			if !hole {
				return errDifferent
			}
			off, n = off+k, n-k
		}
		return nil
	}
	return nil
}

// maxLook bounds how many blocks hole looks at.
const maxLook = 1 << 15

func (d *SparseDisk) hole(off, n int64) (hole bool, length int64) {
	if d.Percent == 0 || d.Percent == 100 {
		return d.Percent == 0, n
	}
	block := off / blockSize
	data := d.isData(block)
	end := block + 1
	for end-block < maxLook && end*blockSize < off+n && d.isData(end) == data {
		end++
	}
	return !data, min(end*blockSize-off, n)
}
