//go:build !linux

package main

import (
	"context"
	"errors"
	"net"
	"runtime"
	"time"
)

var errNotLinux = errors.New("only on Linux")

func setUserTimeout(*net.TCPConn, time.Duration) {}
func noCoreDumps() error                         { return nil }
func onTerminal() bool                           { return true }
func toDevNull(...int) error                     { return errNotLinux }
func withParent(context.Context) (context.Context, context.CancelFunc, error) {
	return nil, nil, errNotLinux
}

func kernelRelease() string { return runtime.GOOS }
