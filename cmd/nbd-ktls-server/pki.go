package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"nbd-ktls-server/tlsengine/pki"
)

// pkiOptions say what certificates to make.
type pkiOptions struct {
	hosts  []string
	client string
	caDir  string
	days   int
	rsa    bool
	renew  bool
}

func newPKI() *cobra.Command {
	var o pkiOptions
	cmd := &cobra.Command{
		Use:   "pki [flags] DIR",
		Short: "Make certificates for a server and its clients",
		Long: `Make a certificate authority, a server and a client certificate in DIR, under
the names that nbdkit, QEMU, libnbd and GnuTLS look for. What is there already
is kept.

DIR is then ready to be used by the server and by clients on the same machine.
For a client elsewhere make a directory of its own and copy it there; it holds
no key but the client's:

  nbd-ktls-server pki /etc/pki/nbd --host storage.example.com
  nbd-ktls-server pki --ca /etc/pki/nbd --client vm-host-7 ./vm-host-7

DIR/ca-key.pem can make certificates for anybody. Keep it, but the server does
not need it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			made, err := o.make(args[0])
			for _, name := range made {
				fmt.Println(filepath.Join(args[0], name))
			}
			if err == nil && len(made) == 0 {
				fmt.Fprintln(os.Stderr, "nothing to do: the certificates are there; --renew makes new ones")
			}
			return err
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVar(&o.hosts, "host", nil, "name or IP address by which clients reach the server; repeat it for more (default this host's name; localhost is always one)")
	f.StringVar(&o.client, "client", "client", "common name of the client")
	f.StringVar(&o.caDir, "ca", "", "make a client's directory, signed by the authority in this one")
	f.IntVar(&o.days, "days", int(pki.LeafLifetime/(24*time.Hour)), "how long the certificates are valid")
	f.BoolVar(&o.rsa, "rsa", false, "RSA-2048 keys instead of P-256")
	f.BoolVar(&o.renew, "renew", false, "make new server and client certificates, signed by the same authority")
	return cmd
}

// make makes what is missing in dir, and returns the names of the files made.
func (o *pkiOptions) make(dir string) (made []string, err error) {
	if o.days < 1 {
		return nil, fmt.Errorf("--days=%d: it must be at least 1", o.days)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	m := maker{dir: dir}
	if o.caDir != "" {
		ca, err := pki.ReadPair(o.caDir, pki.CACert, pki.CAKey)
		if err != nil {
			return nil, err
		}
		if old, err := pki.ReadCert(dir, pki.CACert); err == nil && !old.Equal(ca.Cert) {
			return nil, fmt.Errorf("%s belongs to another authority: choose another directory", dir)
		} else if err != nil {
			m.writeCert(pki.CACert, ca.Cert)
		}
		m.leaf(ca, o.clientLeaf(), pki.ClientCert, pki.ClientKey, o.renew)
		return m.made, m.err
	}
	ca := m.authority(o.rsa)
	m.leaf(ca, o.serverLeaf(), pki.ServerCert, pki.ServerKey, o.renew)
	m.leaf(ca, o.clientLeaf(), pki.ClientCert, pki.ClientKey, o.renew)
	return m.made, m.err
}

func (o *pkiOptions) notAfter() time.Time { return time.Now().AddDate(0, 0, o.days) }

func (o *pkiOptions) clientLeaf() pki.Leaf {
	return pki.Leaf{CommonName: o.client, Client: true, RSA: o.rsa, NotAfter: o.notAfter()}
}

func (o *pkiOptions) serverLeaf() pki.Leaf {
	hosts := o.hosts
	if len(hosts) == 0 {
		if h, err := os.Hostname(); err == nil {
			hosts = []string{h}
		}
	}
	names := append(hosts[:len(hosts):len(hosts)], "localhost", "127.0.0.1", "::1")
	return pki.Leaf{CommonName: names[0], Names: names, Server: true, RSA: o.rsa, NotAfter: o.notAfter()}
}

// maker makes files in a directory until something goes wrong.
type maker struct {
	dir  string
	made []string
	err  error
}

func (m *maker) do(name string, f func() error) {
	if m.err != nil {
		return
	}
	if m.err = f(); m.err == nil {
		m.made = append(m.made, name)
	}
}

func (m *maker) writePair(p *pki.Pair, cert, key string) {
	m.do(key, func() error { return pki.WriteKey(m.dir, key, p.Key) })
	m.writeCert(cert, p.Cert)
}

func (m *maker) has(name string) bool {
	_, err := os.Stat(filepath.Join(m.dir, name))
	return !errors.Is(err, fs.ErrNotExist)
}

// authority reads the authority, or makes it.
func (m *maker) authority(rsa bool) (ca *pki.Pair) {
	if m.has(pki.CACert) || m.has(pki.CAKey) {
		ca, m.err = pki.ReadPair(m.dir, pki.CACert, pki.CAKey)
		return ca
	}
	host, _ := os.Hostname()
	if ca, m.err = pki.NewCA("nbd-ktls-server CA on "+host, rsa); m.err == nil {
		m.writePair(ca, pki.CACert, pki.CAKey)
	}
	return ca
}

// leaf makes a certificate unless it is there, with its key and of this
// authority.
func (m *maker) leaf(ca *pki.Pair, l pki.Leaf, cert, key string, renew bool) {
	if m.err != nil {
		return
	}
	if old, err := pki.ReadPair(m.dir, cert, key); err == nil && old.Cert.CheckSignatureFrom(ca.Cert) == nil && !renew {
		return
	}
	p, err := ca.Issue(l)
	if err != nil {
		m.err = err
		return
	}
	m.writePair(p, cert, key)
}

func (m *maker) writeCert(name string, c *x509.Certificate) {
	m.do(name, func() error { return pki.WriteCert(m.dir, name, c) })
}

// renewBefore is how long before the end --tls-certificates=auto renews.
const renewBefore = 30 * 24 * time.Hour

// autoPKI returns the certificate directory of this user, made or renewed if
// need be.
func autoPKI(log *slog.Logger) (string, error) {
	state, err := stateDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(state, "pki")
	o := pkiOptions{client: "client", days: int(pki.LeafLifetime / (24 * time.Hour))}
	for _, name := range []string{pki.ServerCert, pki.ClientCert} {
		if c, err := pki.ReadCert(dir, name); err == nil && time.Until(c.NotAfter) < renewBefore {
			o.renew = true
		}
	}
	made, err := o.makeWhole(dir)
	if err != nil {
		return "", fmt.Errorf("making certificates in %s: %w", dir, err)
	}
	if len(made) > 0 {
		log.Info("made certificates", "directory", dir, "files", made)
	}
	return dir, nil
}

// makeWhole is make, but a directory that is not there appears with everything
// in it: two that start at the same time must not mix their authorities.
func (o *pkiOptions) makeWhole(dir string) ([]string, error) {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return o.make(dir)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".pki-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	made, err := o.make(tmp)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return o.make(dir) // somebody else was faster
	}
	return made, nil
}

// stateDir is where this user's state lives: what systemd says, or the XDG base
// directory.
func stateDir() (string, error) {
	const name = "nbd-ktls-server"
	if d := os.Getenv("STATE_DIRECTORY"); d != "" {
		return filepath.SplitList(d)[0], nil
	}
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, name), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local/state", name), nil
}
