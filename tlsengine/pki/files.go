package pki

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The names of the files of a certificate directory, as GnuTLS's tools, QEMU,
// libnbd and nbdkit have them.
const (
	CACert     = "ca-cert.pem"
	CAKey      = "ca-key.pem"
	CACRL      = "ca-crl.pem"
	ServerCert = "server-cert.pem"
	ServerKey  = "server-key.pem"
	ClientCert = "client-cert.pem"
	ClientKey  = "client-key.pem"
)

// WriteCert writes a certificate for everybody to read.
func WriteCert(dir, name string, c *x509.Certificate) error {
	return writePEM(dir, name, "CERTIFICATE", c.Raw, 0o644)
}

// WriteKey writes a private key for its owner alone.
func WriteKey(dir, name string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(dir, name, "PRIVATE KEY", der, 0o600)
}

// WriteCRL writes a revocation list.
func WriteCRL(dir string, der []byte) error {
	return writePEM(dir, CACRL, "X509 CRL", der, 0o644)
}

// writePEM replaces a file as a whole, so that nobody ever reads half of it.
func writePEM(dir, name, kind string, der []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(dir, "."+name+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	err = errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, name))
}

// ReadPair reads a certificate and its key, which must belong together.
func ReadPair(dir, cert, key string) (*Pair, error) {
	c, err := tls.LoadX509KeyPair(filepath.Join(dir, cert), filepath.Join(dir, key))
	if err != nil {
		return nil, err
	}
	signer, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: a %T cannot sign", filepath.Join(dir, key), c.PrivateKey)
	}
	return &Pair{c.Leaf, signer}, nil
}

// ReadCert reads the first certificate of a file.
func ReadCert(dir, name string) (*x509.Certificate, error) {
	path := filepath.Join(dir, name)
	der, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func readPEM(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s: there is no PEM in it", path)
	}
	return block.Bytes, nil
}
