package file_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"nbd-ktls-server/backends/backendtest"
	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/nbd"
)

// image makes a file of size bytes.
func image(t testing.TB, size int64) string {
	t.Helper()
	return imageIn(t, t.TempDir(), "disk.img", size)
}

func imageIn(t testing.TB, dir, name string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string, o file.Options) *file.File {
	t.Helper()
	f, err := file.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFile(t *testing.T) {
	backendtest.Run(t, func(t testing.TB) nbd.Backend {
		return open(t, image(t, backendtest.Size), file.Options{})
	})
}

// tmpfs can punch holes, but not zero a range.
func TestFileOnTmpfs(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "nbd-ktls-server")
	if err != nil {
		t.Skip("needs a tmpfs at /dev/shm:", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	backendtest.Run(t, func(t testing.TB) nbd.Backend {
		return open(t, imageIn(t, dir, "disk.img", backendtest.Size), file.Options{})
	})
}

// loopDevice makes a block device of size bytes, which is gone when it has been
// opened and closed.
func loopDevice(t testing.TB, size int64) (path string, autoclear func()) {
	t.Helper()
	losetup := func(args ...string) string {
		out, err := exec.Command("losetup", args...).CombinedOutput()
		if err != nil {
			t.Skipf("needs loop devices, hence root: losetup: %v %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	path = losetup("--find", "--show", image(t, size))
	return path, func() { losetup("--detach", path) }
}

func TestBlockDevice(t *testing.T) {
	backendtest.Run(t, func(t testing.TB) nbd.Backend {
		path, autoclear := loopDevice(t, backendtest.Size)
		defer autoclear()
		return open(t, path, file.Options{})
	})
}

func TestBlockDeviceTrimAndZero(t *testing.T) {
	path, autoclear := loopDevice(t, 1<<20)
	f := open(t, path, file.Options{})
	autoclear()
	defer f.Close()
	ones := bytes.Repeat([]byte{1}, 1<<20)
	read := func() []byte {
		p := make([]byte, 1<<20)
		if _, err := f.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, flags := range []nbd.ZeroFlags{0, nbd.ZeroMayTrim} {
		f.WriteAt(ones, 0)
		if err := f.Zero(4096, 65536, flags); err != nil {
			t.Errorf("Zero(%d): %v", flags, err)
		}
		if got := read(); !bytes.Equal(got[4096:4096+65536], make([]byte, 65536)) || got[4095] != 1 || got[4096+65536] != 1 {
			t.Errorf("Zero(%d) zeroed the wrong bytes", flags)
		}
		// Not a multiple of the device's blocks: the server will write zeroes.
		if err := f.Zero(100, 1000, flags); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Zero(%d) of part of a block: %v", flags, err)
		}
		if err := f.Zero(8192, 4096, flags); err != nil {
			t.Errorf("Zero(%d) afterwards: %v", flags, err)
		}
	}
	f.WriteAt(ones, 0)
	if err := f.Trim(100, 100_000); err != nil {
		t.Error(err)
	}
	got := read()
	if !bytes.Equal(got[:4096], ones[:4096]) || !bytes.Equal(got[98304:], ones[98304:]) {
		t.Error("Trim took more than whole blocks")
	}
}

func TestReadOnlyFileIsOpenedReadOnly(t *testing.T) {
	path := image(t, 4096)
	f := open(t, path, file.Options{ReadOnly: true})
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.EBADF) {
		t.Errorf("WriteAt: %v", err)
	}
}

func TestOnlyFilesAndDisksAreOpened(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, "/dev/null", fifo, filepath.Join(dir, "nothing")} {
		if f, err := file.Open(path, file.Options{ReadOnly: true}); err == nil {
			t.Errorf("%s was opened", path)
			f.Close()
		}
	}
}

// What may not be written is exported read-only, as nbdkit does it.
func TestUnwritableFileIsExportedReadOnly(t *testing.T) {
	if os.Geteuid() == 0 { // who may write everything but a read-only mount
		dir := t.TempDir()
		image := imageIn(t, dir, "disk.img", 4096)
		mount := func(args ...string) error { return exec.Command("mount", args...).Run() }
		if mount("--bind", dir, dir) != nil || mount("-o", "remount,bind,ro", dir) != nil {
			t.Skip("needs mount(8)")
		}
		defer exec.Command("umount", dir).Run()
		checkReadOnly(t, image)
		return
	}
	path := image(t, 4096)
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	checkReadOnly(t, path)
}

func checkReadOnly(t *testing.T, path string) {
	t.Helper()
	a, err := nbd.Resolve(open(t, path, file.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if a.WriteAt != nil || a.Trim != nil || a.Zero != nil {
		t.Error("it can be changed")
	}
}

// A file cut short under the server must not make it send what is not there.
func TestTruncatedFile(t *testing.T) {
	path := image(t, 8192)
	f := open(t, path, file.Options{})
	defer f.Close()
	if err := os.Truncate(path, 4096+100); err != nil {
		t.Fatal(err)
	}
	if n, err := f.ReadAt(make([]byte, 4096), 4096); n == 4096 || err == nil {
		t.Errorf("ReadAt: %d, %v", n, err)
	}
}

func TestTrimAndZeroGiveStorageBack(t *testing.T) {
	const size = 1 << 20
	used := func(path string) int64 {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	for name, op := range map[string]func(*file.File) error{
		"Trim": func(f *file.File) error { return f.Trim(0, size) },
		"Zero": func(f *file.File) error { return f.Zero(0, size, nbd.ZeroMayTrim) },
	} {
		path := image(t, size)
		f := open(t, path, file.Options{})
		f.WriteAt(make([]byte, size), 0)
		f.Sync()
		if used(path) < size {
			t.Fatalf("%d bytes allocated after writing", used(path))
		}
		if err := op(f); err != nil || used(path) != 0 {
			t.Errorf("%s: %v, %d bytes still allocated", name, err, used(path))
		}
		if err := f.Zero(0, size, 0); err != nil || used(path) < size { // NO_HOLE
			t.Errorf("Zero without hole: %v, %d bytes allocated", err, used(path))
		}
		f.Close()
	}
}

func TestLocks(t *testing.T) {
	path := image(t, 4096)
	rw := file.Options{}
	ro := file.Options{ReadOnly: true}
	for _, test := range []struct {
		name          string
		first, second file.Options
		refused       bool
	}{
		{"two writers", rw, rw, true},
		{"a reader beside a writer", rw, ro, true},
		{"a writer beside a reader", ro, rw, true},
		{"two readers", ro, ro, false},
		{"locking=off", rw, file.Options{NoLocking: true}, false},
	} {
		f := open(t, path, test.first)
		g, err := file.Open(path, test.second)
		if refused := err != nil; refused != test.refused {
			t.Errorf("%s: %v", test.name, err)
		}
		if g != nil {
			g.Close()
		}
		f.Close()
	}
}

func TestPathIsSharedByItsUsers(t *testing.T) {
	path := image(t, 4096)
	p := file.NewPath(path, file.Options{})
	a, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Open() // would be refused by the locks if it were opened twice
	if err != nil || a.File != b.File {
		t.Fatalf("the second user: %v", err)
	}
	a.Close()
	if _, err := b.ReadAt(make([]byte, 10), 0); err != nil {
		t.Errorf("after the first user has gone: %v", err)
	}
	// Another image under the same name is another file.
	if err := os.Rename(imageIn(t, filepath.Dir(path), "new.img", 8192), path); err != nil {
		t.Fatal(err)
	}
	c, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := c.Size(); n != 8192 {
		t.Errorf("the new image has %d bytes", n)
	}
	b.Close()
	c.Close()
	d, err := p.Open()
	if err != nil {
		t.Fatalf("after everybody has gone: %v", err)
	}
	d.Close()
}

func TestDir(t *testing.T) {
	outer := t.TempDir()
	dir := filepath.Join(outer, "images")
	imageIn(t, outer, "secret", 512)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(dir+"/sub", 0o700),
		os.Symlink("b.img", dir+"/link"), os.Symlink("../secret", dir+"/escape"), os.Symlink("/etc/passwd", dir+"/absolute"),
		os.Symlink("nothing", dir+"/dangling"), syscall.Mkfifo(dir+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	imageIn(t, dir, "a.img", 512)
	imageIn(t, dir, "b.img", 1024)

	d, err := file.OpenDir(dir, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if names, err := d.Names(); err != nil || !slices.Equal(names, []string{"a.img", "b.img", "link"}) {
		t.Errorf("names %q, %v", names, err)
	}
	for _, name := range []string{"", ".", "..", "/", "../secret", "sub", "sub/..", "./a.img", "/etc/passwd", "escape", "absolute", "dangling", "fifo", "nothing", "a.img/"} {
		if h, err := d.Open(name); !errors.Is(err, nbd.ErrNoExport) {
			t.Errorf("%q: %v, %v", name, h, err)
		}
	}
	b, err := d.Open("b.img")
	if err != nil {
		t.Fatal(err)
	}
	link, err := d.Open("link") // the same file by another name
	if err != nil || link.File != b.File {
		t.Errorf("link: %v", err)
	}
	b.Close()
	link.Close()
}
