package interop

import (
	"os"
	"path/filepath"
	"testing"
)

// Certificates with RSA keys, as certtool makes them if it is not told otherwise,
// and as OpenSSL's examples do.
func TestRSACertificates(t *testing.T) {
	need(t, "openssl", "nbdinfo", "qemu-img")
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"ca", "server", "client"} {
		args := []string{"req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90", "-keyout", path(name + "-key.pem"), "-out", path(name + "-cert.pem")}
		if name == "ca" {
			args = append(args, "-subj", "/CN=an authority")
		} else {
			args = append(args, "-CA", path("ca-cert.pem"), "-CAkey", path("ca-key.pem"), "-subj", "/CN=localhost",
				"-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE")
		}
		run(t, "openssl", args...)
	}
	for _, version := range []string{"TLS 1.3", "TLS 1.2"} {
		t.Run(version, func(t *testing.T) {
			if version == "TLS 1.2" {
				file := path("priority")
				if err := os.WriteFile(file, []byte("[overrides]\ndisabled-version = TLS1.3\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				t.Setenv("GNUTLS_SYSTEM_PRIORITY_FILE", file)
			}
			s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "memory", "1M")
			if out := run(t, "nbdinfo", "--size", s.uri(dir)); out != "1048576\n" {
				t.Errorf("nbdinfo: %q", out)
			}
			object, image := s.qemu(dir)
			run(t, "qemu-img", with([]string{"info"}, object, []string{"--image-opts", image})...)
			s.log.expect(version, `identity="CN=localhost"`)
		})
	}
}
