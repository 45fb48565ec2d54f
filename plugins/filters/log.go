package filters

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var logFilter = plugin.Filter{
	Name: "log", Summary: "writes every request to a file", Usage: "logfile=FILE [logappend=BOOL]",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		path, ok := p.String("logfile")
		if !ok {
			return nil, errors.New("logfile= is needed")
		}
		flags := os.O_CREATE | os.O_WRONLY | os.O_TRUNC
		appends, err := p.Bool("logappend", false)
		if err != nil {
			return nil, err
		}
		if appends {
			flags = os.O_CREATE | os.O_WRONLY | os.O_APPEND
		}
		f, err := os.OpenFile(path, flags, 0o644)
		if err != nil {
			return nil, err
		}
		l := &requestLog{f: f}
		return func(s *plugin.Source) {
			s.Edit(l.edit)
			s.OnClose(f.Close)
		}, nil
	},
}

// requestLog is a file with a line before and a line after each request, in the
// form of nbdkit-log-filter(1).
type requestLog struct {
	mu          sync.Mutex
	f           *os.File
	connections atomic.Int64
}

func (l *requestLog) line(connection int64, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().Format("2006-01-02 15:04:05.000000")
	fmt.Fprintf(l.f, "%s connection=%d %s\n", now, connection, fmt.Sprintf(format, args...))
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// edit logs what a connection does. To stream a range is not to read it, so that
// it would not be seen here: ranges are read.
func (l *requestLog) edit(_ context.Context, info nbd.OpenInfo, a *nbd.Abilities) error {
	id := l.connections.Add(1)
	var requests atomic.Int64
	l.line(id, "Connect export=%q tls=%d size=%#x write=%d flush=%d rotational=%d trim=%d zero=%d extents=%d cache=%d",
		info.Name, number(info.Client.TLS), a.Size, number(a.WriteAt != nil), number(a.Sync != nil), number(a.Rotational),
		number(a.Trim != nil), number(a.Zero != nil), number(a.Extents != nil || a.Hole != nil), number(a.Cache != nil))
	onClose(a, func() { l.line(id, "Disconnect transactions=%d", requests.Load()) })
	do := func(what, details string, f func() error) error {
		n := requests.Add(1)
		l.line(id, "%s id=%d%s ...", what, n, details)
		err := f()
		if err != nil {
			l.line(id, "...%s id=%d return=-1 error=%q", what, n, err)
		} else {
			l.line(id, "...%s id=%d return=0", what, n)
		}
		return err
	}
	span := func(off, n int64) string { return fmt.Sprintf(" offset=%#x count=%#x", off, n) }
	below := *a
	a.ReadNow, a.Section = nil, nil
	a.ReadAt = func(p []byte, off int64) (n int, err error) {
		err = do("Read", span(off, int64(len(p))), func() error { n, err = below.ReadAt(p, off); return err })
		return n, err
	}
	write := func(below func([]byte, int64) (int, error), fua int) func([]byte, int64) (int, error) {
		if below == nil {
			return nil
		}
		return func(p []byte, off int64) (n int, err error) {
			details := fmt.Sprintf("%s fua=%d", span(off, int64(len(p))), fua)
			err = do("Write", details, func() error { n, err = below(p, off); return err })
			return n, err
		}
	}
	a.WriteAt, a.WriteFUA = write(below.WriteAt, 0), write(below.WriteFUA, 1)
	spanned := func(what string, below func(off, n int64) error) func(off, n int64) error {
		if below == nil {
			return nil
		}
		return func(off, n int64) error { return do(what, span(off, n), func() error { return below(off, n) }) }
	}
	a.Trim, a.Cache = spanned("Trim", below.Trim), spanned("Cache", below.Cache)
	if below.Zero != nil {
		a.Zero = func(off, n int64, flags nbd.ZeroFlags) error {
			details := fmt.Sprintf("%s trim=%d fast=%d", span(off, n), number(flags&nbd.ZeroMayTrim != 0), number(flags&nbd.ZeroFast != 0))
			return do("Zero", details, func() error { return below.Zero(off, n, flags) })
		}
	}
	if below.Sync != nil {
		a.Sync = func() error { return do("Flush", "", below.Sync) }
	}
	if below.Extents != nil {
		a.Extents = func(off, n int64, one bool) (all []nbd.Extent, err error) {
			details := fmt.Sprintf("%s req_one=%d", span(off, n), number(one))
			err = do("Extents", details, func() error { all, err = below.Extents(off, n, one); return err })
			return all, err
		}
	}
	return nil
}
