package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"nbd-ktls-server/systemd"
	"nbd-ktls-server/tlsengine"
	"nbd-ktls-server/tlsengine/pki"
)

const (
	// watchInterval is how often the certificates are looked at.
	watchInterval = 2 * time.Second
	// warnInterval is how often it is said that they are about to expire.
	warnInterval = 24 * time.Hour
)

// watchCertificates reads the certificates again when they change, and when told
// by again, until ctx ends. Connections go on with what they began with, unless
// the client has been revoked.
func watchCertificates(ctx context.Context, ts *tlsengine.Server, dir string, log *slog.Logger, again <-chan struct{}) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	warn := time.NewTicker(warnInterval)
	defer warn.Stop()

	used := fingerprint(dir)
	for last := used; ; {
		select {
		case <-ctx.Done():
			return
		case <-warn.C:
			checkValidity(ts, log)
			continue
		case <-again:
			last = fingerprint(dir)
		case <-tick.C:
			// Several files change one after the other: wait until they rest.
			now := fingerprint(dir)
			if now == used || now != last {
				last = now
				continue
			}
		}
		used = last
		reloadCertificates(ts, dir, log)
	}
}

// hangups reads configuration and certificates again at each SIGHUP until ctx
// ends, unless that means that the terminal has been closed.
func (o *options) hangups(ctx context.Context, certificates chan<- struct{}) {
	if onTerminal() {
		return
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		systemd.Reloading()
		if o.reload != nil {
			o.reloads.add(o.reload())
		}
		select {
		case certificates <- struct{}{}:
		default: // told already, or there are none
		}
		systemd.Ready()
	}
}

// reloadCounts counts how often the configuration was read again.
type reloadCounts struct{ done, failed atomic.Int64 }

func (r *reloadCounts) add(err error) {
	if err != nil {
		r.failed.Add(1)
	} else {
		r.done.Add(1)
	}
}

func reloadCertificates(ts *tlsengine.Server, dir string, log *slog.Logger) {
	ended, err := ts.Reload()
	if err != nil {
		log.Error("the certificates cannot be read again; those in use stay", "certificates", dir, "reason", err)
		return
	}
	log.Info("the certificates were read again", "certificates", dir, "sessions revoked", ended)
	checkValidity(ts, log)
}

// fingerprint changes when one of the files does.
func fingerprint(dir string) (s string) {
	for _, name := range []string{pki.CACert, pki.CACRL, pki.ServerCert, pki.ServerKey} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err == nil {
			s += fmt.Sprint(name, fi.Size(), fi.ModTime().UnixNano(), fi.Sys().(*syscall.Stat_t).Ino, ";")
		}
	}
	return s
}

// checkValidity warns of what is about to expire.
func checkValidity(ts *tlsengine.Server, log *slog.Logger) {
	v := ts.Validity()
	switch left := time.Until(v.Certificate); {
	case left < 0:
		log.Warn("the server's certificate has expired: clients will refuse it", "expired", v.Certificate)
	case left < renewBefore:
		log.Warn("the server's certificate is about to expire", "expires", v.Certificate)
	}
	if !v.Revocations.IsZero() && time.Now().After(v.Revocations) {
		log.Warn("the revocation list is out of date; it is used nevertheless", "until", v.Revocations)
	}
}
