package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"nbd-ktls-server/plugins/plugin"
)

// way is how to get to a server.
type way struct {
	dial   func(ctx context.Context) (net.Conn, error)
	host   string // to be found in the server's certificate, or ""
	export string
	child  *child
	uri    bool // it was given as one
	fd     bool // it is a connection that there is already
	// once says that there is one server, or one connection, for everybody.
	once bool
	// What a URI says about TLS.
	tls   bool
	query url.Values
}

// findWay takes the parameters that say where the server is: one of them.
func findWay(p *plugin.Params) (*way, error) {
	port, hasPort := p.String("port")
	var ways []*way
	for _, kind := range []struct {
		key  string
		port bool
		make func(value, port string) (*way, error)
	}{
		{"uri", false, func(v, _ string) (*way, error) { return parseURI(v) }},
		{"socket", false, func(v, _ string) (*way, error) { return unixWay(v) }},
		{"hostname", true, func(v, port string) (*way, error) { return tcpWay(v, port), nil }},
		{"vsock", true, vsockWay},
		{"socket-fd", false, func(v, _ string) (*way, error) { return fdWay(v) }},
		{"command", false, func(v, _ string) (*way, error) { return commandWay(p, v) }},
	} {
		value, ok := p.String(kind.key)
		if !ok {
			continue
		}
		if hasPort && !kind.port {
			return nil, fmt.Errorf("port= does not go with %s=", kind.key)
		}
		if port == "" {
			port = defaultPort
		}
		w, err := kind.make(value, port)
		if err != nil {
			return nil, fmt.Errorf("%s=%s: %w", kind.key, value, err)
		}
		ways = append(ways, w)
	}
	if len(ways) != 1 {
		return nil, errors.New("one of uri=, socket=, hostname=, vsock=, socket-fd=, command= is needed")
	}
	return ways[0], nil
}

func unixWay(path string) (*way, error) {
	path, err := filepath.Abs(path)
	return &way{dial: dialTo("unix", path)}, err
}

func tcpWay(host, port string) *way {
	return &way{dial: dialTo("tcp", net.JoinHostPort(host, port)), host: host}
}

func vsockWay(cid, port string) (*way, error) {
	dial, err := dialVsockTo(cid, port)
	return &way{dial: dial}, err
}

// fdWay uses a connection that was passed to the program.
func fdWay(number string) (*way, error) {
	fd, err := strconv.ParseUint(number, 10, 31)
	if err != nil {
		return nil, errors.New("it is the number of a file descriptor")
	}
	f := os.NewFile(uintptr(fd), "socket-fd")
	if f == nil {
		return nil, errors.New("no such file descriptor was passed to the program")
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return &way{dial: func(context.Context) (net.Conn, error) { return c, nil }, fd: true, once: true}, nil
}

// commandWay runs a server: a program with its arguments, or a line for a shell.
func commandWay(p *plugin.Params, command string) (*way, error) {
	argv := append([]string{command}, p.Strings("arg")...)
	if len(argv) == 1 && strings.ContainsAny(command, " \t\n") {
		if _, err := os.Stat(command); err != nil {
			argv = []string{"/bin/sh", "-c", "exec " + command}
		}
	}
	c := newChild(argv, p.Log)
	return &way{dial: c.dial, child: c, once: true}, nil
}

// parseURI reads what the NBD URI specification has (uri.md).
func parseURI(s string) (*way, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	query := u.Query()
	var w *way
	scheme, plain := strings.CutPrefix(u.Scheme, "nbds")
	if !plain {
		scheme = strings.TrimPrefix(u.Scheme, "nbd")
	}
	switch {
	case !strings.HasPrefix(u.Scheme, "nbd"):
		return nil, fmt.Errorf("a scheme %q", u.Scheme)
	case scheme == "" && u.Hostname() != "":
		w = tcpWay(u.Hostname(), port)
	case scheme == "+unix" && u.Host == "" && query.Get("socket") != "":
		w, err = unixWay(query.Get("socket"))
	case scheme == "+vsock":
		w, err = vsockWay(u.Hostname(), port)
	default:
		return nil, errors.New("it is nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH or nbd+vsock://CID[:PORT]/EXPORT, or the same with nbds")
	}
	if err != nil {
		return nil, err
	}
	w.uri, w.tls, w.query = true, plain, query
	w.export = strings.TrimPrefix(u.Path, "/")
	for key := range query {
		switch key {
		case "socket", tlsCertificates, tlsVerify, tlsHostname:
		default:
			return nil, fmt.Errorf("a parameter %q", key)
		}
	}
	return w, nil
}
