package filters

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var ipFilter = plugin.Filter{
	Name: "ip", Summary: "lets clients in by where they come from and who they are",
	Usage: "[allow=RULE,…] [deny=RULE,…]; RULE: all, allipv4, allipv6, allunix, address, address/bits, address-address, pid:N, uid:N, gid:N, or alone dn:PATTERN or issuer-dn:PATTERN",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		allow, err := parseRules(p.Strings("allow"))
		if err != nil {
			return nil, fmt.Errorf("allow: %w", err)
		}
		deny, err := parseRules(p.Strings("deny"))
		if err != nil {
			return nil, fmt.Errorf("deny: %w", err)
		}
		f := &clientRules{allow: allow, deny: deny}
		return f.edit, nil
	},
}

// clientRules let in who is allowed, then keep out who is denied.
type clientRules struct{ allow, deny []rule }

// rule says which clients are meant.
type rule func(c nbd.Client) bool

// check reports nbd.ErrNoExport for a client that is kept out.
func (f *clientRules) check(c nbd.Client) error {
	matches := func(r rule) bool { return r(c) }
	if slices.ContainsFunc(f.deny, matches) && !slices.ContainsFunc(f.allow, matches) {
		return fmt.Errorf("%w for this client, by the ip filter", nbd.ErrNoExport)
	}
	return nil
}

// edit keeps clients from opening, and from learning names.
func (f *clientRules) edit(s *plugin.Source) {
	open := s.Open
	s.Open = func(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
		if err := f.check(info.Client); err != nil {
			return nil, err
		}
		return open(ctx, info)
	}
	if list := s.List; list != nil {
		s.List = func(ctx context.Context, c nbd.Client) ([]plugin.Entry, error) {
			if f.check(c) != nil {
				return nil, nil
			}
			return list(ctx, c)
		}
	}
	if check := s.Check; check != nil {
		s.Check = func(ctx context.Context, c nbd.Client, name string) error {
			if err := f.check(c); err != nil {
				return err
			}
			return check(ctx, c, name)
		}
	}
	if first := s.Default; first != nil {
		s.Default = func(ctx context.Context, c nbd.Client) (string, error) {
			if err := f.check(c); err != nil {
				return "", err
			}
			return first(ctx, c)
		}
	}
}

// parseRules reads lists of rules, with commas between them. A rule about names is
// alone, as there are commas in names.
func parseRules(lists []string) (rules []rule, err error) {
	for _, list := range lists {
		entries := strings.Split(list, ",")
		if strings.HasPrefix(list, "dn:") || strings.HasPrefix(list, "issuer-dn:") {
			entries = []string{list}
		}
		for _, s := range entries {
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
	switch strings.ToLower(s) {
	case "all", "any":
		return func(nbd.Client) bool { return true }, nil
	case "allipv4", "anyipv4":
		return func(c nbd.Client) bool { return address(c).Is4() }, nil
	case "allipv6", "anyipv6":
		return func(c nbd.Client) bool { return address(c).Is6() }, nil
	case "allunix", "anyunix":
		return func(c nbd.Client) bool { _, ok := c.Addr.(*net.UnixAddr); return ok }, nil
	}
	if kind, value, ok := strings.Cut(s, ":"); ok {
		switch kind {
		case "dn", "issuer-dn":
			return parseNameRule(kind, value), nil
		case "pid", "uid", "gid":
			return parseCredentialsRule(kind, value)
		}
	}
	return parseAddressRule(s)
}

// parseNameRule is about the distinguished name of a certificate (RFC 4514), in
// which * stands for anything and ? for a character, in either case.
func parseNameRule(kind, pattern string) rule {
	e := strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(pattern))
	re := regexp.MustCompile("(?is)^" + e + "$")
	return func(c nbd.Client) bool {
		if len(c.Certificates) == 0 {
			return false
		}
		name := c.Certificates[0].Subject
		if kind == "issuer-dn" {
			name = c.Certificates[0].Issuer
		}
		return re.MatchString(name.String())
	}
}

// parseCredentialsRule is about the process behind a Unix socket.
func parseCredentialsRule(kind, value string) (rule, error) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 || n == 0 && kind == "pid" {
		return nil, fmt.Errorf("%q is not a number that a %s can be", value, kind)
	}
	return func(c nbd.Client) bool {
		if c.Credentials == nil {
			return false
		}
		return n == map[string]int64{
			"pid": int64(c.Credentials.PID), "uid": int64(c.Credentials.UID), "gid": int64(c.Credentials.GID),
		}[kind]
	}, nil
}

func parseAddressRule(s string) (rule, error) {
	if n, err := netip.ParsePrefix(s); err == nil {
		return func(c nbd.Client) bool { return n.Contains(address(c)) }, nil
	}
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		to = from
	}
	first, err := netip.ParseAddr(from)
	if err != nil {
		return nil, fmt.Errorf("%q is none of all, allipv4, allipv6, allunix, address, address/bits, address-address, pid:N, uid:N, gid:N, dn:PATTERN and issuer-dn:PATTERN", s)
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

// address is that of a client, or the zero one.
func address(c nbd.Client) netip.Addr {
	if a, ok := c.Addr.(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
