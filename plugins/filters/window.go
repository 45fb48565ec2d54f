package filters

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var offsetFilter = plugin.Filter{
	Name: "offset", Summary: "a part of the disk", Usage: "offset=OFFSET [range=LENGTH]",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		start, given, err := p.Size("offset")
		if err != nil {
			return nil, err
		}
		length, limited, err := p.Size("range")
		if err == nil && !given && !limited {
			err = errors.New("offset= or range= is needed")
		}
		return edit(func(a *nbd.Abilities) error {
			switch {
			case start > a.Size:
				return fmt.Errorf("offset=%d is beyond the end, at %d", start, a.Size)
			case !limited:
				window(a, start, a.Size-start)
			case length > a.Size-start:
				return fmt.Errorf("offset=%d and range=%d are beyond the end, at %d", start, length, a.Size)
			default:
				window(a, start, length)
			}
			return nil
		}), err
	},
}

// window makes a the size bytes at start of what it was.
func window(a *nbd.Abilities, start, size int64) {
	below := *a
	a.Size = size
	a.ReadAt = func(p []byte, off int64) (int, error) { return below.ReadAt(p, start+off) }
	if below.ReadNow != nil {
		a.ReadNow = func(p []byte, off int64) int { return below.ReadNow(p, start+off) }
	}
	if below.Section != nil {
		a.Section = func(off, n int64) (*os.File, int64, bool) { return below.Section(start+off, n) }
	}
	if below.WriteAt != nil {
		a.WriteAt = func(p []byte, off int64) (int, error) { return below.WriteAt(p, start+off) }
	}
	if below.WriteFUA != nil {
		a.WriteFUA = func(p []byte, off int64) (int, error) { return below.WriteFUA(p, start+off) }
	}
	if below.Trim != nil {
		a.Trim = func(off, n int64) error { return below.Trim(start+off, n) }
	}
	if below.Zero != nil {
		a.Zero = func(off, n int64, flags nbd.ZeroFlags) error { return below.Zero(start+off, n, flags) }
	}
	if below.Cache != nil {
		a.Cache = func(off, n int64) error { return below.Cache(start+off, n) }
	}
	if below.Extents != nil {
		a.Extents = func(off, n int64, one bool) ([]nbd.Extent, error) { return below.Extents(start+off, n, one) }
	}
	if below.Hole != nil {
		a.Hole = func(off, n int64) (bool, int64) { return below.Hole(start+off, n) }
	}
}

var truncateFilter = plugin.Filter{
	Name: "truncate", Summary: "another size: cut off, or with zeroes behind the end",
	Usage: "[truncate=SIZE] [round-up=N] [round-down=N]",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		size, fixed, err := p.Size("truncate")
		if err != nil {
			return nil, err
		}
		up, rounded, err := p.Size("round-up")
		if err != nil {
			return nil, err
		}
		down, alsoDown, err := p.Size("round-down")
		if err != nil {
			return nil, err
		}
		if rounded && up <= 0 || alsoDown && down <= 0 {
			return nil, errors.New("round-up and round-down must be positive")
		}
		return edit(func(a *nbd.Abilities) error {
			n := a.Size
			if fixed {
				n = size
			}
			if rounded {
				n = (n + up - 1) / up * up
			}
			if alsoDown {
				n -= n % down
			}
			if n < 0 {
				return fmt.Errorf("round-up=%d: there are no disks so large", up)
			}
			if n <= a.Size {
				window(a, 0, n)
			} else {
				extend(a, n)
			}
			return nil
		}), nil
	},
}

// extend puts zeroes behind the end of a, up to size. Only zeroes can be written
// there.
func extend(a *nbd.Abilities, size int64) {
	below, end := *a, a.Size
	a.Size = size
	// inside is how much of n bytes at off are before the end.
	inside := func(off, n int64) int64 { return max(0, min(n, end-off)) }
	a.ReadAt = func(p []byte, off int64) (int, error) {
		n := inside(off, int64(len(p)))
		clear(p[n:])
		if n > 0 {
			if k, err := below.ReadAt(p[:n], off); err != nil || int64(k) < n {
				return k, err
			}
		}
		return len(p), nil
	}
	if below.ReadNow != nil {
		a.ReadNow = func(p []byte, off int64) int {
			n := inside(off, int64(len(p)))
			clear(p[n:])
			if n > 0 && int64(below.ReadNow(p[:n], off)) < n {
				return 0
			}
			return len(p)
		}
	}
	if below.Section != nil {
		a.Section = func(off, n int64) (*os.File, int64, bool) {
			if inside(off, n) < n {
				return nil, 0, false
			}
			return below.Section(off, n)
		}
	}
	write := func(below func([]byte, int64) (int, error)) func([]byte, int64) (int, error) {
		if below == nil {
			return nil
		}
		return func(p []byte, off int64) (int, error) {
			n := inside(off, int64(len(p)))
			if !isZero(p[n:]) {
				return 0, fmt.Errorf("only zeroes can be written behind the end, at %d: %w", end, syscall.ENOSPC)
			}
			if n > 0 {
				if k, err := below(p[:n], off); err != nil || int64(k) < n {
					return k, err
				}
			}
			return len(p), nil
		}
	}
	a.WriteAt, a.WriteFUA = write(below.WriteAt), write(below.WriteFUA)
	spanned := func(f func(off, n int64) error) func(off, n int64) error {
		if f == nil {
			return nil
		}
		return func(off, n int64) error {
			if n = inside(off, n); n == 0 {
				return nil
			}
			return f(off, n)
		}
	}
	a.Trim, a.Cache = spanned(below.Trim), spanned(below.Cache)
	if below.Zero != nil {
		a.Zero = func(off, n int64, flags nbd.ZeroFlags) error {
			if n = inside(off, n); n == 0 {
				return nil
			}
			return below.Zero(off, n, flags)
		}
	}
	if below.Extents != nil {
		a.Extents = func(off, n int64, one bool) ([]nbd.Extent, error) {
			k := inside(off, n)
			if k == 0 {
				return []nbd.Extent{{Length: n, Hole: true, Zero: true}}, nil
			}
			return below.Extents(off, k, one)
		}
	}
	if below.Hole != nil {
		a.Hole = func(off, n int64) (bool, int64) {
			k := inside(off, n)
			if k == 0 {
				return true, n
			}
			return below.Hole(off, k)
		}
	}
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
