package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/tlsengine"
)

// monitor shows what goes on in the server: /metrics to Prometheus, /status to
// people. It counts nothing itself.
type monitor struct {
	server  *nbd.Server
	tls     *tlsengine.Server // nil without TLS
	begun   time.Time
	reloads *reloadCounts // of the configuration; nil without one
}

// listen listens on address: HOST:PORT or the path of a Unix socket.
func (m *monitor) listen(ctx context.Context, address string, log *slog.Logger) (net.Listener, error) {
	network := "tcp"
	if strings.HasPrefix(address, "/") {
		network = "unix"
		removeStale(address)
	}
	l, err := listenStream(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	log.Info("metrics are served", "address", l.Addr())
	return l, nil
}

// serve serves on l until ctx ends.
func (m *monitor) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: m.handler(), ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (m *monitor) handler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /status", m.status)
	mux.Handle("GET /{$}", http.RedirectHandler("/status", http.StatusFound))
	return mux
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("nbd_"+name, help, labels, nil)
}

var (
	descConnections = desc("connections", "Connections that there are.", "tls")
	descAccepted    = desc("connections_accepted_total", "Connections accepted.")
	descRefused     = desc("connections_refused_total", "Connections closed at once because there were too many.")
	descFailed      = desc("negotiations_failed_total", "Connections that came to no export because something was wrong.")
	descRequests    = desc("requests_total", "Requests answered.", "export", "command")
	descErrors      = desc("request_errors_total", "Requests answered with an error.", "export", "command")
	descBytes       = desc("bytes_total", "Bytes of payload read or written.", "export", "command")
	descStreamed    = desc("streamed_bytes_total", "Bytes of READs that went from the page cache to the network uncopied.", "export")
	descInFlight    = desc("requests_in_flight", "Requests not answered yet.", "export")
	descDuration    = desc("request_duration_seconds", "Time from a request's arrival to its reply.", "export", "command")
	descHandshakes  = desc("tls_handshakes_total", "TLS handshakes, by their result: ok, an alert's name, or error.", "result")
	descSessions    = desc("tls_sessions_total", "TLS connections, by who makes the records that are sent.", "tx")
	descKeyUpdates  = desc("tls_key_updates_total", "TLS 1.3 KeyUpdates.", "direction")
	descExpiry      = desc("tls_certificate_expiry_timestamp_seconds", "When the server's certificate expires.")
	descReloads     = desc("config_reloads_total", "Times that the configuration was read again.", "result")
)

// Describe implements [prometheus.Collector].
func (m *monitor) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements [prometheus.Collector].
func (m *monitor) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	encrypted, plain := 0, 0
	for _, c := range m.server.Connections() {
		if c.Client.TLS {
			encrypted++
		} else {
			plain++
		}
	}
	gauge(descConnections, float64(encrypted), "yes")
	gauge(descConnections, float64(plain), "no")
	counts := m.server.Counts()
	counter(descAccepted, counts.Accepted)
	counter(descRefused, counts.Refused)
	counter(descFailed, counts.Failed)
	for _, t := range m.server.Traffic() {
		name := strings.ToValidUTF8(t.Export, "\ufffd")
		counter(descStreamed, t.Streamed, name)
		gauge(descInFlight, float64(t.InFlight), name)
		for _, c := range t.Commands {
			command := strings.ToLower(c.Command.String())
			counter(descRequests, c.Requests, name, command)
			counter(descErrors, c.Errors, name, command)
			counter(descBytes, c.Bytes, name, command)
			ch <- prometheus.MustNewConstHistogram(descDuration, uint64(c.Requests), c.Total.Seconds(), buckets(c.Took), name, command)
		}
	}
	if m.tls != nil {
		c := m.tls.Counts()
		for result, n := range c.Handshakes {
			counter(descHandshakes, n, result)
		}
		counter(descSessions, c.Kernel, "kernel")
		counter(descSessions, c.User, "user")
		counter(descKeyUpdates, c.KeyUpdatesSent, "sent")
		counter(descKeyUpdates, c.KeyUpdatesReceived, "received")
		gauge(descExpiry, float64(m.tls.Validity().Certificate.Unix()))
	}
	if m.reloads != nil {
		counter(descReloads, m.reloads.done.Load(), "ok")
		counter(descReloads, m.reloads.failed.Load(), "error")
	}
}

// buckets are cumulative, and leave out the last one, which is all.
func buckets(took []int64) map[float64]uint64 {
	b := make(map[float64]uint64, len(nbd.LatencyBounds))
	sum := uint64(0)
	for i, bound := range nbd.LatencyBounds {
		sum += uint64(took[i])
		b[bound.Seconds()] = sum
	}
	return b
}
