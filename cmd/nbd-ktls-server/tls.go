package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"nbd-ktls-server/ktls"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/tlsengine"
	"nbd-ktls-server/tlsengine/pki"
)

// autoCertificates, as the directory, makes one.
const autoCertificates = "auto"

// setTLS sets the server's TLS mode (proto.md, "TLS modes") as the flags say.
func (o *options) setTLS(s *nbd.Server, log *slog.Logger) error {
	if o.tls == tlsOff {
		if o.tlsCertificates != "" && !o.nbdkit {
			return errors.New("--tls=off does not go with --tls-certificates")
		}
		return nil
	}
	dir, err := o.certificates(log)
	if err != nil {
		return err
	}
	if dir == "" && o.tlsVerifyPeer {
		return errors.New("--tls-verify-peer, but there are no certificates: use --tls-certificates=DIR")
	}
	if dir == "" {
		o.tls = tlsOff
		log.Warn("TLS is off: --tls=on, but there are no certificates")
		return nil
	}
	o.tlsCertificates = dir
	ts, err := tlsengine.New(tlsengine.Config{
		Dir: dir, VerifyPeer: o.tlsVerifyPeer, MinTLS13: o.tlsMin13,
		Options: tlsengine.Options{KTLS: tlsengine.KTLS(o.ktls), RekeyBytes: int64(o.tlsRekeyAfter)},
	})
	if err != nil {
		return err
	}
	switch {
	case o.tls == tlsOn:
		log.Warn("everybody who can reach this server may use it: with --tls=on they may do so in plain text")
	case !o.tlsVerifyPeer:
		log.Warn("everybody who can reach this server may use it: --tls-verify-peer is off", "certificates", dir)
	}
	if err := noCoreDumps(); err != nil {
		return err
	}
	checkValidity(ts, log)
	if err := o.checkKernel(log); err != nil {
		return err
	}
	o.certificateServer = ts
	s.StartTLS = ts.StartTLS
	s.ForceTLS = o.tls == tlsRequire
	return nil
}

// checkKernel says at start what is to be expected of the kernel.
func (o *options) checkKernel(log *slog.Logger) error {
	if o.ktls == ktlsPolicy(tlsengine.KTLSOff) || o.unix != "" || o.single {
		return nil
	}
	support, err := ktls.Probe()
	if err == nil {
		err = support.Sends(ktls.AES128GCM)
	}
	switch require := o.ktls == ktlsPolicy(tlsengine.KTLSRequire); {
	case err == nil:
		log.Info("the kernel encrypts what is sent over TCP")
	case require && errors.Is(err, ktls.ErrNoRekey):
		log.Warn("connections will end when they need a new key", "reason", err)
	case require:
		return fmt.Errorf("--ktls=require: %w; see '%s probe'", err, o.name)
	default:
		log.Info("what is sent is encrypted in user space", "reason", err)
	}
	return nil
}

// certificates finds the certificate directory; "" if TLS can be done without.
func (o *options) certificates(log *slog.Logger) (string, error) {
	switch o.tlsCertificates {
	case autoCertificates:
		o.tlsVerifyPeer = true
		return autoPKI(log)
	case "":
		if o.nbdkit {
			return o.nbdkitCertificates()
		}
		return "", fmt.Errorf(`TLS needs certificates. Choose one of
  --tls-certificates=DIR   a directory with %s, %s and %s; make one with '%s pki DIR'
  --tls-certificates=auto  make one under your state directory, for servers and clients of this user
  --tls=off                no encryption: everybody on the way can read and change the data`,
			pki.CACert, pki.ServerCert, pki.ServerKey, o.name)
	}
	if _, err := os.Stat(filepath.Join(o.tlsCertificates, pki.ServerCert)); err != nil {
		return "", fmt.Errorf("--tls-certificates=%s: %w; make certificates with '%s pki %[1]s'", o.tlsCertificates, err, o.name)
	}
	return filepath.Abs(o.tlsCertificates)
}

// rootCertificates is where nbdkit looks for them if root runs it.
const rootCertificates = "/etc/pki/nbdkit"

// nbdkitCertificates looks where nbdkit does.
func (o *options) nbdkitCertificates() (string, error) {
	dirs := []string{rootCertificates}
	if home, err := os.UserHomeDir(); err == nil && os.Geteuid() != 0 {
		dirs = []string{filepath.Join(home, ".pki/nbdkit"), filepath.Join(home, ".config/pki/nbdkit")}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, pki.ServerCert)); err == nil {
			return dir, nil
		}
	}
	if o.tls == tlsRequire {
		return "", fmt.Errorf("--tls=require, but there are no certificates in %v: use --tls-certificates=DIR", dirs)
	}
	return "", nil
}
