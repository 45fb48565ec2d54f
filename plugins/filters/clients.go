package filters

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
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

	ipFilter = plugin.Filter{
		Name: "ip", Summary: "lets clients in by their address",
		Usage: "[allow=RULE,…] [deny=RULE,…]; RULE: all, allipv4, allipv6, address, address/bits, address-address, dn:CN=…",
		Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
			allow, err := parseRules(p.Strings("allow"))
			if err != nil {
				return nil, fmt.Errorf("allow: %w", err)
			}
			deny, err := parseRules(p.Strings("deny"))
			if err != nil {
				return nil, fmt.Errorf("deny: %w", err)
			}
			return func(s *plugin.Source) {
				s.Edit(func(_ context.Context, info nbd.OpenInfo, _ *nbd.Abilities) error {
					if matches(deny, info.Client) && !matches(allow, info.Client) {
						return fmt.Errorf("%w for this client, by the ip filter", nbd.ErrNoExport)
					}
					return nil
				})
			}, nil
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
			return func(s *plugin.Source) {
				open := s.Open
				s.Open = func(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
					if info.Client.TLS {
						return open(ctx, info)
					}
					return placeholder(text), nil
				}
			}, nil
		},
	}
)

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

// rule says which clients are meant.
type rule func(c nbd.Client) bool

func parseRules(lists []string) (rules []rule, err error) {
	for _, list := range lists {
		for _, s := range strings.Split(list, ",") {
			r, err := parseRule(strings.TrimSpace(s))
			if err != nil {
				return nil, err
			}
			rules = append(rules, r)
		}
	}
	return rules, nil
}

func parseRule(s string) (rule, error) {
	switch s {
	case "all", "any":
		return func(nbd.Client) bool { return true }, nil
	case "allipv4", "anyipv4":
		return func(c nbd.Client) bool { return address(c).Is4() }, nil
	case "allipv6", "anyipv6":
		return func(c nbd.Client) bool { return address(c).Is6() }, nil
	}
	if dn, ok := strings.CutPrefix(s, "dn:"); ok {
		return func(c nbd.Client) bool { return len(c.Certificates) > 0 && c.Certificates[0].Subject.String() == dn }, nil
	}
	if n, err := netip.ParsePrefix(s); err == nil {
		return func(c nbd.Client) bool { return n.Contains(address(c)) }, nil
	}
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		to = from
	}
	first, err := netip.ParseAddr(from)
	if err != nil {
		return nil, fmt.Errorf("%q is none of all, allipv4, allipv6, address, address/bits, address-address and dn:NAME", s)
	}
	last, err := netip.ParseAddr(to)
	if err != nil || last.Less(first) || last.Is4() != first.Is4() {
		return nil, fmt.Errorf("%q is no range of addresses", s)
	}
	return func(c nbd.Client) bool {
		a := address(c)
		return a.Is4() == first.Is4() && a.IsValid() && !a.Less(first) && !last.Less(a)
	}, nil
}

func matches(rules []rule, c nbd.Client) bool {
	for _, r := range rules {
		if r(c) {
			return true
		}
	}
	return false
}

// address is that of a client, or the zero one.
func address(c nbd.Client) netip.Addr {
	if a, ok := c.Addr.(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
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
