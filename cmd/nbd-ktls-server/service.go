package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"reflect"

	"github.com/spf13/cobra"

	"nbd-ktls-server/cmd/nbd-ktls-server/config"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
	"nbd-ktls-server/systemd"
	"nbd-ktls-server/tlsengine"
)

// service serves what a configuration file says, which can change.
type service struct {
	o       *options
	file    string
	config  *config.Config
	catalog *catalog
	log     *slog.Logger
	level   *slog.LevelVar
	box     *sandbox // that the process is in; nil: in none
}

// serveConfig is the main command with --config.
func (o *options) serveConfig(ctx context.Context) error {
	c, err := config.Load(o.config)
	if err != nil {
		return err
	}
	s := &service{o: o, file: o.config, config: c, level: new(slog.LevelVar)}
	s.level.Set(s.logLevel(c))
	s.log = newLogger(c.Log.Format, s.level)
	if err := o.take(c); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.catalog, err = newCatalog(c, plugin.Host{Log: s.log, Exit: func(why string) {
		s.log.Info("the server ends", "reason", why)
		cancel()
	}})
	if err != nil {
		return err
	}
	defer s.catalog.close()
	srv := &nbd.Server{Exports: s.catalog, Limits: limits(&c.Limits), Log: s.log}
	if err := o.setTLS(srv, s.log); err != nil {
		return err
	}
	ls, err := s.listen(ctx, c.Listen)
	if err != nil {
		return err
	}
	defer ls.close()
	if err := s.confine(c); err != nil {
		return err
	}
	s.log.Info("configuration read", "file", s.file, "exports", len(c.Exports))
	systemd.Status(fmt.Sprintf("exports: %d", len(c.Exports)))
	o.reload = s.reload
	return o.serveOn(ctx, srv, ls, s.log)
}

// take sets the options that a configuration file has, too.
func (o *options) take(c *config.Config) error {
	o.tls, o.tlsVerifyPeer = c.TLS.Mode, c.TLS.Verifies()
	if c.TLS.Certificates != "" {
		o.tlsCertificates = c.TLS.Certificates
	}
	o.tlsMin13 = c.TLS.MinimumVersion == "1.3"
	o.tlsRekeyAfter = size(c.TLS.RekeyAfter.Bytes())
	if c.Metrics != "" {
		o.metrics = c.Metrics
	}
	if c.TLS.KTLS == "" {
		return nil
	}
	return o.ktls.Set(c.TLS.KTLS)
}

// limits are those of a configuration file.
func limits(l *config.Limits) nbd.Limits {
	return nbd.Limits{
		Connections: l.Connections, Handshakes: l.Handshakes,
		HandshakeTimeout: l.HandshakeTimeout.Duration(), StallTimeout: l.StallTimeout.Duration(), DrainTimeout: l.DrainTimeout.Duration(),
		Requests: l.Requests, RequestsTotal: l.RequestsTotal,
		Bytes: l.Bytes.Bytes(), BytesTotal: l.BytesTotal.Bytes(),
	}
}

func (s *service) logLevel(c *config.Config) slog.Level {
	if s.o.verbose {
		return slog.LevelDebug
	}
	var level slog.Level
	level.UnmarshalText([]byte(c.Log.Level)) // it has been checked; none is info
	return level
}

// listen opens the sockets of the configuration, or the one of the flags' default
// if it has none, or takes systemd's.
func (s *service) listen(ctx context.Context, where []config.Listen) (*listeners, error) {
	if len(where) == 0 {
		return s.o.listen(ctx)
	}
	ls := &listeners{}
	activated := map[string][]net.Listener{}
	if systemd.Activated() {
		var err error
		if activated, err = systemd.Named(); err != nil {
			return nil, err
		}
	}
	for i, l := range where {
		if err := ls.add(ctx, l, activated); err != nil {
			ls.close()
			return nil, s.config.At(fmt.Sprintf("$.listen[%d]", i), err)
		}
	}
	for name, unused := range activated {
		for _, l := range unused {
			s.log.Warn("a socket that systemd has passed is not in the configuration", "name", name, "address", l.Addr())
			l.Close()
		}
	}
	ls.prepare()
	return ls, nil
}

// add listens where a configuration says; what it takes of activated it removes
// there.
func (ls *listeners) add(ctx context.Context, where config.Listen, activated map[string][]net.Listener) error {
	switch {
	case where.TCP != "":
		l, err := listenStream(ctx, "tcp", where.TCP)
		if err != nil {
			return err
		}
		ls.all = append(ls.all, l)
		return nil
	case where.Unix != "":
		return ls.listenUnix(ctx, where.Unix)
	case where.VSock != "":
		return ls.listenVsock(where.VSock)
	}
	found := false
	for name, all := range activated {
		if where.Systemd == "*" || where.Systemd == name {
			ls.all = append(ls.all, all...)
			delete(activated, name)
			found = true
		}
	}
	if !found {
		return fmt.Errorf("systemd has passed no socket called %q (FileDescriptorName=)", where.Systemd)
	}
	return nil
}

// reload reads the file again. If it cannot be used everything stays as it is.
func (s *service) reload() error {
	err := s.tryReload()
	if err != nil {
		s.log.Error("the configuration was not changed", "file", s.file, "reason", err)
		systemd.Status("the configuration was not changed: " + err.Error())
	} else {
		systemd.Status(fmt.Sprintf("exports: %d", len(s.config.Exports)))
		s.log.Info("configuration read again", "file", s.file, "exports", len(s.config.Exports))
	}
	return err
}

func (s *service) tryReload() error {
	c, err := config.Load(s.file)
	if err != nil {
		return err
	}
	for _, part := range []struct {
		name     string
		old, now any
	}{
		{"listen", s.config.Listen, c.Listen},
		{"tls", s.config.TLS, c.TLS},
		{"limits", s.config.Limits, c.Limits},
		{"metrics", s.config.Metrics, c.Metrics},
	} {
		if !reflect.DeepEqual(part.old, part.now) {
			return fmt.Errorf("%s: %s has changed: that needs a restart", s.file, part.name)
		}
	}
	if err := s.fits(c); err != nil {
		return fmt.Errorf("%s: %w", s.file, err)
	}
	if err := s.catalog.replace(c); err != nil {
		return err
	}
	s.config = c
	s.level.Set(s.logLevel(c))
	return nil
}

// newCheckConfig is a command that says what is wrong with a configuration file.
func newCheckConfig() *cobra.Command {
	return &cobra.Command{
		Use:   "check-config FILE",
		Short: "Say what is wrong with a configuration file",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := config.Load(args[0])
			if err != nil {
				return err
			}
			if c.TLS.Mode != tlsOff {
				if _, err := tlsengine.New(tlsengine.Config{Dir: c.TLS.Certificates, VerifyPeer: c.TLS.Verifies()}); err != nil {
					return c.At("$.tls.certificates", err)
				}
			}
			cat, err := newCatalog(c, plugin.Host{Log: slog.New(slog.DiscardHandler), Exit: func(string) {}})
			if err != nil {
				return err
			}
			cat.close()
			fmt.Printf("%s is good: %d exports\n", args[0], len(c.Exports))
			return nil
		},
	}
}
