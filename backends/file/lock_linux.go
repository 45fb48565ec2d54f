package file

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// QEMU's image locks (block/file-posix.c): every opener of an image holds
// shared locks on single bytes that stand for what it does with the image and
// for what it does not want others to do, then looks whether anybody holds the
// opposite. They are open file description locks, so they end with the last
// descriptor, whatever happens to the process.
const (
	lockPermBase   = 100 // + permission: "I do this"
	lockSharedBase = 200 // + permission: "nobody else may do this"
)

// The permissions of QEMU's block layer that matter to us.
const (
	permConsistentRead = 0
	permWrite          = 1
	permResize         = 3
)

var errLocked = errors.New("another program uses the image (QEMU's image lock is taken); locking=off ignores that")

// lock takes the locks: of a reader who wants the image to stay as it is, or of
// its only writer. A file system without locks has no say.
func lock(f *os.File, readOnly bool) error {
	does, denies := []int64{permConsistentRead}, []int64{permWrite, permResize}
	if !readOnly {
		does = append(does, permWrite)
	}
	for _, p := range does {
		if err := lockByte(f, lockPermBase+p); err != nil {
			return ignoreNoLocks(err)
		}
	}
	for _, p := range denies {
		if err := lockByte(f, lockSharedBase+p); err != nil {
			return ignoreNoLocks(err)
		}
	}
	for _, p := range does {
		if err := checkByte(f, lockSharedBase+p); err != nil {
			return ignoreNoLocks(err)
		}
	}
	for _, p := range denies {
		if err := checkByte(f, lockPermBase+p); err != nil {
			return ignoreNoLocks(err)
		}
	}
	return nil
}

func lockByte(f *os.File, at int64) error {
	l := unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}
	err := control(f, func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l) })
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return errLocked
	}
	return os.NewSyscallError("fcntl F_OFD_SETLK", err)
}

func checkByte(f *os.File, at int64) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
	err := control(f, func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l) })
	if err == nil && l.Type != unix.F_UNLCK {
		return errLocked
	}
	return os.NewSyscallError("fcntl F_OFD_GETLK", err)
}

func ignoreNoLocks(err error) error {
	if errors.Is(err, unix.ENOLCK) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}
