package tlsengine

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
)

// Layer says where the records of one direction are made or opened.
type Layer struct {
	Kernel bool
	// Why they are not in the kernel.
	Why string
}

func (l Layer) String() string {
	if l.Kernel {
		return "kernel"
	}
	return "user"
}

// State describes a connection.
type State struct {
	Version uint16 // tls.VersionTLS13 …
	Suite   uint16 // tls.TLS_AES_128_GCM_SHA256 …
	Group   tls.CurveID
	// Peer is the verified certificate of the client and its issuers, leaf
	// first, or nil.
	Peer   []*x509.Certificate
	TX, RX Layer
}

// String is for the log.
func (s State) String() string {
	text := fmt.Sprintf("%s %s %v tx=%v rx=%v", tls.VersionName(s.Version), tls.CipherSuiteName(s.Suite), s.Group, s.TX, s.RX)
	if !s.TX.Kernel && s.TX.Why != "" {
		text += " (" + s.TX.Why + ")"
	}
	return text
}

func newState(cs tls.ConnectionState, why string) State {
	user := Layer{Why: why}
	return State{Version: cs.Version, Suite: cs.CipherSuite, Group: cs.CurveID, TX: user, RX: user}
}

// State describes the connection.
func (c *Conn) State() State { return c.state }

// PeerCertificates returns the verified certificate of the client and its
// issuers, leaf first, or nil.
func (c *Conn) PeerCertificates() []*x509.Certificate { return c.state.Peer }

// String is a line for the log.
func (c *Conn) String() string { return c.state.String() }

// conn12 is a connection whose records are crypto/tls's: TLS 1.2.
type conn12 struct {
	*tls.Conn
	raw    net.Conn
	server *Server
	state  State
}

// end ends the connection; crypto/tls has no alert for it.
func (c *conn12) end(Alert, error) { c.raw.Close() }

// Close closes the connection.
func (c *conn12) Close() error {
	c.server.unfollow(c)
	return c.Conn.Close()
}

func (c *conn12) State() State                          { return c.state }
func (c *conn12) PeerCertificates() []*x509.Certificate { return c.state.Peer }
func (c *conn12) String() string                        { return c.state.String() }
