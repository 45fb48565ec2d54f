package filters

import (
	"context"
	"os"
	"syscall"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var delayFilter = plugin.Filter{
	Name: "delay", Summary: "makes everything take longer",
	Usage: "[rdelay=TIME] [wdelay=TIME] (zero and trim as well) [zdelay=TIME] [tdelay=TIME] [edelay=TIME] [cdelay=TIME] [delay-open=TIME] [delay-close=TIME] [delay-fast-zero=BOOL]",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		d := delays{fastZero: true}
		all, err := p.Duration("wdelay", 0)
		if err != nil {
			return nil, err
		}
		d.write, d.zero, d.trim = all, all, all
		for _, v := range []struct {
			to   *time.Duration
			keys []string
		}{
			{&d.read, []string{"rdelay", "delay-read", "delay-reads"}},
			{&d.write, []string{"delay-write", "delay-writes"}},
			{&d.zero, []string{"zdelay", "delay-zero", "delay-zeroes"}},
			{&d.trim, []string{"tdelay", "delay-trim", "delay-trims", "delay-discard", "delay-discards"}},
			{&d.extents, []string{"edelay", "delay-extents", "delay-extent"}},
			{&d.cache, []string{"cdelay", "delay-cache"}},
			{&d.open, []string{"delay-open"}},
			{&d.close, []string{"delay-close"}},
		} {
			for _, key := range v.keys {
				n, err := p.Duration(key, *v.to)
				if err != nil {
					return nil, err
				}
				*v.to = n
			}
		}
		d.fastZero, err = p.Bool("delay-fast-zero", true)
		return func(s *plugin.Source) { s.Edit(d.edit) }, err
	},
}

type delays struct {
	read, write, zero, trim, extents, cache, open, close time.Duration
	fastZero                                             bool // they take as long as others; else they fail
}

// wait waits, unless the connection ends before.
func wait(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (d *delays) edit(ctx context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
	if err := wait(ctx, d.open); err != nil {
		return err
	}
	before(a, func(op operation, flags nbd.ZeroFlags) error {
		switch op {
		case opRead:
			return wait(ctx, d.read)
		case opWrite:
			return wait(ctx, d.write)
		case opZero:
			if flags&nbd.ZeroFast != 0 && !d.fastZero && d.zero > 0 {
				return syscall.ENOTSUP
			}
			return wait(ctx, d.zero)
		case opTrim:
			return wait(ctx, d.trim)
		case opExtents:
			return wait(ctx, d.extents)
		case opCache:
			return wait(ctx, d.cache)
		}
		return nil
	})
	if d.close > 0 {
		onClose(a, func() { time.Sleep(d.close) })
	}
	return nil
}

// operation is a kind of request.
type operation int

const (
	opRead operation = iota
	opWrite
	opZero
	opTrim
	opFlush
	opExtents
	opCache
)

// before does something before each request, which may fail it. A range is then
// still sent without being read. A hole is read, too: else its reading would be
// passed by.
func before(a *nbd.Abilities, f func(op operation, flags nbd.ZeroFlags) error) {
	holesAsExtents(a)
	below := *a
	a.ReadNow = nil
	a.Buffered = false
	a.ReadAt = func(p []byte, off int64) (int, error) {
		if err := f(opRead, 0); err != nil {
			return 0, err
		}
		return below.ReadAt(p, off)
	}
	if below.Section != nil {
		a.Section = func(off, n int64) (*os.File, int64, bool) {
			file, at, ok := below.Section(off, n)
			if ok && f(opRead, 0) != nil {
				return nil, 0, false // the reading that follows says why
			}
			return file, at, ok
		}
	}
	write := func(below func([]byte, int64) (int, error)) func([]byte, int64) (int, error) {
		if below == nil {
			return nil
		}
		return func(p []byte, off int64) (int, error) {
			if err := f(opWrite, 0); err != nil {
				return 0, err
			}
			return below(p, off)
		}
	}
	a.WriteAt, a.WriteFUA = write(below.WriteAt), write(below.WriteFUA)
	spanned := func(op operation, below func(off, n int64) error) func(off, n int64) error {
		if below == nil {
			return nil
		}
		return func(off, n int64) error {
			if err := f(op, 0); err != nil {
				return err
			}
			return below(off, n)
		}
	}
	a.Trim, a.Cache = spanned(opTrim, below.Trim), spanned(opCache, below.Cache)
	if below.Zero != nil {
		a.Zero = func(off, n int64, flags nbd.ZeroFlags) error {
			if err := f(opZero, flags); err != nil {
				return err
			}
			return below.Zero(off, n, flags)
		}
	}
	if below.Sync != nil {
		a.Sync = func() error {
			if err := f(opFlush, 0); err != nil {
				return err
			}
			return below.Sync()
		}
	}
	if below.Extents != nil {
		a.Extents = func(off, n int64, one bool) ([]nbd.Extent, error) {
			if err := f(opExtents, 0); err != nil {
				return nil, err
			}
			return below.Extents(off, n, one)
		}
	}
}
