package file

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

func openImage(t *testing.T) *File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// The kernel reports a failed write-back once. Every sync after it would be a
// promise that cannot be kept.
func TestFailedSyncIsRemembered(t *testing.T) {
	for name, fail := range map[string]func(f *File) error{
		"fdatasync": func(f *File) error {
			defer func(old func(int) error) { fdatasync = old }(fdatasync)
			fdatasync = func(int) error { return unix.EIO }
			return f.Sync()
		},
		"FUA": func(f *File) error {
			defer func(old func(int, [][]byte, int64, int) (int, error)) { pwritev2 = old }(pwritev2)
			pwritev2 = func(int, [][]byte, int64, int) (int, error) { return -1, unix.EIO }
			_, err := f.WriteFUA(make([]byte, 512), 0)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := openImage(t)
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := fail(f); !errors.Is(err, unix.EIO) {
				t.Fatalf("the failure itself: %v", err)
			}
			for range 2 {
				if err := f.Sync(); !errors.Is(err, unix.EIO) {
					t.Errorf("a later Sync: %v", err)
				}
				if _, err := f.WriteFUA(make([]byte, 512), 0); !errors.Is(err, unix.EIO) {
					t.Errorf("a later WriteFUA: %v", err)
				}
			}
			if _, err := f.ReadAt(make([]byte, 512), 0); err != nil {
				t.Errorf("reading: %v", err)
			}
		})
	}
}

// What one connection was told is written, a flush on another one makes
// durable: proto.md, NBD_FLAG_CAN_MULTI_CONN. At the moment of fdatasync the
// file, looked at from outside, has it all.
func TestFlushCoversOtherConnections(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	flushed := make(chan []byte, 1)
	defer func(old func(int) error) { fdatasync = old }(fdatasync)
	fdatasync = func(fd int) error {
		b, _ := os.ReadFile(path)
		flushed <- b
		return unix.Fdatasync(fd)
	}
	p := NewPath(path, Options{})
	addr := nbdtest.Serve(t, &nbd.Server{Exports: nbd.ExportList{{
		Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return p.Open() },
	}}})
	a, b := nbdtest.Hello(t, addr), nbdtest.Hello(t, addr)
	for _, c := range []*nbdtest.Client{a, b} {
		if c.Go("").Flags&wire.FlagCanMultiConn == 0 {
			t.Fatal("multi-conn is not offered")
		}
	}
	want := make([]byte, 1<<20)
	for i := range 64 {
		data := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		off := i * 16384
		copy(want[off:], data)
		writer, flusher := a, b
		if i%2 == 1 {
			writer, flusher = b, a
		}
		if errno := writer.Do(wire.CmdWrite, 0, uint64(off), 4096, data); errno != 0 {
			t.Fatal(errno)
		}
		if errno := flusher.Do(wire.CmdFlush, 0, 0, 0); errno != 0 {
			t.Fatal(errno)
		}
		if !bytes.Equal(<-flushed, want) {
			t.Fatalf("write %d was not in the file when it was flushed", i)
		}
		// And what one wrote the other reads.
		if got, errno := flusher.Pread(uint64(off), 4096); errno != 0 || !bytes.Equal(got, data) {
			t.Fatalf("write %d read on the other connection: %v", i, errno)
		}
	}
}

func TestFUAWithoutRWFDsync(t *testing.T) {
	defer func(old func(int, [][]byte, int64, int) (int, error)) { pwritev2 = old }(pwritev2)
	pwritev2 = func(int, [][]byte, int64, int) (int, error) { return -1, unix.EOPNOTSUPP }
	synced := 0
	defer func(old func(int) error) { fdatasync = old }(fdatasync)
	fdatasync = func(int) error { synced++; return nil }
	f := openImage(t)
	for range 2 {
		if n, err := f.WriteFUA([]byte("hello"), 100); n != 5 || err != nil {
			t.Errorf("WriteFUA: %d, %v", n, err)
		}
	}
	if synced != 2 {
		t.Errorf("%d syncs, want 2", synced)
	}
}

func TestShortAndInterruptedDsyncWrites(t *testing.T) {
	defer func(old func(int, [][]byte, int64, int) (int, error)) { pwritev2 = old }(pwritev2)
	calls := 0
	pwritev2 = func(fd int, iov [][]byte, off int64, _ int) (int, error) {
		if calls++; calls%2 == 1 {
			return -1, unix.EINTR
		}
		return unix.Pwrite(fd, iov[0][:1], off)
	}
	f := openImage(t)
	if n, err := f.WriteFUA([]byte("hello"), 100); n != 5 || err != nil {
		t.Fatalf("WriteFUA: %d, %v", n, err)
	}
	got := make([]byte, 5)
	if f.ReadAt(got, 100); string(got) != "hello" {
		t.Errorf("%q", got)
	}
}
