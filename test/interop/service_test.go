package interop

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestService runs the program as its unit does: a configuration file, a socket
// that is passed, and systemd listening to what it says.
func TestService(t *testing.T) {
	dir := t.TempDir()
	pki := filepath.Join(dir, "pki")
	run(t, program, "pki", "--host", "localhost", pki)
	for _, name := range []string{"alice", "bob"} {
		run(t, program, "pki", "--ca", pki, "--client", name, filepath.Join(dir, name))
	}
	file := filepath.Join(dir, "config.yaml")
	configure := func(exports string) {
		t.Helper()
		doc := "listen: [{systemd: nbd}]\ntls: {certificates: " + pki + "}\nexports:\n" + exports
		if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure(`
- {name: a, plugin: memory, parameters: {size: 1M}, access: [{allow: read-write, subject: {CN: alice}}]}
- {name: b, plugin: memory, parameters: {size: 2M}, access: [{allow: read-write}]}
`)

	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	// said waits for a message that begins so.
	said := func(want string) {
		t.Helper()
		notify.SetReadDeadline(time.Now().Add(patience))
		for {
			b := make([]byte, 4096)
			n, err := notify.Read(b)
			if err != nil {
				t.Fatalf("systemd did not hear %s: %v", want, err)
			}
			if strings.HasPrefix(string(b[:n]), want) {
				return
			}
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	defer socket.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())

	s := &server{t: t, port: port, log: &log{t: t}, done: make(chan struct{})}
	s.cmd = exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" --config "$1"`, program, file)
	s.cmd.ExtraFiles = []*os.File{socket}
	s.cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=nbd", "NOTIFY_SOCKET="+notify.LocalAddr().String(), "WATCHDOG_USEC=100000")
	s.cmd.Stderr = s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.cmd.Wait(); close(s.done) }()
	defer s.stop()
	said("STATUS=exports: 2")
	said("READY=1")
	said("WATCHDOG=1")

	// sees is what a client sees of an export: its size, or why not.
	sees := func(who, export string) string {
		out, err := try(t, "nbdinfo", "--size", "nbds://localhost:"+port+"/"+export+"?tls-certificates="+filepath.Join(dir, who))
		if err != nil {
			_, why, _ := strings.Cut(string(out), "handshake: ")
			return strings.ReplaceAll(strings.TrimSpace(why), "'"+export+"'", "NAME")
		}
		return strings.TrimSpace(string(out))
	}
	expect := func(who, export, want string) {
		t.Helper()
		if got := sees(who, export); got != want {
			t.Errorf("%s sees of %s %q, want %q", who, export, got, want)
		}
	}
	missing := sees("bob", "nowhere")
	if !strings.Contains(missing, "no export") {
		t.Errorf("of an export that does not exist: %q", missing)
	}
	expect("alice", "a", "1048576")
	expect("bob", "a", missing)
	expect("bob", "b", "2097152")

	reload := func() {
		t.Helper()
		s.cmd.Process.Signal(syscall.SIGHUP)
		said("RELOADING=1\nMONOTONIC_USEC=")
		said("READY=1")
	}
	configure("- {name: a, plugin: memory, parameters: {size: 1M}, access: [{allow: read-only, subject: {CN: bob}}]}")
	reload()
	expect("bob", "a", "1048576")
	expect("alice", "a", missing)
	expect("bob", "b", missing)
	configure("- {name: a, plugin: nothing}")
	reload()
	expect("bob", "a", "1048576")
	if !strings.Contains(s.log.String(), file+`:4:4: there is no plugin \"nothing\"`) {
		t.Errorf("the log does not say what is wrong with the file:\n%s", s.log)
	}
	s.stop()
	said("STOPPING=1")
}

// TestUnit: the unit is one that systemd takes, and as closed as it can be.
func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("there is no systemd-analyze")
	}
	run(t, "systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", "../../systemd/nbd-ktls-server.service")
}
