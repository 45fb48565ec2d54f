package ktls

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// TX is the sending direction of a TCP connection whose records the kernel
// makes. What is written to the connection itself is application data. Only one
// goroutine at a time may send, in whatever way, or change the key.
type TX struct {
	c      syscall.RawConn
	cipher Cipher
}

// Attach gives the sending direction of conn to the kernel, which cannot be
// undone. If it fails, conn can be used as before.
func Attach(conn net.Conn, info *CryptoInfo) (*TX, error) {
	sc, ok := conn.(syscall.Conn)
	if _, tcp := conn.LocalAddr().(*net.TCPAddr); !ok || !tcp {
		return nil, ErrNotTCP
	}
	c, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	err = control(c, func(fd int) error {
		// Until it has a key, the ULP lets bytes pass as they are.
		if err := setULP(fd); err != nil {
			return explainULP(err)
		}
		return os.NewSyscallError("setsockopt TLS_TX", setCrypto(fd, optTX, info))
	})
	if err != nil {
		return nil, err
	}
	return &TX{c: c, cipher: info.Cipher}, nil
}

// explainULP says what the errors of TCP_ULP mean (tcp_ulp.c, tls_main.c).
func explainULP(err error) error {
	why := "the kernel refuses the upper layer protocol"
	switch err {
	case unix.ENOENT:
		why = "the kernel's tls module is not loaded (modprobe tls)"
	case unix.ENOPROTOOPT, unix.EOPNOTSUPP:
		why = "the kernel or the kind of socket has no upper layer protocols"
	case unix.ENOTCONN:
		why = "the connection is not established"
	case unix.EEXIST:
		why = "the socket has an upper layer protocol already"
	}
	return fmt.Errorf("%s: %w", why, os.NewSyscallError("setsockopt TCP_ULP", err))
}

// Rekey gives the kernel the next key: whatever is sent after it is encrypted
// with that. A record must not be open. If it fails the old key is still in
// use; a kernel that cannot do it at all says EBUSY (Linux before 6.14).
func (t *TX) Rekey(info *CryptoInfo) error {
	return control(t.c, func(fd int) error {
		return os.NewSyscallError("setsockopt TLS_TX", setCrypto(fd, optTX, info))
	})
}

// RecSeq asks the kernel for the sequence number of the next record. It is slow.
func (t *TX) RecSeq() (seq uint64, err error) {
	err = control(t.c, func(fd int) error {
		seq, err = recSeq(fd, optTX, t.cipher)
		return os.NewSyscallError("getsockopt TLS_TX", err)
	})
	return seq, err
}
