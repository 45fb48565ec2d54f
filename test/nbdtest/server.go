package nbdtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/tlsengine"
	"nbd-ktls-server/tlsengine/pki"
)

// Serve runs a server on a loopback port until the test ends, and fails the test
// if it does not end in good order.
func Serve(t testing.TB, s *nbd.Server) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ServeOn(t, s, l)
	return l.Addr()
}

// ServeOn does that on l.
func ServeOn(t testing.TB, s *nbd.Server, l net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("the server does not shut down")
		}
	})
}

// Log collects a server's log.
type Log struct {
	t  testing.TB
	mu sync.Mutex
	b  bytes.Buffer
}

// NewLog returns an empty log.
func NewLog(t testing.TB) *Log { return &Log{t: t} }

// Logger returns a logger that writes to l.
func (l *Log) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// Expect waits until a line of the log contains all of words.
func (l *Log) Expect(words ...string) {
	l.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		text := l.b.String()
		l.mu.Unlock()
		for line := range strings.Lines(text) {
			if containsAll(line, words) {
				return
			}
		}
		if time.Now().After(end) {
			l.t.Fatalf("no line of the log contains %q:\n%s", words, text)
		}
	}
}

// Count returns how many lines of the log so far contain all of words.
func (l *Log) Count(words ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if containsAll(line, words) {
			n++
		}
	}
	return n
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// PKI is a certificate directory with everything in it.
type PKI struct {
	Dir        string
	CA         *pki.Pair
	ClientPair *pki.Pair
}

// NewPKI makes one.
func NewPKI(t testing.TB) *PKI {
	t.Helper()
	p := &PKI{Dir: t.TempDir()}
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	var err error
	p.CA, err = pki.NewCA("test CA", false)
	must(err)
	server, err := p.CA.Issue(pki.Leaf{CommonName: "localhost", Names: []string{"localhost", "127.0.0.1"}, Server: true})
	must(err)
	p.ClientPair, err = p.CA.Issue(pki.Leaf{CommonName: "client", Client: true})
	must(err)
	must(pki.WriteCert(p.Dir, pki.CACert, p.CA.Cert))
	must(pki.WriteCert(p.Dir, pki.ServerCert, server.Cert))
	must(pki.WriteKey(p.Dir, pki.ServerKey, server.Key))
	must(pki.WriteCert(p.Dir, pki.ClientCert, p.ClientPair.Cert))
	must(pki.WriteKey(p.Dir, pki.ClientKey, p.ClientPair.Key))
	return p
}

// StartTLS returns what a server needs to encrypt.
func (p *PKI) StartTLS(t testing.TB, verifyPeer bool) func(context.Context, net.Conn) (net.Conn, error) {
	t.Helper()
	s, err := tlsengine.New(tlsengine.Config{Dir: p.Dir, VerifyPeer: verifyPeer})
	if err != nil {
		t.Fatal(err)
	}
	return s.StartTLS
}

// Client returns the configuration of a client; certificate may be nil.
func (p *PKI) Client(certificate *pki.Pair) *tls.Config {
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	c.RootCAs.AddCert(p.CA.Cert)
	if certificate != nil {
		// Given as a func, so that a certificate is sent whether or not the
		// server has named its issuer.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{certificate.Cert.Raw}, PrivateKey: certificate.Key}, nil
		}
	}
	return c
}
