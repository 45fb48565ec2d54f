package main

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"nbd-ktls-server/plugins/plugin"
	"nbd-ktls-server/systemd"
	"nbd-ktls-server/tlsengine"
)

// options are the flags of the main command.
type options struct {
	name   string // of the program
	nbdkit bool   // behave as nbdkit does

	port, ipaddr, unix     string
	ipv4, ipv6             bool
	exportname             string
	filters                []string // the nearest to the client first
	readonly               bool
	foreground, newstyle   bool
	pidfile                string
	verbose, version       bool
	tls, tlsCertificates   string
	tlsVerifyPeer          bool
	tlsMin13               bool
	tlsRekeyAfter          size
	ktls                   ktlsPolicy
	certificateServer      *tlsengine.Server // what setTLS has made; nil without TLS
	run                    string
	config                 string
	reload                 func() error // the configuration; nil without one
	metrics                string
	reloads                reloadCounts
	exitWithParent, single bool
	threads                int
	user, group, logTo     string
	vsock, swap, printURI  bool
	noSR, noMC, keepalive  bool
	maskHandshake          uint16
	debug                  []string
	dumpConfig, dumpPlugin bool
	timeout                duration
	portGiven, addrGiven   bool
}

// newOptions returns the defaults of the program called name.
func newOptions(name string) *options {
	o := &options{
		name: name, nbdkit: name == nbdkitName,
		port: "10809", tls: tlsRequire, threads: 16, timeout: duration(10 * time.Second), maskHandshake: math.MaxUint16,
	}
	if o.nbdkit {
		o.tls = tlsOff
	}
	return o
}

func (o *options) addFlags(fs *pflag.FlagSet) {
	fs.SortFlags = false
	fs.StringVarP(&o.port, "port", "p", o.port, "listen on this TCP port; 0 picks a free one and prints it")
	fs.StringVarP(&o.ipaddr, "ipaddr", "i", "", "listen on this address (default all)")
	fs.BoolVarP(&o.ipv4, "ipv4-only", "4", false, "listen on IPv4 addresses only")
	fs.BoolVarP(&o.ipv6, "ipv6-only", "6", false, "listen on IPv6 addresses only")
	fs.StringVarP(&o.unix, "unix", "U", "", "listen on this Unix socket; - makes a private one")
	fs.BoolVar(&o.vsock, "vsock", false, "listen on a port of vsock(7) instead, for virtual machines of this host")
	fs.StringVarP(&o.exportname, "exportname", "e", "", o.exportnameHelp())
	if !o.nbdkit {
		fs.StringVar(&o.config, "config", "", "serve what this file says, instead of a plugin")
	}
	fs.StringArrayVar(&o.filters, "filter", nil, "put this filter before the plugin; the first one is the nearest to the client")
	fs.BoolVarP(&o.readonly, "readonly", "r", false, "refuse every change")
	fs.StringVar(&o.tls, "tls", o.tls, "off, on (clients choose) or require")
	fs.StringVar(&o.tlsCertificates, "tls-certificates", "", "directory of ca-cert.pem, server-cert.pem, server-key.pem; auto makes one, with --tls-verify-peer")
	fs.BoolVar(&o.tlsVerifyPeer, "tls-verify-peer", false, "refuse clients without a certificate of the same authority")
	fs.Var(&o.tlsRekeyAfter, "tls-rekey-after", "change our key after sending so many bytes (default as many as the cipher is good for)")
	fs.Var(&o.ktls, "ktls", "whether the kernel encrypts what is sent: auto, require or off; see 'probe'")
	fs.StringVar(&o.metrics, "metrics", "", "serve Prometheus metrics and a status page on this HOST:PORT or Unix socket")
	fs.StringVar(&o.run, "run", "", "run this shell command with $uri and others set, then exit with its status")
	fs.BoolVar(&o.exitWithParent, "exit-with-parent", false, "exit when the parent process does")
	fs.BoolVarP(&o.single, "single", "s", false, "serve one client on standard input and output")
	fs.StringVarP(&o.user, "user", "u", "", "become this user, and its groups, once the sockets are there")
	fs.StringVarP(&o.group, "group", "g", "", "become this group likewise")
	fs.StringVarP(&o.pidfile, "pidfile", "P", "", "write the process ID to this file once clients can connect")
	fs.IntVarP(&o.threads, "threads", "t", o.threads, "requests of one connection worked on at the same time")
	fs.Var(&o.timeout, "timeout", "how long a client may take to choose an export; 0 is for ever")
	fs.BoolVarP(&o.foreground, "foreground", "f", false, o.foregroundHelp())
	fs.BoolVarP(&o.newstyle, "newstyle", "n", false, "accepted: there is no other style")
	fs.BoolVarP(&o.verbose, "verbose", "v", false, "log more")
	fs.BoolVarP(&o.version, "version", "V", false, "print the version")
	fs.StringVar(&o.logTo, "log", "", "where the log goes: stderr, syslog or null")
	fs.BoolVar(&o.printURI, "print-uri", false, "print the URI of the server")
	fs.BoolVar(&o.swap, "swap", false, "lock the server's memory, as for a swap device on the same machine")
	fs.Uint16Var(&o.maskHandshake, "mask-handshake", o.maskHandshake, "show these handshake flags only, to test clients")
	fs.BoolVar(&o.noSR, "no-sr", false, "do not offer structured replies, to test clients")
	fs.BoolVar(&o.noMC, "no-mc", false, "do not offer meta contexts, to test clients")
	fs.BoolVar(&o.keepalive, "keepalive", true, "accepted: TCP keepalive is always on")
	fs.StringArrayVarP(&o.debug, "debug", "D", nil, "accepted, NAME=N: --verbose says everything")
	fs.BoolVar(&o.dumpConfig, "dump-config", false, "print how the program was made")
	fs.BoolVar(&o.dumpPlugin, "dump-plugin", false, "print what is known of the plugin")
	addAbsent(fs)
}

func (o *options) exportnameHelp() string {
	if o.nbdkit {
		return "export name for --run"
	}
	return "name of the export"
}

func (o *options) foregroundHelp() string {
	if o.nbdkit {
		return "do not go into the background"
	}
	return "accepted: the program always stays in the foreground"
}

// The values of --tls.
const (
	tlsOff     = "off"
	tlsOn      = "on"
	tlsRequire = "require"
)

// check reports flags that make no sense, alone or together.
func (o *options) check(fs *pflag.FlagSet, args []string) error {
	o.portGiven = fs.Changed("port")
	o.addrGiven = o.portGiven || fs.Changed("ipaddr") || fs.Changed("unix")
	if o.nbdkit && o.tlsCertificates != "" && !fs.Changed("tls") {
		o.tls = tlsOn // as nbdkit does
	}
	bits := 16
	if o.vsock {
		bits = 32
	}
	port, err := strconv.ParseUint(o.port, 10, bits)
	activated := systemd.Activated()
	for _, name := range []string{"unix", "ipaddr", "run", "pidfile", "tls-certificates", "user", "group"} {
		// An unset variable in a script must not turn a private socket into a
		// port on all interfaces.
		if f := fs.Lookup(name); f.Changed && f.Value.String() == "" {
			return fmt.Errorf("--%s is empty", name)
		}
	}
	if o.config != "" {
		return checkWithConfig(fs, args)
	}
	switch {
	case len(args) == 0:
		return fmt.Errorf("a plugin is needed; see %s --help", o.name)
	case o.tls != tlsOff && o.tls != tlsOn && o.tls != tlsRequire:
		return fmt.Errorf("--tls=%s: it must be off, on or require", o.tls)
	case err != nil:
		return fmt.Errorf("--port=%s: it must be a number from 0 to %d", o.port, uint64(1)<<bits-1)
	case o.vsock && (fs.Changed("unix") || fs.Changed("ipaddr") || o.single || activated):
		return errors.New("--vsock does not go with --unix, --ipaddr, --single or LISTEN_FDS")
	case !slices.Contains([]string{"", "stderr", "syslog", "null"}, o.logTo):
		return fmt.Errorf("--log=%s: it must be stderr, syslog or null", o.logTo)
	case !o.debugFlags():
		return fmt.Errorf("--debug=%s: it must be NAME=N", strings.Join(o.debug, ","))
	case o.ktls == ktlsPolicy(tlsengine.KTLSRequire) && o.vsock:
		return errors.New("--ktls=require needs TLS over TCP")
	case fs.Changed("unix") && (o.portGiven || fs.Changed("ipaddr")):
		return errors.New("--unix does not go with --port or --ipaddr")
	case activated && (o.addrGiven || o.run != "" || o.single):
		return errors.New("--port, --ipaddr, --unix, --run and --single do not go with LISTEN_FDS: the sockets are there already")
	case o.single && (o.addrGiven || o.run != ""):
		return errors.New("--single does not go with --port, --ipaddr, --unix or --run")
	case o.ipv4 && o.ipv6:
		return errors.New("--ipv4-only and --ipv6-only exclude each other")
	case o.tlsVerifyPeer && o.tls == tlsOff:
		return errors.New("--tls-verify-peer does not go with --tls=off: nobody would be verified")
	case o.ktls == ktlsPolicy(tlsengine.KTLSRequire) && (o.tls == tlsOff || o.unix != "" || o.single):
		return errors.New("--ktls=require needs TLS over TCP")
	case o.threads < 1:
		return fmt.Errorf("--threads=%d: it must be at least 1", o.threads)
	}
	o.port = strconv.FormatUint(port, 10)
	if o.run != "" && !o.addrGiven && !o.vsock {
		o.unix = "-" // a captive server is private, as nbdkit's is since 1.36
	}
	return nil
}

// debugFlags reports whether all of --debug are flags as nbdkit has them.
func (o *options) debugFlags() bool {
	return !slices.ContainsFunc(o.debug, func(s string) bool { return !debugFlag.MatchString(s) })
}

var debugFlag = regexp.MustCompile(`^[A-Za-z0-9._-]+=[0-9]+$`)

// checkWithConfig reports what does not go with a configuration file.
func checkWithConfig(fs *pflag.FlagSet, args []string) (err error) {
	if len(args) > 0 {
		return fmt.Errorf("%q does not go with --config: the file says what is exported", args[0])
	}
	fs.Visit(func(f *pflag.Flag) {
		if !slices.Contains([]string{"config", "verbose", "pidfile", "foreground", "metrics", "swap"}, f.Name) {
			err = fmt.Errorf("--%s does not go with --config: the file says it", f.Name)
		}
	})
	return err
}

// ktlsPolicy is a flag: auto, require or off.
type ktlsPolicy tlsengine.KTLS

var ktlsPolicies = []string{tlsengine.KTLSAuto: "auto", tlsengine.KTLSRequire: "require", tlsengine.KTLSOff: "off"}

func (k *ktlsPolicy) Set(s string) error {
	i := slices.Index(ktlsPolicies, s)
	if i < 0 {
		return errors.New("it must be auto, require or off")
	}
	*k = ktlsPolicy(i)
	return nil
}

func (k *ktlsPolicy) String() string { return ktlsPolicies[*k] }
func (k *ktlsPolicy) Type() string   { return "policy" }

// duration is a flag: seconds, or a number with a unit.
type duration time.Duration

func (d *duration) Set(s string) error {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		*d = duration(time.Duration(n) * time.Second)
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return errors.New("it must be a number of seconds, or of ms, s, m, h")
	}
	*d = duration(v)
	return nil
}

// size is a flag: bytes, as nbdkit writes them.
type size int64

func (n *size) Set(s string) error {
	v, err := plugin.ParseSize(s)
	*n = size(v)
	return err
}

func (n *size) String() string {
	if *n == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*n), 10)
}
func (n *size) Type() string { return "size" }

func (d *duration) String() string { return time.Duration(*d).String() }
func (d *duration) Type() string   { return "duration" }
