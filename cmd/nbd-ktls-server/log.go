package main

import (
	"io"
	"log/slog"
	"os"
	"sync/atomic"
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
	level := slog.LevelInfo
	switch {
	case o.verbose:
		level = slog.LevelDebug
	case o.nbdkit:
		level = slog.LevelWarn
	}
	return newLogger("text", level)
}

// newLogger returns a log of a format: text or json.
func newLogger(format string, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(logTo, opts))
	}
	return slog.New(slog.NewTextHandler(logTo, opts))
}
