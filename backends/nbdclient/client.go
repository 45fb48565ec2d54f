// Package nbdclient is a backend that is an export of another NBD server: the
// client's side of the protocol (proto.md), with requests pipelined over several
// connections, and new connections when those have ended.
//
// A request whose connection is lost is sent again over the next one. What the
// server had acknowledged and not flushed it is told again, first; what there was
// no room for to remember, or what it then refuses, makes the next FLUSH fail.
package nbdclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"nbd-ktls-server/nbd/wire"
)

// Options are how to use a Target.
type Options struct {
	// Connections is how many there are, if the server can do with several
	// (proto.md, NBD_FLAG_CAN_MULTI_CONN).
	Connections int
	// Shared says that there are no clients of the export but the handles.
	Shared bool
	// Reconnect is how long requests wait for a new connection; 0: there is none.
	Reconnect time.Duration
	// Replay is how many bytes of acknowledged changes are kept until they are
	// flushed.
	Replay int64
	Log    *slog.Logger
}

// Client is an open export of another server. Handles share it.
type Client struct {
	target Target
	opts   Options
	info   info
	// allocation says that there is base:allocation.
	allocation bool
	journal    journal
	turn       atomic.Uint32

	ctx    context.Context // ends with the client
	cancel context.CancelFunc
	served chan struct{} // closed when run has ended

	mu  sync.Mutex
	now *generation // nil while there is none
	// changed is closed when there is one again.
	changed chan struct{}
	since   time.Time // when the last one was lost
	why     error     // it was
	losses  uint64    // of changes that had been acknowledged
}

// generation are the links between two losses: where one breaks, the others go,
// too, as a FLUSH is for all of them.
type generation struct {
	links  []*link
	broken chan error
}

func (g *generation) close(err error) {
	for _, l := range g.links {
		l.fail(err)
		<-l.ended
	}
}

// A loss of something acknowledged, for FLUSH.
var errLoss = errors.New("the server was lost with changes that it had not flushed")

// MaxConnections is as many as make sense.
const MaxConnections = 16

// New opens the export, with all connections.
func New(ctx context.Context, t Target, o Options) (*Client, error) {
	o.Connections = min(max(o.Connections, 1), MaxConnections)
	c := &Client{target: t, opts: o, journal: journal{max: o.Replay}, changed: make(chan struct{}), served: make(chan struct{})}
	first, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	c.info, c.allocation = first.info, first.hasAllocation
	if err := c.check(first); err != nil {
		first.Close()
		return nil, err
	}
	g, err := c.more(ctx, first)
	if err != nil {
		return nil, err
	}
	c.now = g
	c.ctx, c.cancel = context.WithCancel(context.Background())
	go c.run(g)
	return c, nil
}

// Close ends the connections. Nothing may be going on any more.
func (c *Client) Close() error {
	c.cancel()
	<-c.served
	return nil
}

// check reports what is wrong with what the server says.
func (c *Client) check(s *session) error {
	switch {
	case s.size > 1<<63-1:
		return fmt.Errorf("a size of %d bytes", s.size)
	case s.flags&wire.FlagHasFlags == 0:
		return errors.New("the server gives no transmission flags")
	}
	return nil
}

// more makes a link of first, and as many more as there may be.
func (c *Client) more(ctx context.Context, first *session) (*generation, error) {
	g := &generation{broken: make(chan error, MaxConnections)}
	g.links = append(g.links, newLink(first, g.broken))
	for c.info.flags&wire.FlagCanMultiConn != 0 && len(g.links) < c.opts.Connections {
		s, err := c.target.connect(ctx)
		if err == nil {
			g.links = append(g.links, newLink(s, g.broken))
			err = c.same(s)
		}
		if err != nil {
			g.close(err)
			return nil, err
		}
	}
	return g, nil
}

// same reports whether s is of the export that was opened at first: clients rely
// on what they were told then.
func (c *Client) same(s *session) error {
	const may = wire.FlagHasFlags | wire.FlagRotational | wire.FlagSendDF
	was := c.info
	switch now := s.info; {
	case now.size != was.size:
		return fmt.Errorf("the export has %d bytes now, and had %d", now.size, was.size)
	case was.flags&wire.FlagReadOnly == 0 && now.flags&wire.FlagReadOnly != 0:
		return errors.New("the export is read-only now")
	case was.flags&^now.flags&^(may|wire.FlagReadOnly) != 0:
		return fmt.Errorf("the export has the transmission flags %#x now, and had %#x", now.flags, was.flags)
	case now.block != was.block:
		return errors.New("the export has other block sizes now")
	case c.allocation && !s.hasAllocation:
		return errors.New("the export has no base:allocation any more")
	}
	return nil
}

// run keeps the links alive, until the client is closed.
func (c *Client) run(g *generation) {
	defer close(c.served)
	for g != nil {
		select {
		case <-c.ctx.Done():
			for _, l := range g.links {
				l.disconnect()
			}
			return
		case err := <-g.broken:
			g.close(err)
			c.down(g, err)
		}
		if c.opts.Reconnect == 0 {
			return
		}
		g = c.reconnect()
	}
}

// down lets requests wait for another generation than g.
func (c *Client) down(g *generation, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now != g {
		return
	}
	c.now, c.since, c.why = nil, time.Now(), why
	if c.opts.Reconnect == 0 {
		c.opts.Log.Error("the connection to the server was lost", "reason", why)
	} else {
		c.opts.Log.Warn("the connection to the server was lost, requests wait", "reason", why, "at-most", c.opts.Reconnect)
	}
}

// The delays between attempts to connect.
const (
	firstDelay = 50 * time.Millisecond
	maxDelay   = time.Second
)

// reconnect tries until there are links, also when nobody waits any more: the
// next ones will be glad of them. It returns nil if the client was closed.
func (c *Client) reconnect() *generation {
	said := ""
	for delay := firstDelay; ; delay = min(2*delay, maxDelay) {
		g, err := c.again()
		switch {
		case err == nil:
			c.up(g)
			return g
		case c.ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			c.opts.Log.Warn("the server cannot be reached again yet", "reason", err)
		}
		select {
		case <-time.After(delay):
		case <-c.ctx.Done():
			return nil
		}
	}
}

// again connects, and tells the server again what it may have forgotten.
func (c *Client) again() (*generation, error) {
	first, err := c.target.connect(c.ctx)
	if err != nil {
		return nil, err
	}
	if err := c.same(first); err != nil {
		first.Close()
		return nil, err
	}
	g, err := c.more(c.ctx, first)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(c.ctx, func() { g.links[0].fail(errLost) })
	defer stop()
	if err := c.replay(g.links[0]); err != nil {
		g.close(err)
		return nil, err
	}
	return g, nil
}

// replay tells the server all changes since the last FLUSH, before the requests
// that wait.
func (c *Client) replay(l *link) error {
	entries, complete := c.journal.all()
	for _, e := range entries {
		q := newCall(c.ctx, e.req)
		err := l.do(q, e.data)
		q.free()
		if errors.Is(err, errLost) || c.ctx.Err() != nil {
			return errLost
		}
		if err != nil {
			c.opts.Log.Error("the server refuses to do again what it had done", "reason", err)
			complete = false
			break
		}
	}
	if !complete {
		c.journal.forget()
		c.mu.Lock()
		c.losses++
		c.mu.Unlock()
		c.opts.Log.Error("changes may be lost: the next FLUSH will fail", "reason", errLoss)
	}
	return nil
}

// up lets requests go on.
func (c *Client) up(g *generation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opts.Log.Info("connected to the server again", "after", time.Since(c.since).Round(time.Millisecond))
	c.now, c.why = g, nil
	close(c.changed)
	c.changed = make(chan struct{})
}

// live returns the links, if necessary when there are some again, but for no longer
// than until the server has been away for too long.
func (c *Client) live(ctx context.Context) (*generation, error) {
	for {
		c.mu.Lock()
		g, changed, since, why := c.now, c.changed, c.since, c.why
		c.mu.Unlock()
		if g != nil {
			return g, nil
		}
		t := time.NewTimer(time.Until(since.Add(c.opts.Reconnect)))
		select {
		case <-changed:
			t.Stop()
		case <-t.C:
			return nil, fmt.Errorf("%w: %w: %w", wire.ESHUTDOWN, errLost, why)
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// maxTries bounds how often one request is sent: it may be what ends the server.
const maxTries = 5

// do sends a request, and again if the connection is lost. acknowledged is called
// when the server has done it, and may be nil: if the connection is lost until
// then, too, the request is sent again.
func (c *Client) do(q *call, payload []byte, acknowledged func()) error {
	for try := 1; ; try++ {
		g, err := c.live(q.owner)
		if err != nil {
			return err
		}
		l := g.links[int(c.turn.Add(1))%len(g.links)]
		q.reset()
		err = l.do(q, payload)
		if err == nil && acknowledged != nil {
			if acknowledged(); l.reason() != nil {
				err = errLost
			}
		}
		if !errors.Is(err, errLost) {
			return err
		}
		c.down(g, l.reason())
		if c.opts.Reconnect == 0 || try == maxTries {
			return fmt.Errorf("%w: %w: %w", wire.ESHUTDOWN, errLost, l.reason())
		}
	}
}
