package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"nbd-ktls-server/ktls"
	"nbd-ktls-server/nbd/vsock"
	"nbd-ktls-server/systemd"
)

// listeners are the sockets a server listens on.
type listeners struct {
	all     []net.Listener
	private string // directory of a private Unix socket
}

func (ls *listeners) close() {
	for _, l := range ls.all {
		l.Close()
	}
	if ls.private != "" {
		os.RemoveAll(ls.private)
	}
}

// listen opens the sockets that the flags ask for, or takes systemd's.
func (o *options) listen(ctx context.Context) (*listeners, error) {
	var err error
	ls := &listeners{}
	switch {
	case systemd.Activated():
		ls.all, err = systemd.Listeners()
	case o.unix != "":
		err = ls.listenUnix(ctx, o.unix)
	case o.vsock:
		err = ls.listenVsock(o.port)
	default:
		err = ls.listenTCP(ctx, o)
	}
	if err != nil {
		ls.close()
		return nil, err
	}
	ls.prepare()
	return ls, nil
}

// prepare makes what is accepted ready to be served.
func (ls *listeners) prepare() {
	for i, l := range ls.all {
		if _, ok := l.Addr().(*net.TCPAddr); ok {
			ls.all[i] = tunedListener{l}
		}
		ls.all[i] = ktls.Listener{Listener: ls.all[i]}
	}
}

// listenTCP listens on every address of --ipaddr, on one port.
func (ls *listeners) listenTCP(ctx context.Context, o *options) error {
	network := "tcp"
	if o.ipv4 {
		network = "tcp4"
	} else if o.ipv6 {
		network = "tcp6"
	}
	hosts := []string{""}
	if o.ipaddr != "" {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip"+network[len("tcp"):], o.ipaddr)
		if err != nil {
			return fmt.Errorf("--ipaddr: %w", err)
		}
		hosts = hosts[:0]
		for _, a := range addrs {
			if host := a.Unmap().String(); !slices.Contains(hosts, host) {
				hosts = append(hosts, host)
			}
		}
	}
	port := o.port
	var missing error
	for _, host := range hosts {
		l, err := listenStream(ctx, network, net.JoinHostPort(host, port))
		// A name may have an address that this machine has not, such as ::1
		// without IPv6.
		if len(hosts) > 1 && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) {
			missing = err
			continue
		} else if err != nil {
			return err
		}
		ls.all = append(ls.all, l)
		_, port, _ = net.SplitHostPort(l.Addr().String()) // of 0, the one it has become
	}
	if len(ls.all) == 0 {
		return missing
	}
	return nil
}

// listenVsock listens on a port for the virtual machines of this host.
func (ls *listeners) listenVsock(port string) error {
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return err
	}
	l, err := vsock.Listen(uint32(n))
	if err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	ls.all = append(ls.all, l)
	return nil
}

// privateSocket is the name of a socket in a directory of its own.
const privateSocket = "socket"

// listenUnix listens on a Unix socket; "-" is one in a directory of its own.
func (ls *listeners) listenUnix(ctx context.Context, path string) error {
	if path == "-" {
		dir, err := os.MkdirTemp("", "nbd-ktls-server-*")
		if err != nil {
			return err
		}
		ls.private, path = dir, filepath.Join(dir, privateSocket)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	removeStale(path)
	l, err := listenStream(ctx, "unix", path)
	if err != nil {
		return err
	}
	ls.all = append(ls.all, l)
	return nil
}

// removeStale removes a socket that nobody listens on any more, left behind by
// a process that was killed.
func removeStale(path string) {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Type() != os.ModeSocket {
		return
	}
	nc, err := net.Dial("unix", path)
	if err == nil {
		nc.Close()
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		os.Remove(path)
	}
}

func listenStream(ctx context.Context, network, address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // Go's default; kernel TLS needs plain TCP
	return lc.Listen(ctx, network, address)
}

// How long a silent peer is believed to be alive: probed after a minute of
// silence, given up a minute later.
const (
	keepaliveIdle     = time.Minute
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 4
	userTimeout       = time.Minute
)

// tunedListener sets the options of TCP connections. TCP_NODELAY is Go's
// default.
type tunedListener struct{ net.Listener }

func (l tunedListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if tc, ok := nc.(*net.TCPConn); ok && err == nil {
		tc.SetKeepAliveConfig(net.KeepAliveConfig{
			Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount,
		})
		setUserTimeout(tc, userTimeout)
	}
	return nc, err
}
