// Package proxy is the nbd plugin: an export of another NBD server, as
// nbdkit-nbd-plugin(1) has it. Unlike there, a connection that is lost is made
// anew.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"nbd-ktls-server/backends/nbdclient"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/vsock"
	"nbd-ktls-server/plugins/plugin"
)

// Plugin is the nbd plugin.
var Plugin = plugin.Plugin{
	Name:      "nbd",
	Summary:   "an export of another NBD server, or of one that is run for it: qcow2, HTTP and so on",
	Usage:     "nbd [uri=]URI | socket=PATH | hostname=HOST | vsock=CID [port=PORT] | socket-fd=FD | command=COMMAND [arg=ARG...] [export=NAME | dynamic-export=BOOL] [shared=BOOL] [retry=N] [connections=N] [reconnect=TIME] [replay=SIZE] [tls=off|on|require] [tls-certificates=DIR] [tls-verify=BOOL] [tls-hostname=NAME]",
	Magic:     "uri",
	Configure: configure,
	Programs:  []string{"command"},
}

// The defaults of the parameters that are not nbdkit's.
const (
	defaultReconnect = 30 * time.Second
	defaultReplay    = 32 << 20
	// retryDelay is between attempts to connect for the first time.
	retryDelay = time.Second
	maxRetries = 1 << 20
)

func configure(p *plugin.Params) (*plugin.Source, error) {
	w, err := findWay(p)
	if err != nil {
		return nil, err
	}
	s := &source{target: nbdclient.Target{Dial: w.dial, Export: w.export}, child: w.child}
	if err := s.setTLS(p, w); err != nil {
		return nil, err
	}
	if err := s.setOptions(p, w); err != nil {
		return nil, err
	}
	if s.shared && !p.Lazy {
		if _, err := s.client(context.Background()); err != nil {
			s.close()
			return nil, err
		}
	}
	out := &plugin.Source{Open: s.open, Close: s.close}
	if s.dynamic {
		out.List = s.list
	}
	return out, nil
}

// source is where connections of clients get theirs from.
type source struct {
	target          nbdclient.Target
	opts            nbdclient.Options
	retry           uint64
	shared, dynamic bool
	child           *child // that is the server, or nil

	mu  sync.Mutex
	all *nbdclient.Client // what they share, or nil
}

func (s *source) setOptions(p *plugin.Params, w *way) (err error) {
	if export, ok := p.String("export"); ok {
		if w.uri {
			return errors.New("export= does not go with uri=, which has it in it")
		}
		s.target.Export = export
	}
	if s.dynamic, err = p.Bool("dynamic-export", false); err != nil {
		return err
	}
	if s.shared, err = p.Bool("shared", w.once); err != nil {
		return err
	}
	switch {
	case w.once && !s.shared:
		return errors.New("shared=false does not go with command= and socket-fd=, which give one connection")
	case s.dynamic && s.shared:
		return errors.New("dynamic-export=true does not go with a shared connection, which has one export")
	case s.dynamic && s.target.Export != "" && !w.uri:
		return errors.New("dynamic-export=true does not go with export=")
	}
	if s.retry, err = p.Uint("retry", 0); err != nil {
		return err
	}
	connections, err := p.Uint("connections", 1)
	if err != nil {
		return err
	}
	if s.retry > maxRetries || connections < 1 || connections > nbdclient.MaxConnections {
		return fmt.Errorf("retry= is at most %d, connections= from 1 to %d", maxRetries, nbdclient.MaxConnections)
	}
	s.opts = nbdclient.Options{Connections: int(connections), Shared: s.shared, Log: p.Log, Replay: defaultReplay}
	if s.opts.Reconnect, err = p.Duration("reconnect", defaultReconnect); err != nil {
		return err
	}
	if n, ok, err := p.Size("replay"); err != nil {
		return err
	} else if ok {
		s.opts.Replay = n
	}
	if w.fd {
		s.opts.Connections, s.opts.Reconnect = 1, 0
	}
	if s.opts.Reconnect == 0 {
		s.opts.Replay = 0
	}
	return nil
}

func (s *source) open(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
	if s.shared {
		c, err := s.client(ctx)
		if err != nil {
			return nil, err
		}
		return c.Open(ctx, nil), nil
	}
	t := s.target
	if s.dynamic {
		t.Export = info.Name
	}
	c, err := s.connect(ctx, t)
	if err != nil {
		return nil, err
	}
	return c.Open(ctx, c.Close), nil
}

// client returns the client that all share.
func (s *source) client(ctx context.Context) (*nbdclient.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all != nil {
		return s.all, nil
	}
	if s.child != nil {
		if err := s.child.start(); err != nil {
			return nil, err
		}
	}
	all, err := s.connect(ctx, s.target)
	if err != nil && s.child != nil {
		err = fmt.Errorf("the server that is run, %s: %w", s.child.argv[0], err)
	}
	s.all = all
	return all, err
}

// connect opens the export, and tries again as often as it may.
func (s *source) connect(ctx context.Context, t nbdclient.Target) (*nbdclient.Client, error) {
	for n := uint64(0); ; n++ {
		c, err := nbdclient.New(ctx, t, s.opts)
		if err == nil || n == s.retry || errors.Is(err, nbd.ErrNoExport) {
			return c, err
		}
		select {
		case <-time.After(retryDelay):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (s *source) list(ctx context.Context, _ nbd.Client) ([]plugin.Entry, error) {
	all, err := s.target.List(ctx)
	entries := make([]plugin.Entry, len(all))
	for i, e := range all {
		entries[i] = plugin.Entry{Name: e.Name, Description: e.Description}
	}
	return entries, err
}

func (s *source) close() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all != nil {
		err = s.all.Close()
	}
	if s.child != nil {
		s.child.end()
	}
	return err
}

// defaultPort is that of NBD (proto.md).
const defaultPort = "10809"

// keepAlive finds out within half a minute that a host has gone.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

func dialTo(network, address string) func(context.Context) (net.Conn, error) {
	d := &net.Dialer{KeepAliveConfig: keepAlive}
	return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, network, address) }
}

func dialVsockTo(cid, port string) (func(context.Context) (net.Conn, error), error) {
	c, err := strconv.ParseUint(cid, 0, 32)
	if err != nil {
		return nil, fmt.Errorf("vsock: %q is not the number of a machine", cid)
	}
	n, err := strconv.ParseUint(port, 0, 32)
	if err != nil {
		return nil, fmt.Errorf("vsock: %q is not the number of a port", port)
	}
	return func(ctx context.Context) (net.Conn, error) { return vsock.Dial(ctx, uint32(c), uint32(n)) }, nil
}
