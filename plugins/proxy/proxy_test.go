package proxy

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
	"nbd-ktls-server/test/nbdtest"
)

func configured(t *testing.T, args ...string) (*plugin.Source, error) {
	t.Helper()
	return plugin.Configure(Plugin, nil, args, plugin.Host{Log: slog.New(slog.DiscardHandler)})
}

func TestWrongParameters(t *testing.T) {
	for args, want := range map[string]string{
		"":                                    "one of uri=, socket=",
		"nbd://a socket=b":                    "one of uri=, socket=",
		"http://a":                            `a scheme "http"`,
		"nbdx://a":                            "nbd://HOST",
		"nbd://":                              "nbd://HOST",
		"nbd+unix:///x":                       "nbd://HOST",
		"nbd://a/?colour=red":                 `a parameter "colour"`,
		"nbd://a export=x":                    "export= does not go with uri=",
		"nbds://a tls=off":                    "does not go with a URI that asks for TLS",
		"nbds://a?tls-certificates=/nowhere":  "/nowhere/ca-cert.pem",
		"socket=a port=1":                     "port= does not go with socket=",
		"socket=a tls=maybe":                  "it must be one of off, on, require",
		"socket=a tls-psk=keys":               "no pre-shared keys",
		"socket=a tls=on tls-verify=perhaps":  "neither true nor false",
		"socket=a dynamic-export=1 shared=1":  "dynamic-export=true does not go with a shared",
		"socket=a dynamic-export=1 export=x":  "dynamic-export=true does not go with export=",
		"socket=a connections=0":              "from 1 to 16",
		"socket=a connections=17":             "from 1 to 16",
		"socket=a retry=many":                 "not a number",
		"socket=a reconnect=later":            "not a time",
		"socket=a replay=lots":                "not a size",
		"command=true shared=no":              "shared=false does not go with command=",
		"socket-fd=x":                         "the number of a file descriptor",
		"socket-fd=99999":                     "socket-fd=99999",
		"vsock=here":                          "not the number of a machine",
		"vsock=2 port=nbd":                    "not the number of a port",
		"socket=/nowhere/at/all shared=true":  "no such file",
		"command=/nowhere/at/all":             "the server that is run",
		"hostname=localhost port=nosuch-port": "",
	} {
		t.Run(args, func(t *testing.T) {
			s, err := configured(t, strings.Fields(args)...)
			if err == nil && s.Close != nil {
				s.Close()
			}
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

const diskSize = 1 << 20

func openDisk(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return memory.New(diskSize), nil }

// upstream serves one export, x, on a Unix socket.
func upstream(t *testing.T) (path string) {
	path = filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &nbd.Server{Log: slog.New(slog.DiscardHandler), Exports: nbd.ExportList{{Name: "x", Description: "of mine", Open: openDisk}}}
	nbdtest.ServeOn(t, s, l)
	return path
}

func TestWays(t *testing.T) {
	path := upstream(t)
	for _, args := range []string{
		"nbd+unix:///x?socket=" + path,
		"uri=nbd+unix:///%78?socket=" + path,
		"socket=" + path + " export=x shared=true",
		"socket=" + path + " dynamic-export=true",
	} {
		t.Run(args, func(t *testing.T) {
			s, err := configured(t, strings.Fields(args)...)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			b, err := s.Open(t.Context(), nbd.OpenInfo{Name: "x"})
			if err != nil {
				t.Fatal(err)
			}
			a, err := nbd.Resolve(b)
			if err != nil || a.Size != diskSize {
				t.Errorf("%v, or a wrong size", err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A child and what it has started end with us.
func TestChildEnds(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	c := newChild([]string{"/bin/sh", "-c", "trap '' TERM; echo $$ >" + pid + "; while :; do sleep 0.1; done"}, slog.New(slog.DiscardHandler))
	c.termDelay = 100 * time.Millisecond
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	var number string
	for end := time.Now().Add(20 * time.Second); number == ""; time.Sleep(5 * time.Millisecond) {
		p, _ := os.ReadFile(pid)
		if number = strings.TrimSpace(string(p)); time.Now().After(end) {
			t.Fatal("the child does not run")
		}
	}
	c.end()
	if _, err := os.Stat("/proc/" + number); err == nil {
		t.Error("the child still runs")
	}
	if _, err := os.Stat(c.dir); err == nil {
		t.Error("its directory is still there")
	}
}
