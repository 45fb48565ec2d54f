package interop

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nbd-ktls-server/ktls"
)

// inMachine skips a test that is for a virtual machine of test/vm, and returns
// what its kernel can do: "rekey", "norekey" or "none".
func inMachine(t *testing.T) string {
	t.Helper()
	if os.Getenv("NBD_TEST_VM") == "" {
		t.Skip("this is for a virtual machine: see test/vm")
	}
	return os.Getenv("NBD_TEST_KTLS")
}

// TestPolicies is what --ktls comes to on this kernel, with a client of GnuTLS.
func TestPolicies(t *testing.T) {
	able := inMachine(t)
	need(t, "nbdinfo")
	dir := certificates(t)
	for policy, want := range map[string]map[string]string{
		"auto":    {"rekey": "tx=kernel rx=user", "norekey": "cannot change keys", "none": "modprobe tls"},
		"require": {"rekey": "tx=kernel rx=user", "norekey": "tx=kernel rx=user"},
		"off":     {"rekey": "switched off", "norekey": "switched off", "none": "switched off"},
	} {
		if want[able] == "" { // the program does not start
			out, err := try(t, program, "--ktls="+policy, "--tls-certificates="+dir, "-p", "0", "memory", "1M")
			if err == nil || !strings.Contains(out, "modprobe tls") {
				t.Errorf("--ktls=%s: %v\n%s", policy, err, out)
			}
			continue
		}
		s := start(t, "--ktls="+policy, "--tls-certificates="+dir, "memory", "1M")
		run(t, "nbdinfo", s.uri(dir))
		s.log.expect("export opened", want[able])
		s.stop()
	}
	out := run(t, program, "probe")
	t.Log(out)
	if !contains(out, map[string]string{"rekey": "the kernel encrypts", "norekey": "6.14", "none": "modprobe tls"}[able]) {
		t.Error(out)
	}
}

// random makes a file of n bytes.
func random(t *testing.T, n int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "random.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{3}), n); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestNothingIsCopied: what clients read of a file does not pass through the
// server's memory, encrypted by the kernel or in plain text.
func TestNothingIsCopied(t *testing.T) {
	able := inMachine(t)
	need(t, "nbdcopy", "cmp")
	const size = 32 << 20
	image := random(t, size)
	t.Run("file", func(t *testing.T) { nothingIsCopied(t, able, image, size) })
	t.Run("device", func(t *testing.T) { nothingIsCopied(t, able, loopDevice(t, image), size) })
}

func nothingIsCopied(t *testing.T, able, image string, size int) {
	bothWays(t, func(t *testing.T, flags []string, dir string) {
		if dir != "" && able == "none" {
			t.Skip("without the module everything is copied")
		} else if dir != "" {
			flags = with(flags, []string{"--ktls=require"})
		}
		s := start(t, with(flags, []string{"-r", "file", image})...)
		before, err := ktls.Stats()
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "out.img")
		run(t, "nbdcopy", s.uri(dir), out)
		run(t, "cmp", image, out)
		os.Remove(out)
		copied := s.copied()
		t.Logf("%d bytes were read, %d KiB went through read and write", size, copied>>10)
		if copied > 1<<20 {
			t.Errorf("of %d bytes %d went through the server's memory", size, copied)
		}
		if after, err := ktls.Stats(); err != nil || dir != "" && after["TlsTxSw"] == before["TlsTxSw"] {
			t.Errorf("the kernel did not encrypt: %v, %v", after, err)
		}
	})
}

// loopDevice makes a block device of a file.
func loopDevice(t *testing.T, image string) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/dev/loop%d", n)
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_FD, int(file.Fd())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0)
		device.Close()
	})
	return path
}

// TestCutReaders kills clients with 64 requests in flight, at random: what others
// then read is what is in the file.
func TestCutReaders(t *testing.T) {
	inMachine(t)
	need(t, "nbdcopy", "cmp")
	dir := certificates(t)
	image := random(t, 32<<20)
	s := start(t, "--tls-certificates="+dir, "--tls-rekey-after=3M", "-r", "file", image)
	for range 8 {
		cmd := exec.Command("nbdcopy", "--connections=4", "--requests=64", s.uri(dir), "null:")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(200+rand.IntN(1500)) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
	}
	out := filepath.Join(t.TempDir(), "out.img")
	run(t, "nbdcopy", "--connections=4", "--requests=64", s.uri(dir), out)
	run(t, "cmp", image, out)
	s.log.expect("connection broken")
}

// copied is how many bytes the server has read and written with system calls
// that copy (proc(5), /proc/PID/io).
func (s *server) copied() (n int64) {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if name == "rchar" || name == "wchar" {
			v, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			n += v
		}
	}
	return n
}

// TestTruncatedUnderUs: a file that has become shorter is an error of the request,
// not the end of the connection.
func TestTruncatedUnderUs(t *testing.T) {
	inMachine(t)
	need(t, "qemu-io")
	image := random(t, 8<<20)
	bothWays(t, func(t *testing.T, flags []string, dir string) {
		if err := os.Truncate(image, 8<<20); err != nil {
			t.Fatal(err)
		}
		s := start(t, with(flags, []string{"file", image})...)
		if err := os.Truncate(image, 1<<20); err != nil {
			t.Fatal(err)
		}
		object, opts := s.qemu(dir)
		out, _ := try(t, "qemu-io", with(object, []string{"--image-opts", opts, "-c", "read 3M 512k", "-c", "read 0 512k"})...)
		if !contains(out, "read failed: Input/output error") || !contains(out, "read 524288/524288") {
			t.Error(out)
		}
	})
}

// TestKernelClient puts a file system on a device of the kernel's own client,
// through nbd-client, which does TLS for it.
func TestKernelClient(t *testing.T) {
	inMachine(t)
	need(t, "nbd-client", "mkfs.ext4", "fsck.ext4")
	dir := certificates(t)
	image := sparse(t, 128<<20)
	s := start(t, "--tls-certificates="+dir, "--tls-rekey-after=2M", "-e", "disk", "file", image)
	const device, where = "/dev/nbd0", "/tmp/mounted"
	run(t, "nbd-client", "127.0.0.1", s.port, device, "-N", "disk", "-cacertfile", dir+"/ca-cert.pem",
		"-certfile", dir+"/client-cert.pem", "-keyfile", dir+"/client-key.pem", "-tlshostname", "localhost")
	defer run(t, "nbd-client", "-d", device)
	run(t, "mkfs.ext4", "-q", device)
	if err := os.MkdirAll(where, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func() {
		if err := unix.Mount(device, where, "ext4", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	mount()
	content := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{4}).Read(content)
	name := func(i int) string { return filepath.Join(where, strconv.Itoa(i)) }
	part := func(i int) []byte { return content[i<<22:][:1<<22] }
	for i := range 4 {
		if err := os.WriteFile(name(i), part(i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Unmount(where, 0); err != nil {
		t.Fatal(err)
	}
	run(t, "fsck.ext4", "-f", "-n", device)
	mount()
	for i := range 4 {
		if b, err := os.ReadFile(name(i)); err != nil || !bytes.Equal(b, part(i)) {
			t.Errorf("file %d: %v", i, err)
		}
	}
	if err := unix.Unmount(where, 0); err != nil {
		t.Fatal(err)
	}
}
