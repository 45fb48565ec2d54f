package pki_test

import (
	"crypto/rsa"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"nbd-ktls-server/tlsengine/pki"
)

func TestLeavesAreWhatClientsTake(t *testing.T) {
	for _, useRSA := range []bool{false, true} {
		ca, err := pki.NewCA("test", useRSA)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := ca.Issue(pki.Leaf{CommonName: "s", Names: []string{"host.example", "192.0.2.1", "::1", "spiffe://x/y"}, Server: true, RSA: useRSA})
		if err != nil {
			t.Fatal(err)
		}
		c := leaf.Cert
		if len(c.DNSNames) != 1 || len(c.IPAddresses) != 2 || len(c.URIs) != 1 {
			t.Errorf("names %v %v %v", c.DNSNames, c.IPAddresses, c.URIs)
		}
		if _, isRSA := leaf.Key.(*rsa.PrivateKey); isRSA != useRSA {
			t.Errorf("a %T", leaf.Key)
		}
		// QEMU wants key encipherment, or no key usage at all.
		want := x509.KeyUsage(0)
		if useRSA {
			want = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
		}
		if c.KeyUsage != want {
			t.Errorf("key usage %#x, want %#x", c.KeyUsage, want)
		}
		roots := x509.NewCertPool()
		roots.AddCert(ca.Cert)
		for _, name := range []string{"host.example", "192.0.2.1", "::1"} {
			if _, err := c.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
				t.Error(err)
			}
		}
		if _, err := c.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
			t.Error("a server's certificate is good for a client")
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.NewCA("test", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.WriteCert(dir, pki.CACert, ca.Cert); err != nil {
		t.Fatal(err)
	}
	if err := pki.WriteKey(dir, pki.CAKey, ca.Key); err != nil {
		t.Fatal(err)
	}
	back, err := pki.ReadPair(dir, pki.CACert, pki.CAKey)
	if err != nil || !back.Cert.Equal(ca.Cert) {
		t.Errorf("read back: %v", err)
	}
	if fi, _ := os.Stat(filepath.Join(dir, pki.CAKey)); fi.Mode() != 0o600 {
		t.Errorf("the key has mode %v", fi.Mode())
	}
	if left, _ := filepath.Glob(dir + "/.*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	other, _ := pki.NewCA("other", false)
	if _, err := other.Revoke(ca.Cert); err == nil {
		t.Error("somebody else's certificate was revoked")
	}
}
