// Package pki makes the X.509 certificates that a TLS server and its clients
// need, in files with the names that GnuTLS's tools, QEMU, libnbd and nbdkit
// look for.
//
// Keys are ECDSA P-256 unless RSA is asked for: signing is 30 times cheaper.
// Leaves carry no key usage extension: QEMU wants "key encipherment" in it if it
// is there, which has no meaning for an ECDSA key and OpenSSL would not look for.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"
)

// How long certificates are valid, if nothing else is said, and how far back
// they begin, for clients whose clock is slow.
const (
	CALifetime   = 10 * 365 * 24 * time.Hour
	LeafLifetime = 2 * 365 * 24 * time.Hour
	backdate     = 24 * time.Hour
)

// Pair is a certificate and its private key.
type Pair struct {
	Cert *x509.Certificate
	Key  crypto.Signer
}

// Leaf describes a certificate to be issued.
type Leaf struct {
	// CommonName is the subject's name.
	CommonName string
	// Names are the DNS names, IP addresses and URIs it is for.
	Names []string
	// Server and Client say what it may be used for.
	Server, Client bool
	// RSA makes an RSA-2048 key.
	RSA bool
	// NotBefore and NotAfter default to yesterday and LeafLifetime from now.
	NotBefore, NotAfter time.Time
}

// NewCA makes a certificate authority.
func NewCA(commonName string, useRSA bool) (*Pair, error) {
	now := time.Now()
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(CALifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	return sign(t, nil, useRSA)
}

// Issue makes a certificate signed by ca.
func (ca *Pair) Issue(l Leaf) (*Pair, error) {
	now := time.Now()
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: l.CommonName},
		NotBefore:             l.NotBefore,
		NotAfter:              l.NotAfter,
		BasicConstraintsValid: true,
	}
	if t.NotBefore.IsZero() {
		t.NotBefore = now.Add(-backdate)
	}
	if t.NotAfter.IsZero() {
		t.NotAfter = now.Add(LeafLifetime)
	}
	if t.NotAfter.After(ca.Cert.NotAfter) {
		t.NotAfter = ca.Cert.NotAfter
	}
	if l.RSA {
		t.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	}
	if l.Server {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if l.Client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if err := addNames(t, l.Names); err != nil {
		return nil, err
	}
	return sign(t, ca, l.RSA)
}

func addNames(t *x509.Certificate, names []string) error {
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if strings.Contains(name, "://") {
			u, err := url.Parse(name)
			if err != nil {
				return err
			}
			t.URIs = append(t.URIs, u)
		} else if name == "" {
			return errors.New("a certificate cannot be for an empty name")
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	return nil
}

// sign completes t with a new key and signs it, by itself if ca is nil.
func sign(t *x509.Certificate, ca *Pair, useRSA bool) (*Pair, error) {
	key, err := newKey(useRSA)
	if err != nil {
		return nil, err
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, err
	}
	parent := &Pair{t, key}
	if ca != nil {
		parent = ca
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent.Cert, key.Public(), parent.Key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &Pair{cert, key}, err
}

func newKey(useRSA bool) (crypto.Signer, error) {
	if useRSA {
		return rsa.GenerateKey(rand.Reader, 2048)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// Revoke returns a revocation list, in DER, of these certificates.
func (ca *Pair) Revoke(certs ...*x509.Certificate) ([]byte, error) {
	now := time.Now()
	l := &x509.RevocationList{
		Number:     big.NewInt(now.UnixNano()),
		ThisUpdate: now.Add(-backdate),
		NextUpdate: now.Add(LeafLifetime),
	}
	for _, c := range certs {
		if c.CheckSignatureFrom(ca.Cert) != nil {
			return nil, fmt.Errorf("%s was not issued by %s", c.Subject, ca.Cert.Subject)
		}
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: now})
	}
	return x509.CreateRevocationList(rand.Reader, l, ca.Cert, ca.Key)
}
