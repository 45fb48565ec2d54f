package tlsengine_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd-ktls-server/test/nbdtest"
	"nbd-ktls-server/tlsengine"
	"nbd-ktls-server/tlsengine/pki"
)

// handshake connects a client to a server, and returns what each made of it:
// the client's error includes that of its first read, since with TLS 1.3 it has
// finished before the server has seen its certificate.
func handshake(t *testing.T, s *tlsengine.Server, config *tls.Config) (server, client error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer nc.Close()
		tc, err := s.StartTLS(t.Context(), nc)
		if err == nil {
			_, err = tc.Write([]byte("x"))
		}
		done <- err
		nc.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, nc)
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	tc := tls.Client(nc, config)
	_, client = tc.Read(make([]byte, 1)) // does the handshake
	nc.(*net.TCPConn).CloseWrite()
	return <-done, client
}

func newServer(t *testing.T, dir string, verify bool) *tlsengine.Server {
	t.Helper()
	s, err := tlsengine.New(tlsengine.Config{Dir: dir, VerifyPeer: verify})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Each thing that can be wrong gives the client an alert and the log a reason.
func TestRefusals(t *testing.T) {
	p, other := nbdtest.NewPKI(t), nbdtest.NewPKI(t)
	issue := func(l pki.Leaf) *pki.Pair {
		pair, err := p.CA.Issue(l)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	past := time.Now().Add(-time.Hour)
	expired := issue(pki.Leaf{CommonName: "old", Client: true, NotBefore: past.Add(-time.Hour), NotAfter: past})
	server := issue(pki.Leaf{CommonName: "server", Server: true})
	revoked := issue(pki.Leaf{CommonName: "revoked", Client: true})
	crl, err := p.CA.Revoke(revoked.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.WriteCRL(p.Dir, crl); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, p.Dir, true)

	good := p.Client(p.ClientPair)
	untrusting := p.Client(p.ClientPair)
	untrusting.RootCAs = x509.NewCertPool()
	for _, test := range []struct {
		name           string
		config         *tls.Config
		alert          string // what the client hears, with TLS 1.3
		reason         string // what the log says
		alert12        string // with TLS 1.2, if that is something else
		clientRefusing bool
	}{
		{name: "a good certificate", config: good},
		{name: "no certificate", config: p.Client(nil), alert: "certificate required", reason: "client didn't provide a certificate", alert12: "handshake failure"},
		{name: "another authority's", config: p.Client(other.ClientPair), alert: "unknown certificate authority", reason: "the client's certificate (CN=client) was refused"},
		{name: "expired", config: p.Client(expired), alert: "expired certificate", reason: "expired"},
		{name: "a server's", config: p.Client(server), alert: "unsupported certificate", reason: "incompatible key usage", alert12: "bad certificate"},
		{name: "revoked", config: p.Client(revoked), alert: "revoked certificate", reason: "CN=revoked, serial number", alert12: "bad certificate"},
		{name: "the client does not know us", config: untrusting, clientRefusing: true, reason: "the client gave up: remote error: tls: "},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(test.name+", "+tls.VersionName(version), func(t *testing.T) {
				config := test.config.Clone()
				config.MinVersion, config.MaxVersion = version, version
				server, client := handshake(t, s, config)
				alert := test.alert
				if version == tls.VersionTLS12 && test.alert12 != "" {
					alert = test.alert12
				}
				expect(t, "the client", client, alert, test.clientRefusing)
				expect(t, "the server", server, test.reason, false)
			})
		}
	}
}

func expect(t *testing.T, who string, err error, want string, any bool) {
	t.Helper()
	switch {
	case any && err == nil:
		t.Errorf("%s was satisfied", who)
	case any:
	case want == "" && err != nil:
		t.Errorf("%s: %v", who, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: %v, want %q", who, err, want)
	}
}

func TestWithoutVerifyPeerNoCertificateIsNeeded(t *testing.T) {
	p, other := nbdtest.NewPKI(t), nbdtest.NewPKI(t)
	s := newServer(t, p.Dir, false)
	for name, config := range map[string]*tls.Config{"none": p.Client(nil), "a foreign one": p.Client(other.ClientPair)} {
		if server, client := handshake(t, s, config); server != nil || client != nil {
			t.Errorf("%s: %v, %v", name, server, client)
		}
	}
}

func TestBadDirectories(t *testing.T) {
	foreign := nbdtest.NewPKI(t)
	crl, err := foreign.CA.Revoke()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		break_ func(dir string) error
		reason string
	}{
		{"no certificate", func(d string) error { return os.Remove(filepath.Join(d, pki.ServerCert)) }, "server-cert.pem: no such file"},
		{"no key", func(d string) error { return os.Remove(filepath.Join(d, pki.ServerKey)) }, "server-key.pem: no such file"},
		{"no authority", func(d string) error { return os.Remove(filepath.Join(d, pki.CACert)) }, "ca-cert.pem: no such file"},
		{"another's key", func(d string) error { return pki.WriteKey(d, pki.ServerKey, foreign.ClientPair.Key) }, "private key does not match"},
		{"rubbish for an authority", func(d string) error { return os.WriteFile(filepath.Join(d, pki.CACert), []byte("rubbish"), 0o600) }, "there is no certificate in it"},
		{"rubbish for a revocation list", func(d string) error { return os.WriteFile(filepath.Join(d, pki.CACRL), []byte("rubbish"), 0o600) }, "there is no revocation list in it"},
		{"another's revocation list", func(d string) error { return pki.WriteCRL(d, crl) }, "none of the certificate authorities has signed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := nbdtest.NewPKI(t)
			if err := test.break_(p.Dir); err != nil {
				t.Fatal(err)
			}
			_, err := tlsengine.New(tlsengine.Config{Dir: p.Dir, VerifyPeer: true})
			expect(t, "New", err, test.reason, false)
		})
	}
}
