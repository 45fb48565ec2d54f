package filters

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var errorFilter = plugin.Filter{
	Name: "error", Summary: "lets requests fail, to test clients",
	Usage: "[error=ERRNO] [error-rate=N%|0..1] [error-file=FILE], and for pread, pwrite, trim, zero, extents, cache and open: [error-pread=ERRNO] [error-pread-rate=…] [error-pread-file=…]",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		all, err := parseFault(p, "error", fault{errno: syscall.EIO})
		if err != nil {
			return nil, err
		}
		faults := make(map[operation]fault)
		for op, name := range map[operation]string{
			opRead: "pread", opWrite: "pwrite", opTrim: "trim", opZero: "zero", opExtents: "extents", opCache: "cache",
		} {
			if faults[op], err = parseFault(p, "error-"+name, all); err != nil {
				return nil, err
			}
		}
		opening, err := parseFault(p, "error-open", fault{errno: all.errno})
		return func(s *plugin.Source) {
			s.Edit(func(_ context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
				before(a, func(op operation, _ nbd.ZeroFlags) error { return faults[op].strike() })
				return opening.strike()
			})
		}, err
	},
}

// fault is an error that strikes at a rate, as long as a file is there.
type fault struct {
	errno syscall.Errno
	rate  float64
	file  string // "": always
}

func parseFault(p *plugin.Params, key string, f fault) (fault, error) {
	if s, ok := p.String(key); ok {
		errno, ok := faultErrnos[strings.ToUpper(s)]
		if !ok {
			return f, fmt.Errorf("%s=%s: it must be one of EPERM, EIO, ENOMEM, EINVAL, ENOSPC, ESHUTDOWN", key, s)
		}
		f.errno = errno
	}
	if s, ok := p.String(key + "-rate"); ok {
		n, err := parseProbability(s)
		if err != nil {
			return f, fmt.Errorf("%s-rate=%s: %w", key, s, err)
		}
		f.rate = n
	}
	if s, ok := p.String(key + "-file"); ok {
		f.file = s
	}
	return f, nil
}

// parseProbability reads a number from 0 to 1, or a percentage.
func parseProbability(s string) (float64, error) {
	number, percent := strings.CutSuffix(s, "%")
	n, err := strconv.ParseFloat(number, 64)
	if percent {
		n /= 100
	}
	if err != nil || !(n >= 0 && n <= 1) {
		return 0, errors.New("it must be from 0% to 100%, or from 0 to 1")
	}
	return n, nil
}

var faultErrnos = map[string]syscall.Errno{
	"EPERM": syscall.EPERM, "EIO": syscall.EIO, "ENOMEM": syscall.ENOMEM, "EINVAL": syscall.EINVAL,
	"ENOSPC": syscall.ENOSPC, "ESHUTDOWN": syscall.ESHUTDOWN,
}

func (f fault) strike() error {
	if f.rate == 0 || rand.Float64() >= f.rate {
		return nil
	}
	if f.file != "" {
		if _, err := os.Stat(f.file); err != nil {
			return nil
		}
	}
	return fmt.Errorf("the error filter: %w", f.errno)
}
