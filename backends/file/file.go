// Package file exports regular files and block devices: pread(2), pwrite(2),
// fdatasync(2), fallocate(2).
package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"nbd-ktls-server/nbd"
)

// Options say how a file is opened and used.
type Options struct {
	ReadOnly bool
	// NoLocking leaves out QEMU's image locks.
	NoLocking bool
	// Advice is passed to posix_fadvise(2).
	Advice Advice
}

// Advice is how the file will be read.
type Advice int

const (
	Normal Advice = iota
	Random
	Sequential
)

// File is an open regular file or block device.
type File struct {
	f        *os.File
	size     int64
	device   bool
	readOnly bool

	syncMu sync.Mutex   // held while fdatasync runs
	syncs  atomic.Int64 // how often it has begun; changed under syncMu
	// syncErr, guarded by syncMu, is its failure. The kernel may have thrown the
	// data away: to call a later fdatasync a success would be a lie about writes
	// that went before.
	syncErr error

	// data is a range known to be data, so that a READ in it need not ask for
	// holes. To take a hole for data is never wrong; only trimming and zeroing,
	// which make holes, let go of it.
	data atomic.Pointer[span]

	// What the file system has turned out not to know.
	noPunch, noZeroRange, noNowait atomic.Bool
}

type span struct{ start, end int64 }

// Open opens the file or block device at path.
func Open(path string, o Options) (*File, error) {
	return open(func(flag int) (*os.File, error) { return os.OpenFile(path, flag, 0) }, o)
}

// open opens what openFile opens. O_NONBLOCK, without effect on files and
// disks, keeps it from waiting for the other end of a FIFO.
func open(openFile func(flag int) (*os.File, error), o Options) (_ *File, err error) {
	var f *os.File
	if !o.ReadOnly {
		f, err = openFile(os.O_RDWR | nonblock)
		o.ReadOnly = errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
	}
	if o.ReadOnly { // asked for, or, as with nbdkit, all that can be had
		f, err = openFile(os.O_RDONLY | nonblock)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !exportable(fi.Mode()) {
		return nil, fmt.Errorf("%s is neither a regular file nor a block device", f.Name())
	}
	if !o.NoLocking {
		if err := lock(f, o.ReadOnly); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	advise(f, o.Advice)
	size, err := f.Seek(0, io.SeekEnd) // stat(2) knows no size of a device
	if err != nil {
		return nil, err
	}
	return &File{f: f, size: size, device: !fi.Mode().IsRegular(), readOnly: o.ReadOnly}, nil
}

// Check reports what at path is not a file or block device.
func Check(path string) error {
	fi, err := os.Stat(path)
	if err == nil && !exportable(fi.Mode()) {
		err = fmt.Errorf("%s is neither a regular file nor a block device", path)
	}
	return err
}

func exportable(m fs.FileMode) bool {
	return m.IsRegular() || m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0
}

// ReadAt is pread(2).
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// ReadNow reads what is in the page cache.
func (f *File) ReadNow(p []byte, off int64) int {
	if f.noNowait.Load() {
		return 0
	}
	n, err := readNowait(f.f, p, off)
	if errors.Is(err, errors.ErrUnsupported) {
		f.noNowait.Store(true)
	}
	return n
}

// readMemory is ReadNow of a file that is nowhere else than in memory.
func (f *File) readMemory(p []byte, off int64) int {
	n, _ := f.f.ReadAt(p, off)
	return n
}

// Section says where n bytes at off are in the file: there.
func (f *File) Section(off, _ int64) (*os.File, int64, bool) { return f.f, off, true }

// WriteAt is pwrite(2).
func (f *File) WriteAt(p []byte, off int64) (int, error) { return f.f.WriteAt(p, off) }

// Size is the size in bytes when the file was opened.
func (f *File) Size() (int64, error) { return f.size, nil }

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// Sync is fdatasync(2). Once it has failed it fails always. The kernel tells of
// a failure only once, so no two may run at the same time: the second could
// succeed, and its caller be told that lost data are safe. Those who wait
// meanwhile share the next one.
func (f *File) Sync() error {
	arrived := f.syncs.Load()
	f.syncMu.Lock()
	defer f.syncMu.Unlock()
	switch {
	case f.syncErr != nil:
		return fmt.Errorf("a sync has failed, writes before it may be lost: %w", f.syncErr)
	case f.syncs.Load() != arrived: // one began after we had arrived, and has succeeded
		return nil
	}
	f.syncs.Add(1)
	f.syncErr = datasync(f.f)
	return f.syncErr
}

// Trim gives back the storage of n bytes at off, if the file system can.
func (f *File) Trim(off, n int64) error {
	defer f.data.Store(nil)
	if f.device {
		return ignoreUnsupported(discard(f.f, off, n))
	}
	return ignoreUnsupported(f.try(&f.noPunch, punchHole, off, n))
}

// Zero makes n bytes at off zero without writing them, or fails with
// errors.ErrUnsupported. To be fast is to be sure that nobody writes them: the
// kernel may, to a device that cannot zero.
func (f *File) Zero(off, n int64, flags nbd.ZeroFlags) error {
	defer f.data.Store(nil)
	fast := flags&nbd.ZeroFast != 0
	if flags&nbd.ZeroMayTrim != 0 {
		if err := f.try(&f.noPunch, punchHole, off, n); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	if f.device && fast {
		return errors.ErrUnsupported
	}
	err := f.try(&f.noZeroRange, zeroRange, off, n)
	if !errors.Is(err, errors.ErrUnsupported) || f.device || fast {
		return err
	}
	// tmpfs, for one, can punch and allocate, but not zero.
	if err := f.try(&f.noPunch, punchHole, off, n); err != nil {
		return err
	}
	return allocate(f.f, off, n)
}

// Hole says whether off is in a hole, and how far that or the data reach, within
// n bytes: lseek(2) with SEEK_DATA and SEEK_HOLE. Where it cannot tell, all is
// data.
func (f *File) Hole(off, n int64) (hole bool, length int64) {
	if d := f.data.Load(); d != nil && d.start <= off && off < d.end {
		return false, min(n, d.end-off)
	}
	start, err := seekData(f.f, off)
	switch {
	case err != nil:
		return false, n
	case start > off:
		return true, min(n, start-off)
	}
	end, err := seekHole(f.f, off)
	if err != nil || end <= off { // trimmed meanwhile
		return false, n
	}
	f.data.Store(&span{off, end})
	return false, min(n, end-off)
}

// try calls op unless the file system is known not to support it. A device
// refuses ranges that are not aligned to its blocks with EINVAL: that range is
// unsupported, the operation is not.
func (f *File) try(unsupported *atomic.Bool, op func(*os.File, int64, int64) error, off, n int64) error {
	if unsupported.Load() {
		return errors.ErrUnsupported
	}
	err := op(f.f, off, n)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		unsupported.Store(true)
	case f.device && isInvalid(err):
		return errors.ErrUnsupported
	}
	return err
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// Resolve implements [nbd.Resolver]. FUA is left to the server, which makes it of
// WriteAt and Sync: the error of a pwritev2(2) with RWF_DSYNC does not say whether
// it was the write that failed or the sync.
func (f *File) Resolve(a *nbd.Abilities) error {
	a.ReadNow = f.ReadNow
	if inMemory(f.f) {
		a.ReadNow = f.readMemory
	}
	a.Buffered = true
	a.Section = f.Section
	a.Trim = f.Trim
	a.Zero = f.Zero
	a.Hole = f.Hole
	a.Cache = func(off, n int64) error { return willNeed(f.f, off, n) }
	a.MultiConn = true // one page cache, one fdatasync
	a.Rotational = f.device && rotational(f.f)
	if f.readOnly {
		a.ReadOnly()
	}
	return nil
}
