package main

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nbd-ktls-server/cmd/nbd-ktls-server/config"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/plugins/plugin"
	"nbd-ktls-server/test/nbdtest"
	"nbd-ktls-server/tlsengine/pki"
)

// warehouse is a server of a catalog, and clients of several names.
type warehouse struct {
	t       *testing.T
	dir     string
	catalog *catalog
	addr    net.Addr
	pki     *nbdtest.PKI
	log     *nbdtest.Log
}

func newWarehouse(t *testing.T, exports string) *warehouse {
	t.Helper()
	w := &warehouse{t: t, dir: t.TempDir(), pki: nbdtest.NewPKI(t), log: nbdtest.NewLog(t)}
	for _, name := range []string{"images/one", "images/two", "disk.img"} {
		path := filepath.Join(w.dir, name)
		os.MkdirAll(filepath.Dir(path), 0o700)
		if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := w.config(exports)
	if err != nil {
		t.Fatal(err)
	}
	w.catalog, err = newCatalog(c, plugin.Host{Log: slog.New(slog.DiscardHandler), Exit: func(string) {}})
	if err != nil {
		t.Fatal(err)
	}
	w.addr = nbdtest.Serve(t, &nbd.Server{
		Exports: w.catalog, StartTLS: w.pki.StartTLS(t, true), ForceTLS: true, Log: w.log.Logger(),
	})
	return w
}

func (w *warehouse) config(exports string) (*config.Config, error) {
	w.t.Helper()
	file := filepath.Join(w.dir, "config.yaml")
	doc := "tls: {certificates: " + w.pki.Dir + "}\nexports:\n" + strings.ReplaceAll(exports, "DIR", w.dir)
	if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return config.Load(file)
}

// reload replaces the configuration, which has to be right.
func (w *warehouse) reload(exports string) {
	w.t.Helper()
	c, err := w.config(exports)
	if err == nil {
		err = w.catalog.replace(c)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// client connects with a certificate for name.
func (w *warehouse) client(name string) *nbdtest.Client {
	w.t.Helper()
	pair, err := w.pki.CA.Issue(pki.Leaf{CommonName: name, Client: true})
	if err != nil {
		w.t.Fatal(err)
	}
	c := nbdtest.Hello(w.t, w.addr)
	c.StartTLS(w.pki.Client(pair))
	w.t.Cleanup(func() { c.Close() })
	return c
}

// opened is a client that has chosen an export.
func (w *warehouse) opened(name, export string) *nbdtest.Client {
	w.t.Helper()
	c := w.client(name)
	c.Go(export)
	return c
}

// listed are the names that a client is told.
func (w *warehouse) listed(name string) (names []string) {
	w.t.Helper()
	c := w.client(name)
	for _, r := range c.Expect(wire.RepAck, wire.OptList) {
		names = append(names, string(r.Data[4:4+int(r.Data[3])]))
	}
	return names
}

const stock = `
- name: a
  plugin: memory
  parameters: {size: 1M}
  access:
  - {allow: read-write, subject: {CN: alice}}
  - {allow: read-only, subject: {CN: bob}}
- name: b
  plugin: memory
  parameters: {size: 1M}
  access: [{allow: read-write, subject: {CN: alice}}]
- name: c
  plugin: file
  parameters: {file: DIR/disk.img}
  default: true
- prefix: images/
  plugin: file
  parameters: {dir: DIR/images}
  read-only: true
  access: [{allow: read-write, subject: {CN: [alice, carol]}}]
`

func TestWhoMayUseWhat(t *testing.T) {
	w := newWarehouse(t, stock)
	for name, want := range map[string][]string{
		"alice": {"a", "b", "c", "images/one", "images/two"},
		"bob":   {"a", "c"},
		"carol": {"c", "images/one", "images/two"},
	} {
		if diff := cmp.Diff(want, w.listed(name)); diff != "" {
			t.Errorf("%s is told (-want +got):\n%s", name, diff)
		}
	}
	for _, test := range []struct {
		who, export string
		readOnly    bool
	}{
		{"alice", "a", false},
		{"bob", "a", true},
		{"alice", "images/two", true},
		{"bob", "", false},
	} {
		e := w.client(test.who).Go(test.export)
		if got := e.Flags&wire.FlagReadOnly != 0; got != test.readOnly {
			t.Errorf("%s may only read %q: %v", test.who, test.export, got)
		}
	}
	if errno := w.opened("bob", "a").Do(wire.CmdWrite, 0, 0, 1, "x"); errno != wire.EPERM {
		t.Errorf("bob writes: %v", errno)
	}
}

// TestForbiddenIsMissing: to a client, an export that it may not use and one that
// does not exist are the same, in every option that has a name.
func TestForbiddenIsMissing(t *testing.T) {
	w := newWarehouse(t, stock)
	meta := func(name string) []byte { return nbdtest.MetaRequest(name, "base:allocation") }
	for _, test := range []struct {
		option wire.Option
		data   func(name string) []byte
	}{
		{wire.OptGo, func(name string) []byte { return nbdtest.InfoRequest(name) }},
		{wire.OptInfo, func(name string) []byte { return nbdtest.InfoRequest(name) }},
		{wire.OptSetMetaContext, meta},
		{wire.OptListMetaContext, meta},
	} {
		c := w.client("bob")
		c.Expect(wire.RepAck, wire.OptStructuredReply)
		infos, forbidden := c.Ask(test.option, test.data("b"))
		for _, missing := range []string{"z", "images/one", "images/z", "images/"} {
			moreInfos, final := c.Ask(test.option, test.data(missing))
			if forbidden.Type != wire.RepErrUnknown || !cmp.Equal(forbidden, final) || !cmp.Equal(infos, moreInfos) {
				t.Errorf("%v of %q: %v %q; of one that is forbidden: %v %q", test.option, missing, final.Type, final.Data, forbidden.Type, forbidden.Data)
			}
		}
	}
	w.log.Expect("an export was refused", "export=b", "its access list")
}

// TestReload: who is not concerned by a change does not notice it.
func TestReload(t *testing.T) {
	w := newWarehouse(t, stock)
	alice, bob := w.opened("alice", "a"), w.opened("bob", "a")
	aliceB, carol := w.opened("alice", "b"), w.opened("carol", "images/one")
	lives := func(c *nbdtest.Client) {
		t.Helper()
		if _, errno := c.Pread(0, 512); errno != 0 {
			t.Error(errno)
		}
	}
	if errno := alice.Do(wire.CmdWrite, 0, 0, 4, "data"); errno != 0 {
		t.Fatal(errno)
	}

	// bob is let out of a, b is gone, d is new.
	w.reload(`
- name: a
  description: described
  plugin: memory
  parameters: {size: 1M}
  access: [{allow: read-write, subject: {CN: alice}}]
- name: d
  plugin: memory
  parameters: {size: 1M}
- prefix: images/
  plugin: file
  parameters: {dir: DIR/images}
  read-only: true
`)
	bob.ExpectEnd()
	aliceB.ExpectEnd()
	lives(alice)
	lives(carol)
	w.log.Expect("connection closed", "the client may not use the export any more", "CN=bob")
	w.log.Expect("connection closed", "not in the configuration any more", "export=b")
	if got := w.listed("bob"); !slices.Contains(got, "d") || slices.Contains(got, "a") {
		t.Errorf("bob is told %q", got)
	}
	// What was in memory is there still: it is the same source.
	if b, errno := w.opened("alice", "a").Pread(0, 4); errno != 0 || string(b) != "data" {
		t.Errorf("%q %v", b, errno)
	}

	// What cannot be used changes nothing.
	for _, wrong := range []string{"- {name: a}", "- {name: a, plugin: memory}", "- {name: a, plugin: nothing}", "- {name: a, plugin: memory, parameters: {size: 1M, colour: red}}", "- {prefix: a, plugin: memory, parameters: {size: 1M}}"} {
		c, err := w.config(wrong)
		if err == nil {
			err = w.catalog.replace(c)
		}
		if err == nil || !strings.Contains(err.Error(), "config.yaml:3:") {
			t.Errorf("%s: %v", wrong, err)
		}
	}
	lives(alice)

	// Only reading: who could write goes, who could not stays.
	w.reload(`
- name: a
  description: described
  plugin: memory
  parameters: {size: 1M}
  access: [{allow: read-only}]
- prefix: images/
  plugin: file
  parameters: {dir: DIR/images}
  read-only: true
  access: [{allow: read-only}]
`)
	alice.ExpectEnd()
	lives(carol)

	// Another image under the same name.
	dave := w.opened("dave", "a")
	w.reload("- {name: a, plugin: memory, parameters: {size: 2M}}")
	dave.ExpectEnd()
	carol.ExpectEnd()
	if e := w.client("dave").Go("a"); e.Size != 2<<20 {
		t.Errorf("%d bytes", e.Size)
	}
}

func TestConnectionsOfAnExport(t *testing.T) {
	w := newWarehouse(t, "- {name: a, plugin: memory, parameters: {size: 1M}, connections: 2}")
	first := w.opened("x", "a")
	w.opened("y", "a")
	w.client("z").Expect(wire.RepErrUnknown, wire.OptGo, nbdtest.InfoRequest("a"))
	w.log.Expect("an export was refused", "2 connections")
	first.Disconnect()
	w.log.Expect("connection closed", "CN=x")
	w.opened("z", "a")
}
