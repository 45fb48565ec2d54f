package tlsengine

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Server makes encrypted connections. Its methods may be called from many
// goroutines.
type Server struct {
	config      Config
	credentials atomic.Pointer[credentials]
	counts      counts

	mu   sync.Mutex
	live map[session]bool // those whose client has a certificate
}

// session is a connection that can be ended if its client's certificate is
// revoked.
type session interface {
	PeerCertificates() []*x509.Certificate
	end(Alert, error)
}

// New reads the certificates.
func New(c Config) (*Server, error) {
	s := &Server{config: c, live: make(map[session]bool)}
	_, err := s.Reload()
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Reload reads the certificates again, for connections to come, and ends those
// whose client's certificate has been revoked meanwhile. If it fails, what was
// read before stays in use. It returns how many connections were ended.
func (s *Server) Reload() (ended int, err error) {
	cr, err := load(&s.config)
	if err != nil {
		return 0, err
	}
	s.credentials.Store(cr)
	if cr.verifier == nil {
		return 0, nil
	}
	s.mu.Lock()
	var revoked []session
	for c := range s.live {
		if cr.verifier.revoked.any(c.PeerCertificates()) {
			revoked = append(revoked, c)
		}
	}
	s.mu.Unlock()
	for _, c := range revoked {
		c.end(alertCertificateRevoked, errRevoked)
	}
	return len(revoked), nil
}

var errRevoked = fatal(alertCertificateRevoked, "the client's certificate has been revoked")

// Validity says how long what was read last is good for.
func (s *Server) Validity() Validity { return s.credentials.Load().validity }

// follow watches over a connection until it is closed. It fails if the client has
// been revoked since it was verified: Reload has then not seen the connection.
func (s *Server) follow(c session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.credentials.Load().verifier; v != nil && v.revoked.any(c.PeerCertificates()) {
		return errRevoked
	}
	s.live[c] = true
	return nil
}

func (s *Server) unfollow(c session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, c)
}

// StartTLS does the handshake on conn, as the server. If it fails, the client
// has been sent an alert where there is one to send; closing conn is left to
// the caller.
func (s *Server) StartTLS(ctx context.Context, conn net.Conn) (net.Conn, error) {
	nc, err := s.handshake(ctx, conn)
	s.counts.handshake(err)
	if c, ok := nc.(interface{ State() State }); ok && err == nil {
		s.counts.session(c.State())
	}
	return nc, err
}

func (s *Server) handshake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	// The handshake would end with ctx by closing conn, which boundaryConn does
	// not do.
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	var keys secrets
	defer keys.wipe()
	boundary := &boundaryConn{Conn: conn}
	cr := s.credentials.Load()
	tc := tls.Server(boundary, cr.configFor(&keys))
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, explain(err)
	}
	cs := tc.ConnectionState()
	if cs.Version != tls.VersionTLS13 {
		c := &conn12{Conn: tc, raw: conn, server: s, state: newState(cs, "TLS 1.2")}
		if len(cs.VerifiedChains) > 0 {
			c.state.Peer = cs.VerifiedChains[0]
			if err := s.follow(c); err != nil {
				return nil, err
			}
		}
		return c, nil
	}
	boundary.over.Store(true) // tc must not be used any more
	return s.takeOver(conn, cr, cs, &keys)
}

// configFor returns the configuration of one connection. A client that knows TLS
// 1.3 will get it; its certificate is then for us to verify.
func (cr *credentials) configFor(keys *secrets) *tls.Config {
	c := cr.config12.Clone()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
			return nil, nil
		}
		c := cr.config13.Clone()
		c.KeyLogWriter = keys
		return c, nil
	}
	return c
}

// takeOver begins with our own records where crypto/tls's handshake has ended:
// both sequence numbers are 0, since no ticket has been sent.
func (s *Server) takeOver(conn net.Conn, cr *credentials, cs tls.ConnectionState, keys *secrets) (net.Conn, error) {
	su := suiteByID(cs.CipherSuite)
	if su == nil || keys.client == nil || keys.server == nil {
		return nil, fmt.Errorf("tls: no secrets for %s", tls.CipherSuiteName(cs.CipherSuite))
	}
	c, err := newConn(conn, su, slices.Clone(keys.client), slices.Clone(keys.server))
	if err != nil {
		return nil, err
	}
	c.state = newState(cs, "")
	c.counts = &s.counts
	if n := s.config.RekeyRecords; n > 0 {
		c.rekeyRecords = max(n, minRekeyRecords)
	}
	c.rekeyBytes = s.config.RekeyBytes
	err = c.offload(s.config.KTLS)
	if err == nil && cr.verifier != nil {
		err = s.admit(c, cr, cs.PeerCertificates)
	}
	if err == nil {
		return c, nil
	}
	var ae *alertError
	if errors.As(err, &ae) {
		c.sendAlert(ae.alert)
	}
	c.wipe()
	return nil, err
}

// admit verifies the client's certificate.
func (s *Server) admit(c *Conn, cr *credentials, chain []*x509.Certificate) (err error) {
	if c.state.Peer, err = cr.verifier.verify(chain); err != nil {
		return err
	}
	c.closed = func() { s.unfollow(c) }
	return s.follow(c)
}

// explain adds to a handshake error who found what wrong.
func explain(err error) error {
	var verify *tls.CertificateVerificationError
	var remote *net.OpError
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &verify):
		return fmt.Errorf("the client's certificate (%s) was refused: %w", verify.UnverifiedCertificates[0].Subject, err)
	case errors.As(err, &remote) && remote.Op == "remote error":
		return fmt.Errorf("the client gave up: %w", err)
	case errors.As(err, &header):
		return fmt.Errorf("the client sent something else than TLS: %w", err)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("the client hung up without an alert; perhaps it does not trust our certificate: %w", err)
	}
	return err
}
