package config

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"nbd-ktls-server/nbd"
)

// Access is a list of rules, of which the first that fits a client decides. A
// client that none fits is let into nothing.
type Access []Rule

// Rule says what a client may do that all of the conditions fit. A condition is a
// pattern, in which * stands for anything and ? for one character, or a list of
// them, of which one has to fit.
type Rule struct {
	Allow string `yaml:"allow"` // read-write, read-only or nothing

	// Of the client's certificate, which has been verified.
	Subject     Names    `yaml:"subject"`
	Issuer      Names    `yaml:"issuer"`
	DNS         Patterns `yaml:"dns"`
	URI         Patterns `yaml:"uri"`
	Email       Patterns `yaml:"email"`
	IP          Patterns `yaml:"ip"`          // of a subject alternative name
	Fingerprint Patterns `yaml:"fingerprint"` // SHA-256, in hexadecimal digits

	// Address is where the client connects from: networks, as 192.0.2.0/24.
	Address Patterns `yaml:"address"`
}

// Names are patterns for the attributes of a distinguished name (RFC 4514).
type Names map[string]Patterns

// Patterns are one pattern or a list.
type Patterns []string

// UnmarshalYAML takes a pattern for a list of one.
func (p *Patterns) UnmarshalYAML(unmarshal func(any) error) error {
	var one string
	if unmarshal(&one) == nil {
		*p = Patterns{one}
		return nil
	}
	return unmarshal((*[]string)(p))
}

// Right is what a client may do.
type Right int

// The rights, each with those before it.
const (
	None Right = iota
	Read
	Write
)

var rights = map[string]Right{"nothing": None, "read-only": Read, "read-write": Write}

// Right is what a client may do; everything without a list.
func (a Access) Right(c nbd.Client) Right {
	if a == nil {
		return Write
	}
	for i := range a {
		if a[i].fits(c) {
			return rights[a[i].Allow]
		}
	}
	return None
}

// fits reports whether all conditions are met.
func (r *Rule) fits(c nbd.Client) bool {
	if r.Address != nil && !r.fitsAddress(c.Addr) {
		return false
	}
	if !r.needsCertificate() {
		return true
	}
	if len(c.Certificates) == 0 {
		return false
	}
	cert := c.Certificates[0]
	sum := sha256.Sum256(cert.Raw)
	return r.Subject.fit(cert.Subject) && r.Issuer.fit(cert.Issuer) &&
		r.DNS.fit(true, cert.DNSNames...) &&
		r.URI.fit(false, uris(cert)...) &&
		r.Email.fit(true, cert.EmailAddresses...) &&
		r.IP.fit(true, ips(cert)...) &&
		r.Fingerprint.fit(true, hex.EncodeToString(sum[:]))
}

func (r *Rule) needsCertificate() bool {
	return r.Subject != nil || r.Issuer != nil || r.DNS != nil || r.URI != nil || r.Email != nil || r.IP != nil || r.Fingerprint != nil
}

func (r *Rule) fitsAddress(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return false
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	for _, s := range r.Address {
		if n, err := parseNetwork(s); err == nil && n.Contains(ip) {
			return true
		}
	}
	return false
}

func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func uris(cert *x509.Certificate) (all []string) {
	for _, u := range cert.URIs {
		all = append(all, u.String())
	}
	return all
}

func ips(cert *x509.Certificate) (all []string) {
	for _, ip := range cert.IPAddresses {
		all = append(all, ip.String())
	}
	return all
}

// attributes are the names of RFC 4514, and those that are common besides.
var attributes = map[string]string{
	"CN": "2.5.4.3", "SERIALNUMBER": "2.5.4.5", "C": "2.5.4.6", "L": "2.5.4.7", "ST": "2.5.4.8",
	"STREET": "2.5.4.9", "O": "2.5.4.10", "OU": "2.5.4.11",
	"DC": "0.9.2342.19200300.100.1.25", "UID": "0.9.2342.19200300.100.1.1",
}

// fit reports whether every attribute that is asked for fits.
func (n Names) fit(name pkix.Name) bool {
	for attribute, patterns := range n {
		var values []string
		for _, a := range name.Names {
			if s, ok := a.Value.(string); ok && a.Type.String() == attributes[attribute] {
				values = append(values, s)
			}
		}
		if !patterns.fit(false, values...) {
			return false
		}
	}
	return true
}

// fit reports whether one of the patterns, if there are any, fits one of values.
func (p Patterns) fit(fold bool, values ...string) bool {
	if p == nil {
		return true
	}
	for _, pattern := range p {
		for _, v := range values {
			if fold {
				pattern, v = strings.ToLower(pattern), strings.ToLower(v)
			}
			if match(pattern, v) {
				return true
			}
		}
	}
	return false
}

// match reports whether pattern fits all of s. After a * it looks for the rest
// of the pattern at one place after the other; only the last * is ever gone back
// to, so it takes at most len(pattern) * len(s) steps.
func match(pattern, s string) bool {
	p, i, star, from := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

func (a Access) check(t *TLS) (path string, err error) {
	for i := range a {
		if path, err := a[i].check(t); err != nil {
			return fmt.Sprintf("[%d]%s", i, path), err
		}
	}
	return "", nil
}

func (r *Rule) check(t *TLS) (path string, err error) {
	if r.Allow == "" {
		return "", errors.New("a rule needs 'allow': read-write, read-only or nothing")
	}
	if _, ok := rights[r.Allow]; !ok {
		return ".allow", fmt.Errorf("%q is none of read-write, read-only, nothing", r.Allow)
	}
	if r.needsCertificate() && !t.Verifies() {
		return "", errors.New("this rule is about certificates, but no client is asked for one (tls.verify-peer)")
	}
	for key, names := range map[string]Names{"subject": r.Subject, "issuer": r.Issuer} {
		for attribute, p := range names {
			if attributes[attribute] == "" {
				return "." + key, fmt.Errorf("there is no attribute %q; there are CN, O, OU, C, ST, L, STREET, DC, UID, SERIALNUMBER", attribute)
			}
			if len(p) == 0 {
				return "." + key, fmt.Errorf("%s: a pattern is needed", attribute)
			}
		}
	}
	for key, p := range map[string]Patterns{
		"dns": r.DNS, "uri": r.URI, "email": r.Email, "ip": r.IP, "fingerprint": r.Fingerprint, "address": r.Address,
	} {
		if p != nil && len(p) == 0 {
			return "." + key, errors.New("a pattern is needed")
		}
	}
	for i, f := range r.Fingerprint {
		s := strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(f), "sha256:"), ":", "")
		if b, err := hex.DecodeString(s); err != nil || len(b) != sha256.Size {
			return ".fingerprint", fmt.Errorf("%q is not the SHA-256 fingerprint of a certificate: 64 hexadecimal digits", f)
		}
		r.Fingerprint[i] = s
	}
	for _, a := range r.Address {
		if _, err := parseNetwork(a); err != nil {
			return ".address", fmt.Errorf("%q is neither an address nor a network, such as 192.0.2.0/24", a)
		}
	}
	return "", nil
}
