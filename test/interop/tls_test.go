package interop

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd-ktls-server/tlsengine/pki"
)

// relay does the plain part of NBD for clients that know only TLS: what
// connects to it is connected to the server behind its STARTTLS.
func relay(t *testing.T, s *server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go relayOne(client.(*net.TCPConn), s.port)
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func relayOne(client *net.TCPConn, port string) {
	defer client.Close()
	nc, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		return
	}
	defer nc.Close()
	b := binary.BigEndian.AppendUint32(nil, 3)
	b = append(b, "IHAVEOPT\x00\x00\x00\x05\x00\x00\x00\x00"...)
	if _, err := io.ReadFull(nc, make([]byte, 18)); err != nil {
		return
	}
	nc.Write(b)
	if _, err := io.ReadFull(nc, make([]byte, 20)); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		io.Copy(nc, client)
		nc.(*net.TCPConn).CloseWrite()
		close(done)
	}()
	io.Copy(client, nc)
	client.CloseWrite()
	<-done
}

// nbdList is LIST and ABORT, to be sent inside TLS.
const nbdList = "IHAVEOPT\x00\x00\x00\x03\x00\x00\x00\x00IHAVEOPT\x00\x00\x00\x02\x00\x00\x00\x00"

func TestOpenSSLClient(t *testing.T) {
	need(t, "openssl")
	dir := certificates(t)
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "-e", "an export", "memory", "1M")
	port := relay(t, s)
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		cmd := exec.Command("openssl", "s_client", "-connect", "localhost:"+port, version, "-quiet", "-ign_eof",
			"-verify_return_error", "-verify_hostname", "localhost", "-CAfile", dir+"/ca-cert.pem",
			"-cert", dir+"/client-cert.pem", "-key", dir+"/client-key.pem")
		cmd.Stdin = strings.NewReader(nbdList)
		out, err := cmd.CombinedOutput()
		if err != nil || !contains(string(out), "an export") {
			t.Errorf("%s: %v\n%q", version, err, out)
		}
	}
}

func TestGnuTLSClient(t *testing.T) {
	need(t, "gnutls-cli")
	dir := certificates(t)
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "-e", "an export", "memory", "1M")
	port := relay(t, s)
	for _, priority := range []string{"NORMAL:-VERS-ALL:+VERS-TLS1.2", "NORMAL:-VERS-ALL:+VERS-TLS1.3"} {
		cmd := exec.Command("gnutls-cli", "--port", port, "--priority", priority, "--x509cafile", dir+"/ca-cert.pem",
			"--x509certfile", dir+"/client-cert.pem", "--x509keyfile", dir+"/client-key.pem", "localhost")
		in, _ := cmd.StdinPipe()
		go func() {
			io.WriteString(in, nbdList)
			time.Sleep(time.Second) // gnutls-cli leaves at the end of its input
			in.Close()
		}()
		out, err := cmd.CombinedOutput()
		if err != nil || !contains(string(out), "The certificate is trusted", "an export") {
			t.Errorf("%s: %v\n%q", priority, err, out)
		}
	}
}

// nbd-client has its own TLS; attaching a device needs the kernel's driver,
// listing does not.
func TestNbdClientLists(t *testing.T) {
	need(t, "nbd-client")
	dir := certificates(t)
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "-e", "an export", "memory", "1M")
	out := run(t, "nbd-client", "-l", "localhost", s.port, "-cacertfile", dir+"/ca-cert.pem",
		"-certfile", dir+"/client-cert.pem", "-keyfile", dir+"/client-key.pem")
	if !strings.Contains(out, "an export") {
		t.Error(out)
	}
}

// Every way not to be let in: the client hears something it can act on, and the
// log has a line with the reason.
func TestRefusedClients(t *testing.T) {
	need(t, "nbdinfo", "qemu-img")
	dir, foreign := certificates(t), certificates(t)

	// A client directory for each thing that can be wrong with it.
	clientDir := func(name string, edit func(d string) error) string {
		d := filepath.Join(t.TempDir(), name)
		run(t, "cp", "-r", dir, d)
		if err := edit(d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	none := clientDir("none", func(d string) error {
		os.Remove(d + "/client-cert.pem")
		return os.Remove(d + "/client-key.pem")
	})
	stranger := clientDir("stranger", func(d string) error {
		run(t, "cp", foreign+"/client-cert.pem", foreign+"/client-key.pem", d)
		return nil
	})
	ca, err := pki.ReadPair(dir, pki.CACert, pki.CAKey)
	if err != nil {
		t.Fatal(err)
	}
	expired := clientDir("expired", func(d string) error {
		past := time.Now().Add(-time.Hour)
		p, err := ca.Issue(pki.Leaf{CommonName: "old", Client: true, NotBefore: past.Add(-time.Hour), NotAfter: past})
		if err != nil {
			return err
		}
		if err := pki.WriteKey(d, pki.ClientKey, p.Key); err != nil {
			return err
		}
		return pki.WriteCert(d, pki.ClientCert, p.Cert)
	})
	distrusting := clientDir("distrusting", func(d string) error {
		run(t, "cp", foreign+"/ca-cert.pem", d)
		return nil
	})

	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "memory", "1M")
	for _, test := range []struct {
		name   string
		dir    string // "" is a plain client
		said   string // what nbdinfo says
		reason string
	}{
		{"no certificate", none, "fatal alert", "client didn't provide a certificate"},
		{"a stranger's certificate", stranger, "fatal alert", "unknown authority"},
		{"an expired certificate", expired, "fatal alert", "certificate has expired"},
		{"another authority", distrusting, "certificate", "perhaps it does not trust our certificate"},
		{"a plain client", "", "TLS", "this server requires TLS"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, err := try(t, "nbdinfo", s.uri(test.dir))
			t.Logf("nbdinfo: %s", strings.TrimSpace(out))
			if err == nil || !strings.Contains(out, test.said) {
				t.Errorf("nbdinfo said %q, %v", out, err)
			}
			s.log.expect("level=WARN", test.reason)

			args := []string{"info", "nbd://localhost:" + s.port}
			if test.dir != "" {
				object, opts := s.qemu(test.dir)
				args = with([]string{"info"}, object, []string{"--image-opts", opts})
			}
			out, err = try(t, "qemu-img", args...)
			t.Logf("qemu-img: %s", strings.TrimSpace(out))
			if err == nil {
				t.Errorf("qemu-img said %q", out)
			}
		})
	}
	run(t, "nbdinfo", s.uri(dir)) // the right one is still let in

	plain := start(t, "--tls=off", "memory", "1M")
	out, err := try(t, "nbdinfo", plain.uri(dir))
	t.Logf("nbdinfo: %s", strings.TrimSpace(out))
	if err == nil {
		t.Errorf("TLS where it is switched off: %s", out)
	}
	plain.log.expect("level=WARN", "this server has TLS switched off")
	run(t, "nbdinfo", plain.uri(""))
}

// The alerts themselves, which libnbd does not always repeat.
func TestAlertsReachTheClient(t *testing.T) {
	need(t, "openssl")
	dir, foreign := certificates(t), certificates(t)
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "memory", "1M")
	port := relay(t, s)
	for name, test := range map[string]struct {
		args  []string
		alert string
	}{
		"no certificate":         {nil, "alert certificate required"},
		"a stranger's":           {[]string{"-cert", foreign + "/client-cert.pem", "-key", foreign + "/client-key.pem"}, "alert unknown ca"},
		"a server's certificate": {[]string{"-cert", dir + "/server-cert.pem", "-key", dir + "/server-key.pem"}, "alert unsupported certificate"},
		"too old a version":      {[]string{"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}, "alert protocol version"},
	} {
		args := append([]string{"s_client", "-connect", "localhost:" + port, "-ign_eof", "-CAfile", dir + "/ca-cert.pem"}, test.args...)
		cmd := exec.Command("openssl", args...)
		cmd.Stdin = strings.NewReader(nbdList)
		out, _ := cmd.CombinedOutput()
		if !strings.Contains(string(out), test.alert) {
			t.Errorf("%s: no %q:\n%s", name, test.alert, out)
		}
	}
}
