package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nbd-ktls-server/plugins"
)

// newManual is a command, for packages, that prints the manual page.
func newManual() *cobra.Command {
	return &cobra.Command{
		Use: "manual", Short: "Print the manual page", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m := &manual{w: os.Stdout}
			m.write(cmd.Root())
			return m.err
		},
	}
}

// manual writes a page for man(1). The first error is kept.
type manual struct {
	w   io.Writer
	err error
}

// write writes the page of the program (man-pages(7), "Sections within a manual
// page").
func (m *manual) write(root *cobra.Command) {
	name := root.Name()
	m.line(`.TH %s 1 "" %s "User Commands"`, strings.ToUpper(name), quoted(version))
	m.section("NAME")
	m.text(name + ` \- ` + escape(strings.ToLower(root.Short[:1])+root.Short[1:]))
	m.section("SYNOPSIS")
	for _, s := range []string{"[options] PLUGIN [[KEY=]VALUE]...", "[options] --config FILE"} {
		m.command(name, s)
	}
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			m.command(name, c.Use)
		}
	}
	m.section("DESCRIPTION")
	m.text(escape("An encrypted NBD server. It exports what a plugin has, or what a configuration file says, over TLS; " +
		"the kernel encrypts what is sent if it can (kernel TLS). Parameters and options are those of nbdkit(1)."))
	m.section("OPTIONS")
	root.Flags().VisitAll(m.flag)
	m.section("COMMANDS")
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			m.item(c.Use, c.Short+".")
			c.LocalFlags().VisitAll(func(f *pflag.Flag) {
				if f.Name != "help" {
					m.line(".br")
					m.text(bold(escape("--"+f.Name)) + ": " + escape(f.Usage))
				}
			})
		}
	}
	m.section("PLUGINS")
	for _, p := range plugins.All() {
		m.item(p.Usage, sentence(p.Summary))
	}
	m.section("FILTERS")
	for _, f := range plugins.Filters() {
		m.item(strings.TrimSpace(f.Name+" "+f.Usage), sentence(f.Summary))
	}
	m.section("SIGNALS")
	m.item("SIGHUP", "Read the configuration file, certificates and revocation list again.")
	m.item("SIGTERM, SIGINT", "Answer the requests that were received, then end.")
	m.section("FILES")
	m.item("/etc/nbd-ktls-server/config.yaml", "The configuration of the service; "+name+" check-config says what is wrong with it.")
	m.item("/etc/nbd-ktls-server/pki", "Certificates and keys, as "+name+" pki makes them.")
	m.section("EXAMPLES")
	m.line(".nf")
	for line := range strings.Lines(root.Example) {
		m.line("%s", escape(strings.TrimSpace(line)))
	}
	m.line(".fi")
	m.section("SEE ALSO")
	m.text(bold("nbdkit") + "(1), " + bold("nbdcopy") + "(1), " + bold("nbdinfo") + "(1), " + bold(`qemu\-nbd`) + "(8), " + bold(`nbd\-client`) + "(8)")
}

func (m *manual) flag(f *pflag.Flag) {
	if f.Hidden {
		return
	}
	title := "--" + f.Name
	if f.Shorthand != "" {
		title = "-" + f.Shorthand + ", " + title
	}
	if kind := f.Value.Type(); kind != "bool" {
		title += " " + strings.ToUpper(strings.TrimSuffix(kind, "Array"))
	}
	text := f.Usage
	if d := f.DefValue; d != "" && d != "false" && d != "[]" && f.Value.Type() != "bool" {
		text += " (default " + d + ")"
	}
	m.item(title, sentence(text))
}

func sentence(s string) string {
	return strings.ToUpper(s[:1]) + strings.TrimSuffix(s[1:], "…") + "."
}

func (m *manual) section(name string) { m.line(".SH %s", quoted(name)) }
func (m *manual) text(s string)       { m.line("%s", s) }
func (m *manual) command(name, usage string) {
	m.line(".PP")
	m.text(bold(escape(name)) + " " + escape(strings.TrimPrefix(usage, name+" ")))
}

func (m *manual) item(title, text string) {
	m.line(".TP")
	m.text(bold(escape(title)))
	m.text(escape(text))
}

func (m *manual) line(format string, args ...any) {
	if _, err := fmt.Fprintf(m.w, format+"\n", args...); m.err == nil {
		m.err = err
	}
}

func bold(s string) string { return `\fB` + s + `\fP` }

func quoted(s string) string { return `"` + escape(s) + `"` }

// escape makes text of what roff would understand: backslashes, hyphens, which
// would be other characters, and dots and quotes that begin a line.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...").Replace(s)
	if s != "" && strings.ContainsAny(s[:1], ".'") {
		s = `\&` + s
	}
	return s
}
