package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nbd-ktls-server/plugins/plugin"
)

// The parameters that a URI may have, too.
const (
	tlsCertificates = "tls-certificates"
	tlsVerify       = "tls-verify"
	tlsHostname     = "tls-hostname"
)

// setTLS says how to begin TLS: not at all by default, if it can be had where
// there is another parameter about it, and always where a URI says so.
func (s *source) setTLS(p *plugin.Params, w *way) error {
	mode, given := p.String("tls")
	get := func(key string) (string, bool) {
		if v, ok := p.String(key); ok {
			return v, true
		}
		return w.query.Get(key), w.query.Has(key)
	}
	if _, ok := p.String("tls-psk"); ok {
		return errors.New("tls-psk: there are no pre-shared keys yet; use certificates")
	}
	dir, hasDir := get(tlsCertificates)
	verify, hasVerify := get(tlsVerify)
	name, hasName := get(tlsHostname)
	_, hasUser := p.String("tls-username") // which certificates do not need
	switch {
	case w.tls:
		if given && mode != "require" {
			return fmt.Errorf("tls=%s does not go with a URI that asks for TLS", mode)
		}
		mode = "require"
	case given:
	case hasDir || hasVerify || hasName || hasUser:
		mode = "on"
	default:
		mode = "off"
	}
	switch mode {
	case "off":
		return nil
	case "on", "require":
	default:
		return fmt.Errorf("tls=%s: it must be one of off, on, require", mode)
	}
	check := true
	if hasVerify {
		var err error
		if check, err = plugin.ParseBool(verify); err != nil {
			return fmt.Errorf("tls-verify: %w", err)
		}
	}
	if name == "" {
		name = w.host
	}
	var err error
	s.target.TLS, err = tlsConfig(dir, name, check)
	s.target.TLSOptional = mode == "on"
	return err
}

// tlsConfig makes a configuration of a directory as libnbd has it; "" is where
// libnbd looks. Without a name, a server is believed that has any certificate of
// the authority.
func tlsConfig(dir, name string, check bool) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: name, InsecureSkipVerify: !check || name == ""}
	if dir == "" {
		dir = defaultDir()
	}
	if check && name == "" {
		c.VerifyConnection = func(s tls.ConnectionState) error { return verifyChain(c.RootCAs, s.PeerCertificates) }
	}
	if dir == "" {
		return c, nil
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		return nil, err
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: there is no certificate in it", filepath.Join(dir, "ca-cert.pem"))
	}
	own, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
	switch {
	case err == nil:
		c.Certificates = []tls.Certificate{own}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return c, nil
}

// verifyChain verifies a certificate of which the name does not matter.
func verifyChain(roots *x509.CertPool, chain []*x509.Certificate) error {
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(opts)
	return err
}

// defaultDir is where libnbd looks for certificates; "" if there are none: then
// the system says who is believed.
func defaultDir() string {
	dirs := []string{"/etc/pki/libnbd"}
	if home, err := os.UserHomeDir(); err == nil && os.Geteuid() != 0 {
		dirs = []string{filepath.Join(home, ".pki/libnbd"), filepath.Join(home, ".config/pki/libnbd")}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "ca-cert.pem")); err == nil {
			return dir
		}
	}
	return ""
}
