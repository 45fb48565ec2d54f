package interop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestConfined: with a configuration file the process reaches the files that are
// named there, and what replaces them, and nothing else.
func TestConfined(t *testing.T) {
	inMachine(t)
	need(t, "qemu-io", "nbdinfo")
	mine, other := filepath.Join("/srv", "mine"), filepath.Join("/srv", "other")
	image, secret, link := filepath.Join(mine, "disk.img"), filepath.Join(other, "secret.img"), filepath.Join(mine, "link.img")
	for _, path := range []string{image, secret} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, make([]byte, 1<<20), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(image, link); err != nil {
		t.Fatal(err)
	}
	device := loopDevice(t, random(t, 1<<20))
	dir, config, port := certificates(t), filepath.Join(t.TempDir(), "config.yaml"), freePort(t)
	write := func(more string) {
		t.Helper()
		text := fmt.Sprintf("listen: [{tcp: 127.0.0.1:%s}]\ntls: {certificates: %s}\nexports:\n"+
			"  - {name: disk, plugin: file, parameters: {file: %s}}\n  - {name: link, plugin: file, parameters: {file: %s}}\n"+
			"  - {name: device, plugin: file, parameters: {file: %s}}\n%s", port, dir, image, link, device, more)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	s := startOn(t, port, program, "--config", config)
	defer s.stop() // before the device goes
	s.log.expect("confined to its files", "write=", mine)
	object, opts := s.qemu(dir)
	works := func(name string) {
		t.Helper()
		out, err := try(t, "qemu-io", with(object, []string{
			"--image-opts", opts + ",export=" + name,
			"-c", "write -P 7 0 64k", "-c", "discard 64k 64k", "-c", "write -z 128k 64k", "-c", "flush", "-c", "read -P 7 0 64k",
		})...)
		if err != nil || strings.Contains(out, "failed") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	works("disk")
	works("link")
	works("device")
	if err := errors.Join(os.WriteFile(image+".new", make([]byte, 1<<20), 0o600), os.Rename(image+".new", image)); err != nil {
		t.Fatal(err)
	}
	works("disk") // another file of that name

	if err := errors.Join(os.Remove(link), os.Symlink(secret, link)); err != nil {
		t.Fatal(err)
	}
	if out, err := try(t, "nbdinfo", strings.Replace(s.uri(dir), "/?", "/link?", 1)); err == nil {
		t.Errorf("a file elsewhere was opened:\n%s", out)
	}
	s.log.expect("permission denied")
	if err := errors.Join(os.Remove(link), os.Symlink(image, link)); err != nil {
		t.Fatal(err)
	}

	write("  - {name: other, plugin: file, parameters: {file: " + secret + "}}\n")
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.log.expect("the configuration was not changed", other, "restart needed")
	write("  - {name: script, plugin: eval, parameters: {get_size: echo 1M, pread: exit 1}}\n")
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.log.expect("the configuration was not changed", "export script runs programs")
	write("  - {name: more, plugin: file, parameters: {dir: " + mine + "}}\n")
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.log.expect("configuration read again", "exports=4")
	works("disk")
}

// TestNotConfined: exports that run programs are not confined, and the log says so.
func TestNotConfined(t *testing.T) {
	need(t, "nbdinfo")
	config, port := filepath.Join(t.TempDir(), "config.yaml"), freePort(t)
	text := fmt.Sprintf("listen: [{tcp: 127.0.0.1:%s}]\ntls: {mode: \"off\"}\nexports: [{name: script, plugin: eval, parameters: {get_size: echo 1M, pread: head -c $3 /dev/zero}}]\n", port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startOn(t, port, program, "--config", config)
	s.log.expect("the process is not confined", "an export runs programs", "export=script")
	run(t, "nbdinfo", "nbd://127.0.0.1:"+port+"/script")
}
