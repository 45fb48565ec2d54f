package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
)

// toJournal reports whether systemd reads f (systemd.exec(5), JOURNAL_STREAM).
func toJournal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// priorities begins each line with its priority, as the journal wants it
// (sd-daemon(3)): there is a handler for each.
type priorities map[slog.Level]slog.Handler

// prefixes of the levels, after syslog(3): debug, info, warning, err.
var prefixes = map[slog.Level]string{
	slog.LevelDebug: "<7>", slog.LevelInfo: "<6>", slog.LevelWarn: "<4>", slog.LevelError: "<3>",
}

func newPriorities(make func(io.Writer, *slog.HandlerOptions) slog.Handler, w io.Writer, level slog.Leveler) priorities {
	p := priorities{}
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: noTime}
	for l, prefix := range prefixes {
		p[l] = make(prefixed{w, prefix}, o)
	}
	return p
}

// noTime leaves out the time, which the journal has.
func noTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

func (p priorities) Enabled(ctx context.Context, l slog.Level) bool {
	return p[slog.LevelError].Enabled(ctx, l)
}

func (p priorities) Handle(ctx context.Context, r slog.Record) error {
	h, ok := p[r.Level]
	if !ok {
		h = p[slog.LevelError]
	}
	return h.Handle(ctx, r)
}

func (p priorities) WithAttrs(attrs []slog.Attr) slog.Handler {
	return p.each(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

func (p priorities) WithGroup(name string) slog.Handler {
	return p.each(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (p priorities) each(f func(slog.Handler) slog.Handler) priorities {
	all := priorities{}
	for l, h := range p {
		all[l] = f(h)
	}
	return all
}

// prefixed writes lines with something in front, each in one write.
type prefixed struct {
	w      io.Writer
	prefix string
}

func (p prefixed) Write(line []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}
