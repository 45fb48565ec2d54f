package filters

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var pauseFilter = plugin.Filter{
	Name: "pause", Summary: "lets requests wait while whoever controls a socket says so", Usage: "pause-control=SOCKET",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		path, ok := p.String("pause-control")
		if !ok {
			return nil, errors.New("pause-control= is needed")
		}
		path, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			return nil, err
		}
		c := &pauseControl{gate: newGate(), l: l, log: p.Log}
		return func(s *plugin.Source) {
			s.Edit(func(ctx context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
				around(a, func(below *nbd.Abilities, r *request, p []byte) error {
					if err := c.gate.enter(ctx); err != nil {
						return err
					}
					defer c.gate.leave()
					return r.do(below, p)
				})
				return nil
			})
			c.served.Go(c.serve)
			s.OnClose(c.close)
		}, nil
	},
}

// gate is what requests pass through, unless it is shut.
type gate struct {
	mu      sync.Mutex
	inside  int
	opened  chan struct{} // closed while the gate is open
	emptied chan struct{} // closed when the last has left a gate that is shut; nil: it is open
}

func newGate() *gate {
	g := &gate{opened: make(chan struct{})}
	close(g.opened)
	return g
}

// enter waits until the gate is open, or ctx has ended.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		opened := g.opened
		if g.emptied == nil {
			g.inside++
			g.mu.Unlock()
			return nil
		}
		g.mu.Unlock()
		select {
		case <-opened:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.emptied != nil {
		close(g.emptied)
	}
}

// shut lets nobody in any more. It is done when the channel it returns is closed:
// when everybody has left.
func (g *gate) shut() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.emptied == nil {
		g.opened, g.emptied = make(chan struct{}), make(chan struct{})
		if g.inside == 0 {
			close(g.emptied)
		}
	}
	return g.emptied
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.emptied == nil {
		return
	}
	if g.inside > 0 {
		close(g.emptied) // nobody has to wait for them now
	}
	g.emptied = nil
	close(g.opened)
}

// pauseControl serves the socket: one connection after the other, as it would be
// no use if several had their say.
type pauseControl struct {
	gate   *gate
	l      net.Listener
	log    *slog.Logger
	served sync.WaitGroup

	mu     sync.Mutex
	conn   net.Conn // that is served, or nil
	closed bool
}

func (c *pauseControl) serve() {
	for {
		conn, err := c.l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				c.log.Error("pausing cannot be controlled any more", "reason", err)
			}
			return
		}
		if c.enter(conn) {
			c.talk(conn)
		}
		conn.Close()
	}
}

// enter takes note of conn, unless all is over.
func (c *pauseControl) enter(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	return !c.closed
}

// talk obeys single characters: p pauses, r resumes. Each is answered in upper
// case when it has been done, what is not known by X.
func (c *pauseControl) talk(conn net.Conn) {
	var b [1]byte
	for {
		if _, err := conn.Read(b[:]); err != nil {
			return
		}
		answer := byte('X')
		switch b[0] {
		case ' ', '\t', '\r', '\n':
			continue
		case 'p':
			<-c.gate.shut()
			answer = 'P'
			c.log.Info("requests are paused")
		case 'r':
			c.gate.open()
			answer = 'R'
			c.log.Info("requests are resumed")
		}
		if _, err := conn.Write([]byte{answer}); err != nil {
			return
		}
	}
}

func (c *pauseControl) close() error {
	err := c.l.Close()
	c.mu.Lock()
	c.closed = true
	if c.conn != nil {
		c.conn.Close()
	}
	c.mu.Unlock()
	c.gate.open()
	c.served.Wait()
	return err
}
