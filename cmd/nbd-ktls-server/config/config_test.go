package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd-ktls-server/nbd"
)

func TestEverything(t *testing.T) {
	c, err := parse("file", []byte(`
listen:
  - tcp: "[::]:10809"
  - unix: /run/nbd.sock
  - vsock: 10809
  - systemd: nbd
tls:
  certificates: /etc/pki
  minimum-version: 1.3
  ktls: require
  rekey-after: 64G
access: []
limits:
  connections: 5000
  handshake-timeout: 5s
  bytes: 128M
log: {level: debug, format: json}
metrics: 127.0.0.1:9809
exports:
  - name: vm1
    description: the first
    plugin: file
    parameters: {file: /srv/vm1.img, fadvise: random}
    filters: [rate, readonly]
    default: true
    connections: 2
    access:
      - {allow: read-write, subject: {CN: "vm-*", O: [A, B]}}
      - allow: read-only
        address: [192.0.2.0/24, "2001:db8::1"]
  - prefix: images/
    plugin: split
    parameters:
      file: [a, b]
      n: 3
      yes: true
    read-only: true
    tls-only: true
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Access == nil || c.Exports[1].Access != nil {
		t.Error("an empty list and none are not the same")
	}
	if got := strings.Join(c.Exports[0].Args(), " "); got != "file=/srv/vm1.img fadvise=random" {
		t.Errorf("%q", got)
	}
	if got := strings.Join(c.Exports[1].Args(), " "); got != "file=a file=b n=3 yes=true" {
		t.Errorf("%q", got)
	}
	if c.TLS.RekeyAfter.Bytes() != 64<<30 || c.Limits.HandshakeTimeout.Duration() != 5*time.Second || c.TLS.Mode != "require" || !c.TLS.Verifies() {
		t.Errorf("%+v", c)
	}
	if c.Exports[0].Title() != "vm1" || c.Exports[1].Title() != "images/*" {
		t.Error("titles")
	}
}

func TestWrong(t *testing.T) {
	const tls = "tls: {certificates: /x}\n"
	for _, test := range []struct{ doc, want string }{
		{"", "a directory is needed"},
		{tls + "exports: []", "1:1: there are no exports"},
		{"exports:\n- name: a\n  plugin: memory", "certificates: a directory is needed"},
		{tls + "exports:\n- name: a\n  plugin: memory\n  colour: red", `5:3: unknown field "colour"`},
		{tls + "exports:\n- name: a\n  plugin: memory\n  plugin: file", "5:3: "},
		{tls + "exports:\n- name: a\n  plugin: memory\n  access:", "5:3: a value is missing"},
		{tls + "access:\nexports:\n- name: a\n  plugin: memory", "2:1: a value is missing"},
		{tls + "exports:\n- plugin: memory", "3:3: an export needs either a name or a prefix"},
		{tls + "exports:\n- name: a\n  prefix: b\n  plugin: memory", "3:3: an export needs either"},
		{tls + "exports:\n- name: a", "3:3: an export needs a plugin"},
		{tls + "exports:\n- {name: a, plugin: x}\n- {name: a, plugin: x}", `4:10: there are two exports called "a"`},
		{tls + "exports:\n- {name: a, plugin: x, default: true}\n- {name: b, plugin: x, default: true}", `"a" is the default export already`},
		{tls + "exports:\n- {name: a, plugin: x, read-only: maybe}", "3:35: this must be a bool, not a string"},
		{tls + "exports:\n- {name: a, plugin: x, access: [{subject: {CN: x}}]}", "needs 'allow'"},
		{tls + "exports:\n- {name: a, plugin: x, access: [{allow: all}]}", `"all" is none of read-write`},
		{tls + "exports:\n- {name: a, plugin: x, access: [{allow: read-only, subject: {XX: x}}]}", `no attribute "XX"`},
		{tls + "exports:\n- {name: a, plugin: x, access: [{allow: read-only, dns: []}]}", "a pattern is needed"},
		{tls + "exports:\n- {name: a, plugin: x, access: [{allow: read-only, fingerprint: 12}]}", "64 hexadecimal digits"},
		{tls + "exports:\n- {name: a, plugin: x, access: [{allow: read-only, address: here}]}", "neither an address nor"},
		{"tls: {mode: off}\nexports:\n- {name: a, plugin: x, access: [{allow: read-only, dns: x}]}", "no client is asked for one"},
		{"tls: {mode: off, verify-peer: true}\nexports:\n- {name: a, plugin: x}", "1:31: it does not go with"},
		{"tls: {certificates: /x, ktls: maybe}\nexports:\n- {name: a, plugin: x}", `1:31: "maybe" is none of auto, require, off`},
		{tls + "listen: [{tcp: ':1', unix: /x}]\nexports:\n- {name: a, plugin: x}", "2:11: one of tcp, unix"},
		{tls + "listen: [{unix: x}]\nexports:\n- {name: a, plugin: x}", "not an absolute path"},
		{tls + "limits: {bytes: many}\nexports:\n- {name: a, plugin: x}", "2:17: "},
		{tls + "limits: {stall-timeout: 5}\nexports:\n- {name: a, plugin: x}", "not a time"},
		{tls + "log: {level: loud}\nexports:\n- {name: a, plugin: x}", "2:14: "},
		{"tls: [", "1:"},
	} {
		_, err := parse("file", []byte(test.doc))
		if err == nil || !strings.HasPrefix(err.Error(), "file:") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s\n\t%v\n\twant %s", test.doc, err, test.want)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true},
		{"", "a", false},
		{"a", "a", true},
		{"a", "b", false},
		{"*", "", true},
		{"*", "anything/at.all", true},
		{"vm-*", "vm-7", true},
		{"vm-*", "xvm-7", false},
		{"*.example.com", "a.b.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", "example.com.evil.org", false},
		{"a?c", "abc", true},
		{"a?c", "ac", false},
		{"*a*b*", "xxaxxbxx", true},
		{"*a*b*", "xxbxxaxx", false},
		{"a**", "a", true},
		{strings.Repeat("*a", 50) + "b", strings.Repeat("a", 5000), false},
	} {
		if got := match(test.pattern, test.s); got != test.want {
			t.Errorf("%q and %q: %v", test.pattern, test.s, got)
		}
	}
}

func TestRights(t *testing.T) {
	cert := certificate(t)
	with := nbd.Client{Addr: &net.TCPAddr{IP: net.ParseIP("192.0.2.7")}, TLS: true, Certificates: []*x509.Certificate{cert}}
	without := nbd.Client{Addr: with.Addr}
	local := nbd.Client{Addr: &net.UnixAddr{Name: "@"}}
	for _, test := range []struct {
		rules string
		c     nbd.Client
		want  Right
	}{
		{"[]", with, None},
		{"[{allow: read-write}]", without, Write},
		{"[{allow: read-only}]", local, Read},
		{"[{allow: nothing, subject: {CN: vm-7}}, {allow: read-write}]", with, None},
		{"[{allow: nothing, subject: {CN: vm-8}}, {allow: read-write}]", with, Write},
		{"[{allow: read-write, subject: {CN: vm-*, O: Example, OU: [x, storage]}}]", with, Write},
		{"[{allow: read-write, subject: {CN: vm-*, O: Other}}]", with, None},
		{"[{allow: read-write, subject: {DC: x}}]", with, None},
		{"[{allow: read-write, subject: {CN: vm-*}}]", without, None},
		{"[{allow: read-write, issuer: {CN: vm-7}}]", with, Write},
		{"[{allow: read-write, dns: '*.EXAMPLE.com'}]", with, Write},
		{"[{allow: read-write, dns: '*.example.org'}]", with, None},
		{"[{allow: read-write, uri: 'spiffe://example.com/*'}]", with, Write},
		{"[{allow: read-write, email: '*@example.com'}]", with, Write},
		{"[{allow: read-write, ip: 10.0.0.*}]", with, Write},
		{"[{allow: read-write, fingerprint: 'SHA256:FINGER'}]", with, Write},
		{"[{allow: read-write, fingerprint: '" + strings.Repeat("00", 32) + "'}]", with, None},
		{"[{allow: read-write, address: 192.0.2.0/24}]", without, Write},
		{"[{allow: read-write, address: 192.0.2.8}]", without, None},
		{"[{allow: read-write, address: 0.0.0.0/0}]", local, None},
	} {
		rules := strings.ReplaceAll(test.rules, "FINGER", fmt.Sprintf("%X", sha256.Sum256(cert.Raw)))
		c, err := parse("file", []byte("tls: {certificates: /x}\nexports: [{name: a, plugin: x, access: "+rules+"}]"))
		if err != nil {
			t.Errorf("%s: %v", rules, err)
		} else if got := c.Exports[0].Access.Right(test.c); got != test.want {
			t.Errorf("%s: %v, want %v", rules, got, test.want)
		}
	}
	if Access(nil).Right(without) != Write {
		t.Error("without a list everybody may do everything")
	}
}

func certificate(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse("spiffe://example.com/vm/7")
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "vm-7", Organization: []string{"Example"}, OrganizationalUnit: []string{"compute", "storage"}},
		DNSNames:     []string{"vm-7.example.com"}, URIs: []*url.URL{u},
		EmailAddresses: []string{"vm@example.com"}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 7)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestReadme: what the README shows can be read.
func TestReadme(t *testing.T) {
	b, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "```yaml\n")
	doc, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("there is no YAML in the README")
	}
	c, err := parse("README.md", []byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	if c.TLS.MinimumVersion != "1.3" || len(c.Exports) != 2 || len(c.Exports[0].Access) != 2 {
		t.Errorf("%+v", c)
	}
}

// TestManyExports: ten thousand are read in a moment.
func TestManyExports(t *testing.T) {
	var b strings.Builder
	b.WriteString("tls: {certificates: /x}\nexports:\n")
	for i := range 10_000 {
		fmt.Fprintf(&b, "  - name: vm-%d\n    plugin: file\n    parameters: {file: /srv/%d.img}\n    access: [{allow: read-write, subject: {CN: vm-%d}}]\n", i, i, i)
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	c, err := Load(file)
	if err != nil || len(c.Exports) != 10_000 {
		t.Fatal(err)
	}
	took := time.Since(start)
	t.Logf("10 000 exports were read in %v", took)
	if took > 20*time.Second {
		t.Error("that is too slow")
	}
}
