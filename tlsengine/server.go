package tlsengine

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"
)

// Server makes encrypted connections. Its method StartTLS may be called from
// many goroutines.
type Server struct {
	config12, config13 *tls.Config
	verifier           *verifier // nil: clients need no certificate
	options            Options
	// Expires is when the server's certificate does.
	Expires time.Time
}

// StartTLS does the handshake on conn, as the server. If it fails, the client
// has been sent an alert where there is one to send; closing conn is left to
// the caller.
func (s *Server) StartTLS(ctx context.Context, conn net.Conn) (net.Conn, error) {
	// The handshake would end with ctx by closing conn, which boundaryConn does
	// not do.
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	var keys secrets
	defer keys.wipe()
	boundary := &boundaryConn{Conn: conn}
	tc := tls.Server(boundary, s.configFor(&keys))
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, explain(err)
	}
	cs := tc.ConnectionState()
	if cs.Version != tls.VersionTLS13 {
		c := &conn12{tc, newState(cs, "TLS 1.2")}
		if len(cs.VerifiedChains) > 0 {
			c.state.Peer = cs.VerifiedChains[0]
		}
		return c, nil
	}
	boundary.over.Store(true) // tc must not be used any more
	return s.takeOver(conn, cs, &keys)
}

// configFor returns the configuration of one connection. A client that knows TLS
// 1.3 will get it; its certificate is then for us to verify.
func (s *Server) configFor(keys *secrets) *tls.Config {
	c := s.config12.Clone()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
			return nil, nil
		}
		c := s.config13.Clone()
		c.KeyLogWriter = keys
		return c, nil
	}
	return c
}

// takeOver begins with our own records where crypto/tls's handshake has ended:
// both sequence numbers are 0, since no ticket has been sent.
func (s *Server) takeOver(conn net.Conn, cs tls.ConnectionState, keys *secrets) (net.Conn, error) {
	su := suiteByID(cs.CipherSuite)
	if su == nil || keys.client == nil || keys.server == nil {
		return nil, fmt.Errorf("tls: no secrets for %s", tls.CipherSuiteName(cs.CipherSuite))
	}
	c, err := newConn(conn, su, slices.Clone(keys.client), slices.Clone(keys.server))
	if err != nil {
		return nil, err
	}
	c.state = newState(cs, "")
	if s.options.RekeyRecords > 0 {
		c.rekeyRecords = max(s.options.RekeyRecords, minRekeyRecords)
	}
	c.rekeyBytes = s.options.RekeyBytes
	if s.verifier == nil {
		return c, nil
	}
	if c.state.Peer, err = s.verifier.verify(cs.PeerCertificates); err != nil {
		var ae *alertError
		if errors.As(err, &ae) {
			c.sendAlert(ae.alert)
		}
		return nil, err
	}
	return c, nil
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
