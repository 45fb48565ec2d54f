//go:build !linux

package ktls

import (
	"errors"
	"syscall"
)

func readNow(fd int, p []byte) (int, error)  { return syscall.Read(fd, p) }
func writeNow(fd int, p []byte) (int, error) { return syscall.Write(fd, p) }
func setLowWater(int, int) error             { return errors.ErrUnsupported }
