package filters

import (
	"errors"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// The filters that take an ability away, or make another one of it.
var (
	readOnlyFilter = always("readonly", "refuses every change", (*nbd.Abilities).ReadOnly)

	noExtentsFilter = always("noextents", "does not tell where holes are", func(a *nbd.Abilities) {
		a.Extents, a.Hole = nil, nil
	})

	rotationalFilter = plugin.Filter{
		Name: "rotational", Summary: "says whether nearby offsets are faster to reach", Usage: "rotational=true|false",
		Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
			rotational, err := p.Bool("rotational", true)
			return edit(func(a *nbd.Abilities) error { a.Rotational = rotational; return nil }), err
		},
	}

	noZeroFilter = plugin.Filter{
		Name: "nozero", Summary: "does not zero, or not as asked",
		Usage: "zeromode=none|emulate|notrim|plugin fastzeromode=none|slow|ignore|default",
		Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
			zero, err := p.Choice("zeromode", "none", "emulate", "notrim", "plugin")
			if err != nil {
				return nil, err
			}
			fast, err := p.Choice("fastzeromode", "default", "none", "slow", "ignore")
			return edit(func(a *nbd.Abilities) error { noZero(a, zero, fast); return nil }), err
		},
	}

	noCacheFilter = plugin.Filter{
		Name: "nocache", Summary: "does not read ahead, or not as asked", Usage: "cachemode=none|emulate|nop",
		Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
			mode, err := p.Choice("cachemode", "none", "emulate", "nop")
			return edit(func(a *nbd.Abilities) error { noCache(a, mode); return nil }), err
		},
	}

	fuaFilter = plugin.Filter{
		Name: "fua", Summary: "changes how writes get to stable storage",
		Usage: "fuamode=none|emulate|native|force|pass|discard",
		Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
			mode, err := p.Choice("fuamode", "none", "emulate", "native", "force", "pass", "discard")
			return edit(func(a *nbd.Abilities) error { return fua(a, mode) }), err
		},
	}

	multiConnFilter = plugin.Filter{
		Name: "multi-conn", Summary: "says whether several connections see each other's writes",
		Usage: "multi-conn-mode=auto|plugin|disable|unsafe",
		Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
			mode, err := p.Choice("multi-conn-mode", "auto", "plugin", "disable", "unsafe")
			return edit(func(a *nbd.Abilities) error {
				switch mode {
				case "disable":
					a.MultiConn = false
				case "unsafe":
					a.MultiConn = true
				}
				return nil
			}), err
		},
	}
)

func noZero(a *nbd.Abilities, mode, fast string) {
	below := a.Zero
	switch mode {
	case "none":
		a.NoZero = true
	case "emulate": // the server writes zeroes
		a.Zero = nil
	case "notrim":
		if below != nil {
			a.Zero = func(off, n int64, flags nbd.ZeroFlags) error { return below(off, n, flags&^nbd.ZeroMayTrim) }
		}
	}
	zero := a.Zero
	switch fast {
	case "none":
		a.SlowZero = true
	case "slow":
		a.SlowZero = false
		a.Zero = func(off, n int64, flags nbd.ZeroFlags) error {
			if flags&nbd.ZeroFast != 0 || zero == nil {
				return errors.ErrUnsupported
			}
			return zero(off, n, flags)
		}
	case "ignore":
		a.SlowZero = false
		if zero != nil {
			a.Zero = func(off, n int64, flags nbd.ZeroFlags) error { return zero(off, n, flags&^nbd.ZeroFast) }
		}
	}
}

func noCache(a *nbd.Abilities, mode string) {
	switch mode {
	case "none":
		a.Cache = nil
	case "nop":
		a.Cache = func(_, _ int64) error { return nil }
	case "emulate":
		read := a.ReadAt
		a.Cache = func(off, n int64) error {
			const most = 1 << 20
			buf := make([]byte, min(n, most))
			for n > 0 {
				k := min(n, most)
				if _, err := read(buf[:k], off); err != nil {
					return err
				}
				off, n = off+k, n-k
			}
			return nil
		}
	}
}

func fua(a *nbd.Abilities, mode string) error {
	switch mode {
	case "none", "emulate": // a write, then a sync
		a.WriteFUA = nil
	case "native":
		if a.WriteFUA == nil && a.Sync == nil {
			return errors.New("fuamode=native: what is below cannot sync")
		}
	case "force":
		if a.WriteFUA != nil {
			a.WriteAt = a.WriteFUA
			a.Buffered = false
		} else if a.Sync != nil && a.WriteAt != nil {
			a.WriteAt = thenSync(a.WriteAt, a.Sync)
			a.Buffered = false
		}
	case "discard":
		a.WriteFUA = a.WriteAt
		a.Sync = func() error { return nil }
	}
	return nil
}

func thenSync(write func([]byte, int64) (int, error), sync func() error) func([]byte, int64) (int, error) {
	return func(p []byte, off int64) (int, error) {
		n, err := write(p, off)
		if err == nil {
			err = sync()
		}
		return n, err
	}
}
