package filters

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var exportNameFilter = plugin.Filter{
	Name: "exportname", Summary: "changes the names of exports",
	Usage:    "[default-export=NAME] [exportname-list=keep|error|empty|defaultonly|explicit] [exportname-strict=BOOL] [exportname=NAME]... [exportdesc=keep|none|fixed:TEXT|script:SCRIPT]",
	Programs: []string{"exportdesc"},
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		e := exportNames{names: p.Strings("exportname")}
		e.first, _ = p.String("default-export")
		e.hasFirst = e.first != ""
		var err error
		if e.list, err = p.Choice("exportname-list", "keep", "error", "empty", "defaultonly", "explicit"); err != nil {
			return nil, err
		}
		if e.strict, err = p.Bool("exportname-strict", false); err != nil {
			return nil, err
		}
		description, _ := p.String("exportdesc")
		e.describe, err = parseDescription(description)
		return e.edit, err
	},
}

// exportNames are other names than those of the source.
type exportNames struct {
	names    []string
	first    string
	hasFirst bool
	list     string
	strict   bool
	describe func(ctx context.Context, name string) string // or nil
}

func (e *exportNames) edit(s *plugin.Source) {
	if e.hasFirst {
		s.Default = func(context.Context, nbd.Client) (string, error) { return e.first, nil }
	}
	e.editList(s)
	if e.strict {
		check := s.Check
		s.Check = func(ctx context.Context, c nbd.Client, name string) error {
			if !slices.Contains(e.names, name) {
				return nbd.ErrNoExport
			}
			if check == nil {
				return nil
			}
			return check(ctx, c, name)
		}
	}
	if e.describe == nil {
		return
	}
	s.Edit(func(ctx context.Context, info nbd.OpenInfo, a *nbd.Abilities) error {
		a.Description = e.describe(ctx, info.Name)
		return nil
	})
	if list := s.List; list != nil {
		s.List = func(ctx context.Context, c nbd.Client) ([]plugin.Entry, error) {
			entries, err := list(ctx, c)
			for i := range entries {
				entries[i].Description = e.describe(ctx, entries[i].Name)
			}
			return entries, err
		}
	}
}

func (e *exportNames) editList(s *plugin.Source) {
	entries := func(names ...string) {
		s.List = func(context.Context, nbd.Client) (all []plugin.Entry, _ error) {
			for _, name := range names {
				all = append(all, plugin.Entry{Name: name})
			}
			return all, nil
		}
	}
	switch e.list {
	case "error":
		s.List = func(context.Context, nbd.Client) ([]plugin.Entry, error) { return nil, errNoList }
	case "empty":
		entries()
	case "defaultonly":
		first := s.Default
		s.List = func(ctx context.Context, c nbd.Client) ([]plugin.Entry, error) {
			if first == nil {
				return []plugin.Entry{{}}, nil
			}
			name, err := first(ctx, c)
			return []plugin.Entry{{Name: name}}, err
		}
	case "explicit":
		entries(e.names...)
	}
}

var errNoList = errors.New("the exportname filter lists nothing")

// maxDescription bounds what a script says about an export: longer strings may
// not be sent (proto.md, "Values").
const maxDescription = 4096

// parseDescription returns what describes exports; nil: what is below.
func parseDescription(s string) (func(ctx context.Context, name string) string, error) {
	kind, text, _ := strings.Cut(s, ":")
	switch {
	case s == "" || s == "keep":
		return nil, nil
	case s == "none":
		return func(context.Context, string) string { return "" }, nil
	case kind == "fixed":
		return func(context.Context, string) string { return text }, nil
	case kind == "script":
		return func(ctx context.Context, name string) string {
			cmd := shell(ctx, text)
			cmd.Env = append(os.Environ(), "name="+name)
			out, _ := cmd.Output() // what fails says nothing
			out = bytes.TrimSuffix(out, []byte("\n"))
			return string(out[:min(len(out), maxDescription)])
		}, nil
	}
	return nil, fmt.Errorf("exportdesc=%s: it must be one of keep, none, fixed:TEXT, script:SCRIPT", s)
}
