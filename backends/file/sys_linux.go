package file

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const nonblock = unix.O_NONBLOCK

// control calls f with the descriptor of file, which stays open meanwhile, and
// again as long as a signal interrupts it.
func control(file *os.File, f func(fd int) error) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = rc.Control(func(fd uintptr) {
		for {
			if opErr = f(int(fd)); opErr != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(err, opErr)
}

// fdatasync is a variable so that tests can make it fail.
var fdatasync = unix.Fdatasync

func datasync(f *os.File) error {
	return os.NewSyscallError("fdatasync", control(f, func(fd int) error { return fdatasync(fd) }))
}

// maxQuick is the most that is copied without Go's scheduler being told: it takes
// some dozen microseconds. To tell it costs more than a small read.
const maxQuick = 256 << 10

// inMemory reports whether a file is on a tmpfs.
func inMemory(f *os.File) bool {
	var st unix.Statfs_t
	err := control(f, func(fd int) error { return unix.Fstatfs(fd, &st) })
	return err == nil && st.Type == unix.TMPFS_MAGIC
}

// readNowait is preadv2(2) with RWF_NOWAIT, which some file systems do not know.
func readNowait(f *os.File, p []byte, off int64) (n int, err error) {
	err = control(f, func(fd int) error {
		if len(p) <= maxQuick {
			n, err = preadv2Quick(fd, p, off, unix.RWF_NOWAIT)
		} else {
			n, err = unix.Preadv2(fd, [][]byte{p}, off, unix.RWF_NOWAIT)
		}
		return err
	})
	return max(n, 0), err
}

// preadv2Quick is preadv2(2) of one buffer.
func preadv2Quick(fd int, p []byte, off int64, flags int) (int, error) {
	v := unix.Iovec{Base: unsafe.SliceData(p)}
	v.SetLen(len(p))
	// Two halves of the offset; on 64-bit machines the first is all of it.
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&v)), 1, uintptr(off), uintptr(off>>32), uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func fallocate(f *os.File, mode uint32, off, n int64) error {
	if n == 0 {
		return nil // fallocate(2) would call it EINVAL
	}
	return os.NewSyscallError("fallocate", control(f, func(fd int) error { return unix.Fallocate(fd, mode, off, n) }))
}

func punchHole(f *os.File, off, n int64) error {
	return fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func zeroRange(f *os.File, off, n int64) error {
	return fallocate(f, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func allocate(f *os.File, off, n int64) error {
	return fallocate(f, unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// discard is BLKDISCARD on the whole blocks within the range. Punching a hole
// would also promise zeroes, which not every device that can discard does.
func discard(f *os.File, off, n int64) error {
	const unit = 4096 // a multiple of every logical block size that disks have
	end := (off + n) / unit * unit
	off = (off + unit - 1) / unit * unit
	if end <= off {
		return nil
	}
	r := [2]uint64{uint64(off), uint64(end - off)}
	return os.NewSyscallError("ioctl BLKDISCARD", control(f, func(fd int) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r)))
		if errno != 0 {
			return errno
		}
		return nil
	}))
}

// seekData returns where data begin, at off or behind; without any, beyond
// every offset.
func seekData(f *os.File, off int64) (int64, error) {
	at, err := seek(f, off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return math.MaxInt64, nil
	}
	return at, err
}

// seekHole returns where a hole begins, at off or behind: the end of the file
// counts as one.
func seekHole(f *os.File, off int64) (int64, error) { return seek(f, off, unix.SEEK_HOLE) }

// seek moves the offset of the open file, which nothing else uses.
func seek(f *os.File, off int64, whence int) (at int64, err error) {
	err = control(f, func(fd int) error {
		at, err = unix.Seek(fd, off, whence)
		return err
	})
	return at, err
}

// willNeed is posix_fadvise(2), POSIX_FADV_WILLNEED: the kernel reads ahead.
func willNeed(f *os.File, off, n int64) error {
	return os.NewSyscallError("posix_fadvise", control(f, func(fd int) error { return unix.Fadvise(fd, off, n, unix.FADV_WILLNEED) }))
}

func isInvalid(err error) bool { return errors.Is(err, unix.EINVAL) }

func advise(f *os.File, a Advice) {
	advice := map[Advice]int{Random: unix.FADV_RANDOM, Sequential: unix.FADV_SEQUENTIAL}[a]
	if advice != 0 {
		control(f, func(fd int) error { return unix.Fadvise(fd, 0, 0, advice) })
	}
}

// rotational reads what the kernel knows about a disk; a partition has its
// disk's answer one directory up.
func rotational(f *os.File) bool {
	var st unix.Stat_t
	if control(f, func(fd int) error { return unix.Fstat(fd, &st) }) != nil {
		return false
	}
	dev := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for _, dir := range []string{"/queue", "/../queue"} {
		if b, err := os.ReadFile(dev + dir + "/rotational"); err == nil {
			return strings.TrimSpace(string(b)) == "1"
		}
	}
	return false
}
