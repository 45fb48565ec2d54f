package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestOptionsInREADME: the table in the README names every option of nbdkit, those
// that are absent are refused with a reason, and the others are there.
func TestOptionsInREADME(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(b), "### nbdkit's options")
	table, _, _ = strings.Cut(table, "## Many exports")
	var listed []string
	for _, row := range regexp.MustCompile(`(?m)^\| (.*?[^\\]) \| (.*) \|$`).FindAllStringSubmatch(table, -1) {
		for _, m := range regexp.MustCompile("`(--?[A-Za-z0-9-]+)").FindAllStringSubmatch(row[1], -1) {
			listed = append(listed, m[1])
			f := lookup(newRoot(nbdkitName).Flags(), m[1])
			absentNow := f != nil && f.Value.Type() == "" && f.Hidden
			switch saysAbsent := strings.HasPrefix(row[2], "absent"); {
			case f == nil && m[1] != "--help":
				t.Errorf("%s is in the table, and not in the program", m[1])
			case absentNow != saysAbsent:
				t.Errorf("%s: the README says absent: %v, the program %v", m[1], saysAbsent, absentNow)
			case absentNow && f.Value.Set("x") == nil:
				t.Errorf("%s is not refused", m[1])
			}
		}
	}
	// nbdkit(1), version 1.46.
	for _, option := range strings.Fields(`-4 --ipv4-only -6 --ipv6-only -D --debug --dump-config --dump-plugin
		-e --exportname --exit-with-parent --filter -f --foreground --no-fork -g --group -i --ipaddr --keepalive --log
		--mask-handshake -n --newstyle --no-mc --no-sr -o --oldstyle -P --pidfile -p --port --print-uri -r --readonly
		--run --selinux-label -s --single --swap -t --threads --timeout --tls --tls-certificates --tls-psk
		--tls-verify-peer -U --unix -u --user -v --verbose -V --version --vsock --help`) {
		if !slices.Contains(listed, option) {
			t.Errorf("%s is not in the table", option)
		}
	}
}

func lookup(fs *pflag.FlagSet, option string) *pflag.Flag {
	if name, ok := strings.CutPrefix(option, "--"); ok {
		return fs.Lookup(name)
	}
	return fs.ShorthandLookup(option[1:])
}
