// Package plugins is the list of plugins and what nbdkit's command line says to
// them: a plugin's name, then key=value parameters, of which one key, the magic
// one, may be left out.
package plugins

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"nbd-ktls-server/nbd"
)

// Plugin is a kind of source.
type Plugin struct {
	Name    string
	Summary string
	// Usage is its command line, without the program.
	Usage string
	// Magic is the key of a parameter given without one.
	Magic string
	// Configure checks the parameters. It opens nothing that belongs to one
	// export.
	Configure func(p *Params) (Source, error)
}

// Source is a configured plugin.
type Source interface {
	// Open opens the export called info.Name for one connection. A source of a
	// single export ignores the name.
	Open(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error)
}

// Lister is a Source of exports with names.
type Lister interface {
	Source
	// Names lists them.
	Names(ctx context.Context) ([]string, error)
	// Check reports nbd.ErrNoExport if there is none of that name.
	Check(ctx context.Context, name string) error
}

// All is every plugin there is.
func All() []Plugin { return []Plugin{filePlugin, memoryPlugin, nullPlugin, patternPlugin} }

// Find returns the plugin called name.
func Find(name string) (Plugin, error) {
	all := All()
	i := slices.IndexFunc(all, func(p Plugin) bool { return p.Name == name })
	if i < 0 {
		names := make([]string, len(all))
		for i, p := range all {
			names[i] = p.Name
		}
		return Plugin{}, fmt.Errorf("there is no plugin %q; there are %s", name, strings.Join(names, ", "))
	}
	return all[i], nil
}

// New configures the plugin with command line arguments.
func (p Plugin) New(args []string, readOnly bool) (Source, error) {
	params, err := parse(args, p.Magic)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Name, err)
	}
	params.ReadOnly = readOnly
	s, err := p.Configure(params)
	if err == nil {
		err = params.unused()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; usage: %s", p.Name, err, p.Usage)
	}
	return s, nil
}

// Params are the parameters of a plugin. Each has to be asked for; one that was
// not is an error, so that a misspelt key does not pass in silence.
type Params struct {
	// ReadOnly says that the exports will not be written to.
	ReadOnly bool

	given []param
}

type param struct {
	key, value string
	used       bool
}

// keyed matches key=value as nbdkit does; anything else is a bare value.
var keyed = regexp.MustCompile(`(?s)^([A-Za-z][A-Za-z0-9._-]*)=(.*)$`)

func parse(args []string, magic string) (*Params, error) {
	p := &Params{}
	for _, arg := range args {
		key, value := magic, arg
		if m := keyed.FindStringSubmatch(arg); m != nil {
			key, value = m[1], m[2]
		}
		if key == "" {
			return nil, fmt.Errorf("%q is not key=value", arg)
		}
		p.given = append(p.given, param{key: key, value: value})
	}
	return p, nil
}

// String returns the value of key, and whether it was given. Given twice is an
// error reported by New.
func (p *Params) String(key string) (value string, ok bool) {
	for i := range p.given {
		if p.given[i].key == key && !ok {
			p.given[i].used = true
			value, ok = p.given[i].value, true
		}
	}
	return value, ok
}

// Choice returns the value of key, which must be one of choices; the first one
// is the default.
func (p *Params) Choice(key string, choices ...string) (string, error) {
	v, ok := p.String(key)
	if !ok {
		return choices[0], nil
	}
	if !slices.Contains(choices, v) {
		return "", fmt.Errorf("%s=%s: it must be one of %s", key, v, strings.Join(choices, ", "))
	}
	return v, nil
}

// Size returns the size that key gives, and whether it was given.
func (p *Params) Size(key string) (int64, bool, error) {
	v, ok := p.String(key)
	if !ok {
		return 0, false, nil
	}
	n, err := ParseSize(v)
	if err != nil {
		return 0, true, fmt.Errorf("%s: %w", key, err)
	}
	return n, true, nil
}

func (p *Params) unused() error {
	seen := make(map[string]bool)
	for _, g := range p.given {
		if !g.used && seen[g.key] {
			return fmt.Errorf("%s was given twice", g.key)
		}
		if !g.used {
			return fmt.Errorf("there is no parameter %q", g.key)
		}
		seen[g.key] = true
	}
	return nil
}
