package nbd

import (
	"errors"
	"fmt"
	"syscall"

	"nbd-ktls-server/nbd/wire"
)

// errnoOf chooses the NBD error for err (proto.md, "Error values"). EOVERFLOW
// and ENOTSUP pass only as wire.Errno, from the places that proto.md gives them.
func errnoOf(err error) wire.Errno {
	if err == nil {
		return 0
	}
	var we wire.Errno
	if errors.As(err, &we) {
		return we
	}
	var se syscall.Errno
	if !errors.As(err, &se) {
		return wire.EIO
	}
	switch se {
	case syscall.EPERM, syscall.EACCES, syscall.EROFS:
		return wire.EPERM
	case syscall.EINVAL:
		return wire.EINVAL
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return wire.ENOSPC
	case syscall.ENOMEM:
		return wire.ENOMEM
	case syscall.ESHUTDOWN:
		return wire.ESHUTDOWN
	}
	return wire.EIO
}

// clientText is what a client is told about err: all of it if it is ours, else
// what the errno says. Paths, for one, are for the log.
func clientText(err error) string {
	var we wire.Errno
	var se syscall.Errno
	switch {
	case errors.As(err, &we):
		return err.Error()
	case errors.As(err, &se):
		return se.Error()
	}
	return "the server's log says why"
}

// isUnsupported reports whether err says that an operation is not to be had,
// rather than that it failed.
func isUnsupported(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, wire.ENOTSUP)
}

// isTransient reports whether accept(2) may succeed later (accept(2), ERRORS).
func isTransient(err error) bool {
	for _, e := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
		syscall.ECONNABORTED, syscall.EINTR, syscall.EPROTO, syscall.EPERM,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// refuse is an error for the client and a reason for the log in one.
func refuse(e wire.Errno, format string, args ...any) error {
	return fmt.Errorf("%w: %s", e, fmt.Sprintf(format, args...))
}
