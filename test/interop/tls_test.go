package interop

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
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

// talk starts a TLS client program, and returns its input and what it has said
// so far.
func talk(t *testing.T, name string, args ...string) (io.Writer, *log) {
	t.Helper()
	cmd := exec.Command(name, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := &log{t: t}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return in, out
}

// list is an NBD_OPT_LIST; each is answered by one more "an export". An option
// that does not exist ends it with a newline, behind which gnutls-cli looks for
// its commands.
const list = "IHAVEOPT\x00\x00\x00\x03\x00\x00\x00\x00" + "IHAVEOPT\x00\x00\x00\x63\x00\x00\x00\x01\n"

// listed sends a LIST and waits until it has been answered for the nth time.
func listed(t *testing.T, in io.Writer, out *log, n int) {
	t.Helper()
	io.WriteString(in, list)
	for end := time.Now().Add(10 * time.Second); strings.Count(out.String(), "an export") < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("LIST %d is not answered:\n%q", n, out)
		}
	}
	// Commands are recognised at the beginning of what is read at once.
	time.Sleep(50 * time.Millisecond)
}

// Key updates by OpenSSL, of its own key (k) and of both (K), and of ours.
func TestOpenSSLKeyUpdates(t *testing.T) {
	need(t, "openssl")
	dir := certificates(t)
	s := start(t, "--tls-certificates="+dir, "--tls-rekey-after=100", "-e", "an export", "memory", "1M")
	for _, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"} {
		in, out := talk(t, "openssl", "s_client", "-connect", "localhost:"+relay(t, s), "-ciphersuites", suite, "-CAfile", dir+"/ca-cert.pem")
		listed(t, in, out, 1)
		for i, command := range []string{"k\n", "K\n", "K\n", "k\n"} {
			io.WriteString(in, command)
			time.Sleep(50 * time.Millisecond)
			listed(t, in, out, i+2)
		}
		if n := strings.Count(out.String(), "KEYUPDATE"); n != 4 {
			t.Errorf("%s: %d updates:\n%q", suite, n, out)
		}
	}
}

// Likewise by GnuTLS: ^rekey1^ of its own key, ^rekey^ of both.
func TestGnuTLSKeyUpdates(t *testing.T) {
	need(t, "gnutls-cli")
	dir := certificates(t)
	s := start(t, "--tls-certificates="+dir, "--tls-rekey-after=100", "-e", "an export", "memory", "1M")
	for _, cipher := range []string{"AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305"} {
		in, out := talk(t, "gnutls-cli", "--inline-commands", "--port", relay(t, s), "--x509cafile", dir+"/ca-cert.pem",
			"--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+"+cipher, "localhost")
		listed(t, in, out, 1)
		for i, command := range []string{"^rekey1^\n", "^rekey^\n", "^rekey^\n", "^rekey1^\n"} {
			io.WriteString(in, command)
			time.Sleep(50 * time.Millisecond)
			listed(t, in, out, i+2)
		}
		if strings.Contains(out.String(), "rekey") {
			t.Errorf("%s: the commands were sent as data:\n%q", cipher, out)
		}
	}
}

// Handshakes that take another turn: HelloRetryRequest, other groups.
func TestGroups(t *testing.T) {
	need(t, "openssl")
	dir := certificates(t)
	s := start(t, "-v", "--tls-certificates="+dir, "-e", "an export", "memory", "1M")
	port := relay(t, s)
	for groups, temp := range map[string]string{
		"X448:X25519": "X25519", // we know no X448: HelloRetryRequest
		"X25519":      "X25519",
		"P-256":       "ECDH, prime256v1",
		"P-521":       "ECDH, secp521r1",
	} {
		in, out := talk(t, "openssl", "s_client", "-connect", "localhost:"+port, "-groups", groups, "-CAfile", dir+"/ca-cert.pem")
		listed(t, in, out, 1)
		if !strings.Contains(out.String(), "Server Temp Key: "+temp) {
			t.Errorf("groups %s:\n%s", groups, out)
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

// Certificates are exchanged under a running server, with a client connected.
func TestCertificatesAreReadAgain(t *testing.T) {
	need(t, "nbdsh", "nbdinfo", "openssl")
	dir := certificates(t)
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "memory", "1M")
	in, out := talk(t, "nbdsh", "-c", "h.set_uri_allow_local_file(True)", "-c", "h.connect_uri('"+s.uri(dir)+"')", "-c", `
import sys
print("connected", flush=True)
for line in sys.stdin:
    print(len(h.pread(512, 0)), line.strip(), flush=True)
`)
	out.expect("connected")
	run(t, program, "pki", "--renew", dir)
	s.log.expect("the certificates were read again", `"sessions revoked"=0`)
	io.WriteString(in, "after renewal\n")
	out.expect("512 after renewal")
	run(t, "nbdinfo", s.uri(dir))

	if err := os.WriteFile(dir+"/server-cert.pem", []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.log.expect("level=ERROR", "those in use stay")
	run(t, "nbdinfo", s.uri(dir))
	io.WriteString(in, "after rubbish\n")
	out.expect("512 after rubbish")
}
