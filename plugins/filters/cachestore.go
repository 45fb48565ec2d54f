package filters

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/nbd"
)

// store is what is kept of one export, for all its connections.
type store struct {
	*cacheOptions
	tick atomic.Int64

	// mu is held for reading by who reads, and for writing by who changes what is
	// kept.
	mu     sync.RWMutex
	file   *file.File // nil until it is needed
	size   int64
	users  int
	blocks map[int64]*cachedBlock
}

type cachedBlock struct {
	dirty bool // it is not below yet
	used  atomic.Int64
}

// open puts the store before a.
func (s *store) open(a *nbd.Abilities) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		f, err := temporary(a.Size)
		if err != nil {
			return err
		}
		s.file, s.size, s.blocks = f, a.Size, make(map[int64]*cachedBlock)
	}
	if s.size != a.Size {
		return fmt.Errorf("what is below the cache has %d bytes now, not %d", a.Size, s.size)
	}
	s.users++
	c := &caching{store: s, below: *a}
	c.edit(a)
	return nil
}

// forget ends the store.
func (s *store) forget() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// caching is one connection's way through the store.
type caching struct {
	*store
	below nbd.Abilities
}

func (c *caching) edit(a *nbd.Abilities) {
	a.ReadNow, a.Hole, a.WriteFUA = nil, nil, nil
	a.ReadAt, a.Cache, a.Section = c.read, c.fetchAll, c.section
	a.BlockSize.Preferred = max(a.BlockSize.Preferred, uint32(c.block))
	if a.WriteAt != nil {
		a.WriteAt, a.Sync = c.write, c.sync
		if c.mode != writethrough {
			a.Extents = nil // what is not below yet it does not know
		}
		if c.below.Trim != nil {
			a.Trim = func(off, n int64) error { return c.zero(off, n, c.below.Trim) }
		}
		if c.below.Zero != nil {
			a.Zero = func(off, n int64, flags nbd.ZeroFlags) error {
				return c.zero(off, n, func(off, n int64) error { return c.below.Zero(off, n, flags) })
			}
		}
	}
	closeBelow := a.Close
	a.Close = func() error {
		err := c.leave()
		if closeBelow != nil {
			err = errors.Join(err, closeBelow())
		}
		return err
	}
}

// leave writes what is not below yet, if nobody else will.
func (c *caching) leave() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users--
	if c.users > 0 || c.mode == unsafeCache || c.below.WriteAt == nil {
		return nil
	}
	return c.writeBack()
}

// each calls f for the parts of a range that are in different blocks.
func (s *store) each(off, n int64, f func(block, off, n int64) error) error {
	for n > 0 {
		block := off / s.block
		k := min(n, (block+1)*s.block-off)
		if err := f(block, off, k); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// length is that of a block: the last one may be shorter.
func (s *store) length(block int64) int64 { return min(s.block, s.size-block*s.block) }

func (c *caching) read(p []byte, off int64) (int, error) {
	if c.onRead() {
		if err := c.fetchAll(off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return result(p, c.each(off, int64(len(p)), func(block, at, n int64) error {
		part := p[at-off : at-off+n]
		if b := c.blocks[block]; b != nil {
			b.used.Store(c.tick.Add(1))
			return all(part)(c.file.ReadAt(part, at))
		}
		return all(part)(c.below.ReadAt(part, at))
	}))
}

// section streams what is below, and not in the store.
func (c *caching) section(off, n int64) (*os.File, int64, bool) {
	if c.below.Section == nil || c.onRead() {
		return nil, 0, false
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.each(off, n, func(block, _, _ int64) error {
		if c.blocks[block] != nil {
			return os.ErrExist
		}
		return nil
	}) != nil {
		return nil, 0, false
	}
	return c.below.Section(off, n)
}

// fetchAll puts blocks into the store.
func (c *caching) fetchAll(off, n int64) error {
	c.mu.RLock()
	missing := c.each(off, n, func(block, _, _ int64) error {
		if c.blocks[block] == nil {
			return os.ErrNotExist
		}
		return nil
	})
	c.mu.RUnlock()
	if missing == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.each(off, n, func(block, _, _ int64) error { return c.fetch(block) })
	return errors.Join(err, c.reclaim())
}

// fetch puts a block into the store. The caller holds mu.
func (c *caching) fetch(block int64) error {
	if c.blocks[block] != nil {
		return nil
	}
	p := make([]byte, c.length(block))
	if err := all(p)(c.below.ReadAt(p, block*c.block)); err != nil {
		return err
	}
	if err := all(p)(c.file.WriteAt(p, block*c.block)); err != nil {
		return err
	}
	c.keep(block)
	return nil
}

// keep notes that a block is in the store.
func (c *caching) keep(block int64) *cachedBlock {
	b := c.blocks[block]
	if b == nil {
		b = new(cachedBlock)
		c.blocks[block] = b
	}
	b.used.Store(c.tick.Add(1))
	return b
}

func (c *caching) write(p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mode == writethrough {
		if err := all(p)(c.below.WriteAt(p, off)); err != nil {
			return 0, err
		}
	}
	err := c.each(off, int64(len(p)), func(block, at, n int64) error {
		whole := n == c.length(block)
		if !whole && c.blocks[block] == nil {
			if c.mode == writethrough {
				return nil
			}
			if err := c.fetch(block); err != nil {
				return err
			}
		}
		part := p[at-off : at-off+n]
		if err := all(part)(c.file.WriteAt(part, at)); err != nil {
			return err
		}
		c.keep(block).dirty = c.mode != writethrough
		return nil
	})
	return result(p, errors.Join(err, c.reclaim()))
}

func (c *caching) sync() error {
	if c.mode == unsafeCache {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.writeBack(); err != nil {
		return err
	}
	if c.below.Sync == nil {
		return nil
	}
	return c.below.Sync()
}

// writeBack writes all that is not below yet, from the beginning on. The caller
// holds mu.
func (c *caching) writeBack() error {
	var dirty []int64
	for block, b := range c.blocks {
		if b.dirty {
			dirty = append(dirty, block)
		}
	}
	slices.Sort(dirty)
	for _, block := range dirty {
		if err := c.clean(block); err != nil {
			return err
		}
	}
	return nil
}

// clean writes a block.
func (c *caching) clean(block int64) error {
	p := make([]byte, c.length(block))
	if err := all(p)(c.file.ReadAt(p, block*c.block)); err != nil {
		return err
	}
	if err := all(p)(c.below.WriteAt(p, block*c.block)); err != nil {
		return err
	}
	c.blocks[block].dirty = false
	return nil
}

// zero does something below, after which the store does not know what is there:
// blocks are forgotten, and parts of them read again.
func (c *caching) zero(off, n int64, do func(off, n int64) error) error {
	if n == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// What is not below of a block that remains in part has to be there first.
	for _, at := range []int64{off, off + n - 1} {
		block := at / c.block
		if b := c.blocks[block]; b != nil && b.dirty {
			if err := c.clean(block); err != nil {
				return err
			}
		}
	}
	if err := do(off, n); err != nil {
		return err
	}
	first, last := off/c.block, (off+n-1)/c.block
	for block := range c.blocks {
		if block >= first && block <= last {
			delete(c.blocks, block)
		}
	}
	return nil
}

// reclaim drops the blocks that have not been used for the longest time, if there
// are too many. The caller holds mu.
func (c *caching) reclaim() error {
	if c.most == 0 || int64(len(c.blocks)) <= c.most {
		return nil
	}
	type aged struct{ block, used int64 }
	all := make([]aged, 0, len(c.blocks))
	for block, b := range c.blocks {
		all = append(all, aged{block, b.used.Load()})
	}
	slices.SortFunc(all, func(a, b aged) int { return cmp.Compare(a.used, b.used) })
	for _, a := range all[:int64(len(all))-c.least] {
		if c.blocks[a.block].dirty {
			if err := c.clean(a.block); err != nil {
				return err
			}
		}
		delete(c.blocks, a.block)
		if err := c.file.Trim(a.block*c.block, c.length(a.block)); err != nil {
			return err
		}
	}
	return nil
}
