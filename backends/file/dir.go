package file

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"nbd-ktls-server/nbd"
)

// Dir exports the files of one directory, each by its name. Names are looked up
// through [os.Root]: nothing outside the directory can be reached, neither by
// "..", nor by a symbolic link, nor by a change made meanwhile.
type Dir struct {
	root   *os.Root
	opts   Options
	shares Shares
}

// OpenDir opens a directory.
func OpenDir(path string, o Options) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &Dir{root: root, opts: o}, nil
}

// Open opens the file called name. What is not there, or may not be exported,
// is nbd.ErrNoExport.
func (d *Dir) Open(name string) (*Handle, error) {
	return d.shares.Open(
		func() (fs.FileInfo, error) { return d.stat(name) },
		func() (*File, error) {
			return open(func(flag int) (*os.File, error) { return d.root.OpenFile(name, flag, 0) }, d.opts)
		},
	)
}

// Check reports nbd.ErrNoExport if there is no file to be exported by that name.
func (d *Dir) Check(name string) error {
	_, err := d.stat(name)
	return err
}

// stat follows links as far as they stay in the directory.
func (d *Dir) stat(name string) (fs.FileInfo, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return nil, fmt.Errorf("%w: %q is not a name in a directory", nbd.ErrNoExport, name)
	}
	fi, err := d.root.Stat(name)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", nbd.ErrNoExport, err)
	case !exportable(fi.Mode()):
		return nil, fmt.Errorf("%w: %s is neither a regular file nor a block device", nbd.ErrNoExport, name)
	}
	return fi, nil
}

// Names lists the regular files and block devices, sorted.
func (d *Dir) Names() ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range all {
		if d.Check(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
