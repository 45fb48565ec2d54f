// Package example shows how a plugin is written: a disk on which every byte is the
// same. To add one of your own, add it to the list in package plugins.
package example

import (
	"errors"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// Plugin is what goes into the list.
var Plugin = plugin.Plugin{
	Name:    "example",
	Summary: "a read-only disk on which every byte is the same",
	Usage:   "example [size=]SIZE [byte=0..255]",
	Magic:   "size",
	Configure: func(p *plugin.Params) (*plugin.Source, error) {
		size, given, err := p.Size("size")
		if err == nil && !given {
			err = errors.New("a size is needed")
		}
		if err != nil {
			return nil, err
		}
		b, err := p.Uint("byte", 0)
		if b > 255 {
			err = errors.New("byte= must be from 0 to 255")
		}
		return plugin.Single(&disk{size, byte(b)}), err
	},
}

// disk is an [nbd.Backend]: the four methods are all that is needed.
type disk struct {
	size  int64
	value byte
}

func (d *disk) ReadAt(p []byte, _ int64) (int, error) {
	for i := range p {
		p[i] = d.value
	}
	return len(p), nil
}

func (d *disk) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (d *disk) Size() (int64, error)               { return d.size, nil }
func (d *disk) Sync() error                        { return nil }

// Resolve says what else the disk can do, or cannot.
func (d *disk) Resolve(a *nbd.Abilities) error {
	a.ReadOnly()
	return nil
}
