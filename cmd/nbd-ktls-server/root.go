package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nbd-ktls-server/plugins"
)

// nbdkitName is the name under which the program behaves as nbdkit does.
const nbdkitName = "nbdkit"

// version is set by the linker for releases.
var version = "0.1.0-dev"

func newRoot(name string) *cobra.Command {
	o := newOptions(name)
	cmd := &cobra.Command{
		Use:   name + " [flags] PLUGIN [[KEY=]VALUE]...",
		Short: "Export disk images and block devices over TLS to NBD clients",
		Long: `Export disk images and block devices over TLS to NBD clients.

` + pluginHelp(),
		Example: fmt.Sprintf(`  %[1]s --tls-certificates=/etc/pki/nbd file disk.img
  %[1]s --tls-certificates=auto -r file dir=/var/lib/images
  %[1]s --tls=off -U - memory 1G --run 'nbdinfo "$uri"'`, name),
		Args:              cobra.ArbitraryArgs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true, DisableDefaultCmd: o.nbdkit},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.version:
				fmt.Println(versionText())
				return nil
			case o.dumpConfig:
				return o.writeConfig(os.Stdout)
			case o.dumpPlugin:
				return o.writePlugin(cmd.Context(), os.Stdout, args)
			}
			if err := o.check(cmd.Flags(), args); err != nil {
				return err
			}
			if o.config != "" {
				return o.serveConfig(cmd.Context())
			}
			return o.serve(cmd.Context(), args[0], args[1:])
		},
	}
	o.addFlags(cmd.Flags())
	cmd.SetGlobalNormalizationFunc(nbdkitSpelling)
	general := cmd.HelpFunc()
	cmd.SetHelpFunc(func(c *cobra.Command, args []string) {
		general(c, args)
		if c == cmd {
			fmt.Fprint(c.OutOrStdout(), helpOf(args))
		}
	})
	if o.nbdkit {
		cmd.SetHelpCommand(&cobra.Command{Hidden: true})
	} else {
		cmd.AddCommand(newPKI(), newQuickstart(), newProbe(), newCheckConfig(), newStatus(), newManual())
	}
	return cmd
}

func pluginHelp() string {
	var b strings.Builder
	b.WriteString("Plugins:\n")
	for _, p := range plugins.All() {
		fmt.Fprintf(&b, "  %-10s %s\n             %s\n", p.Name, p.Summary, p.Usage)
	}
	b.WriteString("\nFilters (--filter):\n")
	for _, f := range plugins.Filters() {
		fmt.Fprintf(&b, "  %-12s %s\n", f.Name, f.Summary)
	}
	return b.String()
}

func versionText() string {
	revision := ""
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" {
				revision = " " + s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return fmt.Sprintf("nbd-ktls-server %s%s %s", version, revision, runtime.Version())
}

// nbdkitSpelling maps nbdkit's other spellings of options to the first one.
func nbdkitSpelling(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	if first, ok := map[string]string{
		"export": "exportname", "export-name": "exportname", "ip-addr": "ipaddr",
		"pid-file": "pidfile", "read-only": "readonly", "stdin": "single",
		"no-fork": "foreground", "new-style": "newstyle", "old-style": "oldstyle",
		"no-structured-replies": "no-sr", "no-meta-contexts": "no-mc",
	}[name]; ok {
		name = first
	}
	return pflag.NormalizedName(name)
}

// absent are nbdkit's options that this program has not, and why.
var absent = []struct{ name, short, why string }{
	{"tls-psk", "", "pre-shared keys are not supported yet: use --tls-certificates"},
	{"oldstyle", "o", "the oldstyle protocol is obsolete and knows no TLS"},
	{"selinux-label", "", "SELinux labels are not set: let the policy label the socket"},
}

func addAbsent(fs *pflag.FlagSet) {
	for _, a := range absent {
		f := fs.VarPF(&absentFlag{why: a.why}, a.name, a.short, a.why)
		f.Hidden = true
		f.NoOptDefVal = "true" // with or without a value, it is the same error
	}
}

// absentFlag is a flag that cannot be set.
type absentFlag struct{ why string }

func (f *absentFlag) Set(string) error { return errors.New(f.why) }
func (f *absentFlag) String() string   { return "" }
func (f *absentFlag) Type() string     { return "" }
