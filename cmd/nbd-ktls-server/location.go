package main

import (
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"nbd-ktls-server/nbd/vsock"
)

// location is where a client finds the server.
type location struct {
	host       string // for the URI; "" with a Unix socket
	port       string
	unixsocket string
	vsock      bool // host is a number then: 1 is this machine
	exportname string
	tls        string
	tlsDir     string
}

func (o *options) location(ls *listeners) location {
	at := location{exportname: o.exportname, tls: o.tls, tlsDir: o.tlsCertificates}
	if a, ok := ls.first("tcp").(*net.TCPAddr); ok {
		at.host, at.port = "localhost", strconv.Itoa(a.Port)
		if !a.IP.IsUnspecified() && !a.IP.IsLoopback() {
			at.host = a.IP.String()
			if a.IP.To4() == nil {
				at.host = "[" + at.host + "]"
			}
		}
	} else if a, ok := ls.first("unix").(*net.UnixAddr); ok {
		at.unixsocket = a.Name
	} else if a, ok := ls.first("vsock").(vsock.Addr); ok {
		at.vsock, at.host, at.port = true, "1", strconv.FormatUint(uint64(a.Port), 10)
	}
	return at
}

// first returns the first address of a network, or nil.
func (ls *listeners) first(network string) net.Addr {
	for _, l := range ls.all {
		if l.Addr().Network() == network {
			return l.Addr()
		}
	}
	return nil
}

// uri is where a client finds the export (the NBD project's uri.md). With
// certificates it says where they are: libnbd finds the client's beside the
// server's.
func (at location) uri() string {
	scheme, authority := "nbd", at.host+":"+at.port
	var query []string
	if at.tls == tlsRequire {
		scheme = "nbds"
	}
	if at.vsock {
		scheme += "+vsock"
	}
	if at.unixsocket != "" {
		scheme, authority = scheme+"+unix", ""
		query = append(query, "socket="+escapeQuery(at.unixsocket))
	}
	if at.tls == tlsRequire && at.tlsDir != "" {
		query = append(query, "tls-certificates="+escapeQuery(at.tlsDir))
	}
	path := ""
	if at.exportname != "" || len(query) > 0 {
		path = (&url.URL{Path: "/" + at.exportname}).EscapedPath()
	}
	u := scheme + "://" + authority + path
	if len(query) > 0 {
		u += "?" + strings.Join(query, "&")
	}
	return u
}

// escapeQuery escapes a value of a query, but leaves its slashes readable.
func escapeQuery(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(url.QueryEscape(s), "%2F", "/"), "+", "%20")
}

// env is the environment of --run (nbdkit-captive(1)).
func (at location) env() []string {
	uri, dir := at.uri(), at.tlsDir
	if at.tls == tlsOff {
		dir = ""
	}
	return append(os.Environ(),
		"uri="+uri, "nbd="+uri, "port="+at.port, "unixsocket="+at.unixsocket, "exportname="+at.exportname,
		"tls="+map[string]string{tlsOn: "1", tlsRequire: "2"}[at.tls], "tls_certificates="+dir, "tls_psk=")
}
