package plugins

import (
	"context"
	"errors"
	"path/filepath"

	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var filePlugin = plugin.Plugin{
	Name:    "file",
	Summary: "regular files and block devices",
	Usage:   "file [file=]FILENAME | dir=DIRECTORY  [fadvise=normal|random|sequential] [locking=auto|off]",
	Magic:   "file",
	Configure: func(p *plugin.Params) (*plugin.Source, error) {
		opts, err := fileOptions(p)
		if err != nil {
			return nil, err
		}
		name, isFile := p.String("file")
		dir, isDir := p.String("dir")
		if !isDir {
			dir, isDir = p.String("directory")
		}
		switch {
		case isFile == isDir:
			return nil, errors.New("either file= or dir= is needed")
		case isFile:
			return newFileSource(name, opts, p.Lazy)
		}
		d, err := file.OpenDir(dir, opts)
		if err != nil {
			return nil, err
		}
		return dirSource(d), nil
	},
}

func fileOptions(p *plugin.Params) (file.Options, error) {
	advice, err := p.Choice("fadvise", "normal", "random", "sequential")
	if err != nil {
		return file.Options{}, err
	}
	if _, err := p.Choice("cache", "default"); err != nil {
		return file.Options{}, err
	}
	locking, err := p.Choice("locking", "auto", "off")
	return file.Options{
		ReadOnly:  p.ReadOnly,
		NoLocking: locking == "off",
		Advice:    map[string]file.Advice{"random": file.Random, "sequential": file.Sequential}[advice],
	}, err
}

// newFileSource checks that there is something to export, unless it may come
// later. The path is made
// absolute, as the program may change its directory before it opens the file.
func newFileSource(name string, opts file.Options, lazy bool) (*plugin.Source, error) {
	path, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	if !lazy {
		if err := file.Check(path); err != nil {
			return nil, err
		}
	}
	p := file.NewPath(path, opts)
	return &plugin.Source{
		Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return p.Open() },
	}, nil
}

func dirSource(d *file.Dir) *plugin.Source {
	return &plugin.Source{
		Open: func(_ context.Context, info nbd.OpenInfo) (nbd.Backend, error) { return d.Open(info.Name) },
		List: func(context.Context, nbd.Client) ([]plugin.Entry, error) {
			names, err := d.Names()
			entries := make([]plugin.Entry, len(names))
			for i, name := range names {
				entries[i].Name = name
			}
			return entries, err
		},
		Check: func(_ context.Context, _ nbd.Client, name string) error { return d.Check(name) },
	}
}
