// Package concat puts disks one behind the other.
package concat

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sort"

	"nbd-ktls-server/nbd"
)

// Disk is a disk made of parts.
type Disk struct {
	parts  []*nbd.Abilities
	starts []int64 // of each part, and the end of the last
}

// New makes a disk of parts, which it closes with itself, or if it fails.
func New(parts []nbd.Backend) (*Disk, error) {
	d := &Disk{starts: []int64{0}}
	for i, b := range parts {
		a, err := nbd.Resolve(b)
		if err == nil && a.Size > math.MaxInt64-d.size() {
			err = errors.New("together they are too large")
		}
		if a != nil {
			d.parts = append(d.parts, a)
		}
		if err != nil {
			for _, rest := range parts[i+1:] {
				if a, err := nbd.Resolve(rest); err == nil {
					d.parts = append(d.parts, a)
				}
			}
			d.Close()
			return nil, err
		}
		d.starts = append(d.starts, d.size()+a.Size)
	}
	return d, nil
}

func (d *Disk) size() int64 { return d.starts[len(d.starts)-1] }

// Size is that of all parts together.
func (d *Disk) Size() (int64, error) { return d.size(), nil }

// part returns the part that off is in, where in it, and how much of n bytes.
func (d *Disk) part(off, n int64) (a *nbd.Abilities, at, k int64) {
	i := sort.Search(len(d.parts), func(i int) bool { return d.starts[i+1] > off })
	return d.parts[i], off - d.starts[i], min(n, d.starts[i+1]-off)
}

// each calls f for the parts of n bytes at off.
func (d *Disk) each(off, n int64, f func(a *nbd.Abilities, at, n int64) error) error {
	for n > 0 {
		a, at, k := d.part(off, n)
		if err := f(a, at, k); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// transfer reads or writes all of p at off.
func (d *Disk) transfer(p []byte, off int64, f func(a *nbd.Abilities) func([]byte, int64) (int, error)) (done int, err error) {
	err = d.each(off, int64(len(p)), func(a *nbd.Abilities, at, n int64) error {
		k, err := f(a)(p[done:done+int(n)], at)
		done += k
		if err == nil && int64(k) < n {
			err = fmt.Errorf("%d of %d bytes at %d of a part", k, n, at)
		}
		return err
	})
	return done, err
}

// ReadAt fills p from off.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	return d.transfer(p, off, func(a *nbd.Abilities) func([]byte, int64) (int, error) { return a.ReadAt })
}

// WriteAt writes p at off.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	return d.transfer(p, off, func(a *nbd.Abilities) func([]byte, int64) (int, error) { return a.WriteAt })
}

// Sync syncs every part.
func (d *Disk) Sync() (err error) {
	for _, a := range d.parts {
		if a.Sync == nil {
			continue
		}
		if e := a.Sync(); err == nil {
			err = e
		}
	}
	return err
}

// Close closes every part.
func (d *Disk) Close() (err error) {
	for _, a := range d.parts {
		if a.Close == nil {
			continue
		}
		if e := a.Close(); err == nil {
			err = e
		}
	}
	return err
}

// Resolve implements [nbd.Resolver]: the disk can do what all of its parts can.
func (d *Disk) Resolve(a *nbd.Abilities) error {
	all := func(has func(a *nbd.Abilities) bool) bool {
		for _, p := range d.parts {
			if !has(p) {
				return false
			}
		}
		return true
	}
	a.Section = d.section
	if all(func(p *nbd.Abilities) bool { return p.ReadNow != nil }) {
		a.ReadNow = d.readNow
	}
	a.Buffered = all(func(p *nbd.Abilities) bool { return p.Buffered })
	if all(func(p *nbd.Abilities) bool { return p.Hole != nil }) {
		a.Hole = func(off, n int64) (bool, int64) {
			p, at, k := d.part(off, n)
			return p.Hole(at, k)
		}
	}
	if all(func(p *nbd.Abilities) bool { return p.Cache != nil }) {
		a.Cache = func(off, n int64) error {
			return d.each(off, n, func(p *nbd.Abilities, at, n int64) error { return p.Cache(at, n) })
		}
	}
	if all(func(p *nbd.Abilities) bool { return p.Trim != nil }) {
		a.Trim = func(off, n int64) error {
			return d.each(off, n, func(p *nbd.Abilities, at, n int64) error { return p.Trim(at, n) })
		}
	}
	if all(func(p *nbd.Abilities) bool { return p.Zero != nil }) {
		a.Zero = func(off, n int64, flags nbd.ZeroFlags) error {
			if flags&nbd.ZeroFast != 0 && n > 0 {
				if _, _, k := d.part(off, n); k < n {
					return errors.ErrUnsupported // a part could refuse when others have been zeroed
				}
			}
			return d.each(off, n, func(p *nbd.Abilities, at, n int64) error { return p.Zero(at, n, flags) })
		}
	}
	a.MultiConn = all(func(p *nbd.Abilities) bool { return p.MultiConn })
	if !all(func(p *nbd.Abilities) bool { return p.WriteAt != nil }) {
		a.ReadOnly()
	}
	return nil
}

// section is that of one part; a range in two is in no file.
func (d *Disk) section(off, n int64) (*os.File, int64, bool) {
	p, at, k := d.part(off, n)
	if k < n || p.Section == nil {
		return nil, 0, false
	}
	return p.Section(at, n)
}

func (d *Disk) readNow(p []byte, off int64) (done int) {
	d.each(off, int64(len(p)), func(a *nbd.Abilities, at, n int64) error {
		k := a.ReadNow(p[done:done+int(n)], at)
		done += k
		if int64(k) < n {
			return errNotNow
		}
		return nil
	})
	return done
}

var errNotNow = errors.New("not at hand")
