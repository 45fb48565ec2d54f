package tlsengine

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"nbd-ktls-server/tlsengine/pki"
)

// client is a TLS client that does after its handshake what it is told, record
// by record. It opens each record it receives with the next sequence number of
// the current key: one that used another, or a key twice, would not open.
type client struct {
	t   testing.TB
	nc  net.Conn
	in  halfConn
	out halfConn
	// updates counts the server's KeyUpdates.
	updates int
}

// held is a connection that holds back what is written until it is told to send
// it, all at once.
type held struct {
	net.Conn
	hold bool
	b    []byte
}

func (h *held) Write(p []byte) (int, error) {
	h.b = append(h.b, p...)
	if h.hold {
		return len(p), nil
	}
	return len(p), h.send()
}

func (h *held) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.hold = true // the next flight is the last one
	return n, err
}

func (h *held) send() error {
	_, err := h.Conn.Write(h.b)
	h.b = nil
	return err
}

// authority is a CA and a directory with a server's certificate.
func authority(t testing.TB) (dir string, ca *pki.Pair) {
	t.Helper()
	dir = t.TempDir()
	ca, err := pki.NewCA("test", false)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.Issue(pki.Leaf{CommonName: "localhost", Names: []string{"localhost"}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		pki.WriteCert(dir, pki.CACert, ca.Cert), pki.WriteCert(dir, pki.ServerCert, server.Cert), pki.WriteKey(dir, pki.ServerKey, server.Key),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir, ca
}

// connect connects a client to a server with options. glued is sent by the
// client in one packet with its Finished.
func connect(t testing.TB, o Options, glued []byte) (*Conn, *client) {
	t.Helper()
	dir, ca := authority(t)
	if o.KTLS == KTLSAuto {
		o.KTLS = kernelPolicy()
	}
	s, err := New(Config{Dir: dir, Options: o})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan *Conn, 1)
	go func() {
		defer close(accepted)
		nc, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		c, err := s.StartTLS(t.Context(), nc)
		if err != nil {
			t.Error(err)
			nc.Close()
			return
		}
		accepted <- c.(*Conn)
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(10 * time.Minute))
	var keys secrets
	h := &held{Conn: nc}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Cert)
	tc := tls.Client(&boundaryConn{Conn: h}, &tls.Config{RootCAs: roots, ServerName: "localhost", KeyLogWriter: &keys})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	su := suiteByID(tc.ConnectionState().CipherSuite)
	c := &client{t: t, nc: nc, in: halfConn{suite: su}, out: halfConn{suite: su}}
	c.in.setSecret(slices.Clone(keys.server))
	c.out.setSecret(slices.Clone(keys.client))
	if glued != nil {
		h.b = c.out.seal(h.b, typeApplicationData, glued, false)
	}
	if err := h.send(); err != nil {
		t.Fatal(err)
	}
	server := <-accepted
	if server == nil {
		t.FailNow()
	}
	t.Cleanup(func() { server.Close() })
	return server, c
}

// record seals content with so much padding.
func (c *client) record(typ contentType, content []byte, padding int) []byte {
	inner := append(append(bytes.Clone(content), byte(typ)), make([]byte, padding)...)
	n := len(inner) + tagLen
	header := []byte{23, 3, 3, byte(n >> 8), byte(n)}
	return c.out.aead.Seal(header, c.out.nextNonce(), inner, header)
}

// send sends bytes as they are.
func (c *client) send(p []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(p); err != nil {
		c.t.Fatalf("the client cannot send: %v", err)
	}
}

// keyUpdate is a KeyUpdate record; the client's next record is under the new key.
func (c *client) keyUpdate(request byte) []byte {
	r := c.record(typeHandshake, []byte{handshakeKeyUpdate, 0, 0, 1, request}, 0)
	if err := c.out.update(); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// next reads a record, and follows the server's KeyUpdates.
func (c *client) next() (contentType, []byte, error) {
	for {
		header := make([]byte, recordHeaderLen)
		if _, err := io.ReadFull(c.nc, header); err != nil {
			return 0, nil, err
		}
		r := append(header, make([]byte, binary.BigEndian.Uint16(header[3:]))...)
		if _, err := io.ReadFull(c.nc, r[recordHeaderLen:]); err != nil {
			return 0, nil, err
		}
		typ, content, err := c.in.open(r[recordHeaderLen:], r)
		if err != nil || typ != typeHandshake {
			return typ, content, err
		}
		if !bytes.Equal(content, []byte{handshakeKeyUpdate, 0, 0, 1, updateNotRequested}) {
			c.t.Errorf("a handshake message %x", content)
		}
		c.updates++
		if err := c.in.update(); err != nil {
			c.t.Fatal(err)
		}
	}
}

// expectAlert reads until an alert.
func (c *client) expectAlert(want Alert) {
	c.t.Helper()
	for {
		typ, content, err := c.next()
		if err != nil {
			c.t.Errorf("no alert %v: %v", want, err)
			return
		}
		if typ != typeAlert {
			continue
		}
		level := byte(2)
		if want == alertCloseNotify {
			level = 1
		}
		if !bytes.Equal(content, []byte{level, byte(want)}) {
			c.t.Errorf("alert %x, want %v", content, want)
		}
		return
	}
}
