// Package web is the plugin http: a read-only disk that a web server has, read in
// ranges (RFC 9110, Section 14). Its parameters are those of
// nbdkit-curl-plugin(1).
package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// Plugin is the plugin http.
var Plugin = plugin.Plugin{
	Name:    "http",
	Summary: "a read-only disk that a web server has",
	Usage: "http [url=]URL [header=HEADER]... [cookie=COOKIE] [user=NAME] [password=PASSWORD|+FILE] [timeout=TIME] [connections=N] " +
		"[cainfo=FILE] [sslverify=BOOL] [followlocation=BOOL] [user-agent=NAME] [proxy=URL] [unix-socket-path=PATH]",
	Magic:     "url",
	Configure: configure,
}

const (
	defaultTimeout     = time.Minute
	defaultConnections = 4
	maxConnections     = 64
	maxRedirects       = 10
)

func configure(p *plugin.Params) (*plugin.Source, error) {
	text, ok := p.String("url")
	if !ok {
		return nil, errors.New("url= is needed")
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("url= begins with http:// or https://, and a host")
	}
	s := &site{url: u.String(), header: http.Header{}}
	if err := s.identify(p); err != nil {
		return nil, err
	}
	if s.timeout, err = p.Duration("timeout", defaultTimeout); err != nil {
		return nil, err
	}
	if s.client, err = newClient(p); err != nil {
		return nil, err
	}
	return &plugin.Source{
		Open:  func(ctx context.Context, _ nbd.OpenInfo) (nbd.Backend, error) { return s.open(ctx) },
		Close: func() error { s.client.CloseIdleConnections(); return nil },
	}, nil
}

// site is where the disk is, and what is sent there with every request.
type site struct {
	url            string
	header         http.Header
	user, password string
	timeout        time.Duration // of one request
	client         *http.Client
}

// identify takes what says who we are.
func (s *site) identify(p *plugin.Params) error {
	for _, h := range p.Strings("header") {
		name, value, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return fmt.Errorf("header=%s: it is NAME: VALUE", h)
		}
		s.header.Add(name, strings.TrimSpace(value))
	}
	if v, ok := p.String("cookie"); ok {
		s.header.Set("Cookie", v)
	}
	s.header.Set("User-Agent", "nbd-ktls-server")
	if v, ok := p.String("user-agent"); ok {
		s.header.Set("User-Agent", v)
	}
	s.user, _ = p.String("user")
	password, _ := p.String("password")
	if file, ok := strings.CutPrefix(password, "+"); ok {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("password: %w", err)
		}
		password = strings.TrimSuffix(string(b), "\n")
	} else if strings.HasPrefix(password, "-") {
		return errors.New("password: it is the password, or +FILE")
	}
	s.password = password
	return nil
}

// newClient makes a client, with connections of its own.
func newClient(p *plugin.Params) (*http.Client, error) {
	n, err := p.Uint("connections", defaultConnections)
	if err != nil {
		return nil, err
	}
	if n < 1 || n > maxConnections {
		return nil, fmt.Errorf("connections=%d: from 1 to %d", n, maxConnections)
	}
	config, err := tlsConfig(p)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, ForceAttemptHTTP2: true, DisableCompression: true,
		MaxConnsPerHost: int(n), MaxIdleConnsPerHost: int(n), IdleConnTimeout: time.Minute,
	}
	if v, ok := p.String("proxy"); ok {
		u, err := url.Parse(v)
		if err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
		t.Proxy = http.ProxyURL(u)
	}
	if path, ok := p.String("unix-socket-path"); ok {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	}
	follow, err := p.Bool("followlocation", true)
	c := &http.Client{Transport: t, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
		switch {
		case !follow:
			return http.ErrUseLastResponse
		case len(via) > maxRedirects:
			return fmt.Errorf("more than %d redirections", maxRedirects)
		}
		return nil
	}}
	return c, err
}

func tlsConfig(p *plugin.Params) (*tls.Config, error) {
	verify, err := p.Bool("sslverify", true)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{InsecureSkipVerify: !verify}
	file, ok := p.String("cainfo")
	if !ok {
		return c, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: there is no certificate in it", file)
	}
	return c, nil
}
