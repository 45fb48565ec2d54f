package interop

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sparseImage makes an image of size bytes with a MiB of data in the middle.
func sparseImage(t *testing.T, size int64) string {
	t.Helper()
	path := sparse(t, size)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 1<<20)
	rand.Read(data)
	if _, err := f.WriteAt(data, size/2); err != nil {
		t.Fatal(err)
	}
	return path
}

// allocated is what a file takes up on disk.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// A 64 GiB image with a MiB of data is copied in seconds, both ways, and stays
// sparse.
func TestSparseCopy(t *testing.T) {
	need(t, "nbdcopy")
	bothWays(t, sparseCopy)
}

func sparseCopy(t *testing.T, flags []string, dir string) {
	const size = 64 << 30
	image := sparseImage(t, size)
	begun := time.Now()

	s := start(t, with(flags, []string{"file", image})...)
	out := filepath.Join(t.TempDir(), "out.img")
	run(t, "nbdcopy", s.uri(dir), out)

	in := sparse(t, size)
	s = start(t, with(flags, []string{"file", in})...)
	run(t, "nbdcopy", image, s.uri(dir))

	t.Logf("there and back in %v", time.Since(begun))
	if d := time.Since(begun); d > 30*time.Second {
		t.Errorf("it took %v", d)
	}
	want := make([]byte, 1<<20)
	readAt(t, image, want, size/2)
	for _, copy := range []string{out, in} {
		if n := allocated(t, copy); n > 2<<20 {
			t.Errorf("the copy takes up %d bytes", n)
		}
		got := make([]byte, 1<<20)
		readAt(t, copy, got, size/2)
		if !bytes.Equal(got, want) {
			t.Error("the data are not the same")
		}
	}
}

func readAt(t *testing.T, path string, p []byte, off int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func TestMaps(t *testing.T) {
	need(t, "nbdinfo", "qemu-img")
	dir := certificates(t)
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "file", sparseImage(t, 64<<20))

	type extent struct {
		Offset, Length int64
		Start          int64 // QEMU's word for the offset
		Type           int
		Data, Zero     bool
	}
	var libnbd, qemu []extent
	decode := func(out string, v any) {
		t.Helper()
		if err := json.Unmarshal([]byte(out), v); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
	}
	decode(run(t, "nbdinfo", "--map", "--json", s.uri(dir)), &libnbd)
	if len(libnbd) != 3 || libnbd[1].Offset != 32<<20 || libnbd[1].Length != 1<<20 || libnbd[1].Type != 0 || libnbd[0].Type != 3 || libnbd[2].Type != 3 {
		t.Errorf("nbdinfo --map: %+v", libnbd)
	}
	object, opts := s.qemu(dir)
	decode(run(t, "qemu-img", "map", "--output=json", object[0], object[1], "--image-opts", opts), &qemu)
	if len(qemu) != 3 || qemu[1].Start != 32<<20 || qemu[1].Length != 1<<20 || !qemu[1].Data || qemu[0].Data || !qemu[0].Zero {
		t.Errorf("qemu-img map: %+v", qemu)
	}
}

func TestNbdinfoCan(t *testing.T) {
	need(t, "nbdinfo")
	s := start(t, "--tls=off", "file", sparse(t, 1<<20))
	for _, can := range []string{"connect", "read", "write", "flush", "fua", "trim", "zero", "fast-zero", "cache", "df", "multi-conn"} {
		if out, err := try(t, "nbdinfo", "--can", can, s.uri("")); err != nil {
			t.Errorf("--can %s: %v %s", can, err, out)
		}
	}
	for _, is := range []string{"read-only", "rotational", "tls"} {
		if out, err := try(t, "nbdinfo", "--is", is, s.uri("")); err == nil {
			t.Errorf("--is %s: %s", is, out)
		}
	}
	var info struct {
		Protocol   string
		Structured bool
		Exports    []struct {
			ExportSize int64 `json:"export-size"`
			Contexts   []string
		}
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", s.uri(""))), &info); err != nil {
		t.Fatal(err)
	}
	if info.Protocol != "newstyle-fixed" || !info.Structured || len(info.Exports) != 1 || info.Exports[0].ExportSize != 1<<20 ||
		strings.Join(info.Exports[0].Contexts, " ") != "base:allocation" {
		t.Errorf("%+v", info)
	}
}

// Every command and flag of libnbd's, with structured replies and without.
func TestNbdshCommands(t *testing.T) {
	need(t, "nbdsh")
	for _, structured := range []string{"True", "False"} {
		for _, plugin := range [][]string{{"memory", "16M"}, {"file", sparse(t, 16<<20)}} {
			s := start(t, append([]string{"--tls=off"}, plugin...)...)
			run(t, "nbdsh", "-c", "structured = "+structured, "-c", `
h.set_request_structured_replies(structured)
h.add_meta_context("base:allocation")
h.connect_uri('`+s.uri("")+`')
assert h.get_structured_replies_negotiated() == structured
assert h.can_meta_context("base:allocation") == structured
h.set_strict_mode(0)
h.pwrite(b"x" * 131072, 65536, nbd.CMD_FLAG_FUA)
h.flush()
h.cache(65536, 0)
if structured:
    assert h.pread(131072, 65536, nbd.CMD_FLAG_DF) == b"x" * 131072
    chunks = []
    def chunk(data, offset, status, err):
        chunks.append((offset, len(data), status))
    h.pread_structured(262144, 0, chunk)
    assert chunks == [(0, 65536, nbd.READ_HOLE), (65536, 131072, nbd.READ_DATA), (196608, 65536, nbd.READ_HOLE)], chunks
    extents = []
    def extent(context, offset, entries, err):
        extents.extend(entries)
    h.block_status(262144, 0, extent)
    assert extents == [65536, 3, 131072, 0, 65536, 3], extents
    extents = []
    h.block_status(262144, 65536 + 512, extent, nbd.CMD_FLAG_REQ_ONE)
    assert extents == [131072 - 512, 0], extents
h.zero(65536, 65536, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(65536, 131072, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(131072, 65536) == bytearray(131072)
h.trim(16 * 1024 * 1024, 0, nbd.CMD_FLAG_FUA)
for f, errnum in [(lambda: h.pread(512, 1 << 40), 22), (lambda: h.zero(512, 1 << 40), 28),
                  (lambda: h.trim(512, 1 << 40), 22), (lambda: h.pread(512, 0, 1 << 14), 22)]:
    try:
        f()
        assert False
    except nbd.Error as e:
        assert e.errnum == errnum, (e, errnum)
h.shutdown()
`)
		}
	}
}

// newer returns the path of a client of a newer release, which ./test/run
// unpacks.
func newer(t *testing.T, tool string) string {
	t.Helper()
	dir := os.Getenv("NBD_TEST_NEWER")
	if dir == "" {
		t.Skip("needs NBD_TEST_NEWER, which ./test/run sets on Debian")
	}
	path := filepath.Join(dir, "bin", tool)
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// Extended headers, by libnbd 1.22 and QEMU 10: 64-bit lengths on an image of
// 8 TiB.
func TestExtendedHeaders(t *testing.T) {
	nbdinfo, nbdcopy, qemuIO, qemuImg := newer(t, "nbdinfo"), newer(t, "nbdcopy"), newer(t, "qemu-io"), newer(t, "qemu-img")
	const size = 8 << 40
	dir := certificates(t)
	image := sparseImage(t, size)
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "file", image)
	if out := run(t, nbdinfo, "--no-content", s.uri(dir)); !contains(out, "using extended packets", "base:allocation") {
		t.Errorf("nbdinfo: %s", out)
	}
	if out := run(t, nbdinfo, "--map", s.uri(dir)); strings.Count(out, "\n") != 3 || !contains(out, "4398047559680") {
		t.Errorf("nbdinfo --map: %s", out)
	}
	object, opts := s.qemu(dir)
	out := run(t, qemuIO, object[0], object[1], "--image-opts", opts,
		"-c", "write -P 7 3T 1M", "-c", "read -P 7 3T 1M", "-c", "write -z 3T 1M", "-c", "read -P 0 3T 1M",
		"-c", "write -f -P 8 5T 4k", "-c", "read -P 8 5T 4k", "-c", "discard 5T 1G", "-c", "flush")
	if strings.Contains(out, "failed") {
		t.Error(out)
	}
	var extents []struct {
		Start, Length int64
		Data          bool
	}
	out = run(t, qemuImg, "map", "--output=json", object[0], object[1], "--image-opts", opts)
	if err := json.Unmarshal([]byte(out), &extents); err != nil || len(extents) != 3 || extents[1].Start != size/2 || !extents[1].Data {
		t.Errorf("qemu-img map: %v %s", err, out)
	}
	if strings.Contains(s.log.String(), "request failed") {
		t.Errorf("%s", s.log)
	}

	// In and out, sparse.
	image = sparseImage(t, 64<<30)
	s = start(t, "--tls-certificates="+dir, "--tls-verify-peer", "file", image)
	copied := filepath.Join(t.TempDir(), "out.img")
	run(t, nbdcopy, "--connections=4", "--threads=4", s.uri(dir), copied)
	if n := allocated(t, copied); n > 2<<20 {
		t.Errorf("the copy takes up %d bytes", n)
	}
	back := sparse(t, 64<<30)
	s = start(t, "--tls-certificates="+dir, "--tls-verify-peer", "file", back)
	run(t, nbdcopy, copied, s.uri(dir))
	run(t, "cmp", "-i", "34359738368", "-n", "1048576", image, back)
}

// fio verifies what it has written, with 64 requests in flight. It takes its
// certificates from a fixed place, so it comes without TLS; with TLS it comes
// through nbdkit's proxy below.
func TestFio(t *testing.T) {
	need(t, "fio")
	s := start(t, "--tls=off", "-t", "64", "file", sparse(t, 64<<20))
	t.Chdir(t.TempDir())
	out, err := try(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+s.uri(""), "--rw=randwrite", "--bsrange=512-64k",
		"--iodepth=64", "--size=64m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--trim_percentage=5", "--fsync=64")
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// nbdkit's nbd plugin as a proxy in front of us: plain on one side, TLS on ours.
func TestNbdkitAsProxy(t *testing.T) {
	need(t, "nbdkit", "fio", "nbdinfo", "qemu-img")
	dir := certificates(t)
	disk := sparseImage(t, 64<<20)
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "-t", "64", "file", disk)
	socket := filepath.Join(t.TempDir(), "proxy")
	nbdkit := exec.Command("nbdkit", "-f", "-U", socket, "nbd", "hostname=localhost", "port="+s.port, "tls=require", "tls-certificates="+dir)
	var out log
	nbdkit.Stdout, nbdkit.Stderr = &out, &out
	if err := nbdkit.Start(); err != nil {
		t.Fatal(err)
	}
	defer nbdkit.Wait()
	defer nbdkit.Process.Kill()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		} else if !errors.Is(err, os.ErrNotExist) || time.Now().After(end) {
			t.Fatalf("%v\n%s", err, &out)
		}
	}
	uri := "nbd+unix:///?socket=" + socket
	if out := run(t, "nbdinfo", "--map", uri); !contains(out, "hole,zero", "data") {
		t.Errorf("the map through the proxy:\n%s", out)
	}
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", disk, uri, "-U")
	t.Chdir(t.TempDir())
	if out, err := try(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bsrange=4k-64k",
		"--iodepth=64", "--size=64m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
