package web

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var content = bytes.Repeat([]byte("0123456789abcde"), 70000)

func serve(w http.ResponseWriter, r *http.Request) {
	http.ServeContent(w, r, "disk.img", time.Unix(1, 0), bytes.NewReader(content))
}

func opened(t *testing.T, args ...string) (*nbd.Abilities, error) {
	t.Helper()
	s, err := plugin.Configure(Plugin, nil, args, plugin.Host{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { s.Close() })
	b, err := s.Open(t.Context(), nbd.OpenInfo{})
	if err != nil {
		return nil, err
	}
	return nbd.Resolve(b)
}

// Servers of which the disk can be read.
func TestServers(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("word\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	needs := func(ok func(*http.Request) bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if !ok(r) {
				http.Error(w, "no", http.StatusForbidden)
				return
			}
			serve(w, r)
		}
	}
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		args    string
	}{
		"plain":    {serve, ""},
		"password": {needs(func(r *http.Request) bool { u, p, _ := r.BasicAuth(); return u == "me" && p == "word" }), "user=me password=+" + secret},
		"headers":  {needs(func(r *http.Request) bool { return r.Header.Get("X-Token") == "abc" && r.Header.Get("Cookie") == "a=b" }), "header=X-Token:abc cookie=a=b"},
		"agent":    {needs(func(r *http.Request) bool { return r.UserAgent() == "me" }), "user-agent=me"},
		"redirection": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/there" {
				http.Redirect(w, r, "/there", http.StatusFound)
				return
			}
			serve(w, r)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(test.handler)
			defer s.Close()
			a, err := opened(t, append(strings.Fields(test.args), s.URL+"/disk.img")...)
			if err != nil {
				t.Fatal(err)
			}
			if a.Size != int64(len(content)) || a.WriteAt != nil {
				t.Errorf("a size of %d", a.Size)
			}
			p := make([]byte, 100000)
			for _, off := range []int64{0, 12345, int64(len(content) - len(p))} {
				if _, err := a.ReadAt(p, off); err != nil || !bytes.Equal(p, content[off:off+int64(len(p))]) {
					t.Errorf("at %d: %v, or wrong data", off, err)
				}
			}
		})
	}
}

func TestTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(serve))
	defer s.Close()
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, works := range map[string]bool{"": false, "cainfo=" + ca: true, "sslverify=false": true} {
		if _, err := opened(t, append(strings.Fields(args), s.URL)...); (err == nil) != works {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// Servers of which it cannot, and what is said about them.
func TestWrong(t *testing.T) {
	answer := func(status int, header, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if header != "" {
				w.Header().Set("Content-Range", header)
			}
			w.WriteHeader(status)
			w.Write([]byte(body))
		}
	}
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		args    string
		want    string
	}{
		"no ranges":       {answer(200, "", "text"), "", "does not send parts"},
		"missing":         {http.NotFound, "", nbd.ErrNoExport.Error()},
		"forbidden":       {answer(403, "", ""), "", "403"},
		"redirected":      {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, "followlocation=false", "302"},
		"round and round": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, "", "redirections"},
		"no range":        {answer(206, "", "x"), "", "sends the range"},
		"no size":         {answer(206, "bytes 0-0/*", "x"), "", "sends the range"},
		"rubbish":         {answer(206, "bytes 5", "x"), "", "sends the range"},
		"too slow":        {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "timeout=50ms", "in time"},
		"no scheme":       {nil, "url=disk.img", "begins with http"},
		"no url":          {nil, "", "url= is needed"},
		"header":          {nil, "header=x url=http://a", "NAME: VALUE"},
		"password":        {nil, "password=- url=http://a", "+FILE"},
		"connections":     {nil, "connections=0 url=http://a", "from 1"},
		"cainfo":          {nil, "cainfo=/nowhere url=https://a", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			args := strings.Fields(test.args)
			if test.handler != nil {
				s := httptest.NewServer(test.handler)
				defer s.Close()
				args = append(args, s.URL)
			}
			if _, err := opened(t, args...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// A disk that becomes another one, or less, is an error, and no mixture.
func TestChanges(t *testing.T) {
	tag, part := `"one"`, int64(1<<20)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", tag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content[:part]))
	}))
	defer s.Close()
	a, err := opened(t, s.URL)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 512)
	for _, change := range []func(){func() { tag = `"two"` }, func() { tag, part = `"one"`, 1<<19 }} {
		change()
		if _, err := a.ReadAt(p, 0); err == nil || !strings.Contains(err.Error(), "another one") {
			t.Errorf("%v", err)
		}
	}
	tag, part = `"one"`, 1<<20
	if _, err := a.ReadAt(p, 0); err != nil {
		t.Error(err)
	}
}

func TestEmptyDiskAndUnixSocket(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(nil))
	}))
	path := filepath.Join(t.TempDir(), "sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s.Listener.Close()
	s.Listener = l
	s.Start()
	defer s.Close()
	a, err := opened(t, "http://anywhere/disk", "unix-socket-path="+path)
	if err != nil || a.Size != 0 {
		t.Errorf("%v", err)
	}
}

// A client that goes does not wait for the server.
func TestCancel(t *testing.T) {
	asked := make(chan struct{}, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "bytes=0-0" {
			asked <- struct{}{}
			<-r.Context().Done()
		}
		serve(w, r)
	}))
	defer s.Close()
	src, err := plugin.Configure(Plugin, nil, []string{s.URL}, plugin.Host{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	why := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	b, err := src.Open(ctx, nbd.OpenInfo{})
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-asked; cancel(why) }()
	if _, err := b.ReadAt(make([]byte, 512), 0); !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
}
