package plugins

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/backends/null"
	"nbd-ktls-server/backends/pattern"
	"nbd-ktls-server/backends/random"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// The plugins whose exports are all one backend, made at the start.
var (
	memoryPlugin = plugin.Plugin{
		Name:    "memory",
		Summary: "a sparse disk in memory, gone when the server ends",
		Usage:   "memory [size=]SIZE [allocator=sparse]",
		Magic:   "size",
		Configure: func(p *plugin.Params) (*plugin.Source, error) {
			if _, err := p.Choice("allocator", "sparse"); err != nil {
				return nil, err
			}
			return sized(p, true, func(n int64) nbd.Backend { return memory.New(n) })
		},
	}
	nullPlugin = plugin.Plugin{
		Name:    "null",
		Summary: "forgets what is written, reads as zeroes",
		Usage:   "null [[size=]SIZE]",
		Magic:   "size",
		Configure: func(p *plugin.Params) (*plugin.Source, error) {
			return sized(p, false, func(n int64) nbd.Backend { return null.New(n) })
		},
	}
	zeroPlugin = plugin.Plugin{
		Name:    "zero",
		Summary: "a disk of no bytes",
		Usage:   "zero",
		Configure: func(*plugin.Params) (*plugin.Source, error) {
			return plugin.Single(fixed(nil)), nil
		},
	}
	fullPlugin = plugin.Plugin{
		Name:    "full",
		Summary: "reads as zeroes; everything else fails, as there is no space left",
		Usage:   "full [size=]SIZE",
		Magic:   "size",
		Configure: func(p *plugin.Params) (*plugin.Source, error) {
			s, err := sized(p, true, func(n int64) nbd.Backend { return null.New(n) })
			if err == nil {
				s.Edit(func(_ context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
					noSpace(a)
					return nil
				})
			}
			return s, err
		},
	}
	patternPlugin = plugin.Plugin{
		Name:    "pattern",
		Summary: "a read-only pattern: every eight bytes hold their own offset",
		Usage:   "pattern [size=]SIZE",
		Magic:   "size",
		Configure: func(p *plugin.Params) (*plugin.Source, error) {
			return sized(p, true, func(n int64) nbd.Backend { return pattern.New(n) })
		},
	}
	randomPlugin = plugin.Plugin{
		Name:    "random",
		Summary: "random data; writes fail unless they are what is there, to test copying",
		Usage:   "random [size=]SIZE [seed=SEED]",
		Magic:   "size",
		Configure: func(p *plugin.Params) (*plugin.Source, error) {
			seed, err := p.Uint("seed", rand.Uint64())
			if err != nil {
				return nil, err
			}
			return sized(p, true, func(n int64) nbd.Backend { return random.New(n, seed) })
		},
	}
	sparseRandomPlugin = plugin.Plugin{
		Name:    "sparse-random",
		Summary: "likewise with holes, like the disk of a virtual machine",
		Usage:   "sparse-random [size=]SIZE [seed=SEED] [percent=N] [runlength=SIZE] [random-content=BOOL]",
		Magic:   "size",
		Configure: func(p *plugin.Params) (*plugin.Source, error) {
			o, err := sparseOptions(p)
			if err != nil {
				return nil, err
			}
			return sized(p, true, func(n int64) nbd.Backend { return random.NewSparse(n, o) })
		},
	}
)

// sized makes a source of one backend from the parameter size.
func sized(p *plugin.Params, required bool, backend func(int64) nbd.Backend) (*plugin.Source, error) {
	n, ok, err := p.Size("size")
	switch {
	case err != nil:
		return nil, err
	case !ok && required:
		return nil, errors.New("a size is needed")
	}
	return plugin.Single(backend(n)), nil
}

// noSpace lets every change fail.
func noSpace(a *nbd.Abilities) {
	a.Sync, a.WriteFUA = nil, nil
	a.WriteAt = func([]byte, int64) (int, error) { return 0, syscall.ENOSPC }
	a.Trim = func(_, _ int64) error { return syscall.ENOSPC }
	a.Zero = func(_, _ int64, flags nbd.ZeroFlags) error {
		if flags&nbd.ZeroFast != 0 {
			return errors.ErrUnsupported
		}
		return syscall.ENOSPC
	}
}

func sparseOptions(p *plugin.Params) (o random.Sparse, err error) {
	if o.Seed, err = p.Uint("seed", rand.Uint64()); err != nil {
		return o, err
	}
	percent, err := p.Uint("percent", 10)
	if err != nil {
		return o, err
	}
	if percent > 100 {
		return o, fmt.Errorf("percent=%d: it is at most 100", percent)
	}
	o.Percent = int(percent)
	length, ok, err := p.Size("runlength")
	switch {
	case err != nil:
		return o, err
	case !ok:
		length = 16 << 20
	case length == 0:
		return o, errors.New("runlength is 0")
	}
	o.RunLength = length
	o.Content, err = p.Bool("random-content", false)
	return o, err
}

// The modes of the plugin info.
var infoPlugin = plugin.Plugin{
	Name:    "info",
	Summary: "what the client has asked for, where it comes from, or the time",
	Usage:   "info [mode=]exportname|base64exportname|address|time|uptime|conntime",
	Magic:   "mode",
	Configure: func(p *plugin.Params) (*plugin.Source, error) {
		mode, err := p.Choice("mode", "exportname", "base64exportname", "address", "time", "uptime", "conntime")
		if err != nil {
			return nil, err
		}
		started := time.Now()
		return &plugin.Source{Open: func(_ context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
			switch mode {
			case "address":
				if info.Client.Addr.Network() == "unix" {
					return fixed("unix"), nil
				}
				return fixed(info.Client.Addr.String()), nil
			case "base64exportname":
				b, err := base64.StdEncoding.DecodeString(info.Name)
				if err != nil {
					return nil, fmt.Errorf("the name of the export: %w", err)
				}
				return fixed(b), nil
			case "time":
				return clock(func() time.Duration { return time.Duration(time.Now().UnixMicro()) * time.Microsecond }), nil
			case "uptime":
				return clock(func() time.Duration { return time.Since(started) }), nil
			case "conntime":
				opened := time.Now()
				return clock(func() time.Duration { return time.Since(opened) }), nil
			}
			return fixed(info.Name), nil
		}}, nil
	},
}

// fixed is a read-only disk of a few bytes.
type fixed []byte

func (f fixed) ReadAt(p []byte, off int64) (int, error) { return copy(p, f[off:]), nil }
func (f fixed) WriteAt([]byte, int64) (int, error)      { return 0, syscall.EROFS }
func (f fixed) Size() (int64, error)                    { return int64(len(f)), nil }
func (f fixed) Sync() error                             { return nil }
func (f fixed) Resolve(a *nbd.Abilities) error          { readOnly(a); return nil }

// clock is a read-only disk of a time: eight bytes of seconds, four of
// microseconds, both big endian.
type clock func() time.Duration

func (c clock) ReadAt(p []byte, off int64) (int, error) {
	d := c()
	b := binary.BigEndian.AppendUint64(nil, uint64(d/time.Second))
	b = binary.BigEndian.AppendUint32(b, uint32(d%time.Second/time.Microsecond))
	return copy(p, b[off:]), nil
}

func (clock) WriteAt([]byte, int64) (int, error) { return 0, syscall.EROFS }
func (clock) Size() (int64, error)               { return 12, nil }
func (clock) Sync() error                        { return nil }
func (clock) Resolve(a *nbd.Abilities) error     { readOnly(a); return nil }

// readOnly is what disks are that are made up as they are read.
func readOnly(a *nbd.Abilities) {
	a.ReadOnly()
	a.Sync = nil
	a.Cache = func(_, _ int64) error { return nil }
}
