package tlsengine

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Conn is an encrypted connection.
type Conn struct {
	*tls.Conn
	chain []*x509.Certificate
	state tls.ConnectionState
}

// StartTLS does the handshake on conn, as the server. If it fails, the client
// has been sent an alert where there is one to send; closing conn is left to
// the caller.
func (s *Server) StartTLS(ctx context.Context, conn net.Conn) (net.Conn, error) {
	// The handshake would end with ctx by closing conn, which keepOpen does not do.
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	tc := tls.Server(keepOpen{conn}, s.config)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, explain(err)
	}
	c := &Conn{Conn: tc, state: tc.ConnectionState()}
	if chains := c.state.VerifiedChains; len(chains) > 0 {
		c.chain = chains[0]
	}
	return c, nil
}

// keepOpen is a connection that the TLS layer cannot close: the alert that it
// sends last would be lost if the connection were closed, as it does, with
// bytes of the client unread.
type keepOpen struct{ net.Conn }

func (keepOpen) Close() error { return nil }

// PeerCertificates returns the verified certificate of the client and its
// issuers, leaf first, or nil.
func (c *Conn) PeerCertificates() []*x509.Certificate { return c.chain }

// String names version and cipher suite.
func (c *Conn) String() string {
	return tls.VersionName(c.state.Version) + " " + tls.CipherSuiteName(c.state.CipherSuite)
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
