package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"nbd-ktls-server/cmd/nbd-ktls-server/config"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins"
	"nbd-ktls-server/plugins/plugin"
)

// catalog offers the exports of a configuration file to those who may use them.
// It can be replaced while it is used.
type catalog struct {
	host plugin.Host

	mu       sync.RWMutex
	entries  []*entry // as they are in the file
	byName   map[string]*entry
	prefixes []*entry // the longest first
	first    *entry   // the default export; may be nil
	open     map[*opened]struct{}
}

// entry is one export of the file, or all with a prefix.
type entry struct {
	config.Export
	access config.Access
	source *sharedSource
}

// sharedSource is a source and who needs it: the catalog and each connection
// that has opened it. It is closed after the last.
type sharedSource struct {
	*plugin.Source
	made  string // what it was made of
	log   *slog.Logger
	mu    sync.Mutex
	users int
}

func (s *sharedSource) take() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users++
}

func (s *sharedSource) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 {
		closeSource(s.Source, s.log)
	}
}

// opened is an export that a connection has opened.
type opened struct {
	entry *entry
	info  nbd.OpenInfo
	name  string
}

// The reasons for which a change of the configuration ends a connection.
var (
	errRemoved  = errors.New("the export is not in the configuration any more")
	errChanged  = errors.New("the export has been changed in the configuration")
	errDenied   = errors.New("the client may not use the export any more")
	errReadOnly = errors.New("the client may only read the export from now on")
)

// newCatalog makes a catalog. Nothing is opened yet.
func newCatalog(c *config.Config, h plugin.Host) (*catalog, error) {
	h.Lazy = true
	cat := &catalog{host: h, open: make(map[*opened]struct{})}
	return cat, cat.replace(c)
}

// replace makes c what is offered, and ends the connections that may not go on
// under it. If that fails nothing has changed.
func (cat *catalog) replace(c *config.Config) error {
	entries, err := cat.configure(c)
	if err != nil {
		return err
	}
	byName := make(map[string]*entry)
	var prefixes []*entry
	var first *entry
	for _, e := range entries {
		if e.Prefix != nil {
			prefixes = append(prefixes, e)
			continue
		}
		byName[*e.Name] = e
		if e.Default || len(entries) == 1 {
			first = e
		}
	}
	slices.SortStableFunc(prefixes, func(a, b *entry) int { return len(*b.Prefix) - len(*a.Prefix) })

	cat.mu.Lock()
	old := cat.entries
	cat.entries, cat.byName, cat.prefixes, cat.first = entries, byName, prefixes, first
	var ended []*opened
	var why []error
	for o := range cat.open {
		if err := cat.judge(o); err != nil {
			ended, why = append(ended, o), append(why, err)
		}
	}
	cat.mu.Unlock()
	for i, o := range ended {
		o.info.Disconnect(why[i], false)
	}
	for _, e := range old {
		e.source.release()
	}
	return nil
}

// configure makes the entries of c. A source that is there already, made of the
// same, is used again.
func (cat *catalog) configure(c *config.Config) (entries []*entry, err error) {
	defer func() {
		if err != nil {
			for _, e := range entries {
				e.source.release()
			}
		}
	}()
	have := make(map[string]*sharedSource)
	for _, e := range cat.entries {
		have[e.Title()+"\x00"+e.source.made] = e.source
	}
	for i := range c.Exports {
		e := &entry{Export: c.Exports[i], access: c.Exports[i].Access}
		if e.access == nil {
			e.access = c.Access
		}
		made := fmt.Sprintf("%q %q %q %v", e.Plugin, e.Filters, e.Args(), e.ReadOnly)
		if e.source = have[e.Title()+"\x00"+made]; e.source == nil {
			h := cat.host
			h.ReadOnly = e.ReadOnly
			h.Log = h.Log.With("export", e.Title())
			s, err := plugins.Configure(e.Plugin, e.Filters, e.Args(), h)
			if err != nil {
				return entries, c.At(fmt.Sprintf("$.exports[%d]", i), err)
			}
			e.source = &sharedSource{Source: s, made: made, log: h.Log}
		}
		e.source.take()
		entries = append(entries, e)
		if e.Prefix != nil && e.source.List == nil {
			return entries, c.At(fmt.Sprintf("$.exports[%d].prefix", i), fmt.Errorf("plugin %s has a single export with these parameters: give it a name", e.Plugin))
		}
	}
	return entries, nil
}

// judge says why what a connection has opened may not stay open; nil: it may.
// The caller holds mu.
func (cat *catalog) judge(o *opened) error {
	e, _ := cat.find(o.name)
	switch right := e.right(o.info.Client); {
	case e == nil:
		return errRemoved
	case e.source != o.entry.source || e.TLSOnly && !o.info.Client.TLS:
		return errChanged
	case right == config.None:
		return errDenied
	case right == config.Read && !o.info.ReadOnly:
		return errReadOnly
	}
	o.entry = e
	return nil
}

// right is what c may do with an export; nothing with none.
func (e *entry) right(c nbd.Client) config.Right {
	if e == nil {
		return config.None
	}
	return e.access.Right(c)
}

// find returns the entry of the export called name, and its name there.
func (cat *catalog) find(name string) (*entry, string) {
	if e := cat.byName[name]; e != nil {
		return e, name
	}
	for _, e := range cat.prefixes {
		if rest, ok := strings.CutPrefix(name, *e.Prefix); ok && rest != "" {
			return e, rest
		}
	}
	if name == "" && cat.first != nil {
		return cat.first, *cat.first.Name
	}
	return nil, ""
}

// Lookup implements [nbd.Exports]. Whether there is no such export or the client
// may not use it, only the log tells.
func (cat *catalog) Lookup(ctx context.Context, c nbd.Client, name string) (*nbd.Export, error) {
	cat.mu.RLock()
	e, inner := cat.find(name)
	cat.mu.RUnlock()
	if e == nil {
		return nil, nbd.ErrNoExport
	}
	right := e.right(c)
	if right == config.None {
		return nil, fmt.Errorf("%w for this client: its access list lets it in nowhere", nbd.ErrNoExport)
	}
	if e.Prefix == nil {
		name = inner
	} else if e.source.Check != nil {
		if err := e.source.Check(ctx, c, inner); err != nil {
			return nil, err
		}
	}
	return cat.export(e, name, inner, e.Description, right), nil
}

// List implements [nbd.Exports].
func (cat *catalog) List(ctx context.Context, c nbd.Client) (all []nbd.Export, err error) {
	cat.mu.RLock()
	entries := cat.entries
	cat.mu.RUnlock()
	for _, e := range entries {
		right := e.right(c)
		switch {
		case right == config.None:
		case e.Prefix == nil:
			all = append(all, *cat.export(e, *e.Name, *e.Name, e.Description, right))
		default:
			inner, err := e.source.List(ctx, c)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.Title(), err)
			}
			for _, i := range inner {
				all = append(all, *cat.export(e, *e.Prefix+i.Name, i.Name, i.Description, right))
			}
		}
	}
	return all, nil
}

func (cat *catalog) export(e *entry, name, inner, description string, right config.Right) *nbd.Export {
	return &nbd.Export{
		Name: name, Description: description,
		ReadOnly: e.ReadOnly || right == config.Read, TLSOnly: e.TLSOnly,
		Open: func(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
			return cat.openExport(ctx, e, name, inner, info)
		},
	}
}

// openExport opens an export and takes note of it until it is closed.
func (cat *catalog) openExport(ctx context.Context, e *entry, name, inner string, info nbd.OpenInfo) (nbd.Backend, error) {
	o := &opened{entry: e, info: info, name: name}
	if err := cat.enter(o); err != nil {
		return nil, err
	}
	source := e.source
	leave := func() {
		cat.mu.Lock()
		delete(cat.open, o)
		cat.mu.Unlock()
		source.release()
	}
	info.Name = inner
	b, err := source.Open(ctx, info)
	if err != nil {
		leave()
		return nil, err
	}
	a, err := nbd.Resolve(b)
	if err != nil {
		leave()
		return nil, err
	}
	closeBelow := a.Close
	a.Close = func() error {
		defer leave()
		if closeBelow == nil {
			return nil
		}
		return closeBelow()
	}
	return nbd.Resolved(a), nil
}

// enter takes note of an export to be opened, if it still may be: the
// configuration may have changed since Lookup.
func (cat *catalog) enter(o *opened) error {
	cat.mu.Lock()
	defer cat.mu.Unlock()
	if err := cat.judge(o); err != nil {
		return err
	}
	if n := o.entry.Connections; n > 0 && cat.connections(o.entry) >= n {
		return fmt.Errorf("%d connections have it open, as many as may", n)
	}
	o.entry.source.take()
	cat.open[o] = struct{}{}
	return nil
}

func (cat *catalog) connections(e *entry) (n int) {
	for o := range cat.open {
		if o.entry == e {
			n++
		}
	}
	return n
}

// close lets go of all sources.
func (cat *catalog) close() {
	cat.mu.Lock()
	defer cat.mu.Unlock()
	for _, e := range cat.entries {
		e.source.release()
	}
	cat.entries = nil
}
