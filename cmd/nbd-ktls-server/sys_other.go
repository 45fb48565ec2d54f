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
func lockMemory() error                          { return errNotLinux }
func toDevNull(...int) error                     { return errNotLinux }
func withParent(context.Context) (context.Context, context.CancelFunc, error) {
	return nil, nil, errNotLinux
}

func kernelRelease() string { return runtime.GOOS }
