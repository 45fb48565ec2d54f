// Package test holds what is tested across packages.
package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// Imports go one way. A package may not reach, directly or through others, what
// is forbidden to it; the reason is for whoever is about to change the row.
var forbidden = []struct{ from, to, why string }{
	{"nbd", "tlsengine", "the protocol takes any encrypted net.Conn (Server.StartTLS)"},
	{"nbd", "ktls", "where records are encrypted is not the protocol's business"},
	{"nbd", "backends/", "the protocol takes any Backend"},
	{"nbd", "plugins", "the protocol knows no command line"},
	{"nbd/wire", "nbd", "messages are bytes: they can be tested and fuzzed without a server"},
	{"tlsengine/pki", "tlsengine", "making certificates needs no engine"},
	{"tlsengine/pki", "nbd", "certificates are for any protocol"},
	{"nbd/wire", "golang.org/", "the standard library is enough for bytes"},
	{"tlsengine", "nbd", "TLS carries any protocol"},
	{"ktls", "tlsengine", "the kernel interface is used by the engine, not the other way round"},
	{"ktls", "nbd", "the kernel interface carries any protocol"},
	{"backends/", "tlsengine", "a backend never sees a socket"},
	{"backends/", "plugins", "plugins are made of backends"},
	{"backends/", "systemd", "a backend does not know what started it"},
	{"plugins", "tlsengine", "a plugin never sees a socket"},
	{"plugins/", "tlsengine", "a plugin never sees a socket"},
	{"plugins/plugin", "backends/", "what plugins have in common knows none of them"},
	{"", "cmd/", "a command is not a library"},
	{"", "test/", "what is served must not depend on what tests it"},
}

const module = "nbd-ktls-server/"

func TestImportsGoOneWay(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasPrefix(path, "test/") || path == "test" || path == "backends/backendtest" {
			continue
		}
		for _, dep := range p.Deps {
			for _, f := range forbidden {
				dep := strings.TrimPrefix(dep, module)
				if f.to == "cmd/" && strings.HasPrefix(dep, path+"/") {
					continue // a command's own
				}
				if within(path, f.from) && (within(dep, f.to) || strings.HasPrefix(dep, f.to+"/")) {
					t.Errorf("%s must not depend on %s: %s", path, dep, f.why)
				}
			}
		}
	}
}

// within reports whether path is what pattern names: everything for "", what
// lies below for a pattern that ends in a slash, itself for another.
func within(path, pattern string) bool {
	return pattern == "" || path == pattern || strings.HasSuffix(pattern, "/") && strings.HasPrefix(path, pattern)
}

func TestTheTableOfImportsSeesThem(t *testing.T) {
	if !within("backends/file", "backends/") || within("nbd/wire", "nbd") || !within("x", "") {
		t.Error("within")
	}
	found := 0
	for _, p := range packages(t) {
		for _, dep := range p.Deps {
			if p.ImportPath == module+"backends/file" && dep == module+"nbd" {
				found++
			}
		}
	}
	if found != 1 {
		t.Errorf("backends/file depends on nbd %d times", found)
	}
}

type pkg struct {
	ImportPath string
	Deps       []string
}

func packages(t *testing.T) (all []pkg) {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Deps", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}
