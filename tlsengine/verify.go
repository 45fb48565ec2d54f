package tlsengine

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
)

// verifier decides about client certificates.
type verifier struct {
	roots   *x509.CertPool
	revoked revocations
}

// verify returns the chain that lets a client in. For what is wrong with a
// certificate crypto/tls knows one alert, bad_certificate, if it is we who find
// it: hence for TLS 1.3 we look after the handshake, when the alert can be ours
// (RFC 8446, Section 6.2).
func (v *verifier) verify(certs []*x509.Certificate) ([]*x509.Certificate, error) {
	if len(certs) == 0 {
		return nil, fatal(alertCertificateRequired, "the client didn't provide a certificate")
	}
	opts := x509.VerifyOptions{
		Roots:         v.roots,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := certs[0].Verify(opts)
	if err != nil {
		return nil, fatal(certificateAlert(err), "the client's certificate (%s) was refused: %v", certs[0].Subject, err)
	}
	return v.unrevoked(chains)
}

// unrevoked returns the first chain without a revoked link.
func (v *verifier) unrevoked(chains [][]*x509.Certificate) ([]*x509.Certificate, error) {
	for _, chain := range chains {
		if !v.revoked.any(chain) {
			return chain, nil
		}
	}
	leaf := chains[0][0]
	return nil, fatal(alertCertificateRevoked, "the client's certificate (%s, serial number %s) has been revoked", leaf.Subject, leaf.SerialNumber)
}

// certificateAlert is the alert for an error of x509.Certificate.Verify.
func certificateAlert(err error) Alert {
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return alertUnknownCA
	case !errors.As(err, &invalid):
		return alertBadCertificate
	case invalid.Reason == x509.Expired:
		return alertCertificateExpired
	case invalid.Reason == x509.IncompatibleUsage:
		return alertUnsupportedCertificate
	}
	return alertBadCertificate
}

// verify12 refuses a client with TLS 1.2, whose chains crypto/tls has verified,
// if every one has a revoked link. The alert is crypto/tls's.
func (v *verifier) verify12(cs tls.ConnectionState) error {
	var ae *alertError
	if _, err := v.unrevoked(cs.VerifiedChains); errors.As(err, &ae) {
		return errors.New(ae.reason)
	}
	return nil
}
