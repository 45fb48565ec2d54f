package mkdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// Ondemand is the plugin ondemand.
var Ondemand = plugin.Plugin{
	Name:     "ondemand",
	Summary:  "disks in a directory, made with a file system when they are first asked for",
	Usage:    "ondemand dir=DIRECTORY [size=]SIZE [wait=BOOL] { [type=FS] [label=LABEL] | command=COMMAND [VAR=VALUE]... }",
	Magic:    "size",
	Programs: []string{"*"},
	Configure: func(p *plugin.Params) (*plugin.Source, error) {
		dir, ok := p.String("dir")
		if !ok {
			return nil, errors.New("dir= is needed")
		}
		dir, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		if _, err := os.ReadDir(dir); err != nil {
			return nil, err
		}
		wait, err := p.Bool("wait", false)
		if err != nil {
			return nil, err
		}
		m, err := newMaker(p)
		if err != nil {
			return nil, err
		}
		d := &demand{maker: m, dir: dir, wait: wait, used: make(map[string]chan struct{})}
		return &plugin.Source{Open: d.open, List: d.list, Check: checkName}, nil
	},
}

// demand makes disks in dir.
type demand struct {
	*maker
	dir  string
	wait bool

	mu sync.Mutex
	// used are the disks that have a client; closed when it goes.
	used map[string]chan struct{}
}

// defaultName is the disk of the export "".
const defaultName = "default"

// maxName is NAME_MAX, less what the name of an unfinished disk is longer.
const maxName = 255 - len(unfinished)

// unfinished is what the name of a disk ends with while it is made. No export has
// such a name.
const unfinished = ".new"

func checkName(_ context.Context, _ nbd.Client, name string) error {
	if len(name) > maxName || strings.ContainsAny(name, "./:") || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' }) {
		return fmt.Errorf("%w: the name of a disk has at most %d bytes and no '.', '/', ':' or control characters", nbd.ErrNoExport, maxName)
	}
	return nil
}

func (d *demand) open(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
	name := info.Name
	if err := checkName(ctx, info.Client, name); err != nil {
		return nil, err
	}
	if name == "" {
		name = defaultName
	}
	if err := d.take(ctx, name); err != nil {
		return nil, err
	}
	a, err := d.openTaken(ctx, name)
	if err != nil {
		d.give(name)
		return nil, err
	}
	a.MultiConn = false // one is all there can be
	closeFile := a.Close
	a.Close = func() error {
		defer d.give(name)
		return closeFile()
	}
	return nbd.Resolved(a), nil
}

// openTaken opens a disk, and makes it if it is not there.
func (d *demand) openTaken(ctx context.Context, name string) (*nbd.Abilities, error) {
	path := filepath.Join(d.dir, name)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		os.Remove(path + unfinished)
		if err := d.make(ctx, path+unfinished); err != nil {
			os.Remove(path + unfinished)
			return nil, err
		}
		if err := os.Rename(path+unfinished, path); err != nil {
			return nil, err
		}
	}
	f, err := file.Open(path, file.Options{})
	if err != nil {
		return nil, err
	}
	return nbd.Resolve(f)
}

// take waits, if that is wanted, until the disk has no other client.
func (d *demand) take(ctx context.Context, name string) error {
	for {
		d.mu.Lock()
		other, used := d.used[name]
		if !used {
			d.used[name] = make(chan struct{})
		}
		d.mu.Unlock()
		switch {
		case !used:
			return nil
		case !d.wait:
			return errors.New("filesystem is locked by another client")
		}
		select {
		case <-other:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (d *demand) give(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.used[name])
	delete(d.used, name)
}

// list lists the disks that have been made.
func (d *demand) list(ctx context.Context, c nbd.Client) (all []plugin.Entry, _ error) {
	entries, err := os.ReadDir(d.dir)
	for _, e := range entries {
		if checkName(ctx, c, e.Name()) == nil && e.Type().IsRegular() {
			all = append(all, plugin.Entry{Name: e.Name()})
		}
	}
	return all, err
}
