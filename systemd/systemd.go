// Package systemd is what a service says to systemd and hears from it:
// sd_listen_fds(3) and sd_notify(3).
package systemd

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// Activated reports whether sockets were passed to this process (sd_listen_fds(3)).
func Activated() bool {
	pid, err := strconv.Atoi(os.Getenv("LISTEN_PID"))
	return err == nil && pid == os.Getpid() && os.Getenv("LISTEN_FDS") != ""
}

// Listeners returns the listening sockets that were passed, and takes the
// variables that say so out of the environment.
func Listeners() ([]net.Listener, error) {
	all, err := activation.Listeners()
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("LISTEN_FDS is set, but no socket was passed")
	}
	for i, l := range all {
		if l == nil {
			return nil, fmt.Errorf("file descriptor %d was passed, but it is no listening stream socket", 3+i)
		}
	}
	return all, nil
}

// Named is Listeners by the names that their units give them (FileDescriptorName=
// in systemd.socket(5)).
func Named() (map[string][]net.Listener, error) {
	named, err := activation.ListenersWithNames()
	if err != nil {
		return nil, err
	}
	for name, all := range named {
		for _, l := range all {
			if l == nil {
				return nil, fmt.Errorf("a file descriptor called %q was passed, but it is no listening stream socket", name)
			}
		}
	}
	return named, nil
}

// Ready says that clients can connect. Without systemd it does nothing.
func Ready() { daemon.SdNotify(false, daemon.SdNotifyReady) }

// Watchdog says again and again that the program lives, if systemd wants to hear
// it (WatchdogSec= in systemd.service(5)), until ctx ends.
func Watchdog(ctx context.Context) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return err
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	}
}

// Status is a line for people in systemctl status.
func Status(line string) { daemon.SdNotify(false, "STATUS="+line) }

// Stopping says that the service is shutting down.
func Stopping() { daemon.SdNotify(false, daemon.SdNotifyStopping) }

// Reloading says that the configuration is being read again; Ready follows.
func Reloading() {
	daemon.SdNotify(false, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
}
