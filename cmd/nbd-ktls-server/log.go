package main

import (
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// logTo is where the log goes; a detached process changes it to syslog.
var logTo = func() *switchWriter {
	w := new(switchWriter)
	w.to(os.Stderr)
	return w
}()

// switchWriter is a writer that can be exchanged while it is used.
type switchWriter struct{ w atomic.Pointer[io.Writer] }

func (s *switchWriter) to(w io.Writer)              { s.w.Store(&w) }
func (s *switchWriter) Write(p []byte) (int, error) { return (*s.w.Load()).Write(p) }

// newLog returns the log: one line an event on standard error. Called nbdkit we
// say only what went wrong, as nbdkit does.
func (o *options) newLog() *slog.Logger {
	switch o.logTo {
	case "syslog":
		toSyslog()
	case "null":
		logTo.to(io.Discard)
	}
	level := slog.LevelInfo
	switch {
	case o.verbose:
		level = slog.LevelDebug
	case o.nbdkit:
		level = slog.LevelWarn
	}
	return newLogger("text", level)
}

// newLogger returns a log of a format: text or json. Lines for the journal have
// priorities, and there are not more of them than one can read.
func newLogger(format string, level slog.Leveler) *slog.Logger {
	var h slog.Handler
	if toJournal(os.Stderr) {
		h = newPriorities(func(w io.Writer, o *slog.HandlerOptions) slog.Handler { return newHandler(format, w, o) }, logTo, level)
	} else {
		h = newHandler(format, logTo, &slog.HandlerOptions{Level: level})
	}
	return slog.New(newCalm(h, time.Now))
}

func newHandler(format string, w io.Writer, o *slog.HandlerOptions) slog.Handler {
	if format == "json" {
		return slog.NewJSONHandler(w, o)
	}
	return slog.NewTextHandler(w, o)
}
