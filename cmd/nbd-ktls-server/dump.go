package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"nbd-ktls-server/plugins"
	"nbd-ktls-server/plugins/plugin"
)

// writeConfig is --dump-config: how the program was made, for scripts.
func (o *options) writeConfig(w io.Writer) error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	for _, line := range []string{
		"binary=" + binary, "exit_with_parent=yes", "host_cpu=" + map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH],
		"host_os=" + runtime.GOOS, "name=" + o.name, "root_tls_certificates_dir=" + rootCertificates,
		"selinux=no", "sysconfdir=/etc", "tls=yes", "version=" + version,
	} {
		fmt.Fprintln(w, line)
	}
	return nil
}

// writePlugin is --dump-plugin: what is known of a plugin, for scripts, and what
// it says itself.
func (o *options) writePlugin(ctx context.Context, w io.Writer, args []string) error {
	if len(args) == 0 {
		return errors.New("--dump-plugin: a plugin is needed")
	}
	p, err := plugins.Find(args[0])
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "name=%s\nversion=%s\nthread_model=parallel\nerrno_is_preserved=1\n", p.Name, version)
	if p.Magic != "" {
		fmt.Fprintf(w, "magic_config_key=%s\n", p.Magic)
	}
	if p.Dump == nil {
		return nil
	}
	return p.Dump(ctx, w, args[1:], plugin.Host{Log: o.newLog(), Stdin: os.Stdin, Exit: func(string) {}})
}

// helpOf is the help for the plugin and the filters of a command line, if there
// are any.
func helpOf(args []string) string {
	var b strings.Builder
	for _, p := range plugins.All() {
		if i := slices.IndexFunc(args, func(a string) bool { return !strings.HasPrefix(a, "-") }); i >= 0 && args[i] == p.Name {
			fmt.Fprintf(&b, "\nplugin: %s: %s\n  %s\n", p.Name, p.Summary, p.Usage)
		}
	}
	for i, a := range args {
		name, ok := strings.CutPrefix(a, "--filter=")
		if a == "--filter" && i+1 < len(args) {
			name, ok = args[i+1], true
		}
		if !ok {
			continue
		}
		if f, err := plugins.FindFilter(name); err == nil {
			fmt.Fprintf(&b, "\nfilter: %s: %s\n  %s\n", f.Name, f.Summary, f.Usage)
		}
	}
	return b.String()
}
