// Package memory is a sparse disk in memory: only pages that were written take
// up space, and trimming gives them back.
package memory

import (
	"maps"
	"sync"

	"nbd-ktls-server/nbd"
)

const (
	// pageSize is the unit of allocation. Larger pages waste memory on sparse
	// disks, smaller ones spend it on map entries: about 40 bytes a page, here
	// less than a thousandth.
	pageSize = 64 << 10
	// shards are locked on their own, neighbouring pages in different ones.
	shards = 64
)

type page = [pageSize]byte

// Disk is a disk in memory. It is shared by everybody who has opened it.
type Disk struct {
	size  int64
	shard [shards]shard
}

type shard struct {
	mu    sync.RWMutex
	pages map[int64]*page
}

// New returns a disk of size bytes, all zero.
func New(size int64) *Disk {
	d := &Disk{size: size}
	for i := range d.shard {
		d.shard[i].pages = make(map[int64]*page)
	}
	return d
}

// ReadAt fills p from off.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	n := len(p)
	eachPage(off, int64(n), func(i, from, to int64) {
		k := to - from
		s := &d.shard[i%shards]
		s.mu.RLock()
		if pg := s.pages[i]; pg != nil {
			copy(p[:k], pg[from:to])
		} else {
			clear(p[:k])
		}
		s.mu.RUnlock()
		p = p[k:]
	})
	return n, nil
}

// WriteAt writes p at off.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	n := len(p)
	eachPage(off, int64(n), func(i, from, to int64) {
		k := to - from
		s := &d.shard[i%shards]
		s.mu.Lock()
		pg := s.pages[i]
		if pg == nil {
			pg = new(page)
			s.pages[i] = pg
		}
		copy(pg[from:to], p[:k])
		s.mu.Unlock()
		p = p[k:]
	})
	return n, nil
}

// Zero makes n bytes at off zero. Whole pages are given back, whatever flags
// say: memory that is gone can be had again.
func (d *Disk) Zero(off, n int64, _ nbd.ZeroFlags) error {
	first, last := (off+pageSize-1)/pageSize, (off+n)/pageSize // whole pages
	if last-first > manyPages {
		d.drop(first, last)
		eachPage(off, first*pageSize-off, d.zeroPart)
		eachPage(last*pageSize, off+n-last*pageSize, d.zeroPart)
		return nil
	}
	eachPage(off, n, d.zeroPart)
	return nil
}

// zeroPart zeroes a part of a page.
func (d *Disk) zeroPart(i, from, to int64) {
	s := &d.shard[i%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if to-from == pageSize {
		delete(s.pages, i)
	} else if pg := s.pages[i]; pg != nil {
		clear(pg[from:to])
	}
}

// manyPages is from where it is cheaper to look at the pages that there are
// than at those that there could be.
const manyPages = 1 << 12

// drop gives back the pages from first up to last.
func (d *Disk) drop(first, last int64) {
	for i := range d.shard {
		s := &d.shard[i]
		s.mu.Lock()
		maps.DeleteFunc(s.pages, func(i int64, _ *page) bool { return first <= i && i < last })
		s.mu.Unlock()
	}
}

// Hole says whether the page of off was never written, and how far pages of its
// kind reach, within n bytes; it looks at manyPages at most.
func (d *Disk) Hole(off, n int64) (hole bool, length int64) {
	first := off / pageSize
	hole = !d.has(first)
	i := first + 1
	for i*pageSize < off+n && i-first < manyPages && d.has(i) != hole {
		i++
	}
	return hole, min(i*pageSize-off, n)
}

func (d *Disk) has(i int64) bool {
	s := &d.shard[i%shards]
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pages[i] != nil
}

// Trim zeroes n bytes at off.
func (d *Disk) Trim(off, n int64) error { return d.Zero(off, n, nbd.ZeroMayTrim) }

// Size returns the size in bytes.
func (d *Disk) Size() (int64, error) { return d.size, nil }

// Sync does nothing: there is no storage more stable than this.
func (d *Disk) Sync() error { return nil }

// Resolve implements [nbd.Resolver].
func (d *Disk) Resolve(a *nbd.Abilities) error {
	a.Buffered = true
	a.ReadNow = func(p []byte, off int64) int { n, _ := d.ReadAt(p, off); return n }
	a.WriteFUA = d.WriteAt
	a.Trim = d.Trim
	a.Zero = d.Zero
	a.Hole = d.Hole
	a.Cache = func(_, _ int64) error { return nil }
	a.MultiConn = true
	return nil
}

// eachPage calls f for every page of n bytes at off: its number, and the part
// of it that is meant.
func eachPage(off, n int64, f func(i, from, to int64)) {
	for n > 0 {
		from := off % pageSize
		k := min(pageSize-from, n)
		f(off/pageSize, from, from+k)
		off, n = off+k, n-k
	}
}
