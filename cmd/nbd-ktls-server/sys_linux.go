package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout is TCP_USER_TIMEOUT (tcp(7)): a peer that acknowledges nothing
// for d is gone.
func setUserTimeout(tc *net.TCPConn, d time.Duration) {
	if rc, err := tc.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		})
	}
}

// withParent returns a context that ends with the parent process. It watches
// the process, not the thread that started us as PR_SET_PDEATHSIG does, so a
// parent may start us from any thread.
func withParent(ctx context.Context) (context.Context, context.CancelFunc, error) {
	parent := os.Getppid()
	if parent == 0 {
		return nil, nil, errors.New("--exit-with-parent: the parent is in another PID namespace and cannot be watched")
	}
	fd, err := unix.PidfdOpen(parent, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("--exit-with-parent: %w", os.NewSyscallError("pidfd_open", err))
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with the process at the latest
		defer unix.Close(fd)
		for os.Getppid() == parent {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err == nil {
				break
			}
		}
		cancel()
	}()
	return ctx, cancel, nil
}

// noCoreDumps keeps the keys in memory out of core files, and other processes of
// the same user from reading them (PR_SET_DUMPABLE, prctl(2)).
func noCoreDumps() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// lockMemory keeps what the program has in memory there, as it is touched.
func lockMemory() error {
	return os.NewSyscallError("mlockall", unix.Mlockall(unix.MCL_CURRENT|unix.MCL_FUTURE|unix.MCL_ONFAULT))
}

// kernelRelease is what uname -r prints.
func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// onTerminal reports whether standard input is a terminal.
func onTerminal() bool {
	_, err := unix.IoctlGetTermios(0, unix.TCGETS)
	return err == nil
}

// toDevNull replaces standard streams: 0, 1, 2.
func toDevNull(fds ...int) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for _, fd := range fds {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	return nil
}
