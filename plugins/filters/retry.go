package filters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var retryFilter = plugin.Filter{
	Name: "retry", Summary: "opens the plugin again when a request fails, and tries again",
	Usage: "[retries=N] [retry-delay=TIME] [retry-exponential=BOOL] [retry-readonly=BOOL] (default 5, 2, yes, no)",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		o := retryOptions{log: p.Log}
		var err error
		if o.retries, err = p.Uint("retries", 5); err != nil {
			return nil, err
		}
		if o.retries > maxRetries {
			return nil, fmt.Errorf("retries=%d: at most %d", o.retries, maxRetries)
		}
		if o.delay, err = p.Duration("retry-delay", 2*time.Second); err != nil {
			return nil, err
		}
		if o.delay == 0 {
			return nil, errors.New("retry-delay cannot be 0")
		}
		if o.exponential, err = p.Bool("retry-exponential", true); err != nil {
			return nil, err
		}
		o.readOnly, err = p.Bool("retry-readonly", false)
		return o.edit, err
	},
}

const (
	// maxRetries is as many as there may be: nobody waits for more.
	maxRetries = 1000
	// maxRetryDelay is what an exponential delay ends at, which would overflow
	// otherwise.
	maxRetryDelay = 24 * time.Hour
)

type retryOptions struct {
	retries               uint64
	delay                 time.Duration
	exponential, readOnly bool
	log                   *slog.Logger
}

func (o retryOptions) edit(s *plugin.Source) {
	open := s.Open
	s.Open = func(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
		r := &reopener{retryOptions: o, ctx: ctx, info: info, open: open}
		if err := r.first(); err != nil {
			return nil, err
		}
		a := *r.now
		a.Close = r.close
		around(&a, func(_ *nbd.Abilities, q *request, p []byte) error { return r.do(q, p) })
		return nbd.Resolved(&a), nil
	}
}

// reopener is what a connection has opened, again and again.
type reopener struct {
	retryOptions
	ctx  context.Context
	info nbd.OpenInfo
	open func(context.Context, nbd.OpenInfo) (nbd.Backend, error)

	// mu is held for reading by those who use now, and for writing by the one
	// who replaces it.
	mu      sync.RWMutex
	now     *nbd.Abilities // nil: it could not be opened
	reopens uint64
}

// first opens it, which may be tried again like a request. That there is no such
// export is an answer, no failure.
func (r *reopener) first() error {
	err := r.reopen()
	for n, delay := uint64(0), r.delay; err != nil && n < r.retries && !errors.Is(err, nbd.ErrNoExport); n++ {
		r.log.Debug("opening failed, and is tried again", "in", delay, "reason", err)
		if e := wait(r.ctx, delay); e != nil {
			return errors.Join(err, e)
		}
		delay = r.next(delay)
		err = r.reopen()
	}
	return err
}

// next is the delay after d.
func (r *reopener) next(d time.Duration) time.Duration {
	if r.exponential {
		d = min(2*d, maxRetryDelay)
	}
	return d
}

// reopen opens it. The caller holds mu, or is the only one.
func (r *reopener) reopen() error {
	if r.now != nil && r.now.Close != nil {
		r.now.Close()
	}
	r.now = nil
	b, err := r.open(r.ctx, r.info)
	if err != nil {
		return err
	}
	a, err := nbd.Resolve(b)
	if err != nil {
		return err
	}
	holesAsExtents(a)
	r.now = a
	return nil
}

// do does a request, and reopens if that fails.
func (r *reopener) do(q *request, p []byte) error {
	delay := r.delay
	for n := uint64(0); ; n++ {
		seen, err := r.try(q, p)
		if !q.again(r.ctx, err) || errors.Is(err, syscall.EROFS) || n == r.retries {
			return err
		}
		r.log.Debug("a request failed, and is tried again", "request", operationNames[q.op], "in", delay, "reason", err)
		if wait(r.ctx, delay) != nil {
			return err
		}
		delay = r.next(delay)
		r.replace(seen)
	}
}

// try does a request once, and says how often it had been reopened before.
func (r *reopener) try(q *request, p []byte) (seen uint64, err error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	switch {
	case r.readOnly && r.reopens > 0 && q.changes():
		return r.reopens, syscall.EROFS
	case r.now == nil:
		return r.reopens, fmt.Errorf("the plugin could not be opened again: %w", syscall.ESHUTDOWN)
	case q.off+q.n > r.now.Size && q.changes():
		return r.reopens, fmt.Errorf("the export has become smaller: %w", syscall.ENOSPC)
	case q.off+q.n > r.now.Size:
		return r.reopens, fmt.Errorf("the export has become smaller: %w", syscall.EIO)
	}
	return r.reopens, q.do(r.now, p)
}

// replace opens it again, unless somebody has done that since seen.
func (r *reopener) replace(seen uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reopens != seen {
		return
	}
	r.reopens++
	r.info.ReadOnly = r.info.ReadOnly || r.readOnly
	if err := r.reopen(); err != nil {
		r.log.Debug("opening again failed", "reason", err)
	}
}

func (r *reopener) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil || r.now.Close == nil {
		return nil
	}
	return r.now.Close()
}
