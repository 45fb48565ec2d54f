package ktls

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// WriteRecord sends one record of another type than application data: an alert,
// a handshake message. An open record is sent before it.
func (t *TX) WriteRecord(typ byte, content []byte) error {
	if len(content) == 0 || len(content) > MaxRecord {
		// SendmsgN would send a byte of its own beside an empty one.
		return errors.New("ktls: a control record has 1 to 16384 bytes")
	}
	oob := recordType(typ)
	return whenWritable(t.c, "sendmsg", func(fd int) error {
		n, err := sendmsg(fd, content, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == nil && n != len(content) {
			return errors.New("ktls: a control record was cut in two")
		}
		return err
	})
}

// recordType is the control message that says of which type a record is.
func recordType(typ byte) []byte {
	b := make([]byte, unix.CmsgSpace(1))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_TLS, cmsgSetRecordType
	h.SetLen(unix.CmsgLen(1))
	b[unix.CmsgLen(0)] = typ
	return b
}

// Drain waits until the kernel has handed every record to TCP. A record that
// has been accepted but not sent is lost if the connection is closed or shut
// down then.
func (t *TX) Drain() error {
	return whenWritable(t.c, "poll", func(fd int) error {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(p, 0)
		if err == nil && n == 0 {
			return unix.EAGAIN
		}
		return err
	})
}
