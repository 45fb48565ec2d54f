package plugins

import (
	"context"
	"errors"
	"path/filepath"

	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/nbd"
)

var filePlugin = Plugin{
	Name:    "file",
	Summary: "regular files and block devices",
	Usage:   "file [file=]FILENAME | dir=DIRECTORY  [fadvise=normal|random|sequential] [locking=auto|off]",
	Magic:   "file",
	Configure: func(p *Params) (Source, error) {
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
			return newFileSource(name, opts)
		}
		d, err := file.OpenDir(dir, opts)
		if err != nil {
			return nil, err
		}
		return dirSource{d}, nil
	},
}

func fileOptions(p *Params) (file.Options, error) {
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

type fileSource struct{ *file.Path }

// newFileSource checks that there is something to export. The path is made
// absolute, as the program may change its directory before it opens the file.
func newFileSource(name string, opts file.Options) (Source, error) {
	path, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	if err := file.Check(path); err != nil {
		return nil, err
	}
	return fileSource{file.NewPath(path, opts)}, nil
}

func (s fileSource) Open(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return s.Path.Open() }

type dirSource struct{ *file.Dir }

func (s dirSource) Open(_ context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
	return s.Dir.Open(info.Name)
}

func (s dirSource) Check(_ context.Context, name string) error { return s.Dir.Check(name) }

func (s dirSource) Names(context.Context) ([]string, error) { return s.Dir.Names() }
