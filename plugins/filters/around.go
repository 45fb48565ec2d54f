package filters

import (
	"context"
	"errors"
	"io"
	"syscall"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
)

// request is one request of a client, as a filter sees it. off and n are in bytes.
type request struct {
	op     operation
	off, n int64
	flags  nbd.ZeroFlags
	fua    bool // of a write
	one    bool // of extents
	// extents are the answer, once it has been done.
	extents []nbd.Extent
}

// changes reports whether r changes the export.
func (r *request) changes() bool { return r.op == opWrite || r.op == opZero || r.op == opTrim }

// do does r with what a can do. p is the data of a read or a write.
func (r *request) do(a *nbd.Abilities, p []byte) (err error) {
	switch missing := errors.ErrUnsupported; r.op {
	case opRead:
		return all(p)(a.ReadAt(p, r.off))
	case opWrite:
		switch {
		case a.WriteAt == nil:
			return syscall.EROFS
		case r.fua && a.WriteFUA != nil:
			return all(p)(a.WriteFUA(p, r.off))
		}
		if err := all(p)(a.WriteAt(p, r.off)); err != nil || !r.fua {
			return err
		}
		return (&request{op: opFlush}).do(a, nil)
	case opZero:
		if a.Zero == nil {
			return missing
		}
		err = a.Zero(r.off, r.n, r.flags)
	case opTrim:
		if a.Trim == nil {
			return missing
		}
		err = a.Trim(r.off, r.n)
	case opFlush:
		if a.Sync == nil {
			return missing
		}
		err = a.Sync()
	case opExtents:
		if a.Extents == nil {
			return missing
		}
		r.extents, err = a.Extents(r.off, r.n, r.one)
	case opCache:
		if a.Cache == nil {
			return missing
		}
		err = a.Cache(r.off, r.n)
	}
	return err
}

// all makes an error of the result of reading or writing p, where one comes with
// all the bytes it is none.
func all(p []byte) func(int, error) error {
	return func(n int, err error) error {
		switch {
		case n == len(p):
			return nil
		case err == nil:
			return io.ErrUnexpectedEOF
		}
		return err
	}
}

// around lets f do every request to a: f gets the abilities that a had, and p,
// the data of a read or a write. Nothing passes by f: ranges are not streamed,
// and holes are read, as a client that asks for a hole has read it.
func around(a *nbd.Abilities, f func(below *nbd.Abilities, r *request, p []byte) error) {
	holesAsExtents(a)
	a.ReadNow, a.Section = nil, nil
	a.Buffered = false
	below := *a
	data := func(op operation, fua bool) func([]byte, int64) (int, error) {
		return func(p []byte, off int64) (int, error) {
			if err := f(&below, &request{op: op, off: off, n: int64(len(p)), fua: fua}, p); err != nil {
				return 0, err
			}
			return len(p), nil
		}
	}
	span := func(op operation) func(off, n int64) error {
		return func(off, n int64) error { return f(&below, &request{op: op, off: off, n: n}, nil) }
	}
	a.ReadAt = data(opRead, false)
	if a.WriteAt != nil {
		a.WriteAt = data(opWrite, false)
	}
	if a.WriteFUA != nil {
		a.WriteFUA = data(opWrite, true)
	}
	if a.Trim != nil {
		a.Trim = span(opTrim)
	}
	if a.Cache != nil {
		a.Cache = span(opCache)
	}
	if a.Zero != nil {
		a.Zero = func(off, n int64, flags nbd.ZeroFlags) error {
			return f(&below, &request{op: opZero, off: off, n: n, flags: flags}, nil)
		}
	}
	if a.Sync != nil {
		a.Sync = func() error { return f(&below, &request{op: opFlush}, nil) }
	}
	if a.Extents != nil {
		a.Extents = func(off, n int64, one bool) ([]nbd.Extent, error) {
			r := &request{op: opExtents, off: off, n: n, one: one}
			err := f(&below, r, nil)
			return r.extents, err
		}
	}
}

// maxExtents bounds what is put together from holes for one request: the rest of
// the range is left out, which an answer may do.
const maxExtents = 1 << 12

// holesAsExtents makes extents of holes, so that reads of holes are seen.
func holesAsExtents(a *nbd.Abilities) {
	hole := a.Hole
	a.Hole = nil
	if a.Extents != nil || hole == nil {
		return
	}
	a.Extents = func(off, n int64, one bool) (all []nbd.Extent, _ error) {
		for end := off + n; off < end && len(all) < maxExtents; {
			empty, k := hole(off, end-off)
			last := len(all) - 1
			switch {
			case last >= 0 && all[last].Hole == empty:
				all[last].Length += k
			case last >= 0 && one:
				return all, nil
			default:
				all = append(all, nbd.Extent{Length: k, Hole: empty, Zero: empty})
			}
			off += k
		}
		return all, nil
	}
}

// names of the operations, as nbdkit's methods are called.
var operationNames = map[operation]string{
	opRead: "pread", opWrite: "pwrite", opZero: "zero", opTrim: "trim", opFlush: "flush", opExtents: "extents", opCache: "cache",
}

// again reports whether it may help to try a request that has failed again: not
// if it was refused because it would not be fast, which is an answer, and not if
// the client has gone.
func (r *request) again(ctx context.Context, err error) bool {
	fast := r.op == opZero && r.flags&nbd.ZeroFast != 0
	slow := errors.Is(err, errors.ErrUnsupported) || errors.Is(err, wire.ENOTSUP)
	return err != nil && ctx.Err() == nil && !(fast && slow)
}
