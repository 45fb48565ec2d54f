package nbd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"nbd-ktls-server/nbd/wire"
)

// Server serves exports to NBD clients. Its zero value, with Exports set, is
// ready to use: plain text, default limits, logging to slog.Default. Fields
// must not change once it serves.
type Server struct {
	// Exports are what is offered.
	Exports Exports

	// StartTLS turns conn, on which the client has just been told to begin a
	// TLS handshake, into an encrypted connection. It leaves closing conn to
	// the server. The result may tell who the client is, by a method
	//
	//	PeerCertificates() []*x509.Certificate
	//
	// nil means NOTLS: STARTTLS is refused.
	StartTLS func(ctx context.Context, conn net.Conn) (net.Conn, error)

	// ForceTLS serves nothing before STARTTLS (proto.md, "FORCEDTLS mode").
	// Without it, and with StartTLS set, the mode is SELECTIVETLS: exports say
	// themselves whether they are TLSOnly.
	ForceTLS bool

	// Unsupported are options that are answered as if they were not known, and
	// HiddenFlags handshake flags that are not shown: to test clients.
	Unsupported []wire.Option
	HiddenFlags wire.HandshakeFlags

	// Limits bound what clients can make the server spend.
	Limits Limits

	// Log receives a line for every connection that begins or ends and for
	// every refusal, with its reason.
	Log *slog.Logger

	once       sync.Once
	limits     Limits
	log        *slog.Logger
	handshakes handshakes
	requests   *semaphore.Weighted
	bytes      *semaphore.Weighted

	accepted, refused, failed atomic.Int64

	mu      sync.Mutex
	conns   map[*conn]struct{}
	traffic map[string]*traffic
	turns   turns
}

// ErrForceTLS is returned by Serve if ForceTLS is set without StartTLS.
var ErrForceTLS = errors.New("nbd: TLS is to be forced, but there is no StartTLS")

func (s *Server) init() error {
	if s.ForceTLS && s.StartTLS == nil {
		return ErrForceTLS
	}
	s.once.Do(func() {
		s.limits = s.Limits.filled()
		s.log = s.Log
		if s.log == nil {
			s.log = slog.Default()
		}
		s.handshakes.max = s.limits.Handshakes
		s.handshakes.freed = make(chan struct{}, 1)
		s.requests = semaphore.NewWeighted(int64(s.limits.RequestsTotal))
		s.bytes = semaphore.NewWeighted(s.limits.BytesTotal)
	})
	return nil
}

// Serve accepts connections on l, and serves each on its own goroutine, until
// ctx ends; then it closes l, lets requests that were received finish, and
// returns nil when the last connection has ended. It may run on several
// listeners at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if err := s.init(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		nc, err := s.accept(ctx, l)
		switch {
		case ctx.Err() != nil:
			if err == nil {
				nc.Close()
			}
			return nil
		case err != nil:
			s.log.Error("no more connections are accepted", "address", l.Addr(), "reason", err)
			l.Close() // before waiting for those that there are
			return err
		case s.full():
			s.refused.Add(1)
			s.log.Warn("connection refused", "client", addr(nc), "reason", "too many connections", "limit", s.limits.Connections)
			nc.Close()
			continue
		}
		c, h := s.enter(ctx, nc)
		if h == nil {
			return nil
		}
		wg.Go(func() { c.serve(ctx, h) })
	}
}

// ServeConn serves one connection, and returns when it has ended: nil if the
// client ended it in good order.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	if err := s.init(); err != nil {
		nc.Close()
		return err
	}
	c, h := s.enter(ctx, nc)
	if h == nil {
		return ctx.Err()
	}
	return c.serve(ctx, h)
}

// enter waits for a place among the unfinished handshakes; there is none once
// ctx has ended.
func (s *Server) enter(ctx context.Context, nc net.Conn) (*conn, *handshake) {
	c := s.newConn(ctx, nc)
	s.addConn(c)
	h := s.handshakes.enter(ctx, func() { c.abort(errEvicted) })
	if h == nil {
		c.abort(errShutdown)
		s.removeConn(c)
	}
	return c, h
}

// accept accepts one connection. Lack of file descriptors or memory passes:
// it waits and tries again, so that connected clients keep their disks.
func (s *Server) accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	const firstPause, longestPause = 5 * time.Millisecond, time.Second
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		nc, err := l.Accept()
		if err == nil || ctx.Err() != nil || errors.Is(err, net.ErrClosed) || !isTransient(err) {
			return nc, err
		}
		s.log.Error("cannot accept a connection", "reason", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// full reports whether there may be no more connections.
func (s *Server) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns) >= s.limits.Connections
}

func (s *Server) addConn(c *conn) {
	s.accepted.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = make(map[*conn]struct{})
	}
	s.conns[c] = struct{}{}
}

func (s *Server) removeConn(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func addr(nc net.Conn) string {
	a := nc.RemoteAddr()
	if a == nil || a.String() == "" || a.String() == "@" {
		return "local"
	}
	return a.String()
}
