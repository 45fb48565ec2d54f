package mkdisk

import (
	"context"
	"os"
	"path/filepath"

	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// Tmpdisk is the plugin tmpdisk.
var Tmpdisk = plugin.Plugin{
	Name:     "tmpdisk",
	Summary:  "a new disk with a file system for each client, gone with it",
	Usage:    "tmpdisk [size=]SIZE [type=FS] [label=LABEL] | tmpdisk [size=]SIZE command=COMMAND [VAR=VALUE]...",
	Magic:    "size",
	Programs: []string{"*"},
	Configure: func(p *plugin.Params) (*plugin.Source, error) {
		m, err := newMaker(p)
		if err != nil {
			return nil, err
		}
		s := &plugin.Source{Open: func(ctx context.Context, _ nbd.OpenInfo) (nbd.Backend, error) { return m.temporary(ctx) }}
		s.Edit(func(_ context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
			// Nobody will ask for what is on it when the power has gone.
			a.Sync, a.WriteFUA = func() error { return nil }, a.WriteAt
			a.MultiConn = false // each connection has a disk of its own
			return nil
		})
		return s, nil
	},
}

// temporary makes a disk that has no name.
func (m *maker) temporary(ctx context.Context) (nbd.Backend, error) {
	parent := os.Getenv("TMPDIR")
	if parent == "" {
		parent = "/var/tmp"
	}
	dir, err := os.MkdirTemp(parent, "tmpdisk-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "disk")
	if err := m.make(ctx, path); err != nil {
		return nil, err
	}
	return file.Open(path, file.Options{NoLocking: true})
}
