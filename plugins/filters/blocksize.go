package filters

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/plugins/plugin"
)

var blocksizeFilter = plugin.Filter{
	Name: "blocksize", Summary: "makes requests of any size of those that are aligned, and no larger than they may be",
	Usage: "[minblock=SIZE] [maxdata=SIZE] [maxlen=SIZE]",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		var o blocks
		for key, v := range map[string]*int64{"minblock": &o.min, "maxdata": &o.data, "maxlen": &o.span} {
			var err error
			if *v, _, err = p.Size(key); err != nil {
				return nil, err
			}
		}
		if o.min != 0 && (o.min&(o.min-1) != 0 || o.min > 64<<10) {
			return nil, fmt.Errorf("minblock=%d: it is a power of two up to 64k", o.min)
		}
		for key, v := range map[string]int64{"maxdata": o.data, "maxlen": o.span} {
			if v%max(o.min, 1) != 0 {
				return nil, fmt.Errorf("%s=%d: it is a multiple of minblock=%d", key, v, o.min)
			}
		}
		// Connections to one export may be to one disk: what is read, changed and
		// written by one must not be written by another meanwhile.
		locks := newByName(func() *sync.RWMutex { return new(sync.RWMutex) })
		return func(s *plugin.Source) {
			s.Edit(func(_ context.Context, info nbd.OpenInfo, a *nbd.Abilities) error {
				return o.edit(a, locks.of(info.Name))
			})
		}, nil
	},
}

// blocks are limits of requests, in bytes: the alignment, and the longest with data
// and without. 0 is what the disk below says.
type blocks struct{ min, data, span int64 }

// edit puts the limits before a. What is changed by requests that are not aligned
// is locked for others.
func (o blocks) edit(a *nbd.Abilities, lock *sync.RWMutex) error {
	below := *a
	if o.min == 0 {
		o.min = int64(max(below.BlockSize.Minimum, 1))
	}
	if o.data == 0 {
		o.data = wire.MaxPayload
		if m := int64(below.BlockSize.Maximum); m != 0 {
			o.data = min(o.data, m)
		}
	}
	if o.span == 0 {
		o.span = math.MaxUint32
	}
	o.data, o.span = o.data/o.min*o.min, o.span/o.min*o.min
	if o.data == 0 || o.span == 0 {
		return errors.New("the largest request is smaller than a block")
	}
	b := &blocked{blocks: o, below: below, lock: lock}
	a.Size = below.Size / o.min * o.min
	a.BlockSize = nbd.BlockSize{Preferred: below.BlockSize.Preferred}
	a.ReadNow, a.Hole, a.ReadAt = nil, nil, b.read
	if below.Section != nil {
		a.Section = func(off, n int64) (*os.File, int64, bool) {
			if !b.aligned(off, n) || n > b.data {
				return nil, 0, false
			}
			return below.Section(off, n)
		}
	}
	if below.WriteAt != nil {
		a.WriteAt = func(p []byte, off int64) (int, error) { return b.write(below.WriteAt, p, off) }
	}
	if below.WriteFUA != nil {
		a.WriteFUA = func(p []byte, off int64) (int, error) { return b.write(below.WriteFUA, p, off) }
	}
	b.editSpans(a)
	return nil
}

// editSpans edits what has no data.
func (b *blocked) editSpans(a *nbd.Abilities) {
	below := b.below
	if below.Trim != nil {
		a.Trim = func(off, n int64) error { // heads and tails stay
			begin, end := b.up(off), b.down(off+n)
			return b.pieces(begin, end-begin, below.Trim)
		}
	}
	if below.Zero != nil {
		a.Zero = b.zero
	}
	if below.Cache != nil {
		a.Cache = func(off, n int64) error {
			begin := b.down(off)
			return b.pieces(begin, b.up(off+n)-begin, below.Cache)
		}
	}
	if below.Extents != nil {
		a.Extents = func(off, n int64, one bool) ([]nbd.Extent, error) {
			begin := b.down(off)
			all, err := below.Extents(begin, min(b.up(off+n)-begin, b.span), one)
			return cutExtents(all, off-begin, n), err
		}
	}
}

// cutExtents leaves out the first skip bytes, and what is behind n more.
func cutExtents(all []nbd.Extent, skip, n int64) (cut []nbd.Extent) {
	for _, e := range all {
		k := min(e.Length, skip)
		skip -= k
		if e.Length = min(e.Length-k, n); e.Length > 0 {
			cut = append(cut, e)
			n -= e.Length
		}
	}
	return cut
}

// blocked is a disk that takes requests within limits.
type blocked struct {
	blocks
	below nbd.Abilities
	lock  *sync.RWMutex
}

func (b *blocked) down(off int64) int64      { return off / b.min * b.min }
func (b *blocked) up(off int64) int64        { return (off + b.min - 1) / b.min * b.min }
func (b *blocked) aligned(off, n int64) bool { return (off|n)%b.min == 0 }
func (b *blocked) inner(off, n int64) (begin, end int64) {
	begin, end = b.up(off), b.down(off+n)
	return begin, max(begin, end)
}

// pieces does something to a range in parts that are not too long.
func (b *blocked) pieces(off, n int64, do func(off, n int64) error) error {
	for ; n > 0; off, n = off+b.span, n-b.span {
		if err := do(off, min(n, b.span)); err != nil {
			return err
		}
	}
	return nil
}

// transfer reads or writes aligned data in parts.
func (b *blocked) transfer(f func([]byte, int64) (int, error), p []byte, off int64) error {
	for len(p) > 0 {
		part := p[:min(int64(len(p)), b.data)]
		if err := all(part)(f(part, off)); err != nil {
			return err
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

func (b *blocked) read(p []byte, off int64) (int, error) {
	b.lock.RLock()
	defer b.lock.RUnlock()
	n := int64(len(p))
	if b.aligned(off, n) {
		return result(p, b.transfer(b.below.ReadAt, p, off))
	}
	begin := b.down(off)
	q := make([]byte, b.up(off+n)-begin)
	err := b.transfer(b.below.ReadAt, q, begin)
	copy(p, q[off-begin:])
	return result(p, err)
}

func result(p []byte, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (b *blocked) write(f func([]byte, int64) (int, error), p []byte, off int64) (int, error) {
	n := int64(len(p))
	if b.aligned(off, n) {
		b.lock.RLock()
		defer b.lock.RUnlock()
		return result(p, b.transfer(f, p, off))
	}
	b.lock.Lock()
	defer b.lock.Unlock()
	begin := b.down(off)
	q := make([]byte, b.up(off+n)-begin)
	if err := b.edges(q, begin, off, n); err != nil {
		return 0, err
	}
	copy(q[off-begin:], p)
	return result(p, b.transfer(f, q, begin))
}

// edges reads the first and the last block of q, which begins at begin, where n
// bytes at off do not fill them.
func (b *blocked) edges(q []byte, begin, off, n int64) error {
	last := int64(len(q)) - b.min
	if off != begin || n < b.min {
		if err := b.transfer(b.below.ReadAt, q[:b.min], begin); err != nil {
			return err
		}
	}
	if last > 0 && (off+n)%b.min != 0 {
		return b.transfer(b.below.ReadAt, q[last:], begin+last)
	}
	return nil
}

// zero zeroes whole blocks, and writes zeroes to parts of them.
func (b *blocked) zero(off, n int64, flags nbd.ZeroFlags) error {
	begin, end := b.inner(off, n)
	if !b.aligned(off, n) && flags&nbd.ZeroFast != 0 {
		return errors.ErrUnsupported
	}
	if end == begin {
		_, err := b.write(b.below.WriteAt, make([]byte, n), off)
		return err
	}
	for _, edge := range [][2]int64{{off, begin}, {end, off + n}} {
		if edge[1] > edge[0] {
			if _, err := b.write(b.below.WriteAt, make([]byte, edge[1]-edge[0]), edge[0]); err != nil {
				return err
			}
		}
	}
	b.lock.RLock()
	defer b.lock.RUnlock()
	return b.pieces(begin, end-begin, func(off, n int64) error { return b.below.Zero(off, n, flags) })
}

var blocksizePolicyFilter = plugin.Filter{
	Name: "blocksize-policy", Summary: "says which sizes of requests are allowed",
	Usage: "[blocksize-minimum=SIZE] [blocksize-preferred=SIZE] [blocksize-maximum=SIZE] [blocksize-error-policy=error]",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		if _, err := p.Choice("blocksize-error-policy", "error", "allow"); err != nil {
			return nil, err
		}
		given := make(map[string]uint32)
		for _, key := range []string{"blocksize-minimum", "blocksize-preferred", "blocksize-maximum"} {
			n, ok, err := p.Size(key)
			switch {
			case err != nil:
				return nil, err
			case n > math.MaxUint32:
				return nil, fmt.Errorf("%s=%d is more than 32 bits", key, n)
			case ok:
				given[key] = uint32(n)
			}
		}
		return edit(func(a *nbd.Abilities) error {
			set := func(v *uint32, key string) {
				if n, ok := given[key]; ok {
					*v = n
				}
			}
			set(&a.BlockSize.Minimum, "blocksize-minimum")
			if a.BlockSize.Preferred < a.BlockSize.Minimum {
				a.BlockSize.Preferred = 0
			}
			set(&a.BlockSize.Preferred, "blocksize-preferred")
			set(&a.BlockSize.Maximum, "blocksize-maximum")
			a.Size = a.Size / int64(max(a.BlockSize.Minimum, 1)) * int64(max(a.BlockSize.Minimum, 1))
			return nil
		}), nil
	},
}

// byName makes one of something for each export.
type byName[T any] struct {
	make func() T
	mu   sync.Mutex
	all  map[string]T
}

func newByName[T any](make func() T) *byName[T] {
	return &byName[T]{make: make, all: map[string]T{}}
}

func (b *byName[T]) of(name string) T {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok := b.all[name]
	if !ok {
		v = b.make()
		b.all[name] = v
	}
	return v
}
