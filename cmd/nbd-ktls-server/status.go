package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/tlsengine"
)

// statusData is what the status page shows.
type statusData struct {
	Version     string
	Up          time.Duration
	Connections []nbd.Connection
	Exports     []exportStatus
	Counts      nbd.Counts
	TLS         *tlsengine.Counts
	Expires     time.Time
}

// exportStatus is one line of the table of exports.
type exportStatus struct {
	Name                                  string
	Requests, Errors, Read, Written, Uses int64
	Streamed, InFlight                    int64
	Mean                                  time.Duration
}

func (m *monitor) data() statusData {
	d := statusData{
		Version: versionText(), Up: time.Since(m.begun).Round(time.Second),
		Connections: m.server.Connections(), Counts: m.server.Counts(),
	}
	uses := make(map[string]int64)
	for _, c := range d.Connections {
		if c.Export != "" || c.Requests > 0 {
			uses[c.Export]++
		}
	}
	for _, t := range m.server.Traffic() {
		e := exportStatus{Name: t.Export, Streamed: t.Streamed, InFlight: t.InFlight, Uses: uses[t.Export]}
		var total time.Duration
		for _, c := range t.Commands {
			e.Requests += c.Requests
			e.Errors += c.Errors
			total += c.Total
			if strings.HasSuffix(c.Command.String(), "READ") {
				e.Read += c.Bytes
			} else {
				e.Written += c.Bytes
			}
		}
		if e.Requests > 0 {
			e.Mean = (total / time.Duration(e.Requests)).Round(time.Microsecond)
		}
		d.Exports = append(d.Exports, e)
	}
	if m.tls != nil {
		c := m.tls.Counts()
		d.TLS, d.Expires = &c, m.tls.Validity().Certificate
	}
	return d
}

//go:embed status.html
var statusHTML string

var statusPage = template.Must(template.New("status").Funcs(template.FuncMap{
	"bytes": bytesText,
	"since": func(t time.Time) time.Duration { return time.Since(t).Round(time.Second) },
	"subject": func(c nbd.Client) string {
		if len(c.Certificates) == 0 {
			return "–"
		}
		return c.Certificates[0].Subject.String()
	},
}).Parse(statusHTML))

// status is the page, or, with ?format=text, the same for a terminal.
func (m *monitor) status(w http.ResponseWriter, r *http.Request) {
	d := m.data()
	if r.FormValue("format") == "text" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		d.text(w)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	w.Header().Set("Refresh", "5")
	statusPage.Execute(w, d) // an error is that the reader has gone
}

// bytesText writes a number of bytes with the unit that fits.
func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	v, i := float64(n), 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func (d *statusData) text(w io.Writer) {
	fmt.Fprintf(w, "%s, up %v\n", d.Version, d.Up)
	fmt.Fprintf(w, "%d connections; %d accepted, %d refused, %d failed negotiations\n", len(d.Connections), d.Counts.Accepted, d.Counts.Refused, d.Counts.Failed)
	if d.TLS != nil {
		fmt.Fprintf(w, "TLS: %d sessions sent by the kernel, %d by user space; certificate valid until %s\n", d.TLS.Kernel, d.TLS.User, d.Expires.Format(time.DateOnly))
	}
	for _, e := range d.Exports {
		fmt.Fprintf(w, "export %q: %d connections, %d requests (%d errors, %d in flight), read %s (%s streamed), written %s, mean %v\n",
			e.Name, e.Uses, e.Requests, e.Errors, e.InFlight, bytesText(e.Read), bytesText(e.Streamed), bytesText(e.Written), e.Mean)
	}
	for _, c := range d.Connections {
		fmt.Fprintf(w, "connection %v, %v: export %q, %d requests, read %s, written %s, %s\n",
			c.Client.Addr, time.Since(c.Begun).Round(time.Second), c.Export, c.Requests, bytesText(c.BytesRead), bytesText(c.BytesWritten), c.TLS)
	}
}

// newStatus is a command that prints the status of a running server.
func newStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status ADDRESS",
		Short: "Print the status of a running server, from its metrics address",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			return printStatus(ctx, args[0], os.Stdout)
		},
	}
}

func printStatus(ctx context.Context, address string, w io.Writer) error {
	network := "tcp"
	if strings.HasPrefix(address, "/") {
		network = "unix"
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://server/status?format=text", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return errors.Unwrap(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", address, resp.Status)
	}
	_, err = io.Copy(w, resp.Body)
	return err
}
