package nbd

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"nbd-ktls-server/nbd/wire"
)

// The ways in which a connection ends in good order.
var (
	errDisc    = errors.New("the client disconnected")
	errAbort   = errors.New("the client aborted the negotiation")
	errHangup  = errors.New("the client closed the connection")
	errProbing = errors.New("the client closed the connection without a word")
)

// The ways in which the server ends one.
var (
	errShutdown = errors.New("the server is shutting down")
	errEnded    = errors.New("the server ended the connection")
	errEvicted  = errors.New("too many unfinished handshakes, and this was the oldest")
	errTimeout  = errors.New("no export was chosen in time")
)

// conn is one client's connection, from accept to close.
type conn struct {
	srv    *Server
	raw    net.Conn // as accepted
	top    net.Conn // raw, or the encrypted connection on it
	client Client
	log    *slog.Logger
	begun  time.Time

	// ctx is what exports see: it ends with the connection, not with the
	// server, so that requests can finish while the server shuts down.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu       sync.Mutex
	stopping error    // guarded by mu: why no more is to be read from the client
	haggling bool     // guarded by mu: it has not chosen an export yet
	session  *session // guarded by mu: nil until it has chosen an export
	gaveUp   bool     // guarded by mu: something could not be sent
}

// isStopping reports whether the server is shutting down.
func (c *conn) isStopping() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopping != nil
}

// chosen ends the handshake phase.
func (c *conn) chosen(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = s
	c.haggling = false
	if c.stopping != nil {
		c.top.SetReadDeadline(time.Now())
	}
}

func (s *Server) newConn(ctx context.Context, nc net.Conn) *conn {
	c := &conn{srv: s, raw: nc, top: nc, begun: time.Now(), haggling: true, client: Client{Addr: nc.RemoteAddr(), Credentials: credentials(nc)}}
	c.log = s.log.With("client", addr(nc))
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	return c
}

// abort ends the connection from outside.
func (c *conn) abort(why error) {
	c.cancel(why)
	c.raw.Close()
}

// giveUp makes the reader stop: nothing can be sent any more. What the client
// still sends will be read at the end, as closing with bytes unread resets the
// connection, and what was sent last, an alert perhaps, is lost.
func (c *conn) giveUp(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel(why)
	c.stopping, c.gaveUp = why, true
	c.top.SetReadDeadline(time.Now())
}

// serve runs the connection through its phases (proto.md, "Protocol phases").
func (c *conn) serve(ctx context.Context, h *handshake) error {
	defer c.srv.removeConn(c)
	defer context.AfterFunc(ctx, c.stop)()
	defer h.leave() // after the lingering close, if nothing was ever chosen
	sess, err := c.negotiate()
	if err == nil {
		h.leave()
		c.chosen(sess)
		c.begin(sess)
		err = sess.transmit()
	}
	err = c.reason(err)
	c.report(err, sess)
	c.close()
	if orderly(err) {
		return nil
	}
	return err
}

// begin logs that a client has got what it came for.
func (c *conn) begin(s *session) {
	c.log.Info("export opened", "export", s.export.Name, "size", s.able.Size,
		"readonly", s.able.WriteAt == nil, "tls", encryption(c.top), "identity", identity(c.client))
}

// report logs how the connection ended.
func (c *conn) report(err error, s *session) {
	attrs := []any{"reason", err, "duration", time.Since(c.begun).Round(time.Millisecond), "identity", identity(c.client)}
	if s != nil {
		attrs = append(attrs, "export", s.export.Name)
		attrs = append(attrs, s.stats.attrs()...)
	}
	switch {
	case errors.Is(err, errProbing):
		c.log.Debug("connection closed", attrs...)
	case orderly(err) || errors.Is(err, errShutdown) || errors.Is(err, errEnded):
		c.log.Info("connection closed", attrs...)
	case s == nil:
		c.srv.failed.Add(1)
		c.log.Warn("negotiation failed", attrs...)
	default:
		c.log.Warn("connection broken", attrs...)
	}
}

func orderly(err error) bool {
	return errors.Is(err, errDisc) || errors.Is(err, errAbort) || errors.Is(err, errHangup) || errors.Is(err, errProbing)
}

// stop is called when the server shuts down.
func (c *conn) stop() { c.end(errShutdown) }

// disconnect ends the connection because of why, at once or softly.
func (c *conn) disconnect(why error, hard bool) {
	why = fmt.Errorf("%w: %w", errEnded, why)
	if hard {
		c.abort(why)
	} else {
		c.end(why)
	}
}

// end makes the reader stop at its next read, and bounds how long what is in
// flight may take. A client that is still haggling has a moment to hear of it
// (proto.md, "Terminating the handshake phase").
func (c *conn) end(why error) {
	c.mu.Lock()
	if c.stopping == nil {
		c.stopping = why
	}
	when := time.Now()
	if c.haggling {
		when = when.Add(stopGrace)
	}
	c.top.SetReadDeadline(when)
	c.mu.Unlock()

	t := time.AfterFunc(c.srv.limits.DrainTimeout, func() { c.abort(why) })
	context.AfterFunc(c.ctx, func() { t.Stop() })
}

// setReadDeadline sets the deadline for reading, unless the reader is to stop.
func (c *conn) setReadDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping == nil {
		c.top.SetReadDeadline(t)
	}
}

// startTLS replaces c.top by an encrypted connection.
func (c *conn) startTLS() error {
	tc, err := c.srv.StartTLS(c.ctx, c.raw)
	if err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.top = tc
	c.client.TLS = true
	if p, ok := tc.(interface{ PeerCertificates() []*x509.Certificate }); ok {
		c.client.Certificates = p.PeerCertificates()
	}
	return nil
}

// reason is why the connection, which err has brought to its end, really ends:
// because of whoever aborted it, if anybody did. It cannot be aborted any more.
func (c *conn) reason(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	stopped := isTimeout(err) || errors.Is(err, context.Canceled)
	switch {
	case c.gaveUp && !stopped && !orderly(err):
		return err // reading has failed by itself, and what failed sending with it
	case c.stopping != nil && isTimeout(err):
		err = c.stopping
	}
	c.cancel(err)
	return context.Cause(c.ctx)
}

// close says what there is to say last, close_notify and FIN, then reads until
// the client has closed too. On an aborted connection it does nothing more.
func (c *conn) close() {
	c.raw.SetDeadline(time.Now().Add(lingerTimeout))
	closeWrite(c.top)
	if c.top != c.raw {
		closeWrite(c.raw)
	}
	io.Copy(io.Discard, c.raw)
	c.top.Close() // forgets its keys, and need not close raw
	c.raw.Close()
}

func closeWrite(nc net.Conn) {
	if w, ok := nc.(interface{ CloseWrite() error }); ok {
		w.CloseWrite()
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// encryption says how nc is encrypted, for the log.
func encryption(nc net.Conn) string {
	if s, ok := nc.(fmt.Stringer); ok {
		return s.String()
	}
	return "none"
}

func identity(c Client) string {
	if len(c.Certificates) == 0 {
		return "none"
	}
	return c.Certificates[0].Subject.String()
}

// greet sends the greeting and reads the client's flags (proto.md, "Fixed
// newstyle negotiation").
func (c *conn) greet() (wire.ClientFlags, error) {
	b := wire.AppendGreeting(nil, (wire.FlagFixedNewstyle|wire.FlagNoZeroes)&^c.srv.HiddenFlags)
	if _, err := c.raw.Write(b); err != nil {
		return 0, fmt.Errorf("sending the greeting: %w", err)
	}
	var p [wire.ClientFlagsSize]byte
	if n, err := io.ReadFull(c.raw, p[:]); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return 0, errProbing
		}
		return 0, fmt.Errorf("reading the client flags: %w", err)
	}
	return checkClientFlags(p)
}
