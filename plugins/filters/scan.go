package filters

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var scanFilter = plugin.Filter{
	Name: "scan", Summary: "reads ahead of clients that read an export from its beginning to its end",
	Usage: "[scan-ahead=BOOL] [scan-clock=BOOL] [scan-forever=BOOL] [scan-size=SIZE] (default true, true, false, 2M)",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		f := &scanner{log: p.Log, size: 2 << 20, exports: make(map[string]*scan)}
		var err error
		if f.ahead, err = p.Bool("scan-ahead", true); err != nil {
			return nil, err
		}
		if f.clock, err = p.Bool("scan-clock", true); err != nil {
			return nil, err
		}
		if f.forever, err = p.Bool("scan-forever", false); err != nil {
			return nil, err
		}
		size, given, err := p.Size("scan-size")
		if given {
			f.size = size
		}
		if err == nil && (f.size < 512 || f.size > 32<<20 || f.size&(f.size-1) != 0) {
			err = fmt.Errorf("scan-size=%d: it must be a power of 2 from 512 to 32M", f.size)
		}
		return func(s *plugin.Source) { s.Edit(f.edit) }, err
	},
}

// scanner caches exports from their beginning to their end, while clients are
// connected.
type scanner struct {
	ahead   bool // skip what clients have read
	clock   bool // go on where it stopped when the last client went
	forever bool
	size    int64
	log     *slog.Logger

	mu      sync.Mutex
	exports map[string]*scan
}

// scan is how far an export has been cached.
type scan struct {
	mu      sync.Mutex
	at      int64
	clients int
}

// maxScans bounds how many positions are remembered of exports that nobody uses:
// clients may choose names.
const maxScans = 1024

func (f *scanner) edit(ctx context.Context, info nbd.OpenInfo, a *nbd.Abilities) error {
	if a.Cache == nil {
		f.log.Warn("the scan filter does nothing: the export cannot cache", "export", info.Name)
		return nil
	}
	s := f.enter(info.Name)
	if f.ahead {
		s.follow(a)
	}
	ctx, cancel := context.WithCancel(ctx)
	var scanning sync.WaitGroup
	cache, size := a.Cache, a.Size
	scanning.Go(func() { f.scan(ctx, s, cache, size) })
	below := a.Close
	a.Close = func() error {
		cancel()
		scanning.Wait()
		f.leave(s)
		if below == nil {
			return nil
		}
		return below()
	}
	return nil
}

func (f *scanner) enter(name string) *scan {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.exports[name]
	if s == nil {
		if len(f.exports) >= maxScans {
			for name, s := range f.exports {
				if s.clients == 0 {
					delete(f.exports, name)
				}
			}
		}
		s = &scan{}
		f.exports[name] = s
	}
	if s.clients++; s.clients == 1 && !f.clock {
		s.rewind()
	}
	return s
}

func (f *scanner) leave(s *scan) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.clients--
}

// scan caches one piece after the other, each by one of those who scan the same
// export.
func (f *scanner) scan(ctx context.Context, s *scan, cache func(off, n int64) error, size int64) {
	for ctx.Err() == nil {
		at, n := s.next(size, f.size, f.forever)
		if n == 0 {
			return
		}
		if err := cache(at, n); err != nil {
			f.log.Debug("scanning failed", "offset", at, "reason", err)
			return
		}
	}
}

// next takes the next piece of an export of size bytes, up to a multiple of
// piece. At the end there is none, or it begins again.
func (s *scan) next(size, piece int64, forever bool) (at, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at >= size && forever {
		s.at = 0
	}
	at = s.at
	n = min(piece-at%piece, max(size-at, 0))
	s.at += n
	return at, n
}

// rewind begins again.
func (s *scan) rewind() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = 0
}

// skip goes on no earlier than at end.
func (s *scan) skip(end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = max(s.at, end)
}

// follow skips what clients have read.
func (s *scan) follow(a *nbd.Abilities) {
	read, now, section := a.ReadAt, a.ReadNow, a.Section
	a.ReadAt = func(p []byte, off int64) (int, error) {
		s.skip(off + int64(len(p)))
		return read(p, off)
	}
	if now != nil {
		a.ReadNow = func(p []byte, off int64) int {
			s.skip(off + int64(len(p)))
			return now(p, off)
		}
	}
	if section != nil {
		a.Section = func(off, n int64) (*os.File, int64, bool) {
			s.skip(off + n)
			return section(off, n)
		}
	}
}
