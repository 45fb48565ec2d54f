package interop

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestControlFiltersOfNBDKit compares those filters that are about when and
// whether, not what.
func TestControlFiltersOfNBDKit(t *testing.T) {
	need(t, "nbdkit", "nbdsh")
	nbdkit, ours := nbdkits(t)
	dir := t.TempDir()
	t.Setenv("NO_EXTENTS", "1")
	for _, args := range []string{
		"--filter=stats memory 1M statsfile=DIR/stats",
		"--filter=stats memory 1M",
		"--filter=retry memory 1M",
		"--filter=retry memory 1M retry-delay=0",
		"--filter=retry-request memory 1M retry-request-delay=1",
		"--filter=retry-request memory 1M retry-request-delay=0",
		"--filter=pause memory 1M pause-control=DIR/sock",
		"--filter=pause memory 1M",
		"--filter=scan memory 1M scan-size=64K",
		"--filter=scan memory 1M scan-size=3000",
		"--filter=log memory 1M",
		"--filter=exitwhen memory 1M exit-when-file-created=DIR/none",
		"--filter=exitwhen memory 1M exit-when-process-exits=2147483647",
		"--filter=rate memory 1M rate=0",
		"--filter=rate memory 1M connection-rate-file=DIR/none rate=1G",
		"--filter=ip memory 1M allow=anyunix deny=all",
		"--filter=ip memory 1M deny=all",
		"--filter=ip memory 1M deny=allipv4,allipv6",
		fmt.Sprintf("--filter=ip memory 1M allow=uid:%d deny=all", os.Getuid()),
		fmt.Sprintf("--filter=ip memory 1M allow=uid:%d deny=all", os.Getuid()+1),
		fmt.Sprintf("--filter=ip memory 1M allow=gid:%d deny=all", os.Getgid()),
		fmt.Sprintf("--filter=ip memory 1M deny=gid:%d", os.Getgid()),
		"--filter=ip memory 1M allow=pid:1 deny=all",
		"--filter=ip memory 1M allow=pid:0 deny=all",
		"--filter=delay memory 1M wdelay=1ms delay-fast-zero=false",
		"--filter=error memory 1M error-pread-rate=100%",
	} {
		t.Run(args, func(t *testing.T) {
			besideNBDKit(t, nbdkit, ours, strings.Fields(strings.ReplaceAll(args, "DIR", dir)))
		})
	}
}

// TestLogOfNBDKit: the log filters write the same for the same requests, but for
// when a client connects, which is not known here, and for what the disks in
// memory are made of.
func TestLogOfNBDKit(t *testing.T) {
	need(t, "nbdkit", "nbdsh")
	nbdkit, ours := nbdkits(t)
	const requests = `
h.pwrite(b"x" * 512, 0)
h.pwrite(b"x" * 512, 512, nbd.CMD_FLAG_FUA)
h.pread(512, 0)
h.pread(4096, 65536)
h.flush()
h.trim(4096, 0)
h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
h.cache(4096, 0)
h.pread(512, 4096, nbd.CMD_FLAG_DF)
`
	for _, args := range []string{
		"memory 1M",
		"--filter=error memory 1M error-zero=ENOSPC error-zero-rate=100% error-cache=EPERM error-cache-rate=1",
	} {
		logged := func(program string) (lines []string) {
			path := filepath.Join(t.TempDir(), "log")
			all := append([]string{"-U", "-", "--filter=log"}, strings.Fields(args)...)
			all = append(all, "logfile="+path, "--run", `/usr/bin/nbdsh --uri "$uri" -c "$SCRIPT"`)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, program, all...)
			cmd.Env = append(os.Environ(), "SCRIPT="+eachTried(requests))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				at, rest := line[:26], strings.TrimSpace(line[27:])
				when, err := time.Parse("2006-01-02 15:04:05.000000", at)
				if d := time.Since(when); err != nil || d < -time.Minute || d > time.Minute {
					t.Errorf("%s: %q is not now in UTC", program, at)
				}
				if !unlike.MatchString(rest) {
					lines = append(lines, blockSizes.ReplaceAllString(rest, ""))
				}
			}
			return lines
		}
		if diff := cmp.Diff(logged(nbdkit), logged(ours)); diff != "" {
			t.Errorf("%s: -nbdkit +ours:\n%s", args, diff)
		}
	}
}

var (
	unlike     = regexp.MustCompile(`^(Fork|\.*Preconnect)`)
	blockSizes = regexp.MustCompile(` (min|pref|max)size=0x[0-9a-f]+`)
)

// eachTried lets the lines of a script go on after errors.
func eachTried(script string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(script)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "h.") {
			line = "try: " + line + "\nexcept nbd.Error: pass"
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// TestExitFiltersOfNBDKit: how servers end by themselves.
func TestExitFiltersOfNBDKit(t *testing.T) {
	need(t, "nbdkit", "nbdinfo")
	nbdkit, ours := nbdkits(t)
	for _, test := range []struct{ name, script string }{
		{"exitlast", `"$0" -U $sock -f --filter=exitlast memory 1M & ready; nbdinfo --size "$uri"; wait $!; echo $?`},
		{"exitlast, no client", `"$0" -U $sock -f --filter=exitlast memory 1M & ready; kill $!; wait $!; echo $?`},
		{"exitlast, --run", `"$0" -U - --filter=exitlast memory 1M --run 'nbdinfo --size "$uri"; exit 7'; echo $?`},
		{"exitwhen, before", `touch $flag; "$0" -U $sock -f --filter=exitwhen memory 1M exit-when-file-created=$flag; echo $?`},
		{"exitwhen, deleted before", `"$0" -U $sock -f --filter=exitwhen memory 1M exit-when-file-deleted=$flag; echo $?`},
		{"exitwhen, polled", `"$0" -U $sock -f --filter=exitwhen memory 1M exit-when-file-created=$flag exit-when-poll=1 & ready; touch $flag; wait $!; echo $?`},
		{"exitwhen, after a client", `"$0" -U $sock -f --filter=exitwhen memory 1M exit-when-file-created=$flag & ready
			nbdsh -u "$uri" -c 'import os; open(os.environ["flag"], "w"); print(h.get_size())'; wait $!; echo $?`},
		{"exitwhen, script", `"$0" -U $sock -f --filter=exitwhen memory 1M "exit-when-script=exit 88" ; echo $?`},
		{"exitwhen, failing script", `"$0" -U - --filter=exitwhen memory 1M "exit-when-script=exit 3" --run 'nbdinfo --size "$uri"' ; echo $?`},
		{"exitwhen, process", `sleep 100 & pid=$!; "$0" -U $sock -f --filter=exitwhen memory 1M exit-when-process-exits=$pid exit-when-poll=1 & ready; kill $pid; wait $!; echo $?`},
		{"exitwhen, pipe", `sleep 1 > $fifo & "$0" -U $sock -f --filter=exitwhen memory 1M exit-when-pipe-closed=5 exit-when-poll=1 5< $fifo; echo $?`},
	} {
		t.Run(test.name, func(t *testing.T) {
			run := func(program string) string {
				dir := t.TempDir()
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				const prologue = `
ready() { while ! test -S $sock; do sleep 0.01; done; }
mkfifo $fifo
`
				cmd := exec.CommandContext(ctx, "bash", "-c", prologue+test.script, program)
				cmd.Env = append(os.Environ(), "sock="+dir+"/sock", "flag="+dir+"/flag", "fifo="+dir+"/fifo", "uri=nbd+unix:///?socket="+dir+"/sock")
				cmd.WaitDelay = time.Second
				out, err := cmd.Output()
				if err != nil {
					t.Errorf("%s: %v", program, err)
				}
				return string(out)
			}
			if diff := cmp.Diff(run(nbdkit), run(ours)); diff != "" {
				t.Errorf("-nbdkit +ours:\n%s", diff)
			}
		})
	}
}
