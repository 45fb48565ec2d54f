package tlsengine

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"nbd-ktls-server/tlsengine/pki"
)

// Config says with which certificates to serve.
type Config struct {
	// Dir holds ca-cert.pem, server-cert.pem, server-key.pem and, perhaps,
	// ca-crl.pem.
	Dir string
	// VerifyPeer refuses clients without a certificate issued by the CA and
	// not revoked.
	VerifyPeer bool
	// MinTLS13 refuses TLS 1.2.
	MinTLS13 bool

	Options
}

// Options are for those who know why.
type Options struct {
	KTLS KTLS
	// RekeyBytes is how many bytes we send under one key at most; 0: as many as
	// the cipher allows.
	RekeyBytes int64
	// RekeyRecords is likewise in records.
	RekeyRecords uint64
}

// minRekeyRecords leaves room for a KeyUpdate and for data before it.
const minRekeyRecords = 4

// credentials are what is read from a directory.
type credentials struct {
	config12, config13 *tls.Config
	verifier           *verifier // nil: clients need no certificate
	validity           Validity
}

// Validity says how long what was read is good for.
type Validity struct {
	// Certificate is when the server's certificate expires.
	Certificate time.Time
	// Revocations is when the revocation list should have been replaced; zero
	// without one.
	Revocations time.Time
}

// load reads a directory.
func load(c *Config) (*credentials, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(c.Dir, pki.ServerCert), filepath.Join(c.Dir, pki.ServerKey))
	if err != nil {
		return nil, fmt.Errorf("tls: the server's certificate: %w", err)
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS12,
		// A ticket would be a way in that outlives the certificate, and a record
		// sent before the first reply.
		SessionTicketsDisabled: true,
		// Replies are long: a first kilobyte soon is worth nothing.
		DynamicRecordSizingDisabled: true,
	}
	if c.MinTLS13 || c.KTLS == KTLSRequire {
		config.MinVersion = tls.VersionTLS13 // the records of 1.2 are crypto/tls's
	}
	cr := &credentials{config12: config, config13: config.Clone(), validity: Validity{Certificate: cert.Leaf.NotAfter}}
	if !c.VerifyPeer {
		return cr, nil
	}
	cas, err := loadCAs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("tls: the certificate authority: %w", err)
	}
	revoked, until, err := loadRevoked(c.Dir, cas)
	if err != nil {
		return nil, fmt.Errorf("tls: the revocation list: %w", err)
	}
	cr.validity.Revocations = until
	cr.verifier = &verifier{roots: x509.NewCertPool(), revoked: revoked}
	for _, ca := range cas {
		cr.verifier.roots.AddCert(ca)
	}
	cr.config12.ClientCAs = cr.verifier.roots
	cr.config12.ClientAuth = tls.RequireAndVerifyClientCert
	cr.config12.VerifyConnection = cr.verifier.verify12
	// takeOver verifies it. The CAs are not named: a GnuTLS client that is told of
	// some looks for a certificate whose key fits the signature algorithms, too, and
	// thinks that none of TLS 1.3's fits an RSA key (3.7.9: they are RSA-PSS's).
	cr.config13.ClientAuth = tls.RequestClientCert
	return cr, nil
}

func loadCAs(dir string) ([]*x509.Certificate, error) {
	path := filepath.Join(dir, pki.CACert)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var cas []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		cas = append(cas, ca)
	}
	if len(cas) == 0 {
		return nil, fmt.Errorf("%s: there is no certificate in it", path)
	}
	return cas, nil
}

// revocations maps an issuer, in DER, to the serial numbers it has revoked.
type revocations map[string]map[string]bool

// loadRevoked reads the optional revocation lists. One that none of the CAs has
// signed is an error: to ignore it would let somebody in.
func loadRevoked(dir string, cas []*x509.Certificate) (_ revocations, until time.Time, _ error) {
	path := filepath.Join(dir, pki.CACRL)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, until, nil
	} else if err != nil {
		return nil, until, err
	}
	r := make(revocations)
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		l, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, until, fmt.Errorf("%s: %w", path, err)
		}
		if err := checkIssuer(l, cas); err != nil {
			return nil, until, fmt.Errorf("%s: %w", path, err)
		}
		if until.IsZero() || l.NextUpdate.Before(until) {
			until = l.NextUpdate
		}
		serials := r[string(l.RawIssuer)]
		if serials == nil {
			serials = make(map[string]bool)
			r[string(l.RawIssuer)] = serials
		}
		for _, e := range l.RevokedCertificateEntries {
			serials[e.SerialNumber.String()] = true
		}
	}
	if len(r) == 0 {
		return nil, until, fmt.Errorf("%s: there is no revocation list in it", path)
	}
	return r, until, nil
}

func checkIssuer(l *x509.RevocationList, cas []*x509.Certificate) error {
	for _, ca := range cas {
		if bytes.Equal(l.RawIssuer, ca.RawSubject) && l.CheckSignatureFrom(ca) == nil {
			return nil
		}
	}
	return fmt.Errorf("none of the certificate authorities has signed the list of %v", l.Issuer)
}

// any reports whether a certificate of chain has been revoked.
func (r revocations) any(chain []*x509.Certificate) bool {
	for _, c := range chain {
		if r[string(c.RawIssuer)][c.SerialNumber.String()] {
			return true
		}
	}
	return false
}
