package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/plugins"
	"nbd-ktls-server/plugins/plugin"
	"nbd-ktls-server/systemd"
)

// serve is the main command: it serves one plugin until ctx ends.
func (o *options) serve(ctx context.Context, name string, args []string) error {
	if o.detaches() && !detached() {
		return detach(ctx)
	}
	log := o.newLog()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	source, err := o.newSource(name, args, log, func() { cancel(errExit) })
	if err != nil {
		return err
	}
	defer closeSource(source, log)
	srv, err := o.newServer(source, log)
	if err != nil {
		return err
	}
	if o.exitWithParent {
		var cancel context.CancelFunc
		if ctx, cancel, err = withParent(ctx); err != nil {
			return err
		}
		defer cancel()
	}
	if o.single {
		return o.serveStdio(ctx, srv)
	}
	ls, err := o.listen(ctx)
	if err != nil {
		return err
	}
	defer ls.close()
	return o.serveOn(ctx, srv, ls, log)
}

// newSource makes what is to be exported of a plugin's name and parameters. exit
// ends the server.
func (o *options) newSource(name string, args []string, log *slog.Logger, exit func()) (*plugin.Source, error) {
	var stdin io.Reader = os.Stdin
	if o.single {
		stdin = nil
	}
	var own func(string) error
	if o.user != "" || o.group != "" {
		own = o.own
	}
	return plugins.Configure(name, o.filters, args, plugin.Host{
		ReadOnly: o.readonly, Log: log, Stdin: stdin, Own: own,
		Exit: func(why string) {
			log.Info("the server ends", "reason", why)
			exit()
		},
	})
}

func closeSource(s *plugin.Source, log *slog.Logger) {
	if s.Close == nil {
		return
	}
	if err := s.Close(); err != nil {
		log.Warn("closing the plugin failed", "reason", err)
	}
}

// newServer makes a server of a source, as the flags say.
func (o *options) newServer(source *plugin.Source, log *slog.Logger) (*nbd.Server, error) {
	srv := &nbd.Server{
		Exports: &pluginExports{source: source, readOnly: o.readonly, name: o.exportname, anyName: o.nbdkit},
		Limits:  nbd.Limits{Requests: o.threads, HandshakeTimeout: time.Duration(o.timeout)},
		Log:     log,

		HiddenFlags: ^wire.HandshakeFlags(o.maskHandshake),
	}
	if o.noSR {
		srv.Unsupported = append(srv.Unsupported, wire.OptStructuredReply, wire.OptExtendedHeaders)
	}
	if o.noMC {
		srv.Unsupported = append(srv.Unsupported, wire.OptListMetaContext, wire.OptSetMetaContext)
	}
	if o.timeout == 0 {
		srv.Limits.HandshakeTimeout = -1
	}
	return srv, o.setTLS(srv, log)
}

// serveOn serves on listeners, and runs the --run command beside it.
func (o *options) serveOn(ctx context.Context, srv *nbd.Server, ls *listeners, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := o.writePID(); err != nil {
		return err
	}
	if err := o.settle(log, ls); err != nil {
		return err
	}
	at := o.location(ls)
	for _, l := range ls.all {
		log.Info("listening", "address", l.Addr(), "uri", at.uri(), "tls", o.tls)
	}
	if o.portGiven && o.port == "0" && o.run == "" {
		fmt.Println(at.port)
	}
	if o.printURI {
		fmt.Println(at.uri())
	}

	g, gctx := errgroup.WithContext(ctx)
	for _, l := range ls.all {
		g.Go(func() error { return srv.Serve(gctx, l) })
	}
	again := make(chan struct{}, 1)
	if o.certificateServer != nil {
		g.Go(func() error {
			watchCertificates(gctx, o.certificateServer, o.tlsCertificates, log, again)
			return nil
		})
	}
	if o.metrics != "" {
		m := &monitor{server: srv, tls: o.certificateServer, begun: time.Now(), reloads: &o.reloads}
		if o.reload == nil {
			m.reloads = nil
		}
		l, err := m.listen(ctx, o.metrics, log)
		if err != nil {
			return err
		}
		g.Go(func() error { return m.serve(gctx, l) })
	}
	if o.certificateServer != nil || o.reload != nil {
		g.Go(func() error {
			o.hangups(gctx, again)
			return nil
		})
	}
	g.Go(func() error { return systemd.Watchdog(gctx) })
	g.Go(func() error {
		<-gctx.Done()
		systemd.Stopping()
		return nil
	})
	systemd.Ready()
	if detached() {
		if err := o.finishDetaching(); err != nil {
			return err
		}
	}
	var status error
	if o.run != "" {
		status = runCommand(unlessExit(gctx), o.run, at.env())
		cancel()
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return status
}

// serveStdio serves one client on standard input and output.
func (o *options) serveStdio(ctx context.Context, srv *nbd.Server) error {
	nc, err := stdioConn()
	if err != nil {
		return err
	}
	if err := o.writePID(); err != nil {
		return err
	}
	if err := o.settle(slog.New(slog.DiscardHandler), &listeners{}); err != nil {
		return err
	}
	if srv.ServeConn(ctx, nc) != nil {
		return exitStatus(1) // it has logged why
	}
	return nil
}

// writePID writes the --pidfile.
func (o *options) writePID() error {
	if o.pidfile == "" {
		return nil
	}
	return os.WriteFile(o.pidfile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
}
