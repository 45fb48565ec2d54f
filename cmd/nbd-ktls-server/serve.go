package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins"
	"nbd-ktls-server/systemd"
)

// serve is the main command: it serves one plugin until ctx ends.
func (o *options) serve(ctx context.Context, plugin string, args []string) error {
	if o.detaches() && !detached() {
		return detach(ctx)
	}
	log := o.newLog()
	srv, err := o.newServer(plugin, args, log)
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

// newServer makes a server of flags, plugin and parameters.
func (o *options) newServer(plugin string, args []string, log *slog.Logger) (*nbd.Server, error) {
	p, err := plugins.Find(plugin)
	if err != nil {
		return nil, err
	}
	source, err := p.New(args, o.readonly)
	if err != nil {
		return nil, err
	}
	srv := &nbd.Server{
		Exports: &pluginExports{source: source, readOnly: o.readonly, name: o.exportname, anyName: o.nbdkit},
		Limits:  nbd.Limits{Requests: o.threads, HandshakeTimeout: time.Duration(o.timeout)},
		Log:     log,
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
	at := o.location(ls)
	for _, l := range ls.all {
		log.Info("listening", "address", l.Addr(), "uri", at.uri(), "tls", o.tls)
	}
	if o.portGiven && o.port == "0" && o.run == "" {
		fmt.Println(at.port)
	}

	g, gctx := errgroup.WithContext(ctx)
	for _, l := range ls.all {
		g.Go(func() error { return srv.Serve(gctx, l) })
	}
	if o.certificateServer != nil {
		g.Go(func() error {
			watchCertificates(gctx, o.certificateServer, o.tlsCertificates, log)
			return nil
		})
	}
	context.AfterFunc(gctx, systemd.Stopping)
	systemd.Ready()
	if detached() {
		if err := finishDetaching(); err != nil {
			return err
		}
	}
	var status error
	if o.run != "" {
		status = runCommand(gctx, o.run, at.env())
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
