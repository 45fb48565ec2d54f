package filters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var retryRequestFilter = plugin.Filter{
	Name: "retry-request", Summary: "tries requests that fail again",
	Usage: "[retry-request-retries=N] [retry-request-delay=TIME] [retry-request-open=BOOL] (default 2, 2, yes)",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		o := requestRetries{log: p.Log}
		var err error
		if o.retries, err = p.Uint("retry-request-retries", 2); err != nil {
			return nil, err
		}
		if o.retries > maxRetries {
			return nil, fmt.Errorf("retry-request-retries=%d: at most %d", o.retries, maxRetries)
		}
		if o.delay, err = p.Duration("retry-request-delay", 2*time.Second); err != nil {
			return nil, err
		}
		if o.delay == 0 {
			return nil, errors.New("retry-request-delay cannot be 0")
		}
		o.open, err = p.Bool("retry-request-open", true)
		return o.edit, err
	},
}

type requestRetries struct {
	retries uint64
	delay   time.Duration
	open    bool // also when opening fails
	log     *slog.Logger
}

// try calls f, again and again while that fails and again says that it may help.
func (o *requestRetries) try(ctx context.Context, what string, f func() error, again func(error) bool) error {
	err := f()
	for n := uint64(0); n < o.retries && again(err); n++ {
		o.log.Debug("a request failed, and is tried again", "request", what, "in", o.delay, "reason", err)
		if wait(ctx, o.delay) != nil {
			return err
		}
		err = f()
	}
	return err
}

func (o *requestRetries) edit(s *plugin.Source) {
	if o.open {
		open := s.Open
		s.Open = func(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
			var a *nbd.Abilities
			err := o.try(ctx, "open", func() error {
				b, err := open(ctx, info)
				if err == nil {
					a, err = nbd.Resolve(b)
				}
				return err
			}, func(err error) bool { return err != nil && ctx.Err() == nil && !errors.Is(err, nbd.ErrNoExport) })
			if err != nil {
				return nil, err
			}
			return nbd.Resolved(a), nil
		}
	}
	s.Edit(func(ctx context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
		around(a, func(below *nbd.Abilities, r *request, p []byte) error {
			return o.try(ctx, operationNames[r.op], func() error { return r.do(below, p) },
				func(err error) bool { return r.again(ctx, err) })
		})
		return nil
	})
}
