// Package plugin is what plugins and filters are made of, and what nbdkit's
// command line says to them: a plugin's name, then key=value parameters, of which
// one key, the magic one, may be left out.
package plugin

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

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
	Configure func(p *Params) (*Source, error)
	// Programs are the parameters that make it run programs; "*": it always does.
	Programs []string
	// Dump writes lines name=value about the plugin, for scripts; nil: none.
	Dump func(ctx context.Context, w io.Writer, args []string, h Host) error
}

// Filter changes what a source offers.
type Filter struct {
	Name    string
	Summary string
	// Usage are its parameters.
	Usage string
	// Programs are the parameters that make it run programs.
	Programs []string
	// Configure takes the filter's parameters from p, and returns what edits the
	// source below. State that belongs to an export is kept by export: what
	// happens to one must not show in another.
	Configure func(p *Params) (edit func(s *Source), err error)
}

// Source is a configured plugin: what it offers. A nil func is something it has
// not; filters edit the others.
type Source struct {
	// Open opens the export called info.Name for one connection. A source of a
	// single export ignores the name.
	Open func(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error)
	// List lists the exports. Without it there is one, and others name it.
	List func(ctx context.Context, c nbd.Client) ([]Entry, error)
	// Check reports nbd.ErrNoExport if there is none called name. Without it,
	// and with List, any name may be opened.
	Check func(ctx context.Context, c nbd.Client, name string) error
	// Default is the name of the export meant by "". Without it, it is "".
	Default func(ctx context.Context, c nbd.Client) (string, error)
	// Close is called when the server has ended.
	Close func() error
}

// Entry is an export in a list.
type Entry struct{ Name, Description string }

// Single is a source of one backend for everybody, which nobody closes.
func Single(b nbd.Backend) *Source {
	return &Source{Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return b, nil }}
}

// Edit lets edit change what each connection opens. If it fails, what was opened
// is closed.
func (s *Source) Edit(edit func(ctx context.Context, info nbd.OpenInfo, a *nbd.Abilities) error) {
	open := s.Open
	s.Open = func(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
		b, err := open(ctx, info)
		if err != nil {
			return nil, err
		}
		a, err := nbd.Resolve(b)
		if err != nil {
			return nil, err
		}
		if err := edit(ctx, info, a); err != nil {
			if a.Close != nil {
				a.Close()
			}
			return nil, err
		}
		return nbd.Resolved(a), nil
	}
}

// OnClose adds something to do when the server has ended, before what the source
// below does.
func (s *Source) OnClose(f func() error) {
	next := s.Close
	s.Close = func() error {
		err := f()
		if next != nil {
			if e := next(); err == nil {
				err = e
			}
		}
		return err
	}
}

// Host is what plugins and filters may know of the server and do to it.
type Host struct {
	// ReadOnly says that the exports will not be written to.
	ReadOnly bool
	// Lazy says that what is exported need not be there yet.
	Lazy bool
	Log  *slog.Logger
	// Stdin is the standard input, if a plugin may read it; else nil.
	Stdin io.Reader
	// Exit ends the server, softly, because of why.
	Exit func(why string)
	// Own gives a file or directory to the user that the server will become; nil:
	// it remains who it is.
	Own func(path string) error
}

// TempDir makes a directory that the server can use to its end.
func (h *Host) TempDir(pattern string) (string, error) {
	dir, err := os.MkdirTemp("", pattern)
	if err == nil && h.Own != nil {
		err = h.Own(dir)
	}
	return dir, err
}

// Configure makes the source that args describe, with the parameters of p and of
// the filters, of which the first is the nearest to the client.
func Configure(p Plugin, filters []Filter, args []string, h Host) (*Source, error) {
	params, err := parse(args, p.Magic)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Name, err)
	}
	params.Host = h
	// The plugin, which may take whatever there is, is asked last.
	edits := make([]func(*Source), len(filters))
	for i, f := range filters {
		params.asking = i + 1
		if edits[i], err = f.Configure(params); err != nil {
			return nil, fmt.Errorf("filter %s: %w; usage: %s", f.Name, err, f.Usage)
		}
	}
	params.asking = len(filters) + 1
	s, err := p.Configure(params)
	if err == nil {
		err = params.unused()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; usage: %s", p.Name, err, p.Usage)
	}
	for _, edit := range slices.Backward(edits) {
		edit(s)
	}
	return s, nil
}
