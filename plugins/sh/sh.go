// Package sh lets scripts serve exports: nbdkit's protocol of nbdkit-sh-plugin(3),
// one process for each call, so that a script written for nbdkit runs as it is.
package sh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// Plugin runs a script.
var Plugin = plugin.Plugin{
	Name:      "sh",
	Summary:   "a script, or any executable, called once for each request",
	Usage:     "sh [script=]SCRIPT|- [[KEY=]VALUE]...",
	Magic:     "script",
	Configure: configure,
	Programs:  []string{"*"},
	Dump:      dump,
}

// maxStatus is the last exit status that means something here.
const maxStatus = statusDisconnectFail

// dump says which statuses a script may end with, and what the script says.
func dump(ctx context.Context, w io.Writer, args []string, h plugin.Host) error {
	fmt.Fprintf(w, "max_known_status=%d\n", maxStatus)
	if len(args) == 0 {
		return nil
	}
	s, err := newScript(strings.TrimPrefix(args[0], "script="), h)
	if err != nil {
		return err
	}
	defer os.RemoveAll(s.Dir)
	if _, err := s.do(ctx, call{method: "load"}); optional("load", err) != nil {
		return err
	}
	out, err := s.do(ctx, call{method: "dump_plugin"})
	if err := optional("dump_plugin", err); err != nil {
		return err
	}
	_, err = w.Write(out)
	return err
}

// newScript finds a script and makes its $tmpdir.
func newScript(script string, h plugin.Host) (*Script, error) {
	dir, err := h.TempDir("nbd-ktls-server-sh-*")
	if err != nil {
		return nil, err
	}
	path, err := scriptPath(script, dir, &h)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	s := &Script{Dir: dir, Host: h, Command: func(method string) []string { return []string{path, method} }}
	if !startsWithHashBang(path) {
		s.Command = func(method string) []string { return []string{"/bin/sh", path, method} }
	}
	return s, nil
}

func configure(p *plugin.Params) (*plugin.Source, error) {
	given := p.Rest()
	if len(given) == 0 || given[0].Key != "script" {
		return nil, errors.New("the first parameter has to be the script")
	}
	s, err := newScript(given[0].Value, p.Host)
	if err != nil {
		return nil, err
	}
	dir := s.Dir
	magic := func() (string, error) {
		out, err := s.do(context.Background(), call{method: "magic_config_key"})
		if errors.Is(err, errMissing) {
			return "", errors.New("the script takes no parameter without a key")
		}
		return strings.TrimSpace(string(out)), err
	}
	if _, err := s.do(context.Background(), call{method: "load"}); optional("load", err) != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("load: %w", err)
	}
	for i, g := range given[1:] {
		if g.Key == "script" { // given without a key
			if given[i+1].Key, err = magic(); err != nil {
				os.RemoveAll(dir)
				return nil, err
			}
		}
	}
	return New(s, given[1:], SerializeAllRequests)
}

// scriptPath is where the script is: what is read from standard input is saved in
// dir.
func scriptPath(script, dir string, h *plugin.Host) (string, error) {
	if script != "-" {
		path, err := filepath.Abs(script)
		if err == nil {
			_, err = os.Stat(path)
		}
		return path, err
	}
	if h.Stdin == nil {
		return "", errors.New("the script cannot be read from standard input: a client is there")
	}
	b, err := io.ReadAll(h.Stdin)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "inline-script.sh")
	err = os.WriteFile(path, b, 0o500)
	if err == nil && h.Own != nil {
		err = h.Own(path)
	}
	return path, err
}

// startsWithHashBang reports whether the kernel can run a file by itself; a
// binary can be, too.
func startsWithHashBang(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return true // and running it says why
	}
	defer f.Close()
	var b [4]byte
	n, _ := io.ReadFull(f, b[:])
	return strings.HasPrefix(string(b[:n]), "#!") || string(b[:n]) == "\x7fELF"
}

// source is a script that has been configured.
type source struct {
	script      *Script
	model       Model
	connections lock // held by the open handle, if there may be one only
	all         lock // held by whatever a client has asked for
}

// New configures a script with parameters, and gets it ready. Without a method
// thread_model it has the model otherwise. $tmpdir is removed if it fails, and
// when the server has ended.
func New(s *Script, params []plugin.Param, otherwise Model) (_ *plugin.Source, err error) {
	defer func() {
		if err != nil {
			os.RemoveAll(s.Dir)
		}
	}()
	ctx := context.Background()
	for _, g := range params {
		_, err := s.do(ctx, call{method: "config", args: []string{g.Key, g.Value}})
		if errors.Is(err, errMissing) {
			return nil, fmt.Errorf("there is no parameter %q: the script has no method config", g.Key)
		} else if err != nil {
			return nil, fmt.Errorf("config %s=%s: %w", g.Key, g.Value, err)
		}
	}
	src := &source{script: s, model: otherwise}
	if err := src.getReady(ctx); err != nil {
		return nil, err
	}
	switch src.model {
	case SerializeConnections:
		src.connections, src.all = newLock(), newLock()
	case SerializeAllRequests:
		src.all = newLock()
	}
	return &plugin.Source{Open: src.open, List: src.list, Default: src.defaultExport, Close: src.close}, nil
}

func (src *source) getReady(ctx context.Context) error {
	for _, method := range []string{"config_complete", "thread_model", "get_ready", "after_fork"} {
		out, err := src.script.do(ctx, call{method: method})
		if err := optional(method, err); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		if method == "thread_model" && err == nil {
			src.model = parseModel(string(out), src.model)
		}
	}
	return nil
}

// open opens an export for a connection.
func (src *source) open(ctx context.Context, info nbd.OpenInfo) (_ nbd.Backend, err error) {
	if err := src.connections.enter(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			src.connections.leave()
		}
	}()
	h := &handle{src: src, ctx: ctx, info: info, requests: src.all, size: -1}
	if src.model == SerializeRequests {
		h.requests = newLock()
	}
	readOnly := fmt.Sprint(info.ReadOnly)
	if _, err := src.ask(ctx, info.Disconnect, "preconnect", readOnly); optional("preconnect", err) != nil {
		return nil, fmt.Errorf("preconnect: %w", err)
	}
	out, err := src.ask(ctx, info.Disconnect, "open", readOnly, info.Name, fmt.Sprint(info.Client.TLS))
	if err := optional("open", err); err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	h.name = strings.TrimSuffix(string(out), "\n")
	return h, nil
}

// ask calls a method that belongs to no handle.
func (src *source) ask(ctx context.Context, disconnect func(error, bool), method string, args ...string) ([]byte, error) {
	if err := src.all.enter(ctx); err != nil {
		return nil, err
	}
	defer src.all.leave()
	return src.script.do(ctx, call{method: method, args: args, disconnect: disconnect})
}

func (src *source) list(ctx context.Context, c nbd.Client) ([]plugin.Entry, error) {
	out, err := src.ask(ctx, nil, "list_exports", fmt.Sprint(src.script.ReadOnly), fmt.Sprint(c.TLS))
	if errors.Is(err, errMissing) {
		name, err := src.defaultExport(ctx, c)
		return []plugin.Entry{{Name: name}}, err
	} else if err != nil {
		return nil, fmt.Errorf("list_exports: %w", err)
	}
	return parseExports(string(out))
}

func (src *source) defaultExport(ctx context.Context, c nbd.Client) (string, error) {
	out, err := src.ask(ctx, nil, "default_export", fmt.Sprint(src.script.ReadOnly), fmt.Sprint(c.TLS))
	if errors.Is(err, errMissing) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("default_export: %w", err)
	}
	entries, err := parseExports(string(out))
	if err != nil || len(entries) == 0 {
		return "", err
	}
	return entries[0].Name, nil
}

// close is the method unload, of which errors do not matter.
func (src *source) close() error {
	src.script.do(context.Background(), call{method: "unload"})
	return os.RemoveAll(src.script.Dir)
}
