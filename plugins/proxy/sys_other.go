//go:build !linux

package proxy

import (
	"errors"
	"net"
	"syscall"
)

func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func dialVsock(uint32, uint32) (net.Conn, error) { return nil, errors.ErrUnsupported }
