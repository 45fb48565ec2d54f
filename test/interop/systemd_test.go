package interop

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"nbd-ktls-server/test/nbdtest"
)

// TestPackageUnderSystemd installs the package of NBD_TEST_PACKAGE in a machine
// whose first process is systemd, and does what the README says: start by socket,
// reload, new certificates, end with clients, hang, crash, upgrade, removal.
func TestPackageUnderSystemd(t *testing.T) {
	deb := os.Getenv("NBD_TEST_PACKAGE")
	if deb == "" {
		t.Skip("this is for a virtual machine under systemd: see test/vm/run")
	}
	const unit, socket, etc, images = "nbd-ktls-server.service", "nbd-ktls-server.socket", "/etc/nbd-ktls-server", "/srv/images"
	// A Debian system without its package manager's memory: nothing is missed.
	dpkg := func(args ...string) string {
		return run(t, "dpkg", append([]string{"--force-depends", "--force-bad-path", "--force-confold"}, args...)...)
	}
	if err := errors.Join(os.MkdirAll("/var/lib/dpkg/info", 0o755), os.MkdirAll("/var/lib/dpkg/updates", 0o755),
		os.WriteFile("/var/lib/dpkg/status", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Log(run(t, "apt-get", "install", "-y", "-o", "Dpkg::Options::=--force-bad-path", "-o", "APT::Sandbox::User=root", deb))
	run(t, "nbd-ktls-server", "pki", "--host", "localhost", etc+"/pki")
	run(t, "sh", "-c", "chgrp -R nbd-ktls-server "+etc+"/pki && chmod 750 "+etc+"/pki && chmod 640 "+etc+"/pki/server-key.pem")
	image := random(t, 8<<20)
	run(t, "sh", "-c", "mkdir -p "+images+" && cp "+image+" "+images+"/disk.img && chown -R nbd-ktls-server "+images)
	configure := func(more string) {
		t.Helper()
		text := "listen: [{systemd: nbd}]\ntls: {certificates: " + etc + "/pki}\nexports:\n" +
			"  - {name: disk, plugin: file, parameters: {file: " + images + "/disk.img}}\n" + more
		if err := os.WriteFile(etc+"/config.yaml", []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		run(t, "nbd-ktls-server", "check-config", etc+"/config.yaml")
	}
	configure("")
	dropIn := "/etc/systemd/system/" + unit + ".d"
	if err := errors.Join(os.MkdirAll(dropIn, 0o755),
		os.WriteFile(dropIn+"/test.conf", []byte("[Service]\nReadWritePaths="+images+"\nWatchdogSec=4s\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	show := func(property string) string {
		return strings.TrimSpace(run(t, "systemctl", "show", "-P", property, unit))
	}
	until := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(patience); !f(); time.Sleep(200 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: never\n%s", what, run(t, "journalctl", "-u", unit, "-o", "cat"))
			}
		}
	}
	logged := func(words ...string) {
		t.Helper()
		until(strings.Join(words, " "), func() bool {
			for line := range strings.Lines(run(t, "journalctl", "-u", unit, "-o", "cat")) {
				if contains(line, words...) {
					return true
				}
			}
			return false
		})
	}
	uri := func(name string) string { return "nbds://localhost/" + name + "?tls-certificates=" + etc + "/pki" }

	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "enable", "--now", socket)
	if state := show("ActiveState"); state != "inactive" {
		t.Errorf("before the first client the service is %s", state)
	}
	out := filepath.Join(t.TempDir(), "out")
	run(t, "nbdcopy", uri("disk"), out)
	same(t, image, out)
	run(t, "nbdcopy", "--flush", image, uri("disk"))
	logged("export opened", "tx=kernel", "CN=client")
	logged("confined to its files", images)
	t.Log(run(t, "systemctl", "status", "--no-pager", unit))

	configure("  - {name: more, plugin: memory, parameters: {size: 1M}}\n")
	run(t, "systemctl", "reload", unit)
	until("exports: 2", func() bool { return show("StatusText") == "exports: 2" })
	run(t, "nbdinfo", uri("more"))

	run(t, "sh", "-c", "nbd-ktls-server pki --renew --host localhost "+etc+"/pki && chgrp nbd-ktls-server "+etc+"/pki/* && chmod 640 "+etc+"/pki/server-key.pem")
	logged("the certificates were read again")
	run(t, "nbdinfo", uri("disk"))

	s := &server{t: t, port: "10809"}
	c := nbdtest.Hello(t, s.addr())
	c.StartTLS(clientOf(t, etc+"/pki"))
	c.Go("disk")
	run(t, "systemctl", "stop", unit, socket)
	if result := show("Result"); result != "success" {
		t.Errorf("with a client the service ended with %s", result)
	}
	c.ExpectEnd()
	run(t, "systemctl", "start", socket)
	run(t, "nbdinfo", uri("disk"))

	for i, signal := range []string{"STOP", "KILL"} { // it hangs, it crashes
		run(t, "systemctl", "kill", "-s", signal, unit)
		restarts := strconv.Itoa(i + 1)
		until("restart "+restarts, func() bool { return show("NRestarts") == restarts && show("ActiveState") == "active" })
		run(t, "nbdinfo", uri("disk"))
	}

	// Keys that only root can read, and another instance beside.
	credentials := "[Service]\n"
	for _, name := range []string{"ca-cert.pem", "server-cert.pem", "server-key.pem"} {
		credentials += "LoadCredential=" + name + ":" + etc + "/pki/" + name + "\n"
	}
	text := "listen: [{systemd: nbd}]\ntls: {certificates: /run/credentials/" + unit + "}\nexports: [{name: secret, plugin: memory, parameters: {size: 1M}}]\n"
	two := "listen: [{tcp: \"127.0.0.1:10810\"}]\ntls: {certificates: " + etc + "/pki}\nexports: [{name: two, plugin: memory, parameters: {size: 1M}}]\n"
	if err := errors.Join(os.WriteFile(dropIn+"/credentials.conf", []byte(credentials), 0o644),
		os.WriteFile(etc+"/config.yaml", []byte(text), 0o640), os.WriteFile(etc+"/two.yaml", []byte(two), 0o644)); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "start", "nbd-ktls-server@two")
	run(t, "nbdinfo", strings.Replace(uri("two"), "localhost", "localhost:10810", 1))
	run(t, "chmod", "600", etc+"/pki/server-key.pem")
	run(t, "chown", "root", etc+"/pki/server-key.pem")
	run(t, "systemctl", "restart", unit)
	run(t, "nbdinfo", uri("secret"))

	pid := show("MainPID")
	if said := dpkg("-i", deb); !strings.Contains(said, "still runs the old version") {
		t.Errorf("the upgrade says\n%s", said)
	}
	if now := show("MainPID"); now != pid {
		t.Error("the upgrade has restarted the service")
	}
	dpkg("-r", "nbd-ktls-server")
	if out, err := try(t, "systemctl", "is-active", unit, socket); err == nil {
		t.Errorf("after the removal:\n%s", out)
	}
	if _, err := os.Stat(etc + "/pki/server-key.pem"); err != nil {
		t.Errorf("the keys are gone: %v", err)
	}
}
