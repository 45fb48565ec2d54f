package filters

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"syscall"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var protectFilter = plugin.Filter{
	Name: "protect", Summary: "refuses changes of parts of the disk", Usage: "protect=[~]START-END... (END is the last byte)",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		var zones []zone
		for _, s := range p.Strings("protect") {
			more, err := parseZones(s)
			if err != nil {
				return nil, fmt.Errorf("protect=%s: %w", s, err)
			}
			zones = append(zones, more...)
		}
		if zones == nil {
			return nil, errors.New("protect= is needed")
		}
		return edit(func(a *nbd.Abilities) error { protect(a, zones); return nil }), nil
	},
}

// zone is the bytes from first to last.
type zone struct{ first, last int64 }

// parseZones reads START-END, or, with ~, all but that.
func parseZones(s string) ([]zone, error) {
	s, inverted := strings.CutPrefix(s, "~")
	from, to, ok := strings.Cut(s, "-")
	z := zone{0, math.MaxInt64}
	var err error
	if from != "" {
		if z.first, err = parseOffset(from); err != nil {
			return nil, err
		}
	}
	if !ok {
		z.last = z.first
	} else if to != "" {
		if z.last, err = parseOffset(to); err != nil {
			return nil, err
		}
	}
	switch {
	case z.last < z.first:
		return nil, errors.New("it ends before it begins")
	case !inverted:
		return []zone{z}, nil
	}
	zones := []zone{}
	if z.first > 0 {
		zones = append(zones, zone{0, z.first - 1})
	}
	if z.last < math.MaxInt64 {
		zones = append(zones, zone{z.last + 1, math.MaxInt64})
	}
	return zones, nil
}

// parseOffset reads a number in C's notation.
func parseOffset(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 0, 63)
	if err != nil {
		return 0, fmt.Errorf("%q is not an offset: decimal, octal (0…) or hexadecimal (0x…)", s)
	}
	return int64(n), nil
}

// protect lets nothing change in zones. Who writes what is there already is not
// refused.
func protect(a *nbd.Abilities, zones []zone) {
	below := *a
	// each calls f for the parts of n bytes at off that are protected.
	each := func(off, n int64, f func(from, to int64) error) error {
		for _, z := range zones {
			from, to := max(off, z.first), min(off+n-1, z.last)+1
			if from < to {
				if err := f(from, to); err != nil {
					return err
				}
			}
		}
		return nil
	}
	refused := func(from, to int64) error {
		return fmt.Errorf("the bytes from %d to %d are protected: %w", from, to-1, syscall.EPERM)
	}
	// same refuses unless what is there is what want has for it.
	same := func(off, n int64, want func(from, to int64) []byte) error {
		return each(off, n, func(from, to int64) error {
			const piece = 64 << 10
			buf := make([]byte, min(piece, to-from))
			for ; from < to; from += int64(len(buf)) {
				buf = buf[:min(int64(len(buf)), to-from)]
				if _, err := below.ReadAt(buf, from); err != nil {
					return err
				}
				if !bytes.Equal(buf, want(from, from+int64(len(buf)))) {
					return refused(from, to)
				}
			}
			return nil
		})
	}
	guard := func(write func([]byte, int64) (int, error)) func([]byte, int64) (int, error) {
		if write == nil {
			return nil
		}
		return func(p []byte, off int64) (int, error) {
			if err := same(off, int64(len(p)), func(from, to int64) []byte { return p[from-off : to-off] }); err != nil {
				return 0, err
			}
			return write(p, off)
		}
	}
	a.WriteAt, a.WriteFUA = guard(below.WriteAt), guard(below.WriteFUA)
	zeroes := make([]byte, 64<<10)
	if below.Trim != nil {
		a.Trim = func(off, n int64) error {
			if err := same(off, n, func(from, to int64) []byte { return zeroes[:to-from] }); err != nil {
				return err
			}
			return below.Trim(off, n)
		}
	}
	if below.Zero != nil {
		a.Zero = func(off, n int64, flags nbd.ZeroFlags) error {
			if err := same(off, n, func(from, to int64) []byte { return zeroes[:to-from] }); err != nil {
				return err
			}
			return below.Zero(off, n, flags)
		}
	}
}
