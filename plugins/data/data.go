// Package data is the plugin data: a disk that is written down on the command line
// (nbdkit-data-plugin(1)).
package data

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/plugins/plugin"
)

// Plugin is the plugin data.
var Plugin = plugin.Plugin{
	Name:      "data",
	Summary:   "a disk that is written down on the command line",
	Usage:     "data [data=]DATA | raw=STRING | base64=STRING [size=SIZE] [allocator=sparse] [VARIABLE=DATA]...",
	Magic:     "data",
	Configure: configure,
	Programs:  []string{"data"}, // that may have <(SCRIPT) in it
}

func configure(p *plugin.Params) (*plugin.Source, error) {
	if _, err := p.Choice("allocator", "sparse"); err != nil {
		return nil, err
	}
	size, hasSize, err := p.Size("size")
	if err != nil {
		return nil, err
	}
	text, hasData := p.String("data")
	raw, hasRaw := p.String("raw")
	encoded, hasBase64 := p.String("base64")
	var i image
	switch {
	case hasData && !hasRaw && !hasBase64:
		i, err = parse(text, variables(p))
	case hasRaw && !hasData && !hasBase64:
		i = literal(raw)
	case hasBase64 && !hasData && !hasRaw:
		var b []byte
		b, err = base64.StdEncoding.DecodeString(encoded)
		i = literal(b)
	default:
		return nil, errors.New("one of data=, raw= and base64= is needed")
	}
	if err != nil {
		return nil, err
	}
	if !hasSize {
		size = i.size()
	}
	d, err := write(i, size)
	if err != nil {
		return nil, err
	}
	return plugin.Single(d), nil
}

// variables finds $VARIABLES among the other parameters, then in the environment.
func variables(p *plugin.Params) func(string) (string, bool) {
	values := make(map[string]string)
	for _, v := range p.Rest() {
		values[v.Key] = v.Value
	}
	return func(name string) (string, bool) {
		if v, ok := values[name]; ok {
			return v, true
		}
		return os.LookupEnv(name)
	}
}

// write makes a disk of size bytes with an image on it, cut off if it is larger.
func write(i image, size int64) (*memory.Disk, error) {
	d, left := memory.New(size), budget{left: maxData}
	err := i.emit(func(off int64, p []byte) error {
		if err := left.spend(off, p); err != nil || off >= size {
			return err
		}
		_, err := d.WriteAt(p[:min(int64(len(p)), size-off)], off)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	return d, nil
}
