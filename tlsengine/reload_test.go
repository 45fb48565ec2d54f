package tlsengine_test

import (
	"crypto/tls"
	"errors"
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

// session connects a client, and returns both ends.
func session(t *testing.T, s *tlsengine.Server, config *tls.Config) (net.Conn, *tls.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan net.Conn, 1)
	go func() {
		defer close(done)
		if nc, err := l.Accept(); err == nil {
			if tc, err := s.StartTLS(t.Context(), nc); err == nil {
				done <- tc
			} else {
				nc.Close()
			}
		}
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(nc, config)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	server := <-done
	if server == nil {
		t.Fatal("the server refused")
	}
	t.Cleanup(func() { server.Close() })
	return server, c
}

// A new revocation list ends the sessions that it revokes, and no others.
func TestReloadEndsRevokedSessions(t *testing.T) {
	p := nbdtest.NewPKI(t)
	other, err := p.CA.Issue(pki.Leaf{CommonName: "other", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, p.Dir, true)
	revoked, revokedClient := session(t, s, p.Client(p.ClientPair))
	kept, keptClient := session(t, s, p.Client(other))
	old := p.Client(p.ClientPair)
	old.MaxVersion = tls.VersionTLS12
	revoked12, _ := session(t, s, old)
	reading, reading12 := make(chan error), make(chan error)
	go func() { _, err := revoked.Read(make([]byte, 1)); reading <- err }()
	go func() { _, err := revoked12.Read(make([]byte, 1)); reading12 <- err }()

	crl, err := p.CA.Revoke(p.ClientPair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.WriteCRL(p.Dir, crl); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Reload(); n != 2 || err != nil {
		t.Fatalf("%d sessions ended, %v", n, err)
	}
	if err := <-reading; err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("the server's error is %v", err)
	}
	if err := <-reading12; err == nil {
		t.Error("the session with TLS 1.2 goes on")
	}
	if _, err := revokedClient.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "revoked certificate") {
		t.Errorf("the client hears %v", err)
	}
	go kept.Write([]byte("x"))
	if _, err := io.ReadFull(keptClient, make([]byte, 1)); err != nil {
		t.Errorf("the other session: %v", err)
	}
}

func TestReloadUsesNewCertificates(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := newServer(t, p.Dir, false)
	before, beforeClient := session(t, s, p.Client(nil))
	renewed, err := p.CA.Issue(pki.Leaf{CommonName: "renewed", Names: []string{"localhost"}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	// Half of it: the key does not match, and what was read before stays.
	if err := pki.WriteKey(p.Dir, pki.ServerKey, renewed.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reload(); err == nil {
		t.Error("half a certificate was taken")
	}
	if _, c := session(t, s, p.Client(nil)); c.ConnectionState().PeerCertificates[0].Subject.CommonName != "localhost" {
		t.Error("the old certificate is not used any more")
	}
	if err := pki.WriteCert(p.Dir, pki.ServerCert, renewed.Cert); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, c := session(t, s, p.Client(nil)); c.ConnectionState().PeerCertificates[0].Subject.CommonName != "renewed" {
		t.Error("the new certificate is not used")
	}
	if err := os.WriteFile(filepath.Join(p.Dir, pki.ServerCert), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reload(); err == nil {
		t.Error("rubbish was taken")
	}
	session(t, s, p.Client(nil))
	go before.Write([]byte("x"))
	if _, err := io.ReadFull(beforeClient, make([]byte, 1)); err != nil {
		t.Errorf("the session from before: %v", err)
	}
}

func TestState(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := newServer(t, p.Dir, true)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := p.Client(p.ClientPair)
		config.MaxVersion = version
		server, client := session(t, s, config)
		st := server.(interface{ State() tlsengine.State }).State()
		cs := client.ConnectionState()
		if st.Version != version || st.Suite != cs.CipherSuite || st.Group != cs.CurveID || len(st.Peer) != 2 ||
			!st.Peer[0].Equal(p.ClientPair.Cert) || st.RX.Kernel || version == tls.VersionTLS12 && st.TX.Kernel {
			t.Errorf("%+v", st)
		}
		if version == tls.VersionTLS13 && st.Group != tls.X25519MLKEM768 {
			t.Errorf("group %v", st.Group)
		}
		server.Close()
		if _, err := server.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("writing after Close: %v", err)
		}
	}
}
