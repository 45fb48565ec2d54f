package plugins

import (
	"context"
	"errors"
	"path/filepath"

	"nbd-ktls-server/backends/concat"
	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var splitPlugin = plugin.Plugin{
	Name:    "split",
	Summary: "files and block devices, one behind the other",
	Usage:   "split [file=]FILENAME... [locking=auto|off]",
	Magic:   "file",
	Configure: func(p *plugin.Params) (*plugin.Source, error) {
		locking, err := p.Choice("locking", "auto", "off")
		if err != nil {
			return nil, err
		}
		opts := file.Options{ReadOnly: p.ReadOnly, NoLocking: locking == "off"}
		var paths []*file.Path
		for _, name := range p.Strings("file") {
			path, err := filepath.Abs(name)
			if err == nil && !p.Lazy {
				err = file.Check(path)
			}
			if err != nil {
				return nil, err
			}
			paths = append(paths, file.NewPath(path, opts))
		}
		if paths == nil {
			return nil, errors.New("at least one file= is needed")
		}
		return &plugin.Source{Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return openSplit(paths) }}, nil
	},
}

func openSplit(paths []*file.Path) (nbd.Backend, error) {
	var parts []nbd.Backend
	for _, p := range paths {
		part, err := p.Open()
		if err != nil {
			if d, e := concat.New(parts); e == nil {
				d.Close()
			}
			return nil, err
		}
		parts = append(parts, part)
	}
	return concat.New(parts)
}
