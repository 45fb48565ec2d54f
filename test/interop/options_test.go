package interop

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// nbdkit runs a command line of nbdkit's with this program, and returns what it
// prints.
func runAsNBDKit(t *testing.T, args ...string) string {
	t.Helper()
	_, ours := nbdkits(t)
	return run(t, ours, args...)
}

// What is switched off for tests of clients is not there for them.
func TestOptionsForClients(t *testing.T) {
	need(t, "nbdinfo")
	for _, test := range []struct{ args, yes, no string }{
		{"memory 1M", "using structured packets", "simple packets"},
		{"--no-sr memory 1M", "using simple packets", "structured packets"},
		{"--no-structured-replies memory 1M", "using simple packets", "structured packets"},
		{"memory 1M", "base:allocation", "nothing"},
		{"--no-mc memory 1M", "export-size", "base:allocation"},
		{"--mask-handshake=0 memory 1M", "protocol: newstyle without TLS", "newstyle-fixed"},
	} {
		out := runAsNBDKit(t, append(strings.Fields(test.args), "--run", `nbdinfo "$uri"`)...)
		if !strings.Contains(out, test.yes) || strings.Contains(out, test.no) {
			t.Errorf("%s: want %q and not %q:\n%s", test.args, test.yes, test.no, out)
		}
	}
}

// libnbd starts servers called nbdkit by itself, in two ways.
func TestStartedByLibnbd(t *testing.T) {
	need(t, "nbdsh")
	_, ours := nbdkits(t)
	for name, call := range map[string]string{
		"command":           `h.connect_command(["` + ours + `", "-s", "--exit-with-parent", "memory", "1M"])`,
		"socket activation": `h.connect_systemd_socket_activation(["` + ours + `", "memory", "1M"])`,
	} {
		out := run(t, "nbdsh", "-c", call, "-c", `h.pwrite(b"text", 7)`, "-c", `print(h.pread(6, 6), h.get_size())`, "-c", "h.shutdown()")
		if !strings.Contains(out, `b'\x00text\x00') 1048576`) {
			t.Errorf("%s:\n%s", name, out)
		}
	}
}

// What is done for a client is done by --user and --group.
func TestPrivilegesAreDropped(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	need(t, "nbdsh")
	script := filepath.Join(t.TempDir(), "who.sh")
	text := "#!/bin/sh\ncase $1 in\nget_size) echo 64 ;;\npread) printf '%-64s' \"$(touch $tmpdir/x && id -u) $(id -g) $(id -G)\" ;;\n*) exit 2 ;;\nesac\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(script); dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for args, want := range map[string]string{
		"-u nobody":           "65534 65534 65534",
		"-u nobody -g daemon": "65534 1 1 65534",
		"-u 12345 -g 54321":   "12345 54321 54321",
		"-g 54321":            "0 54321 54321",
	} {
		// The socket belongs to root: whoever connects to it is, too.
		out := runAsNBDKit(t, append(strings.Fields(args), "sh", script, "--run", `nbdsh -u "$uri" -c 'print(h.pread(64, 0).decode())'`)...)
		if strings.TrimSpace(out) != want {
			t.Errorf("%s: %q, want %q", args, strings.TrimSpace(out), want)
		}
	}
}

// A machine of this host is served over vsock, here by a proxy on it, as other
// clients know none.
func TestVsock(t *testing.T) {
	inMachine(t)
	need(t, "nbdcopy", "cmp")
	dir := certificates(t)
	image := random(t, 4<<20)
	bothWays(t, func(t *testing.T, flags []string, _ string) {
		far := startProgram(t, with(flags, []string{"--vsock", "-p", "0", "-r", "file", image})...)
		args := []string{"--tls=off", "nbd", "vsock=1", "port=" + far.port}
		if len(flags) > 1 {
			dir = strings.TrimPrefix(flags[0], "--tls-certificates=")
			args = append(args, "tls=require", "tls-certificates="+dir)
		}
		s := start(t, args...)
		out := filepath.Join(t.TempDir(), "out")
		run(t, "nbdcopy", s.uri(""), out)
		run(t, "cmp", image, out)
		far.log.expect("export opened", "client=1:")
	})
	if out, err := exec.Command(program, "--tls=off", "nbd", "vsock=1", "port=1", "--run", "true").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
