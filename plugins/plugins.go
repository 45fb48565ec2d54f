// Package plugins is the list of the plugins and filters that there are.
package plugins

import (
	"fmt"
	"slices"
	"strings"

	"nbd-ktls-server/plugins/data"
	"nbd-ktls-server/plugins/eval"
	"nbd-ktls-server/plugins/example"
	"nbd-ktls-server/plugins/filters"
	"nbd-ktls-server/plugins/mkdisk"
	"nbd-ktls-server/plugins/partitioning"
	"nbd-ktls-server/plugins/plugin"
	"nbd-ktls-server/plugins/proxy"
	"nbd-ktls-server/plugins/sh"
	"nbd-ktls-server/plugins/web"
)

// All is every plugin there is.
func All() []plugin.Plugin {
	return []plugin.Plugin{
		data.Plugin,
		eval.Plugin,
		example.Plugin,
		filePlugin,
		fullPlugin,
		web.Plugin,
		infoPlugin,
		memoryPlugin,
		proxy.Plugin,
		nullPlugin,
		mkdisk.Ondemand,
		partitioning.Plugin,
		patternPlugin,
		randomPlugin,
		sh.Plugin,
		sparseRandomPlugin,
		splitPlugin,
		mkdisk.Tmpdisk,
		zeroPlugin,
	}
}

// Filters is every filter there is.
func Filters() []plugin.Filter { return filters.All() }

// Find returns the plugin called name.
func Find(name string) (plugin.Plugin, error) {
	return find("plugin", name, All(), func(p plugin.Plugin) string { return p.Name })
}

// FindFilter returns the filter called name.
func FindFilter(name string) (plugin.Filter, error) {
	return find("filter", name, Filters(), func(f plugin.Filter) string { return f.Name })
}

func find[T any](kind, name string, all []T, nameOf func(T) string) (none T, err error) {
	i := slices.IndexFunc(all, func(t T) bool { return nameOf(t) == name })
	if i >= 0 {
		return all[i], nil
	}
	names := make([]string, len(all))
	for i, t := range all {
		names[i] = nameOf(t)
	}
	return none, fmt.Errorf("there is no %s %q; there are %s", kind, name, strings.Join(names, ", "))
}

// Configure makes the source of a plugin and filters, named as on the command
// line; the first filter is the nearest to the client.
func Configure(name string, filters, args []string, h plugin.Host) (*plugin.Source, error) {
	p, err := Find(name)
	if err != nil {
		return nil, err
	}
	fs := make([]plugin.Filter, len(filters))
	for i, name := range filters {
		if fs[i], err = FindFilter(name); err != nil {
			return nil, err
		}
	}
	return plugin.Configure(p, fs, args, h)
}

// RunsPrograms reports whether an export would run programs: a plugin or a filter
// does, with these parameters.
func RunsPrograms(name string, filters, args []string) bool {
	var programs []string
	if p, err := Find(name); err == nil {
		programs = append(programs, p.Programs...)
	}
	for _, name := range filters {
		if f, err := FindFilter(name); err == nil {
			programs = append(programs, f.Programs...)
		}
	}
	return slices.ContainsFunc(programs, func(key string) bool {
		return key == "*" || slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, key+"=") })
	})
}
