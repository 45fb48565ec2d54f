// Package config reads the configuration file: many exports, who may use them,
// and how they are served. See the README for what can be in it.
package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"nbd-ktls-server/plugins/plugin"
)

// Config is a configuration file. What it holds has been checked: the methods of
// its values do not fail.
type Config struct {
	Listen []Listen `yaml:"listen"`
	TLS    TLS      `yaml:"tls"`
	// Access is for the exports without an access list of their own; nil lets
	// everybody in.
	Access  Access   `yaml:"access"`
	Exports []Export `yaml:"exports"`
	Limits  Limits   `yaml:"limits"`
	Log     Log      `yaml:"log"`
	// Metrics is the address (HOST:PORT, or the path of a Unix socket) where
	// metrics are served; "": nowhere.
	Metrics string `yaml:"metrics"`

	file string
	doc  ast.Node // to say where something is
}

// Listen is where clients connect: one of its fields is set.
type Listen struct {
	TCP   string `yaml:"tcp"`   // HOST:PORT, or :PORT
	Unix  string `yaml:"unix"`  // an absolute path
	VSock string `yaml:"vsock"` // a port
	// Systemd is the FileDescriptorName= of a socket unit; "*": all of them.
	Systemd string `yaml:"systemd"`
}

// TLS says how connections are encrypted.
type TLS struct {
	Mode           string `yaml:"mode"`            // require, on or off
	Certificates   string `yaml:"certificates"`    // a directory
	VerifyPeer     *bool  `yaml:"verify-peer"`     // true
	MinimumVersion string `yaml:"minimum-version"` // 1.2 or 1.3
	KTLS           string `yaml:"ktls"`            // auto, require or off
	RekeyAfter     Size   `yaml:"rekey-after"`
}

// Verifies reports whether clients need a certificate.
func (t *TLS) Verifies() bool { return t.Mode != "off" && (t.VerifyPeer == nil || *t.VerifyPeer) }

// Export is one export, or, with Prefix, all that a plugin can name.
type Export struct {
	Name        *string       `yaml:"name"`
	Prefix      *string       `yaml:"prefix"`
	Description string        `yaml:"description"`
	Plugin      string        `yaml:"plugin"`
	Parameters  yaml.MapSlice `yaml:"parameters"`
	Filters     []string      `yaml:"filters"`
	ReadOnly    bool          `yaml:"read-only"`
	TLSOnly     bool          `yaml:"tls-only"`
	Default     bool          `yaml:"default"`
	Connections int           `yaml:"connections"` // at most; 0: as many as there may be
	Access      Access        `yaml:"access"`
}

// Title is the export's name, or its prefix with a star.
func (e *Export) Title() string {
	if e.Prefix != nil {
		return *e.Prefix + "*"
	}
	return *e.Name
}

// Args are the parameters as they would be on a command line.
func (e *Export) Args() (args []string) {
	for _, item := range e.Parameters {
		values, ok := item.Value.([]any)
		if !ok {
			values = []any{item.Value}
		}
		for _, v := range values {
			args = append(args, fmt.Sprintf("%v=%v", item.Key, v))
		}
	}
	return args
}

// Limits bound what clients can make the server spend; zero values have the
// server's defaults.
type Limits struct {
	Connections      int      `yaml:"connections"`
	Handshakes       int      `yaml:"handshakes"`
	HandshakeTimeout Duration `yaml:"handshake-timeout"`
	StallTimeout     Duration `yaml:"stall-timeout"`
	DrainTimeout     Duration `yaml:"drain-timeout"`
	Requests         int      `yaml:"requests"` // of one connection
	RequestsTotal    int      `yaml:"requests-total"`
	Bytes            Size     `yaml:"bytes"` // of one connection
	BytesTotal       Size     `yaml:"bytes-total"`
}

// Log says what is logged.
type Log struct {
	Level  string `yaml:"level"`  // info, debug, warn or error
	Format string `yaml:"format"` // text or json
}

// Size is a number of bytes, with nbdkit's suffixes.
type Size string

// Bytes is the size; 0 if there is none.
func (s Size) Bytes() int64 {
	n, _ := s.parse()
	return n
}

func (s Size) parse() (int64, error) {
	if s == "" {
		return 0, nil
	}
	return plugin.ParseSize(string(s))
}

// Duration is a time: 10s, 1m30s.
type Duration string

// Duration is the time; 0 if there is none.
func (d Duration) Duration() time.Duration {
	v, _ := d.parse()
	return v
}

func (d Duration) parse() (time.Duration, error) {
	if d == "" {
		return 0, nil
	}
	v, err := time.ParseDuration(string(d))
	if err != nil || v <= 0 {
		return 0, fmt.Errorf("%q is not a time, such as 10s or 2m", d)
	}
	return v, nil
}

// check reports the first thing that is wrong, and where: a path of the document.
func (c *Config) check() (path string, err error) {
	for i := range c.Listen {
		if err := c.Listen[i].check(); err != nil {
			return fmt.Sprintf("$.listen[%d]", i), err
		}
	}
	if path, err := c.TLS.check(); err != nil {
		return "$.tls" + path, err
	}
	for _, v := range []struct {
		path  string
		value string
		among []string
	}{
		{"$.log.level", c.Log.Level, []string{"", "debug", "info", "warn", "error"}},
		{"$.log.format", c.Log.Format, []string{"", "text", "json"}},
	} {
		if err := oneOf(v.value, v.among); err != nil {
			return v.path, err
		}
	}
	if path, err := c.Limits.check(); err != nil {
		return "$.limits." + path, err
	}
	if path, err := c.Access.check(&c.TLS); err != nil {
		return "$.access" + path, err
	}
	return c.checkExports()
}

func (c *Config) checkExports() (path string, err error) {
	if len(c.Exports) == 0 {
		return "$", errors.New("there are no exports")
	}
	names, prefixes := make(map[string]bool), make(map[string]bool)
	chosen := ""
	for i := range c.Exports {
		e := &c.Exports[i]
		at := fmt.Sprintf("$.exports[%d]", i)
		switch {
		case (e.Name == nil) == (e.Prefix == nil):
			return at, errors.New("an export needs either a name or a prefix")
		case e.Name != nil && names[*e.Name]:
			return at + ".name", fmt.Errorf("there are two exports called %q", *e.Name)
		case e.Prefix != nil && prefixes[*e.Prefix]:
			return at + ".prefix", fmt.Errorf("there are two exports with the prefix %q", *e.Prefix)
		case e.Plugin == "":
			return at, errors.New("an export needs a plugin")
		case e.Default && e.Prefix != nil:
			return at + ".default", errors.New("many exports cannot all be the default one")
		case e.Default && chosen != "":
			return at + ".default", fmt.Errorf("%s is the default export already", chosen)
		case e.Connections < 0:
			return at + ".connections", errors.New("it must not be negative")
		}
		if path, err := e.Access.check(&c.TLS); err != nil {
			return at + ".access" + path, err
		}
		if e.Default {
			chosen = strconv.Quote(*e.Name)
		}
		if e.Name != nil {
			names[*e.Name] = true
		} else {
			prefixes[*e.Prefix] = true
		}
	}
	return "", nil
}

func (l *Listen) check() error {
	set := 0
	for _, s := range []string{l.TCP, l.Unix, l.VSock, l.Systemd} {
		if s != "" {
			set++
		}
	}
	switch {
	case set != 1:
		return errors.New("one of tcp, unix, vsock and systemd is needed")
	case l.Unix != "" && !strings.HasPrefix(l.Unix, "/"):
		return fmt.Errorf("unix: %q is not an absolute path", l.Unix)
	case l.TCP != "" && !strings.Contains(l.TCP, ":"):
		return fmt.Errorf("tcp: %q is not HOST:PORT", l.TCP)
	case l.VSock != "":
		if _, err := strconv.ParseUint(l.VSock, 10, 32); err != nil {
			return fmt.Errorf("vsock: %q is not a port", l.VSock)
		}
	}
	return nil
}

func (t *TLS) check() (path string, err error) {
	if t.Mode == "" {
		t.Mode = "require"
	}
	for _, v := range []struct {
		path, value string
		among       []string
	}{
		{".mode", t.Mode, []string{"require", "on", "off"}},
		{".minimum-version", t.MinimumVersion, []string{"", "1.2", "1.3"}},
		{".ktls", t.KTLS, []string{"", "auto", "require", "off"}},
	} {
		if err := oneOf(v.value, v.among); err != nil {
			return v.path, err
		}
	}
	if _, err := t.RekeyAfter.parse(); err != nil {
		return ".rekey-after", err
	}
	switch {
	case t.Mode != "off" && t.Certificates == "":
		return "", errors.New("certificates: a directory is needed; 'mode: off' goes without TLS")
	case t.Mode == "off" && t.VerifyPeer != nil && *t.VerifyPeer:
		return ".verify-peer", errors.New("it does not go with 'mode: off': nobody would be verified")
	}
	return "", nil
}

func (l *Limits) check() (path string, err error) {
	for path, n := range map[string]int{
		"connections": l.Connections, "handshakes": l.Handshakes, "requests": l.Requests, "requests-total": l.RequestsTotal,
	} {
		if n < 0 {
			return path, errors.New("it must not be negative")
		}
	}
	for path, d := range map[string]Duration{
		"handshake-timeout": l.HandshakeTimeout, "stall-timeout": l.StallTimeout, "drain-timeout": l.DrainTimeout,
	} {
		if _, err := d.parse(); err != nil {
			return path, err
		}
	}
	for path, s := range map[string]Size{"bytes": l.Bytes, "bytes-total": l.BytesTotal} {
		if _, err := s.parse(); err != nil {
			return path, err
		}
	}
	return "", nil
}

func oneOf(value string, among []string) error {
	if slices.Contains(among, value) {
		return nil
	}
	if among[0] == "" {
		among = among[1:]
	}
	return fmt.Errorf("%q is none of %s", value, strings.Join(among, ", "))
}
