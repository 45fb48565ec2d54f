package interop

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A machine runs from a qcow2 image, over TLS, through qemu-nbd, which is killed
// again and again. The machine does not notice,
// and nothing that it wrote is lost.
func TestQCOW2SurvivesItsServer(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-nbd", "nbdcopy", "pkill")
	const size = 16 << 20
	tmp, dir := t.TempDir(), certificates(t)
	raw, image, copied := filepath.Join(tmp, "raw"), filepath.Join(tmp, "disk.qcow2"), filepath.Join(tmp, "copied")
	if err := os.WriteFile(raw, writer(size), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
	command := "qemu-nbd --persistent --cache=writeback -f qcow2 " + image
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "nbd", "command="+command)
	object, _ := s.qemu(dir)
	monitor := filepath.Join(tmp, "qmp")
	qemu := exec.Command("qemu-system-x86_64", with(object, []string{
		"-nodefaults", "-display", "none", "-qmp", "unix:" + monitor + ",server=on,wait=off",
		"-blockdev", "driver=nbd,node-name=disk,server.type=inet,server.host=localhost,server.port=" + s.port + ",tls-creds=tls0",
		"-device", "virtio-blk-pci,drive=disk",
	})...)
	var out log
	qemu.Stdout, qemu.Stderr = &out, &out
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	defer qemu.Wait()
	defer qemu.Process.Kill()
	q := dialQMP(t, monitor)

	written := func() uint32 {
		run(t, "nbdcopy", s.uri(dir), copied)
		return lastWrite(t, copied)
	}
	// more waits until the machine has written more than before.
	more := func(before uint32) uint32 {
		for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			if n := written(); n > before {
				return n
			}
			if time.Now().After(end) {
				t.Fatalf("the machine writes no more\n%s%s", s.log, &out)
			}
		}
	}
	n := more(0)
	for range 3 {
		run(t, "pkill", "-KILL", "-f", "^"+command)
		n = more(n)
	}
	q.do("quit", nil)
	if err := qemu.Wait(); err != nil {
		t.Errorf("QEMU: %v\n%s", err, &out)
	}
	s.log.expect("connected to the server again")
	n = written()
	allWritten(t, copied, n)
	if strings.Contains(s.log.String(), "may be lost") {
		t.Errorf("something was lost:\n%s", s.log)
	}
	s.stop()
	run(t, "qemu-img", "check", "-q", "-f", "qcow2", image)
}

// sectors of the disk, from the half on, are what a writer writes to in turn.
const sectors = 1 << 14

func counters(t *testing.T, path string) []uint32 {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]uint32, sectors)
	for i := range all {
		all[i] = binary.LittleEndian.Uint32(p[(sectors+i)*512:])
	}
	return all
}

// lastWrite is the number of the last write that is there.
func lastWrite(t *testing.T, path string) (last uint32) {
	for _, n := range counters(t, path) {
		last = max(last, n)
	}
	return last
}

// allWritten fails the test unless each of the writes up to the last one is there,
// or a later one in its place.
func allWritten(t *testing.T, path string, last uint32) {
	t.Helper()
	all := counters(t, path)
	for n := last; n > 0 && n+sectors > last; n-- {
		if got := all[n%sectors]; got != n {
			t.Fatalf("sector %d holds write %d; write %d of %d is lost", n%sectors, got, n, last)
		}
	}
}

// Another server's TLS is used, and its exports are passed on by name.
func TestProxyToTLS(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy", "nbdkit")
	dir := certificates(t)
	image := random(t, 8<<20)
	images, nbdkitPort := filepath.Dir(image), freePort(t)
	for name, far := range map[string]*server{
		"ours":   start(t, "--tls-certificates="+dir, "--tls-verify-peer", "file", "dir="+images),
		"nbdkit": startOn(t, nbdkitPort, "nbdkit", "-f", "-i", "127.0.0.1", "-p", nbdkitPort, "--tls=require", "--tls-certificates="+dir, "--tls-verify-peer", "file", "dir="+images),
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, "--tls=off", "nbd", far.uri(dir), "dynamic-export=true", "connections=4")
			list := run(t, "nbdinfo", "--list", s.uri(""))
			if !strings.Contains(list, `export="`+filepath.Base(image)+`"`) {
				t.Errorf("the list:\n%s", list)
			}
			copied := filepath.Join(t.TempDir(), "copied")
			run(t, "nbdcopy", s.uri("")+"/"+filepath.Base(image), copied)
			same(t, image, copied)
			if out, err := try(t, "nbdinfo", s.uri("")+"/nosuch"); err == nil {
				t.Errorf("an export that is not there:\n%s", out)
			}
		})
	}
}
