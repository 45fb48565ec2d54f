package main

import (
	"context"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// pluginExports offers what one plugin, given on the command line, has.
type pluginExports struct {
	source   *plugin.Source
	readOnly bool
	// name is the name of the only export; with many, that of the default one.
	name string
	// anyName lets clients call the only export what they like, as nbdkit does.
	anyName bool
}

// Lookup implements [nbd.Exports].
func (e *pluginExports) Lookup(ctx context.Context, c nbd.Client, name string) (*nbd.Export, error) {
	if name == "" {
		name = e.name
	}
	if name == "" && e.source.Default != nil {
		var err error
		if name, err = e.source.Default(ctx, c); err != nil {
			return nil, err
		}
	}
	switch {
	case e.source.Check != nil:
		if err := e.source.Check(ctx, c, name); err != nil {
			return nil, err
		}
	case e.source.List == nil && !e.anyName && name != e.name:
		return nil, nbd.ErrNoExport
	}
	return e.export(name), nil
}

// List implements [nbd.Exports].
func (e *pluginExports) List(ctx context.Context, c nbd.Client) ([]nbd.Export, error) {
	entries := []plugin.Entry{{Name: e.name}}
	if e.source.List != nil {
		var err error
		if entries, err = e.source.List(ctx, c); err != nil {
			return nil, err
		}
	}
	exports := make([]nbd.Export, len(entries))
	for i, entry := range entries {
		exports[i] = *e.export(entry.Name)
		exports[i].Description = entry.Description
	}
	return exports, nil
}

func (e *pluginExports) export(name string) *nbd.Export {
	return &nbd.Export{
		Name:     name,
		ReadOnly: e.readOnly,
		Open: func(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
			info.Name = name // "" has become the default export's name
			return e.source.Open(ctx, info)
		},
	}
}
