// Package eval lets fragments of shell on the command line serve an export, as
// nbdkit-eval-plugin(1) does: each parameter is a method of package sh.
package eval

import (
	"nbd-ktls-server/plugins/plugin"
	"nbd-ktls-server/plugins/sh"
)

// Plugin runs fragments of shell.
var Plugin = plugin.Plugin{
	Name:      "eval",
	Summary:   "fragments of shell on the command line, one for each method",
	Usage:     "eval METHOD=FRAGMENT... [KEY=VALUE]...",
	Configure: configure,
	Programs:  []string{"*"},
}

// methods are those that can be given.
var methods = []string{
	"after_fork", "block_size", "cache", "can_cache", "can_extents", "can_fast_zero", "can_flush", "can_fua",
	"can_multi_conn", "can_trim", "can_write", "can_zero", "close", "config", "config_complete", "default_export",
	"dump_plugin", "export_description", "extents", "flush", "get_ready", "get_size", "is_rotational", "list_exports",
	"open", "pread", "preconnect", "pwrite", "thread_model", "trim", "unload", "zero", "missing",
}

// implied are the methods that say yes, unless they are given, where another is
// given.
var implied = []struct{ given, method, fragment string }{
	{"cache", "can_cache", "echo native"},
	{"extents", "can_extents", "exit 0"},
	{"flush", "can_flush", "exit 0"},
	{"pwrite", "can_write", "exit 0"},
	{"trim", "can_trim", "exit 0"},
	{"zero", "can_zero", "exit 0"},
}

func configure(p *plugin.Params) (*plugin.Source, error) {
	fragments := map[string]string{"missing": "exit 2"}
	for _, method := range methods {
		if f, ok := p.String(method); ok {
			fragments[method] = f
		}
	}
	for _, i := range implied {
		_, given := fragments[i.given]
		if _, answered := fragments[i.method]; given && !answered {
			fragments[i.method] = i.fragment
		}
	}
	dir, err := p.TempDir("nbd-ktls-server-eval-*")
	if err != nil {
		return nil, err
	}
	command := func(method string) []string {
		f, ok := fragments[method]
		if !ok {
			f = fragments["missing"]
		}
		return []string{"/bin/sh", "-c", f, "eval", method}
	}
	return sh.New(&sh.Script{Dir: dir, Host: p.Host, Command: command}, p.Rest(), sh.Parallel)
}
