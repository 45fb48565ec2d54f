package interop

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
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
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
	"nbd-ktls-server/tlsengine/pki"
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
// that copy.
func (s *server) copied() int64 {
	s.t.Helper()
	return s.io("rchar") + s.io("wchar")
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

// TestFailingDisk: what a disk cannot read is an error of the request, and what it
// can is right, whether the kernel streams it or not.
func TestFailingDisk(t *testing.T) {
	able := inMachine(t)
	need(t, "dmsetup", "qemu-io")
	const sector, bad, good = 512, 4 << 20, 5 << 20 // from bad to good there is nothing
	image := random(t, 16<<20)
	device := loopDevice(t, image)
	table := filepath.Join(t.TempDir(), "table")
	lines := fmt.Sprintf("0 %[2]d linear %[1]s 0\n%[2]d %[4]d error\n%[3]d %[5]d linear %[1]s %[3]d\n",
		device, bad/sector, good/sector, (good-bad)/sector, (16<<20-good)/sector)
	if err := os.WriteFile(table, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DM_DISABLE_UDEV", "1") // there is none, to make device nodes
	run(t, "dmsetup", "create", "failing", table)
	defer run(t, "dmsetup", "remove", "--retry", "failing")
	bothWays(t, func(t *testing.T, flags []string, dir string) {
		if dir != "" && able != "none" {
			flags = with(flags, []string{"--ktls=require"})
		}
		s := start(t, with(flags, []string{"-r", "file", "/dev/mapper/failing"})...)
		defer s.stop() // before the device is removed
		object, opts := s.qemu(dir)
		out, _ := try(t, "qemu-io", with(object, []string{
			"-r", "--image-opts", opts, // with structured replies
			"-c", "read 4M 512k", "-c", "read 3840k 512k", "-c", "read 4100k 4k", "-c", "read 3M 1M", "-c", "read 5M 1M",
		})...)
		if strings.Count(out, "read failed: Input/output error") != 3 || strings.Count(out, "read 1048576/1048576") != 2 {
			t.Errorf("with structured replies:\n%s", out)
		}
		c := nbdtest.Hello(t, s.addr()) // with simple ones
		if dir != "" {
			c.StartTLS(clientOf(t, dir))
		}
		c.Go("")
		want := make([]byte, 256<<10)
		for _, at := range []uint64{3 << 20, bad, bad - 128<<10, good} {
			got, errno := c.Pread(at, uint32(len(want)))
			if fails := at != 3<<20 && at != good; fails != (errno == wire.EIO) {
				t.Errorf("with simple replies, at %d: %v", at, errno)
			} else if !fails {
				if readAt(t, image, want, int64(at)); !bytes.Equal(got, want) {
					t.Errorf("at %d: wrong data", at)
				}
			}
		}
		s.log.expect("request failed", "input/output error")
	})
}

// clientOf is how a client with the certificates of a directory does TLS.
func clientOf(t *testing.T, dir string) *tls.Config {
	t.Helper()
	ca, err := pki.ReadCert(dir, pki.CACert)
	if err != nil {
		t.Fatal(err)
	}
	own, err := tls.LoadX509KeyPair(filepath.Join(dir, pki.ClientCert), filepath.Join(dir, pki.ClientKey))
	if err != nil {
		t.Fatal(err)
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", Certificates: []tls.Certificate{own}}
	c.RootCAs.AddCert(ca)
	return c
}

// TestFullDisk: a file system without room is an error of the request, which says so.
func TestFullDisk(t *testing.T) {
	inMachine(t)
	need(t, "qemu-io")
	dir := certificates(t)
	where := t.TempDir()
	if err := unix.Mount("tmpfs", where, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(where, "disk.img")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 8<<20)); err != nil {
		t.Fatal(err)
	}
	s := start(t, "--tls-certificates="+dir, "file", image)
	defer unix.Unmount(where, unix.MNT_DETACH)
	object, opts := s.qemu(dir)
	out, _ := try(t, "qemu-io", with(object, []string{
		"--image-opts", opts, "-c", "write -P 1 0 1M", "-c", "write -P 2 1M 4M", "-c", "flush", "-c", "read -P 1 0 1M",
		"-c", "discard 1M 4M", "-c", "write -P 3 1M 512k", "-c", "read -P 3 1M 512k",
	})...)
	if !contains(out, "write failed: No space left on device", "read 1048576/1048576", "wrote 524288/524288", "read 524288/524288") ||
		strings.Contains(out, "Pattern verification failed") {
		t.Error(out)
	}
}

// TestKernelClient puts a file system on a device of the kernel's own client,
// through nbd-client, which does TLS for it.
func TestKernelClient(t *testing.T) {
	inMachine(t)
	need(t, "nbd-client", "mkfs.ext4", "fsck.ext4", "fio")
	dir := certificates(t)
	image := sparse(t, 128<<20)
	s := start(t, "--tls-certificates="+dir, "--tls-rekey-after=2M", "-e", "disk", "file", image)
	const device, where = "/dev/nbd0", "/tmp/mounted"
	run(t, "nbd-client", "127.0.0.1", s.port, device, "-N", "disk", "-cacertfile", dir+"/ca-cert.pem",
		"-certfile", dir+"/client-cert.pem", "-keyfile", dir+"/client-key.pem", "-tlshostname", "localhost")
	defer run(t, "nbd-client", "-d", device)
	// 64 writes of any size in flight, at random places, then all is read again.
	run(t, "fio", "--name=verify", "--filename="+device, "--rw=randwrite", "--bsrange=4k-128k", "--size=8M", "--direct=1",
		"--ioengine=libaio", "--iodepth=64", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--fsync=32", "--randseed=7")
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
