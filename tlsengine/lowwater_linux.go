package tlsengine

import "golang.org/x/sys/unix"

func setLowWater(fd, n int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, n)
}
