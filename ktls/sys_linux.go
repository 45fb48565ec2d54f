package ktls

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls, behind variables: their failures are tested without a
// kernel that has them.
var (
	setULP = func(fd int) error {
		return unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_ULP, "tls")
	}
	// setsockopt takes keys: nothing may copy them on the way.
	setsockopt = func(fd, level, opt int, b []byte) error {
		_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
			uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0)
		if errno != 0 {
			return errno
		}
		return nil
	}
	sendmsg = unix.SendmsgN
	splice  = unix.Splice
)

// readNow is read(2) from a descriptor that does not block.
func readNow(fd int, p []byte) (n int, err error) { return transfer(unix.SYS_READ, fd, p) }

// writeNow is write(2) likewise.
func writeNow(fd int, p []byte) (n int, err error) { return transfer(unix.SYS_WRITE, fd, p) }

// transfer is a system call that does not wait: Go's scheduler is not told, and
// must not be kept waiting by a large p.
func transfer(call uintptr, fd int, p []byte) (n int, err error) {
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

func setLowWater(fd, n int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, n)
}

// setCrypto gives fd the keys of one direction.
func setCrypto(fd, direction int, info *CryptoInfo) error {
	var mem [maxCryptoInfo]byte
	defer clear(mem[:])
	b, err := info.appendTo(mem[:0])
	if err != nil {
		return err
	}
	return setsockopt(fd, unix.SOL_TLS, direction, b)
}

// control calls f with the file descriptor behind c.
func control(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// whenWritable calls f until it says something else than EAGAIN: at once, and
// then whenever the socket has become writable. The deadline is the connection's.
func whenWritable(c syscall.RawConn, call string, f func(fd int) error) error {
	var err error
	werr := c.Write(func(fd uintptr) bool {
		err = f(int(fd))
		for err == unix.EINTR {
			err = f(int(fd))
		}
		return err != unix.EAGAIN
	})
	if werr != nil {
		return werr
	}
	return os.NewSyscallError(call, err)
}

// recSeq reads a sequence number. The kernel hands out the key along with it.
func recSeq(fd, direction int, c Cipher) (uint64, error) {
	var mem [maxCryptoInfo]byte
	defer clear(mem[:])
	info := CryptoInfo{Cipher: c, Key: make([]byte, c.keyLen())}
	b, err := info.appendTo(mem[:0])
	if err != nil {
		return 0, err
	}
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TLS, uintptr(direction),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return 0, errno
	}
	return recSeqIn(b), nil
}
