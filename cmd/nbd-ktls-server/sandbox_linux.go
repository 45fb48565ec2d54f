package main

import (
	"errors"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// enter confines the process, as far as the kernel can.
func (b *sandbox) enter() error {
	_, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return errors.Join(errNoLandlock, errno)
	}
	return landlock.V5.BestEffort().RestrictPaths(
		landlock.RODirs(b.read...).IgnoreIfMissing(),
		landlock.RWDirs(b.write...).IgnoreIfMissing(),
		landlock.RWFiles(b.devices...).WithIoctlDev().IgnoreIfMissing(),
	)
}
