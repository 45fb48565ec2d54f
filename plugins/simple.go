package plugins

import (
	"errors"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/backends/null"
	"nbd-ktls-server/backends/pattern"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// The plugins whose exports are all one backend, made at the start.
var (
	memoryPlugin = plugin.Plugin{
		Name:    "memory",
		Summary: "a sparse disk in memory, gone when the server ends",
		Usage:   "memory [size=]SIZE [allocator=sparse]",
		Magic:   "size",
		Configure: func(p *plugin.Params) (*plugin.Source, error) {
			if _, err := p.Choice("allocator", "sparse"); err != nil {
				return nil, err
			}
			return sized(p, true, func(n int64) nbd.Backend { return memory.New(n) })
		},
	}
	nullPlugin = plugin.Plugin{
		Name:    "null",
		Summary: "forgets what is written, reads as zeroes",
		Usage:   "null [[size=]SIZE]",
		Magic:   "size",
		Configure: func(p *plugin.Params) (*plugin.Source, error) {
			return sized(p, false, func(n int64) nbd.Backend { return null.New(n) })
		},
	}
	patternPlugin = plugin.Plugin{
		Name:    "pattern",
		Summary: "a read-only pattern: every eight bytes hold their own offset",
		Usage:   "pattern [size=]SIZE",
		Magic:   "size",
		Configure: func(p *plugin.Params) (*plugin.Source, error) {
			return sized(p, true, func(n int64) nbd.Backend { return pattern.New(n) })
		},
	}
)

// sized makes a source of one backend from the parameter size.
func sized(p *plugin.Params, required bool, backend func(int64) nbd.Backend) (*plugin.Source, error) {
	n, ok, err := p.Size("size")
	switch {
	case err != nil:
		return nil, err
	case !ok && required:
		return nil, errors.New("a size is needed")
	}
	return plugin.Single(backend(n)), nil
}
