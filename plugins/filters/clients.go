package filters

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// The filters that are about clients, not about what they do.
var (
	limitFilter = plugin.Filter{
		Name: "limit", Summary: "limits how many clients there are at the same time", Usage: "limit=N (default 1; 0: no limit)",
		Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
			most, err := p.Uint("limit", 1)
			l := &clientCount{most: most}
			return func(s *plugin.Source) { s.Edit(l.edit) }, err
		},
	}

	timeLimitFilter = plugin.Filter{
		Name: "time-limit", Summary: "ends connections after some time", Usage: "time-limit=TIME (default 60; 0: no limit)",
		Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
			d, err := p.Duration("time-limit", time.Minute)
			return func(s *plugin.Source) {
				s.Edit(func(_ context.Context, info nbd.OpenInfo, a *nbd.Abilities) error {
					if d > 0 {
						t := time.AfterFunc(d, func() { info.Disconnect(fmt.Errorf("it has lasted %v, as long as it may", d), false) })
						onClose(a, func() { t.Stop() })
					}
					return nil
				})
			}, err
		},
	}

	exitLastFilter = plugin.Filter{
		Name: "exitlast", Summary: "ends the server when the last client has gone", Usage: "no parameters",
		Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
			l := &clientCount{last: func() { p.Exit("the last client has gone") }}
			return func(s *plugin.Source) { s.Edit(l.edit) }, nil
		},
	}

	tlsFallbackFilter = plugin.Filter{
		Name: "tls-fallback", Summary: "shows clients without TLS a text in place of the disk", Usage: "[tlsreadme=TEXT]",
		Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
			text, ok := p.String("tlsreadme")
			if !ok {
				text = "This NBD server requires TLS authentication before it will serve useful data.\n"
			}
			return func(s *plugin.Source) { fallBack(s, placeholder(text)) }, nil
		},
	}
)

// fallBack gives clients without TLS a placeholder under any name, and tells them
// no others.
func fallBack(s *plugin.Source, p placeholder) {
	open := s.Open
	s.Open = func(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
		if info.Client.TLS {
			return open(ctx, info)
		}
		return p, nil
	}
	if list := s.List; list != nil {
		s.List = func(ctx context.Context, c nbd.Client) ([]plugin.Entry, error) {
			if c.TLS {
				return list(ctx, c)
			}
			return []plugin.Entry{{}}, nil
		}
	}
	if check := s.Check; check != nil {
		s.Check = func(ctx context.Context, c nbd.Client, name string) error {
			if c.TLS {
				return check(ctx, c, name)
			}
			return nil
		}
	}
	if first := s.Default; first != nil {
		s.Default = func(ctx context.Context, c nbd.Client) (string, error) {
			if c.TLS {
				return first(ctx, c)
			}
			return "", nil
		}
	}
}

// clientCount counts the clients.
type clientCount struct {
	most uint64 // 0: as many as there may be
	last func() // called when the last has gone; or nil

	mu sync.Mutex
	n  uint64
}

func (c *clientCount) edit(_ context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.most > 0 && c.n >= c.most {
		return fmt.Errorf("there are %d clients, as many as there may be", c.n)
	}
	c.n++
	onClose(a, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.n--; c.n == 0 && c.last != nil {
			c.last()
		}
	})
	return nil
}

// placeholder is a small read-only disk with a text on it.
type placeholder string

const placeholderSize = 512

func (t placeholder) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(t)) {
		copy(p, t[off:])
	}
	return len(p), nil
}

func (t placeholder) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }

func (t placeholder) Size() (int64, error) {
	return (int64(len(t)) + placeholderSize - 1) / placeholderSize * placeholderSize, nil
}

func (t placeholder) Sync() error { return nil }

func (t placeholder) Resolve(a *nbd.Abilities) error {
	a.ReadOnly()
	a.Sync = nil
	return nil
}
