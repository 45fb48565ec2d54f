// Package filters changes what plugins offer, with the names and parameters of
// nbdkit's filters (nbdkit-filter(3)). A filter edits the abilities of an export
// and leaves those that it does not touch as they are: that a range is in a file,
// for one, so that it can be sent without being read.
package filters

import (
	"context"
	"os/exec"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// All is every filter there is.
func All() []plugin.Filter {
	return []plugin.Filter{
		blocksizeFilter,
		blocksizePolicyFilter,
		cacheFilter,
		checkwriteFilter,
		countFilter,
		cowFilter,
		delayFilter,
		errorFilter,
		evilFilter,
		exitLastFilter,
		exitWhenFilter,
		exportNameFilter,
		fuaFilter,
		ipFilter,
		limitFilter,
		logFilter,
		multiConnFilter,
		noCacheFilter,
		noExtentsFilter,
		noZeroFilter,
		offsetFilter,
		openOnceFilter,
		partitionFilter,
		pauseFilter,
		protectFilter,
		rateFilter,
		readaheadFilter,
		readOnlyFilter,
		retryFilter,
		retryRequestFilter,
		rotationalFilter,
		scanFilter,
		statsFilter,
		timeLimitFilter,
		tlsFallbackFilter,
		truncateFilter,
	}
}

// edit makes the edit of a source of one of abilities.
func edit(f func(a *nbd.Abilities) error) func(*plugin.Source) {
	return func(s *plugin.Source) {
		s.Edit(func(_ context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error { return f(a) })
	}
}

// always is a filter without parameters.
func always(name, summary string, f func(a *nbd.Abilities)) plugin.Filter {
	return plugin.Filter{
		Name: name, Summary: summary, Usage: "no parameters",
		Configure: func(*plugin.Params) (func(*plugin.Source), error) {
			return edit(func(a *nbd.Abilities) error { f(a); return nil }), nil
		},
	}
}

// onClose adds something to do when a connection has closed the export, after
// what is below has done its part.
func onClose(a *nbd.Abilities, f func()) {
	below := a.Close
	a.Close = func() error {
		defer f()
		if below == nil {
			return nil
		}
		return below()
	}
}

// shell is a command for the shell.
func shell(ctx context.Context, script string) *exec.Cmd {
	return exec.CommandContext(ctx, "/bin/sh", "-c", script)
}
