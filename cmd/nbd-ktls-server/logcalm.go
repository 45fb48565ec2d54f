package main

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// How many lines there may be: so many at once, and so many in a second.
const (
	logBurst  = 1000
	logPerSec = 50
)

// calm leaves out lines if there are too many, as there are when the server is
// attacked, and says how many. Errors are never left out, nor is anything while
// somebody is debugging.
type calm struct {
	slog.Handler
	*budget
}

// budget is what all loggers that come from one share.
type budget struct {
	now func() time.Time

	mu    sync.Mutex
	left  float64 // lines that may be written at once
	since time.Time
	out   int // that were left out
}

func newCalm(h slog.Handler, now func() time.Time) calm {
	return calm{h, &budget{now: now, left: logBurst, since: now()}}
}

func (c calm) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError || c.Enabled(ctx, slog.LevelDebug) {
		return c.Handler.Handle(ctx, r)
	}
	ok, out := c.take()
	if !ok {
		return nil
	}
	if out > 0 {
		notice := slog.NewRecord(r.Time, slog.LevelWarn, "there were too many lines for the log", 0)
		notice.AddAttrs(slog.Int("left-out", out))
		if err := c.Handler.Handle(ctx, notice); err != nil {
			return err
		}
	}
	return c.Handler.Handle(ctx, r)
}

// take reports whether a line may be written, and how many were left out before.
func (b *budget) take() (ok bool, out int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	b.left = min(b.left+now.Sub(b.since).Seconds()*logPerSec, logBurst)
	b.since = now
	if b.left < 1 {
		b.out++
		return false, 0
	}
	b.left--
	out, b.out = b.out, 0
	return true, out
}

func (c calm) WithAttrs(attrs []slog.Attr) slog.Handler {
	return calm{c.Handler.WithAttrs(attrs), c.budget}
}

func (c calm) WithGroup(name string) slog.Handler {
	return calm{c.Handler.WithGroup(name), c.budget}
}
