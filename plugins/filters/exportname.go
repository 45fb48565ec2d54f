package filters

import (
	"context"
	"errors"
	"slices"
	"strings"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var exportNameFilter = plugin.Filter{
	Name: "exportname", Summary: "changes the names of exports",
	Usage: "[default-export=NAME] [exportname-list=keep|error|empty|defaultonly|explicit] [exportname-strict=BOOL] [exportname=NAME]... [exportdesc=keep|none|fixed:TEXT|script:SCRIPT]",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		e := exportNames{names: p.Strings("exportname")}
		e.first, e.hasFirst = p.String("default-export")
		var err error
		if e.list, err = p.Choice("exportname-list", "keep", "error", "empty", "defaultonly", "explicit"); err != nil {
			return nil, err
		}
		if e.strict, err = p.Bool("exportname-strict", false); err != nil {
			return nil, err
		}
		e.description, _ = p.String("exportdesc")
		return e.edit, nil
	},
}

// exportNames are other names than those of the source.
type exportNames struct {
	names       []string
	first       string
	hasFirst    bool
	list        string
	strict      bool
	description string
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
	if text, fixed := cutFixed(e.description); fixed || e.description == "none" {
		s.Edit(func(_ context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
			a.Description = text
			return nil
		})
		if list := s.List; list != nil {
			s.List = func(ctx context.Context, c nbd.Client) ([]plugin.Entry, error) {
				entries, err := list(ctx, c)
				for i := range entries {
					entries[i].Description = text
				}
				return entries, err
			}
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
		entries(e.first)
	case "explicit":
		entries(e.names...)
	}
}

var errNoList = errors.New("the exportname filter lists nothing")

func cutFixed(description string) (text string, fixed bool) {
	text, fixed = strings.CutPrefix(description, "fixed:")
	if !fixed {
		text = ""
	}
	return text, fixed
}
