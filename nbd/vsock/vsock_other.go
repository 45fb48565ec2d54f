//go:build !linux

package vsock

import (
	"context"
	"errors"
	"net"
)

// Dial is for Linux.
func Dial(context.Context, uint32, uint32) (net.Conn, error) { return nil, errors.ErrUnsupported }

// Listen is for Linux.
func Listen(uint32) (net.Listener, error) { return nil, errors.ErrUnsupported }
