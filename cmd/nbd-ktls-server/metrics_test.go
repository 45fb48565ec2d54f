package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
	"nbd-ktls-server/tlsengine"
)

func TestMetrics(t *testing.T) {
	p := nbdtest.NewPKI(t)
	ts, err := tlsengine.New(tlsengine.Config{Dir: p.Dir, VerifyPeer: true})
	if err != nil {
		t.Fatal(err)
	}
	disk := memory.New(1 << 20)
	srv := &nbd.Server{
		Exports: nbd.ExportList{{Name: "a <b>", Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) {
			return disk, nil
		}}},
		StartTLS: ts.StartTLS, ForceTLS: true, Log: slog.New(slog.DiscardHandler),
	}
	addr := nbdtest.Serve(t, srv)
	m := &monitor{server: srv, tls: ts, begun: time.Now(), reloads: new(reloadCounts)}
	m.reloads.add(nil)
	m.reloads.add(io.EOF)
	web := httptest.NewServer(m.handler())
	defer web.Close()

	c := nbdtest.Hello(t, addr)
	defer c.Close()
	c.StartTLS(p.Client(p.ClientPair))
	c.Go("a <b>")
	c.Do(wire.CmdWrite, 0, 0, 512, make([]byte, 512))
	c.Pread(0, 1024)
	c.Do(wire.CmdWrite, 0, 2<<20, 512, make([]byte, 512)) // beyond the end
	stranger := nbdtest.Hello(t, addr)
	stranger.Expect(wire.RepErrTLSReqd, wire.OptList)
	stranger.Close()

	// A request is counted when it has been answered, a moment after that;
	// and the server learns a moment later that a client has gone.
	for srv.Traffic()[0].InFlight > 0 || len(srv.Connections()) > 1 {
		time.Sleep(time.Millisecond)
	}
	get := func(path string) string {
		t.Helper()
		resp, err := http.Get(web.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %v", path, resp.Status, err)
		}
		return string(b)
	}
	metrics := get("/metrics")
	for _, name := range dashboard(t) {
		if !strings.Contains(metrics, name) {
			t.Errorf("the dashboard shows %s, which is not among the metrics", name)
		}
	}
	for _, line := range []string{
		`nbd_connections{tls="yes"} 1`,
		`nbd_connections_accepted_total 2`,
		`nbd_requests_total{command="write",export="a <b>"} 2`,
		`nbd_request_errors_total{command="write",export="a <b>"} 1`,
		`nbd_bytes_total{command="write",export="a <b>"} 512`,
		`nbd_bytes_total{command="read",export="a <b>"} 1024`,
		`nbd_request_duration_seconds_count{command="read",export="a <b>"} 1`,
		`nbd_request_duration_seconds_bucket{command="read",export="a <b>",le="+Inf"} 1`,
		`nbd_tls_handshakes_total{result="ok"} 1`,
		`nbd_config_reloads_total{result="error"} 1`,
		`nbd_tls_certificate_expiry_timestamp_seconds `,
		`process_resident_memory_bytes `,
	} {
		if !strings.Contains(metrics, "\n"+line) {
			t.Errorf("%s is not there", line)
		}
	}
	if t.Failed() {
		t.Log(metrics)
	}
	for _, words := range []string{"&#34;a &lt;b&gt;&#34;", "CN=client", "tx=user", "512 B"} {
		if page := get("/status"); !strings.Contains(page, words) {
			t.Errorf("%q is not on the page:\n%s", words, page)
		}
	}
	var text bytes.Buffer
	if err := printStatus(t.Context(), strings.TrimPrefix(web.URL, "http://"), &text); err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{"1 connections; 2 accepted", `export "a <b>": 1 connections, 3 requests (1 errors`, "read 1.0 KiB"} {
		if !strings.Contains(text.String(), words) {
			t.Errorf("%q is not in the text:\n%s", words, text.String())
		}
	}
}

// dashboard is the metrics that the dashboard for Grafana shows.
func dashboard(t *testing.T) (names []string) {
	t.Helper()
	b, err := os.ReadFile("../../systemd/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			names = append(names, regexp.MustCompile(`(nbd|process)_[a-z_]+`).FindAllString(target.Expr, -1)...)
		}
	}
	if len(names) < len(d.Panels) {
		t.Errorf("%d panels, %d metrics", len(d.Panels), len(names))
	}
	return names
}
