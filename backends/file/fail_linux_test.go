package file

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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

// failSync makes fdatasync do something else for the length of the test.
func failSync(t *testing.T, f func(fd int) error) {
	old := fdatasync
	t.Cleanup(func() { fdatasync = old })
	fdatasync = f
}

// The kernel reports a failed write-back once. Every sync after it would be a
// promise that cannot be kept.
func TestFailedSyncIsRemembered(t *testing.T) {
	f := openImage(t)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	failSync(t, func(int) error { return unix.EIO })
	if err := f.Sync(); !errors.Is(err, unix.EIO) {
		t.Fatalf("the failure itself: %v", err)
	}
	failSync(t, unix.Fdatasync)
	for range 2 {
		if err := f.Sync(); !errors.Is(err, unix.EIO) {
			t.Errorf("a later Sync: %v", err)
		}
	}
	if _, err := f.ReadAt(make([]byte, 512), 0); err != nil {
		t.Errorf("reading: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 512), 0); err != nil {
		t.Errorf("writing: %v", err)
	}
}

// It reports it to one caller only: the others, at the same time, must hear of
// it too.
func TestFailedSyncIsToldToAll(t *testing.T) {
	const callers = 20
	f := openImage(t)
	var calls atomic.Int64
	failSync(t, func(int) error {
		time.Sleep(time.Millisecond)
		if calls.Add(1) == 1 {
			return unix.EIO
		}
		return nil
	})
	var failed atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			if f.Sync() != nil {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	if failed.Load() != callers {
		t.Errorf("%d of %d callers heard of it", failed.Load(), callers)
	}
}

// Callers that wait for a sync share the next one, which has to begin after they
// came.
func TestSyncsAreShared(t *testing.T) {
	f := openImage(t)
	var calls atomic.Int64
	first, release := make(chan bool), make(chan bool)
	failSync(t, func(int) error {
		if calls.Add(1) == 1 {
			first <- true
			<-release
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() { f.Sync() })
	<-first
	for range 50 {
		wg.Go(func() { f.Sync() })
	}
	time.Sleep(50 * time.Millisecond) // for them to arrive
	close(release)
	wg.Wait()
	if n := calls.Load(); n != 2 {
		t.Errorf("%d syncs, want 2", n)
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
	failSync(t, func(fd int) error {
		b, _ := os.ReadFile(path)
		flushed <- b
		return unix.Fdatasync(fd)
	})
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

// A file on a tmpfs can always be read at once: preadv2(2) with RWF_NOWAIT does not
// know it.
func TestReadNowOnTmpfs(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "")
	if err != nil {
		t.Skip("no tmpfs at /dev/shm")
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("in memory"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !inMemory(f.f) {
		t.Skip("no tmpfs at /dev/shm")
	}
	a := &nbd.Abilities{}
	if err := f.Resolve(a); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 9)
	if n := a.ReadNow(p, 0); string(p[:n]) != "in memory" {
		t.Errorf("%d bytes, %q", n, p[:n])
	}
}
