package main

import (
	"context"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins"
)

// pluginExports offers what one plugin, given on the command line, has.
type pluginExports struct {
	source   plugins.Source
	readOnly bool
	// name is the name of the only export; with many, that of the default one.
	name string
	// anyName lets clients call the only export what they like, as nbdkit does.
	anyName bool
}

// Lookup implements [nbd.Exports].
func (e *pluginExports) Lookup(ctx context.Context, _ nbd.Client, name string) (*nbd.Export, error) {
	if name == "" {
		name = e.name
	}
	if l, ok := e.source.(plugins.Lister); ok {
		if err := l.Check(ctx, name); err != nil {
			return nil, err
		}
	} else if !e.anyName && name != e.name {
		return nil, nbd.ErrNoExport
	}
	return e.export(name), nil
}

// List implements [nbd.Exports].
func (e *pluginExports) List(ctx context.Context, _ nbd.Client) ([]nbd.Export, error) {
	names := []string{e.name}
	if l, ok := e.source.(plugins.Lister); ok {
		var err error
		if names, err = l.Names(ctx); err != nil {
			return nil, err
		}
	}
	exports := make([]nbd.Export, len(names))
	for i, name := range names {
		exports[i] = *e.export(name)
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
